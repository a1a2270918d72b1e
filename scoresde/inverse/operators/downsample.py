"""Super-resolution: an image of lower resolution is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.inverse.operators.base import constant, images
from scoresde.inverse.operators.separable import Separable

__all__ = ["Downsample"]


class Downsample(Separable):
    """The operator of super-resolution, which filters an image and keeps one pixel of each ``factor`` x ``factor``.

    Args:
        factor: how many times smaller the measured image is, in height and in width.
        event: the shape of one state, ``(.., height, width)``, both multiples of ``factor``.
        kernel: ``"average"``, the mean of each block; ``"bicubic"``, Keys' kernel with a = -0.5 stretched by ``factor``; or
            the taps of a filter along each axis, centred on the block, as many as ``factor`` plus an even number. The image
            is reflected at its boundary.

    Raises:
        ValueError: for a factor that does not divide the image, an unknown kernel, or taps of another number.

    Source of ``"bicubic"``: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981,
    https://doi.org/10.1109/TASSP.1981.1163711.

    Example:
        >>> A = Downsample(2, (1, 4, 4))
        >>> A(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """

    def __init__(self, factor: int, event: Sequence[int], kernel: Any = "average") -> None:
        factor, event = whole("factor", factor, 1), images(event)
        if event[-2] % factor or event[-1] % factor:
            raise ValueError(
                f"got factor={factor} for images of {event[-2]} x {event[-1]} pixels; expected a factor that divides both"
            )
        taps = _taps(kernel, factor)
        super().__init__(_matrix(taps, factor, event[-2]), _matrix(taps, factor, event[-1]), event)
        self.factor = factor


def _taps(kernel: Any, factor: int) -> Tensor:
    if isinstance(kernel, str):
        if kernel == "average":
            return torch.full((factor,), 1 / factor, dtype=torch.float64)
        if kernel == "bicubic":
            at = (torch.arange(4 * factor, dtype=torch.float64) + 0.5) / factor - 2
            taps = _cubic(at.abs())
            return taps / taps.sum()
        raise ValueError(f"got kernel={kernel!r}; expected 'average', 'bicubic', or the taps of a filter")
    taps = constant(kernel, "a kernel")
    if taps.ndim != 1 or len(taps) < factor or (len(taps) - factor) % 2:
        raise ValueError(
            f"got a kernel of shape {tuple(taps.shape)} for factor={factor}; expected one dimension of {factor}, "
            f"{factor + 2}, {factor + 4}.. taps, centred on each block"
        )
    return taps


def _cubic(x: Tensor) -> Tensor:
    a = -0.5
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _matrix(taps: Tensor, factor: int, size: int) -> Tensor:
    """Return the matrix of the filter and the stride along an axis, shape ``(size / factor, size)``."""
    made, margin = torch.zeros(size // factor, size, dtype=torch.float64), (len(taps) - factor) // 2
    for i, j in ((i, j) for i in range(size // factor) for j in range(len(taps))):
        at = (i * factor - margin + j) % (2 * size)  # reflected about the edges of the border pixels, with period 2 size
        made[i, min(at, 2 * size - 1 - at)] += taps[j]
    return made
