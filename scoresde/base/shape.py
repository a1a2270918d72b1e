"""Broadcasting and validation helpers: one of each, used everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_time", "check_batch", "expand"]


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
