"""Broadcasting and validation helpers: one of each, used everywhere."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from scoresde.base.numbers import is_whole

__all__ = ["as_time", "centred", "check_batch", "check_points", "check_shape", "expand", "present"]


def as_time(t: Tensor | float, device: torch.device | None = None) -> Tensor:
    """``t`` as a tensor; a Python number becomes a float64 scalar, which never promotes float32 data."""
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device=device)


def expand(t: Tensor | float, x: Tensor) -> Tensor:
    """Reshape ``t`` of shape ``()`` or ``(batch,)`` so that it broadcasts against ``x`` of shape ``(batch, *event)``.

    Raises:
        ValueError: if ``t`` has neither zero nor one dimension, or another batch size than ``x``.
    """
    t = as_time(t)
    if t.ndim == 0:
        return t
    if t.ndim != 1 or (x.ndim and t.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"got t of shape {tuple(t.shape)} for x of shape {tuple(x.shape)}; expected one time, shape (), "
            f"or one per sample, shape ({x.shape[0] if x.ndim else 'batch'},)"
        )
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def check_shape(shape: object, hint: str = "write scalars as (batch, 1)") -> tuple[int, ...]:
    """Return the shape ``(batch, *event)`` of samples to draw as a tuple of integers.

    Raises:
        ValueError: for what is not made of positive whole numbers, at least two of them; the message ends with ``hint``.
    """
    given = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    found = tuple(operator.index(n) for n in given if is_whole(n))
    if len(found) < max(2, len(given)) or min(found) < 1:
        raise ValueError(
            f"got shape {shape if isinstance(shape, str) or given == (shape,) else given}; expected (batch, *event) of "
            f"positive whole numbers with at least one event dimension: {hint}"
        )
    return found


def check_batch(x: Tensor) -> Tensor:
    """Return ``x`` if it has the shape ``(batch, *event)`` with at least one event dimension."""
    if x.ndim < 2:
        raise ValueError(
            f"got x of shape {tuple(x.shape)}; expected (batch, *event) with at least one event dimension: "
            "write scalars as (batch, 1)"
        )
    if x.dtype == torch.uint8:
        raise ValueError("got x of dtype torch.uint8; expected floats, images scaled to [-1, 1]: use x / 127.5 - 1")
    if not x.is_floating_point():
        raise ValueError(f"got x of dtype {x.dtype}; expected a floating point tensor: use x.float()")
    return x


# Point sets: rows of positions and features, padded to one length ---------------------------------------------------------


def present(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return which rows of ``x``, shape ``(batch, points, columns)``, are points: ``mask``, or all rows without one.

    Args:
        x: the point sets.
        mask: booleans of shape ``(batch, points)``, false for rows of padding.

    Raises:
        ValueError: for a mask of another shape or dtype and, on the CPU, for a sample of fewer than two points.

    Example:
        >>> present(torch.zeros(2, 3, 4), None).sum(1)
        tensor([3, 3])
    """
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        told = f"shape {tuple(mask.shape)} and dtype {mask.dtype}" if isinstance(mask, Tensor) else f"type {type(mask)}"
        raise ValueError(
            f"got a mask of {told} for point sets of shape {tuple(x.shape)}; expected booleans of shape "
            f"{tuple(x.shape[:2])}, true for the points and false for padding: mask=counts[:, None] > torch.arange(points)"
        )
    if mask.device.type == "cpu" and len(mask) and int(fewest := mask.sum(1).min()) < 2:
        raise ValueError(
            f"got a point set of {int(fewest)} point{'s' * (int(fewest) != 1)}; expected at least two in each sample, "
            "because one point has only its centre of mass: leave such samples out"
        )
    return mask


def check_points(x: Tensor, dims: int, features: int | None = None) -> Tensor:
    """Return ``x`` after a check that it has the shape ``(batch, points, dims + features)``.

    Args:
        x: the point sets.
        dims: the number of coordinates of a position.
        features: the number of further columns; ``None`` for any number.

    Raises:
        ValueError: for another shape, or fewer than two points.

    Example:
        >>> check_points(torch.zeros(2, 5, 3), dims=3).shape
        torch.Size([2, 5, 3])
    """
    columns = "at least" if features is None else "exactly"
    least = dims + (features or 0)
    fits = x.ndim == 3 and (x.shape[2] >= least if features is None else x.shape[2] == least)
    if not fits or x.shape[1] < 2:
        raise ValueError(
            f"got point sets of shape {tuple(x.shape)}; expected (batch, points, columns) with two points or more and "
            f"{columns} {least} columns, of which the first {dims} are the position"
        )
    return x


def centred(x: Tensor, dims: int, mask: Tensor | None = None) -> Tensor:
    r"""Project point sets onto the subspace of zero centre of mass, with zeros in the rows of padding.

    This is the orthogonal projection :math:`x_i \mapsto x_i - \frac1M \sum_j x_j` of the positions of the M points, and
    the identity on their features.

    Args:
        x: shape ``(batch, points, dims + features)``.
        dims: the number of coordinates of a position, in the first columns.
        mask: the points, checked by :func:`present`; by default all rows are points.

    Example:
        >>> centred(torch.tensor([[[0.0, 7.0], [2.0, 8.0]]]), dims=1)
        tensor([[[-1.,  7.],
                 [ 1.,  8.]]])
    """
    kept = torch.ones_like(x[..., :1]) if mask is None else mask[:, :, None].to(x.dtype)  # (batch, points, 1)
    x = x * kept
    mean = x[..., :dims].sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)  # (batch, 1, dims)
    return torch.cat([x[..., :dims] - mean * kept, x[..., dims:]], dim=2)
