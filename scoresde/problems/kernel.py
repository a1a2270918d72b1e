"""Shapes in the plane, as kernel densities over fixed points: each is a smoothed :class:`~scoresde.problems.Empirical`.

The points are laid out evenly by a formula, so a problem is the same on every machine. They are scaled to mean zero and,
averaged over the two axes, unit variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.problems.empirical import Empirical

__all__ = ["checkerboard", "pinwheel", "rings", "spirals", "swiss_roll"]


def _toy(x: Tensor, y: Tensor, std: float) -> Empirical:
    if not 0 <= std < 1:
        raise ValueError(f"got std={std}; expected 0 <= std < 1, because the whole shape has unit variance")
    points = torch.stack([x.flatten(), y.flatten()], 1)
    points = points - points.mean(0)
    return Empirical(points * ((1 - std**2) / points.var(0, correction=0).mean()).sqrt(), std)


def _middles(n: int) -> Tensor:
    """Return the midpoints of ``n`` equal parts of [0, 1]."""
    return (torch.arange(whole("points", n, 1), dtype=torch.float64) + 0.5) / n


def checkerboard(side: int = 4, points: int = 7, std: float = 0.08) -> Empirical:
    """Return the black squares of a ``side`` x ``side`` checkerboard, each a lattice of ``points`` x ``points``.

    Example:
        >>> len(checkerboard().data)  # 8 black squares of 49 points
        392
    """
    board = torch.arange(whole("side", side, 2))
    row, column = (board[:, None] + board).remainder(2).logical_not().nonzero().T.to(torch.float64)
    dy, dx = torch.cartesian_prod(_middles(points), _middles(points)).T
    return _toy(column[:, None] + dx, row[:, None] + dy, std)


def swiss_roll(points: int = 160, turns: float = 1.5, std: float = 0.07) -> Empirical:
    """Return a Swiss roll seen from its end: a band rolled up ``turns`` times around an empty core.

    Example:
        >>> swiss_roll().sample(4, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 2])
    """
    angle = 1.5 * math.pi + 2 * math.pi * turns * _middles(points)
    return _toy(angle * angle.cos(), angle * angle.sin(), std)


def spirals(points: int = 100, turns: float = 1.25, std: float = 0.06) -> Empirical:
    """Return two spiral arms of ``points`` each that wind about one another ``turns`` times.

    Example:
        >>> len(spirals(points=50).data)
        100
    """
    radius = _middles(points).sqrt()  # evenly along the arc, whose length grows like the square of the radius
    angle = 2 * math.pi * turns * radius
    x, y = radius * angle.cos(), radius * angle.sin()
    return _toy(torch.cat([x, -x]), torch.cat([y, -y]), std)


def pinwheel(arms: int = 5, points: int = 12, std: float = 0.08) -> Empirical:
    """Return a pinwheel with ``arms`` bent blades of ``points`` x ``points / 2`` that widen outwards from the hub.

    Example:
        >>> pinwheel().event, len(pinwheel().data)  # 5 arms of 12 x 6 points
        (torch.Size([2]), 360)
    """
    arms, points = whole("arms", arms, 1), whole("points", points, 2)
    radius, across = torch.cartesian_prod(0.25 + _middles(points), _middles(points // 2) - 0.5).T
    angle = 2 * math.pi * torch.arange(arms, dtype=torch.float64)[:, None] / arms + 0.5 * across - 1.2 * radius
    return _toy(radius * angle.cos(), radius * angle.sin(), std)


def rings(count: int = 3, points: int = 40, std: float = 0.06) -> Empirical:
    """Return ``count`` concentric circles, equally far apart and equally dense; the innermost has ``points``.

    Example:
        >>> len(rings().data)  # 40 + 80 + 120 points
        240
    """
    count, points = whole("count", count, 1), whole("points", points, 1)
    radius = torch.cat([torch.full((points * i,), float(i), dtype=torch.float64) for i in range(1, count + 1)])
    angle = 2 * math.pi * torch.cat([_middles(points * i) for i in range(1, count + 1)])
    return _toy(radius * angle.cos(), radius * angle.sin(), std)
