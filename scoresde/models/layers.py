"""What the networks share: layers that start silent, and how an embedding reaches a layer."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["modulate", "zero"]

M = TypeVar("M", bound=nn.Module)


def zero(module: M) -> M:
    """``module`` with all its parameters set to zero: a layer that starts by saying nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """(1 + scale) h + shift, by channel, for ``scale_shift`` of shape ``(batch, 2 channels)``."""
    scale_shift = scale_shift.reshape(*scale_shift.shape, *[1] * (h.ndim - 2))  # (batch, 2 channels, 1, ..)
    scale, shift = scale_shift.chunk(2, dim=1)  # (batch, channels, 1, ..) each
    return torch.addcmul(shift, h, 1 + scale)
