"""Kernels of blurs: Gaussian and motion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.base.numbers import whole

__all__ = ["gaussian_kernel", "motion_kernel"]


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """Return the kernel of a Gaussian blur, shape ``(size, size)``, float64, which sums to one.

    Args:
        std: the standard deviation in pixels.
        size: the width, an odd number; by default three standard deviations to both sides.

    Raises:
        ValueError: for a standard deviation that is not positive or an even size.

    Example:
        >>> gaussian_kernel(0.5, 3)[1].round(decimals=4)
        tensor([0.0838, 0.6193, 0.0838], dtype=torch.float64)
    """
    if not 0 < std < math.inf:
        raise ValueError(f"got std={std} for a Gaussian blur; expected a positive number of pixels")
    taps = torch.exp(-0.5 * (_axis(2 * math.ceil(3 * std) + 1 if size is None else size) / std) ** 2)
    return torch.outer(taps, taps) / taps.sum() ** 2


def motion_kernel(length: float, angle: float, size: int | None = None) -> Tensor:
    """Return the kernel of a motion along a line segment, shape ``(size, size)``, float64, which sums to one.

    The segment is sampled finely, and each point is shared among its four nearest pixels by bilinear weights.

    Args:
        length: of the segment, in pixels.
        angle: of the segment with the horizontal, counterclockwise, in degrees.
        size: the width, an odd number; by default the smallest that holds the segment.

    Raises:
        ValueError: for a length that is not positive, an even size, or one that does not hold the segment.

    Example:
        >>> motion_kernel(2.0, 0.0)[1]
        tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)
    """
    if not 0 < length < math.inf or not math.isfinite(angle):
        raise ValueError(f"got length={length}, angle={angle} for a motion blur; expected a positive length, and degrees")
    least = 2 * math.ceil(length / 2) + 1
    size = least if size is None else size
    axis = _axis(size)
    if size < least:
        raise ValueError(f"got size={size} for a motion of {length} pixels; expected an odd number of at least {least}")
    points = 64 * math.ceil(length)
    along = length * ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5)
    x, y = along * math.cos(math.radians(angle)), -along * math.sin(math.radians(angle))  # rows are counted downwards
    across = (1 - (axis[:, None] - x).abs()).clamp(min=0)  # (size, points)
    down = (1 - (axis[:, None] - y).abs()).clamp(min=0)
    kernel = down @ across.T
    return kernel / kernel.sum()


def _axis(size: int) -> Tensor:
    size = whole("size", size, 1)
    if size % 2 == 0:
        raise ValueError(f"got size={size} for a kernel; expected an odd number, so that it has a centre")
    return torch.arange(size, dtype=torch.float64) - size // 2
