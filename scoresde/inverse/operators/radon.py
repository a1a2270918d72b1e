"""Computed tomography: projections of an image along few directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.base.numbers import is_whole, whole
from scoresde.inverse.operators.base import Operator, images

__all__ = ["Radon"]


class Radon(Operator):
    r"""The operator of parallel-beam tomography, integrals of an image over strips along each of some directions.

    The image is constant on each pixel, a unit square. With x to the right and y upwards from its centre, detector k at the
    angle theta measures the integral over the strip :math:`|x \cos\theta + y \sin\theta - k| \le 1/2`, exactly. At every
    angle the projection has the sum of the image.

    Args:
        angles: in degrees, or their number, spread evenly over the half circle from 0.
        event: the shape of one state, ``(.., height, width)``.

    A measurement has shape ``(.., angles, detectors)``, with as many detectors as the diagonal of the image is long.

    Raises:
        ValueError: for no angles, or angles that are not finite.

    Source: Long, Fessler and Balter, "3D Forward and Back-Projection for X-Ray CT Using Separable Footprints", 2010,
    https://doi.org/10.1109/TMI.2010.2050898, whose footprint of a square pixel is exact in two dimensions.

    Example:
        >>> A = Radon([0.0, 90.0], (3, 3))
        >>> A(torch.arange(9.0).reshape(1, 3, 3))  # sums of columns, then of rows from below
        tensor([[[ 0.,  9., 12., 15.,  0.],
                 [ 0., 21., 12.,  3.,  0.]]])
    """

    def __init__(self, angles: int | Sequence[float], event: Sequence[int]) -> None:
        event = images(event)
        if is_whole(angles):
            count = whole("angles", angles, 1)
            angles = [180 * i / count for i in range(count)]
        with torch.inference_mode(False):
            theta = torch.as_tensor(angles, dtype=torch.float64, device="cpu").detach().flatten().deg2rad()
        if not len(theta) or not bool(torch.isfinite(theta).all()):
            raise ValueError(f"got angles={angles!r}; expected a whole number of at least 1, or finite angles in degrees")
        height, width = event[-2:]
        reach = math.ceil(math.hypot(height, width) / 2 - 0.5)
        super().__init__(event, (*event[:-2], len(theta), 2 * reach + 1))
        y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64)).repeat_interleave(width)
        x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2).repeat(height)
        s = torch.outer(theta.cos(), x) + torch.outer(theta.sin(), y)  # (angles, pixels)
        # The shadow of a pixel is at most sqrt(2) wide: it falls on the nearest detector and its two neighbours.
        near = s.round()[:, None] + torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None]
        edges = torch.stack([near - s[:, None] - 0.5, near - s[:, None] + 0.5])
        below = _shadow(edges, theta.cos().abs()[:, None, None], theta.sin().abs()[:, None, None])
        self.detector, self.share = (near + reach).clamp(0, 2 * reach).long(), below[1] - below[0]  # (angles, 3, pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projections, shape ``(batch, .., angles, detectors)``."""
        detector, share = self._like("detector", x), self._like("share", x)
        pixels = self.check_x(x).flatten(-2).to(share.dtype)
        dark = torch.zeros(*pixels.shape[:-1], self.measured[-1], dtype=share.dtype, device=x.device)
        made = []
        for at, weights in zip(detector, share, strict=True):
            row = dark
            for i, weight in zip(at, weights, strict=True):
                row = row.index_add(-1, i, weight * pixels)
            made.append(row)
        return torch.stack(made, -2).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the back-projection, the share of every pixel in what the detectors measured; ``(batch, *event)``."""
        detector, share = self._like("detector", y), self._like("share", y)
        rows = self.check_y(y).to(share.dtype).unbind(-2)
        back = [(weights * row[..., at]).sum(-2) for row, at, weights in zip(rows, detector, share, strict=True)]
        return torch.stack(back).sum(0).reshape(len(y), *self.event).to(y.dtype)


def _shadow(u: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the share below ``u`` of the shadow of a unit square, the convolution of boxes of widths cos and sin."""
    wide, narrow = torch.maximum(cos, sin), torch.minimum(cos, sin)

    def ramp(v: Tensor) -> Tensor:
        return v.clamp(min=0) ** 2 / 2

    outer, inner = (wide + narrow) / 2, (wide - narrow) / 2
    trapezoid = (ramp(u + outer) - ramp(u + inner) - ramp(u - inner) + ramp(u - outer)) / (wide * narrow)
    box = (u / wide + 0.5).clamp(0, 1)  # where the division cancels
    return torch.where(narrow > 1e-5, trapezoid, box)
