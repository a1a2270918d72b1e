"""The first step of every distance: check the two samples, flatten them, and convert them to float64."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.base.shape import check_batch

__all__ = ["check_pair", "rows_at_once"]

CHUNK = 2**22  # numbers of a temporary matrix: 32 MiB in float64


def check_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both samples as float64 matrices ``(n, d)`` and ``(m, d)``."""
    if check_batch(x).shape[1:] != check_batch(y).shape[1:] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"got samples of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, *event) and (m, *event) with "
            "the same event and at least two samples each"
        )
    return x.flatten(1).to(torch.float64), y.flatten(1).to(torch.float64)


def rows_at_once(columns: int) -> int:
    """Return the number of rows of a temporary matrix that fit in the memory allowed for it."""
    return max(1, CHUNK // columns)
