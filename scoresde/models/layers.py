"""Parts that the networks share: sizes, layers initialised to zero, modulation by an embedding, the check of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["check_mask", "modulate", "widths", "zero"]

M = TypeVar("M", bound=nn.Module)


def widths(width: int, multipliers: Sequence[float]) -> list[int]:
    """Return the number of channels of each level, ``width`` times its multiplier; a part of a channel is left out.

    Example:
        >>> widths(56, [1, 1.5, 488 / 56])  # whose product in floating point is just below 488
        [56, 84, 488]
    """
    return [int(round(m * width, 6)) for m in multipliers]


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


def check_mask(mask: Tensor | None, context: Tensor | None) -> None:
    """Refuse a mask that does not say of each token of ``context`` whether it is attended to.

    Args:
        mask: booleans or whole numbers, shape ``(batch, tokens)``; ``None`` is accepted.
        context: the sequences, shape ``(batch, tokens, features)``.

    Raises:
        ValueError: for another shape or dtype, and for a mask without a context.
    """
    if mask is None:
        return
    if context is None:
        raise ValueError("got a context_mask without a context; expected both: pass context=.. as well")
    if mask.is_floating_point() or mask.is_complex() or mask.shape != context.shape[:2]:
        raise ValueError(
            f"got a context_mask of shape {tuple(mask.shape)} and dtype {mask.dtype}; expected booleans of shape "
            f"{tuple(context.shape[:2])}, true for the tokens that are attended to"
        )
