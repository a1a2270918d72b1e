"""Cameras around the origin, and the rays through their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole

__all__ = ["Cameras"]


@dataclass(frozen=True, eq=False)
class Cameras:
    r"""Cameras that look at the origin from the direction of an azimuth a and an elevation e, with the z axis upwards:

    .. math:: d = (\cos e \cos a,\; \cos e \sin a,\; \sin e), \qquad
              up = \partial d / \partial e, \qquad right = up \times d .

    Args:
        azimuth: a, in degrees, a number for each camera; from 0, the x axis, towards 90, the y axis.
        elevation: e, in degrees, one for each camera or one for all; 90 looks down from the z axis.
        distance: the distance of a perspective camera from the origin. ``None`` is a camera with parallel rays.
        width: the side of the square that is seen in the plane through the origin.

    Raises:
        ValueError: for no cameras, angles that are not finite or of different numbers, a width that is not positive, and a
            distance that is not above :math:`\sqrt 3`, outside the cube [-1, 1]^3.

    Example:
        >>> sides = Cameras([0, 90, 0], [0, 0, 90])  # along the x, the y and the z axis
        >>> sides.directions.round().abs()
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """

    azimuth: Sequence[float] | Tensor
    elevation: float | Sequence[float] | Tensor = 0.0
    distance: float | None = None
    width: float = 2.0

    def __post_init__(self) -> None:
        a, e = _angles("azimuth", self.azimuth), _angles("elevation", self.elevation)
        if len(e) not in (1, len(a)):
            raise ValueError(f"got {len(a)} azimuths and {len(e)} elevations; expected one of each for every camera")
        object.__setattr__(self, "azimuth", a)
        object.__setattr__(self, "elevation", e.expand(len(a)))
        if not 0 < self.width < math.inf:
            raise ValueError(f"got width={self.width}; expected a positive number, 2 for the cube [-1, 1]^3")
        if self.distance is not None and not math.sqrt(3) < self.distance < math.inf:
            raise ValueError(
                f"got distance={self.distance}, inside the sphere around the cube [-1, 1]^3; expected more than 1.74, or "
                "None for parallel rays"
            )

    @classmethod
    def random(
        cls,
        n: int,
        generator: torch.Generator,
        *,
        elevation: tuple[float, float] = (-10.0, 45.0),
        distance: float | None = None,
        width: float = 2.0,
    ) -> Cameras:
        """Return ``n`` cameras with azimuths uniform on the circle and elevations uniform between two angles in degrees.

        Args:
            n: the number of cameras, at least 1.
            generator: the source of the random numbers.
            elevation: the lowest and the highest elevation.
            distance, width: as in :class:`Cameras`.

        Example:
            >>> len(Cameras.random(4, torch.Generator().manual_seed(0)))
            4
        """
        u = torch.rand(2, whole("n", n, 1), generator=generator, device=generator.device, dtype=torch.float64).cpu()
        low, high = elevation
        return cls(360 * u[0], low + (high - low) * u[1], distance, width)

    def __len__(self) -> int:
        return len(self.azimuth)

    def _trigonometry(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, e = (torch.as_tensor(angle, dtype=torch.float64).deg2rad() for angle in (self.azimuth, self.elevation))
        return a.cos(), a.sin(), e.cos(), e.sin()

    @property
    def directions(self) -> Tensor:
        """The unit vectors from the origin to the cameras, shape ``(n, 3)``, float64."""
        ca, sa, ce, se = self._trigonometry()
        return torch.stack([ce * ca, ce * sa, se], 1)

    @property
    def up(self) -> Tensor:
        """The unit vectors upwards in the images, shape ``(n, 3)``, float64."""
        ca, sa, ce, se = self._trigonometry()
        return torch.stack([-se * ca, -se * sa, ce], 1)

    @property
    def right(self) -> Tensor:
        """The unit vectors to the right in the images, shape ``(n, 3)``, float64."""
        right: Tensor = torch.linalg.cross(self.up, self.directions)
        return right

    def rays(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the rays through the centres of ``size x size`` pixels, the upper left one first.

        Returns:
            For each ray its point in the plane through the origin that faces the camera, and its unit direction away from
            the camera; both of shape ``(n, size * size, 3)``, float64.

        Example:
            >>> points, along = Cameras([0.0]).rays(2)
            >>> points[0, 0]  # upper left, seen from the x axis
            tensor([ 0.0000, -0.5000,  0.5000], dtype=torch.float64)
        """
        size = whole("size", size, 1)
        across = self.width * ((torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5)
        down, right = torch.meshgrid(-across, across, indexing="ij")
        d = self.directions[:, None]
        points = right.reshape(-1, 1) * self.right[:, None] + down.reshape(-1, 1) * self.up[:, None]
        if self.distance is None:
            return points, (-d).expand_as(points)
        along = points - self.distance * d
        return points, along / along.norm(dim=-1, keepdim=True)


def _angles(name: str, value: Any) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().reshape(-1)
    if not len(found) or not bool(torch.isfinite(found).all()):
        raise ValueError(f"got {name}={value!r}; expected finite angles in degrees, one for each camera")
    return found
