r"""Invertible methods: the flow in steps that can be undone exactly, at any number of them.

Both make DDIM steps. A step from u to v is

.. math:: \mathrm{ddim}(x, \epsilon, u, v) = \frac{\alpha_v}{\alpha_u} x
          + \Big( \sigma_v - \frac{\alpha_v}{\alpha_u} \sigma_u \Big)\, \epsilon .

Each method carries a second state, so that every evaluation of the model is at a state which is known in both directions.
The round trip of data to latents and back is then exact up to rounding. That says nothing about the error of the latents
themselves, which falls with the steps as that of any method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from torch import Tensor

from scoresde.solvers.path import Point

__all__ = ["Bidirectional", "Coupled", "Invertible", "Pair"]

Eps = Callable[[Tensor, Point], Tensor]
"""``eps(x, u)``: the noise prediction at the point u, shape of ``x``."""


class Pair(NamedTuple):
    """The two states of an invertible method, of one shape; ``partner`` is ``None`` before the first step of a new run.

    Example:
        >>> import torch
        >>> start = Pair(torch.zeros(2, 3))
        >>> start.x.shape, start.partner is None
        (torch.Size([2, 3]), True)
    """

    x: Tensor
    partner: Tensor | None = None


class Invertible(ABC):
    """Interface of the invertible methods, which :func:`scoresde.sampling.encode` and ``decode`` take in place of a solver.

    Attributes:
        name: the name in results and errors.
    """

    name: ClassVar[str]

    @abstractmethod
    def up(self, eps: Eps, points: Sequence[Point], start: Pair) -> Iterator[Pair]:
        """Yield the states at ``points[1:]``, which rise from data to noise."""

    @abstractmethod
    def down(self, eps: Eps, points: Sequence[Point], start: Pair) -> Iterator[Pair]:
        """Yield the states at ``points[1:]``, which fall from noise to data."""


def _ddim(x: Tensor, eps: Tensor, u: Point, v: Point) -> Tensor:
    a = v.alpha / u.alpha
    return a * x + (v.sigma - a * u.sigma) * eps


@dataclass(frozen=True)
class Coupled(Invertible):
    r"""EDICT, exact diffusion inversion by coupled transformations: two states that denoise each other.

    With :math:`\epsilon_u` the noise prediction at u, a step from u to v is

    .. math:: x' &= \mathrm{ddim}(x, \epsilon_u(y)), & y' &= \mathrm{ddim}(y, \epsilon_u(x')), \\
              x_v &= p\, x' + (1 - p)\, y', & y_v &= p\, y' + (1 - p)\, x_v ,

    and each line can be solved for what it changes. Two evaluations a step. On the way up the difference of both states
    grows by about :math:`p^{-2}` a step, which the way down takes back.

    Args:
        mix: the share p, above 1/2 and at most 1. By default it is the published 0.93 up to the published 50 steps, and
            :math:`0.93^{50 / n}` for more, which mixes over the whole path as much as 50 steps do.

    Raises:
        ValueError: for a share outside these bounds.

    Source: Wallace, Gokul and Naik, "EDICT: Exact Diffusion Inversion via Coupled Transformations", 2022,
    https://arxiv.org/abs/2211.12446, equations (14) and (15).

    Example:
        >>> Coupled().share(50), round(Coupled().share(100), 4)
        (0.93, 0.9644)
    """

    mix: float | None = None
    name: ClassVar[str] = "coupled"

    def __post_init__(self) -> None:
        if self.mix is not None and not 0.5 < self.mix <= 1:
            raise ValueError(f"got mix={self.mix}; expected a share above 0.5 and at most 1, such as 0.93")

    def share(self, steps: int) -> float:
        """Return the share p for a number of steps."""
        return self.mix if self.mix is not None else float(0.93 ** (50 / max(steps, 50)))

    def up(self, eps: Eps, points: Sequence[Point], start: Pair) -> Iterator[Pair]:
        p, x, y = self.share(len(points) - 1), start.x, start.x if start.partner is None else start.partner
        for v, u in pairwise(points):  # the step from u to v, undone line by line
            y = (y - (1 - p) * x) / p
            x = (x - (1 - p) * y) / p
            y = _undone(y, eps(x, u), u, v)
            x = _undone(x, eps(y, u), u, v)
            yield Pair(x, y)

    def down(self, eps: Eps, points: Sequence[Point], start: Pair) -> Iterator[Pair]:
        p, x, y = self.share(len(points) - 1), start.x, start.x if start.partner is None else start.partner
        for u, v in pairwise(points):
            x = _ddim(x, eps(y, u), u, v)
            y = _ddim(y, eps(x, u), u, v)
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
            yield Pair(x, y)


def _undone(y: Tensor, eps: Tensor, u: Point, v: Point) -> Tensor:
    """The state at u from which the DDIM step with this ``eps`` leads to ``y`` at v."""
    return _ddim(y, eps, v, u)


@dataclass(frozen=True)
class Bidirectional(Invertible):
    r"""BDIA, bi-directional integration approximation: each step takes account of the step before, from the state between.

    With w, u, v three points of the path in a row and :math:`\epsilon = \epsilon_u(x_u)`,

    .. math:: x_v = \mathrm{ddim}(x_u, \epsilon, u, v) + \gamma\, \big( x_w - \mathrm{ddim}(x_u, \epsilon, u, w) \big),

    which can be solved for :math:`x_w`. One evaluation a step. The first step, from either end, is DDIM's. With
    :math:`\gamma = 1` it is the midpoint rule over two steps, of order 2; with 0 it is DDIM, which cannot be undone.

    Args:
        gamma: above 0 and at most 1. The way up divides by it at every step, so that a small one amplifies rounding.

    Raises:
        ValueError: for gamma outside these bounds.

    Source: Zhang, Lewis and Kleijn, "Exact Diffusion Inversion via Bi-directional Integration Approximation", 2023,
    https://arxiv.org/abs/2307.10829, equation (18).

    Example:
        >>> Bidirectional(0.5)
        Bidirectional(gamma=0.5)
    """

    gamma: float = 1.0
    name: ClassVar[str] = "bidirectional"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"got gamma={self.gamma}; expected a number above 0 and at most 1, such as 1.0")

    def up(self, eps: Eps, points: Sequence[Point], start: Pair) -> Iterator[Pair]:
        return self._run(eps, points, start, 1 / self.gamma)

    def down(self, eps: Eps, points: Sequence[Point], start: Pair) -> Iterator[Pair]:
        return self._run(eps, points, start, self.gamma)

    def _run(self, eps: Eps, points: Sequence[Point], start: Pair, factor: float) -> Iterator[Pair]:
        """Both directions are one recurrence, whose factor is gamma on the way down and its inverse on the way up."""
        before, x = start.x, start.partner
        if x is None:
            x = _ddim(before, eps(before, points[0]), points[0], points[1])
        yield Pair(x, before)
        for w, u, v in zip(points, points[1:], points[2:], strict=False):
            found = eps(x, u)
            before, x = x, _ddim(x, found, u, v) + factor * (before - _ddim(x, found, u, w))
            yield Pair(x, before)
