r"""A radiance field on a grid: density and colour in the cube [-1, 1]^3, rendered by emission and absorption.

Along a ray :math:`r(s)` with the density :math:`\rho` and the colour c, in front of a background b, the image is

.. math:: C = \int T(s)\, \rho(r(s))\, c(r(s))\, ds + T(\infty)\, b, \qquad
          T(s) = \exp \Big( -\int_{-\infty}^{s} \rho(r(u))\, du \Big).

The integral is a sum over samples of spacing h, each of constant density and colour, which is exact for these:
:math:`\sum_i T_i (1 - e^{-\rho_i h}) c_i + T_N b`. Source: Max, "Optical Models for Direct Volume Rendering", 1995,
https://doi.org/10.1109/2945.468400; Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View
Synthesis", 2020, https://arxiv.org/abs/2003.08934.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.base.numbers import whole
from scoresde.systems.scenes.cameras import Cameras

__all__ = ["Volume", "composite", "line_integrals", "samples_along"]


def samples_along(values: Tensor, cameras: Cameras, size: int, *, outside: str = "zeros") -> tuple[Tensor, float]:
    r"""Return the values of grids at the samples along the rays of cameras, by trilinear interpolation.

    The samples are the width of a cell apart, and cover the sphere around the cube. Seen along an axis by parallel rays, as
    many as there are cells over the width 2, they are the centres of the cells.

    Args:
        values: shape ``(channels, size_x, size_y, size_z)``, with a cube's three sizes all equal.
        cameras: the cameras.
        size: the number of pixels along each side of an image.
        outside: the values outside of the cube, ``"zeros"``, or ``"border"`` for those of the outermost cells.

    Returns:
        The values, shape ``(cameras, channels, size, size, samples)`` from the front to the back, and their spacing h.

    Raises:
        ValueError: for grids of another shape, and another name of values outside.

    Example:
        >>> found, h = samples_along(torch.ones(1, 2, 2, 2), Cameras([0.0]), 2)
        >>> found.sum(-1) * h  # the length of the rays in the cube
        tensor([[[[2., 2.],
                  [2., 2.]]]])
    """
    n = values.shape[-1] if values.ndim == 4 else 0
    if not n or tuple(values.shape[1:]) != (n, n, n):
        raise ValueError(f"got values of shape {tuple(values.shape)}; expected (channels, n, n, n), a grid on a cube")
    if outside not in ("zeros", "border"):
        raise ValueError(f"got outside={outside!r}; expected 'zeros' or 'border'")
    size, h = whole("size", size, 1), 2.0 / n
    half = 1 + h * math.ceil((math.sqrt(3) - 1) / h)
    s = h * (torch.arange(round(2 * half / h), dtype=torch.float64) + 0.5) - half
    points, along = cameras.rays(size)
    if cameras.distance is not None:  # from the point nearest to the origin, so that the sphere is covered
        points = points - (points * along).sum(-1, keepdim=True) * along
    where = points[:, :, None] + s[:, None] * along[:, :, None]  # (cameras, pixels, samples, 3)
    # grid_sample names the last axis of a grid first: z of the points is the last axis of the values.
    where = where.flip(-1).reshape(1, len(cameras), size * size, len(s), 3).to(values)
    found = F.grid_sample(values[None], where, padding_mode=outside, align_corners=False)[
        0
    ]  # (channels, cameras, pixels, samples)
    return found.reshape(len(values), len(cameras), size, size, len(s)).transpose(0, 1), h


def line_integrals(values: Tensor, cameras: Cameras, size: int) -> Tensor:
    """Return the integrals of grids along the rays of cameras, a linear renderer: tomography.

    Args:
        values, cameras, size: as in :func:`samples_along`.

    Returns:
        Images, shape ``(cameras, channels, size, size)``.

    Example:
        >>> line_integrals(torch.ones(1, 4, 4, 4), Cameras([0, 90], [0, 0]), 1).flatten()
        tensor([2., 2.])
    """
    found, h = samples_along(values, cameras, size)
    return found.sum(-1) * h


def composite(density: Tensor, colour: Tensor | float, background: float, h: float) -> Tensor:
    """Return the colour that is seen along rays by emission and absorption: see the module.

    Args:
        density: shape ``(.., samples)``, not negative, from the front to the back.
        colour: of the shape of the density, or broadcast against it; a number for one colour everywhere.
        background: the colour behind.
        h: the spacing of the samples.

    Returns:
        Shape ``(..)``.

    Example:
        >>> composite(torch.tensor([0.0, 1.0, 1.0]), 1.0, 0.0, 0.5)  # 1 - exp(-1)
        tensor(0.6321)
    """
    depth = (density * h).cumsum(-1)
    behind = torch.exp(-depth)
    if not isinstance(colour, Tensor):
        return colour + (background - colour) * behind[..., -1]
    before = torch.cat([torch.ones_like(behind[..., :1]), behind[..., :-1]], -1)
    return (before * -torch.expm1(-density * h) * colour).sum(-1) + background * behind[..., -1]


class Volume(nn.Module):
    r"""A radiance field on a grid of ``size`` cells along each side of the cube [-1, 1]^3.

    The density of a cell is ``softplus(density)``, and its colour ``tanh(colour)``, between -1 and 1 as in images.

    Args:
        size: the number of cells along each side.
        channels: the number of channels of the images.
        coloured: whether cells have colours. If not, all are of the colour 1, and a ray that passes the optical depth
            :math:`\tau` is seen as :math:`1 + (b - 1) e^{-\tau}`.
        background: b, the colour behind the scene.
        start: the initial density of each cell.

    Raises:
        ValueError: for sizes below 1, and a start that is not positive.

    Example:
        >>> volume = Volume(4)
        >>> volume(Cameras([0.0, 30.0]), 8).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        *,
        coloured: bool = False,
        background: float = -1.0,
        start: float = 0.5,
    ) -> None:
        super().__init__()
        size, channels = whole("size", size, 1), whole("channels", channels, 1)
        if not 0 < start < math.inf:
            raise ValueError(f"got start={start}; expected a positive density")
        if not math.isfinite(background):
            raise ValueError(f"got background={background}; expected a finite colour, from -1 to 1 as in images")
        self.channels, self.background = channels, float(background)
        self.density = nn.Parameter(torch.full((size, size, size), start + math.log(-math.expm1(-start))))
        self.colour = nn.Parameter(torch.zeros(channels, size, size, size)) if coloured else None

    def forward(self, cameras: Cameras, size: int) -> Tensor:
        """Return what the cameras see, shape ``(cameras, channels, size, size)``, the upper row first.

        Args:
            cameras: the cameras.
            size: the number of pixels along each side of an image.
        """
        density = F.softplus(self.density)[None]
        found, h = samples_along(density, cameras, size)
        if self.colour is None:
            return composite(found, 1.0, self.background, h).expand(-1, self.channels, -1, -1)
        colour, _ = samples_along(
            self.colour.tanh(), cameras, size, outside="border"
        )  # the density alone fades at the faces
        return composite(found, colour, self.background, h)
