"""Parts that the networks share: layers initialised to zero, and the modulation of features by an embedding."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["modulate", "zero"]

M = TypeVar("M", bound=nn.Module)


def zero(module: M) -> M:
    """Set all parameters of ``module`` to zero and return it, so that the layer has no effect at initialisation."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """Return (1 + scale) h + shift, by channel, for ``scale_shift`` of shape ``(batch, 2 channels)``."""
    scale_shift = scale_shift.reshape(*scale_shift.shape, *[1] * (h.ndim - 2))  # (batch, 2 channels, 1, ..)
    scale, shift = scale_shift.chunk(2, dim=1)  # (batch, channels, 1, ..) each
    return torch.addcmul(shift, h, 1 + scale)
