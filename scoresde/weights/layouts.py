"""How the code bases lay tensors out, as functions from their tensors to the one here."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "by_channel",
    "by_head",
    "early_label",
    "flat",
    "joined",
    "same",
    "swapped",
    "transposed",
    "transposed_conv",
    "transposed_joined",
]


def same(*t: Tensor) -> Tensor:
    """The tensor as it is."""
    return t[0]


def flat(*t: Tensor) -> Tensor:
    """1x1 convolutions, of any number of axes, as a matrix; several are stacked."""
    return torch.cat([w.flatten(1) if w.ndim > 1 else w for w in t])


def transposed(*t: Tensor) -> Tensor:
    """Matrices (inputs, outputs), stacked by outputs."""
    return torch.cat([w.t() if w.ndim > 1 else w for w in t])


def transposed_conv(*t: Tensor) -> Tensor:
    """A matrix (inputs, outputs) as a 1x1 convolution."""
    return t[0].t()[:, :, None, None] if t[0].ndim > 1 else t[0]


def by_head(heads: int) -> Callable[..., Tensor]:
    """Rows ordered (head, q k v, channel) to (q k v, head, channel)."""
    return lambda w: flat(w).reshape(heads, 3, -1, *w.shape[1:2]).transpose(0, 1).flatten(0, 2)


def by_channel(heads: int) -> Callable[..., Tensor]:
    """Rows ordered (head, channel, q k v) to (q k v, head, channel)."""
    return lambda w: flat(w).reshape(heads, -1, 3, *w.shape[1:2]).movedim(2, 0).flatten(0, 2)


def joined(heads: int) -> Callable[..., Tensor]:
    """Rows ordered (q k v, head, channel), in one matrix or in three."""
    return flat


def transposed_joined(heads: int) -> Callable[..., Tensor]:
    """Columns ordered (q k v, head, channel), in one matrix or in three."""
    return transposed


def swapped(w: Tensor, dim: int) -> Tensor:
    """The halves along ``dim`` exchanged: from (sines, cosines) to (cosines, sines)."""
    return w.roll(w.shape[dim] // 2, dim)


def early_label(weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of sqrt(n) times the indicator of the label as a table, whose last row stands for no label."""
    return torch.cat([weight.t() * math.sqrt(weight.shape[1]) + bias, bias[None]])
