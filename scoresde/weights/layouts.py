"""Layouts of published tensors: functions that convert them to a tensor of the networks here."""

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
    """Return the tensor unchanged.

    Example:
        >>> same(torch.tensor([1]))
        tensor([1])
    """
    return t[0]


def flat(*t: Tensor) -> Tensor:
    """Convert 1x1 convolutions with any number of axes to one matrix; several are stacked.

    Example:
        >>> flat(torch.ones(2, 3, 1, 1), torch.ones(2, 3, 1)).shape
        torch.Size([4, 3])
    """
    return torch.cat([w.flatten(1) if w.ndim > 1 else w for w in t])


def transposed(*t: Tensor) -> Tensor:
    """Transpose matrices (inputs, outputs) and stack them by outputs.

    Example:
        >>> transposed(torch.ones(2, 3), torch.ones(2, 1)).shape
        torch.Size([4, 2])
    """
    return torch.cat([w.t() if w.ndim > 1 else w for w in t])


def transposed_conv(*t: Tensor) -> Tensor:
    """Convert a matrix (inputs, outputs) to a 1x1 convolution.

    Example:
        >>> transposed_conv(torch.ones(2, 3)).shape
        torch.Size([3, 2, 1, 1])
    """
    return t[0].t()[:, :, None, None] if t[0].ndim > 1 else t[0]


def by_head(heads: int) -> Callable[..., Tensor]:
    """Return the layout that reorders rows from (head, q k v, channel) to (q k v, head, channel).

    Example:
        >>> by_head(2)(torch.arange(6))
        tensor([0, 3, 1, 4, 2, 5])
    """
    return lambda w: flat(w).reshape(heads, 3, -1, *w.shape[1:2]).transpose(0, 1).flatten(0, 2)


def by_channel(heads: int) -> Callable[..., Tensor]:
    """Return the layout that reorders rows from (head, channel, q k v) to (q k v, head, channel).

    Example:
        >>> by_channel(1)(torch.arange(6))
        tensor([0, 3, 1, 4, 2, 5])
    """
    return lambda w: flat(w).reshape(heads, -1, 3, *w.shape[1:2]).movedim(2, 0).flatten(0, 2)


def joined(heads: int) -> Callable[..., Tensor]:
    """Return the layout for rows in the order (q k v, head, channel), in one matrix or in three.

    Example:
        >>> joined(1)(torch.tensor([1]), torch.tensor([2]), torch.tensor([3]))
        tensor([1, 2, 3])
    """
    return flat


def transposed_joined(heads: int) -> Callable[..., Tensor]:
    """Return the layout for columns in the order (q k v, head, channel), in one matrix or in three.

    Example:
        >>> transposed_joined(1)(torch.tensor([[1, 2, 3]])).flatten()
        tensor([1, 2, 3])
    """
    return transposed


def swapped(w: Tensor, dim: int) -> Tensor:
    """Exchange the halves along ``dim``: (sines, cosines) become (cosines, sines).

    Example:
        >>> swapped(torch.arange(4), 0)
        tensor([2, 3, 0, 1])
    """
    return w.roll(w.shape[dim] // 2, dim)


def early_label(weight: Tensor, bias: Tensor) -> Tensor:
    """Convert a linear layer of sqrt(n) times the one-hot label to an embedding table whose last row is for no label.

    Example:
        >>> early_label(torch.eye(4), torch.zeros(4))[3:]
        tensor([[0., 0., 0., 2.],
                [0., 0., 0., 0.]])
    """
    return torch.cat([weight.t() * math.sqrt(weight.shape[1]) + bias, bias[None]])
