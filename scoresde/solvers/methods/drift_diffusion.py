r"""Integrators for SDEs without closed-form marginals: :math:`dx = b(x,t)\,dt + c(x,t)\,d\bar w` with any b and c."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from scoresde.solvers.drivers import State
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Point
from scoresde.solvers.solver import Dynamics

__all__ = ["euler_maruyama", "heun", "point_at"]


def point_at(t: float) -> Point:
    """Return a point of which only the time is known."""
    return Point(t, *([math.nan] * 5))


def euler_maruyama(dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
    r"""Integrate by the Ito scheme :math:`x_v = x + b(x, u) (v - u) + c(x, u) \sqrt{|v - u|}\, \xi` (Maruyama, 1955)."""
    for i, (u, v) in enumerate(itertools.pairwise(times)):
        t = torch.tensor(u, dtype=torch.float64)
        y = x + (v - u) * dynamics.drift(x, t)
        if dynamics.eta:
            xi = noise(point_at(u), point_at(v), torch.empty_like(x))
            y = y + math.sqrt(abs(v - u)) * dynamics.diffusion(x, t) * xi
        x = y
        yield State(i + 1, point_at(v), x)


def heun(dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
    """Integrate by Heun's scheme, of order 2 for the probability flow; with noise it is the Stratonovich scheme."""

    def slope(y: Tensor, t: Tensor) -> Tensor:
        return dynamics.drift(y, t) + dynamics.ito_to_stratonovich(y, t)

    for i, (u, v) in enumerate(itertools.pairwise(times)):
        t, s = torch.tensor(u, dtype=torch.float64), torch.tensor(v, dtype=torch.float64)
        h, b_t = v - u, slope(x, t)
        y = x + h * b_t
        if dynamics.eta:
            xi = math.sqrt(abs(h)) * noise(point_at(u), point_at(v), torch.empty_like(x))
            c_t = dynamics.diffusion(x, t) * xi
            y = y + c_t
            x = x + 0.5 * h * (b_t + slope(y, s)) + 0.5 * (c_t + dynamics.diffusion(y, s) * xi)
        else:
            x = x + 0.5 * h * (b_t + slope(y, s))
        yield State(i + 1, point_at(v), x)
