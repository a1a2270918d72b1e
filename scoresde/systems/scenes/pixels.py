"""The renderer of images that are their own parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.base.shape import check_batch

__all__ = ["Pixels"]


class Pixels(nn.Module):
    """Images as their own parameters, a renderer for :func:`distill`.

    Args:
        start: the images to start from, shape ``(batch, *event)``; they are copied.

    Raises:
        ValueError: for a start of another shape.

    Example:
        >>> Pixels(torch.zeros(2, 1, 8, 8))().shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(check_batch(start).detach().clone())

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        """Return the images, shape ``(batch, *event)``."""
        return self.x
