r"""DPM-Solver-v3: a multistep method whose linear part is taken from statistics of the model.

With three functions of :math:`\lambda`, each with a number for every coordinate, the probability flow is

.. math:: \frac{dx}{d\lambda} = \Big( \frac{\dot\alpha}{\alpha} - l \Big) x - \alpha f, \qquad
          f = \frac{\sigma \epsilon - l x}{\alpha},

and :math:`f = e^{S} \big( g + \int e^{-S} b \big)` with :math:`S = \int s`, so that the part of f that grows by
:math:`\dot f = s f + b` is integrated exactly and g, which is left, is interpolated. From s to t,

.. math:: x_t = \frac{\alpha_t}{\alpha_s} e^{L_s - L_t} x_s - \alpha_t e^{-L_t} \Big[ e^{-S_s} (I_t - I_s)\, f_s
          + C_t - C_s - B_s (I_t - I_s) + e^{L_s} \sum_{k \ge 1} E_k\, g^{(k)} \Big],

.. math:: L = \int l, \quad B = \int e^{-S} b, \quad I = \int e^{L + S}, \quad C = \int e^{L + S} B, \quad
          E_k = \int_s^t e^{L + S - L_s - S_s} \frac{(\lambda - \lambda_s)^k}{k!}\, d\lambda,

where all integrals are sums of trapezoids over the grid on which the statistics are known, and the times of a path are moved
to the nearest of the grid. With l = 1 and s = b = 0 it interpolates the data prediction, as DPM-Solver++, and with l = 0,
s = -1 and b = 0 the noise prediction, as DPM-Solver.
Source: Zheng et al., "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics", 2023,
https://arxiv.org/abs/2310.13268, and the authors' code.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.numbers import whole
from scoresde.solvers.fitted.affine import Affine
from scoresde.solvers.fitted.kept import check_same
from scoresde.solvers.path import CLEAN, Path, Point, points
from scoresde.solvers.rows import last_move
from scoresde.solvers.solver import Description, RowSolver
from scoresde.solvers.updates import Update

__all__ = ["GeneralLinear", "Statistics"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of a model: the three functions of the module on a grid even in lam.

    Attributes:
        lam: the grid, rising, shape ``(n,)``, float64.
        linear: l, shape ``(n, *event)``; ``growth``: s; ``constant``: b.

    Raises:
        ValueError: for a grid that is not even and rising, and statistics of other shapes or that are not finite.

    Example:
        >>> lam = torch.linspace(-5.0, 3.0, 9, dtype=torch.float64)
        >>> zero = torch.zeros(9, 2, dtype=torch.float64)
        >>> Statistics(lam, zero + 1, zero, zero).event
        (2,)
    """

    lam: Tensor
    linear: Tensor
    growth: Tensor
    constant: Tensor

    def __post_init__(self) -> None:
        each = (self.linear, self.growth, self.constant)
        steps = self.lam.diff()
        even = self.lam.ndim == 1 and len(self.lam) > 1 and bool((steps > 0).all())
        even = even and bool((steps - steps.mean()).abs().max() < 1e-6 * steps.mean())
        if not even or any(v.shape != self.linear.shape or v.shape[:1] != self.lam.shape or v.ndim < 2 for v in each):
            raise ValueError(
                f"got a grid of shape {tuple(self.lam.shape)} and statistics of shapes {[tuple(v.shape) for v in each]}; "
                "expected a grid even in lam, rising, and three statistics of shape (n, *event)"
            )
        if not all(bool(torch.isfinite(v).all()) for v in (self.lam, *each)):
            raise ValueError("got statistics that are not finite; expected finite numbers")

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return tuple(self.linear.shape[1:])


@dataclass(frozen=True, eq=False)
class _Integrals:
    """The integrals L, S, B, I and C of the module at the points of the grid, shapes ``(n, *event)``."""

    linear: Tensor
    growth: Tensor
    constant: Tensor
    kernel: Tensor
    both: Tensor


def _integrals(known: Statistics) -> _Integrals:
    h = float(known.lam.diff().mean())

    def summed(values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values[:1]), (0.5 * h * (values[1:] + values[:-1])).cumsum(0)])

    linear, growth = summed(known.linear), summed(known.growth)
    kernel = (linear + growth).exp()
    constant = summed((-growth).exp() * known.constant)
    return _Integrals(linear, growth, constant, summed(kernel), summed(kernel * constant))


@dataclass(frozen=True, repr=False, eq=False)
class GeneralLinear(RowSolver):
    """DPM-Solver-v3 with the statistics of one model: see the module and :func:`scoresde.tuning.dpm_solver_v3`.

    Args:
        statistics: the statistics.
        nodes: the number of nodes of the predictor, 1 to 3, the order of the method.
        pseudo: whether the derivatives of g are divided differences, each of its own nodes, in place of those of one
            polynomial.
        corrector: whether the state is corrected with the next evaluation, at no further one.
        corrector_pseudo: whether the corrector has one node more than the predictor, with divided differences.
        lower_order_final: whether the last steps have as many nodes as steps are left.
        model: the digest of the model; sampling refuses any other.
        any_model: whether to sample other models.

    Raises:
        ValueError: for another number of nodes.

    Example:
        >>> from scoresde import VP, solvers
        >>> lam = torch.linspace(float(VP().lam(1.0)), float(VP().lam(0.001)), 41, dtype=torch.float64)
        >>> zero = torch.zeros(41, 2, dtype=torch.float64)
        >>> solver = GeneralLinear(Statistics(lam, zero + 1, zero, zero), any_model=True)
        >>> solver.rows(solvers.make_path(VP(), "lam", 5))[0].at.t
        1.0
    """

    description: Description = field(init=False, repr=False)
    rows: Callable[[Path], Sequence[Update]] = field(init=False, repr=False)
    general: None = field(init=False, default=None, repr=False)
    statistics: Statistics | None = None
    nodes: int = 3
    pseudo: bool = False
    corrector: bool = True
    corrector_pseudo: bool = False
    lower_order_final: bool = True
    model: str = ""
    any_model: bool = False

    def __post_init__(self) -> None:
        whole("nodes", self.nodes, 1, 3)
        if not isinstance(self.statistics, Statistics):
            raise ValueError(f"got statistics of type {type(self.statistics).__name__}; expected Statistics(lam, l, s, b)")
        paper = "Zheng et al. 2023, arXiv:2310.13268"
        object.__setattr__(self, "description", Description("dpm-solver-v3", "exponential", paper, order=min(self.nodes, 2)))
        object.__setattr__(self, "rows", self._rows)

    def __reduce__(self) -> Any:
        names = ("nodes", "pseudo", "corrector", "corrector_pseudo", "lower_order_final", "model", "any_model")
        return type(self), (self.statistics, *(getattr(self, name) for name in names))

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose statistics these are not, unless ``any_model`` is set.

        Raises:
            ValueError: for another model.
        """
        if not self.any_model:
            check_same(model, self.model)

    @property
    def _given(self) -> Statistics:
        assert self.statistics is not None  # checked when it is made
        return self.statistics

    @functools.cached_property
    def _known(self) -> _Integrals:
        return _integrals(self._given)

    def followed(self, path: Path) -> Path:
        """Return the path through the points of the grid nearest to those of ``path``.

        Raises:
            ValueError: for a path that leaves the grid, and for two points that would be one.
        """
        grid, places = self._given.lam, self._places(path)
        own = path.points[: len(places)]
        moved = path.sde.time(grid[places])
        exact = [p.t if abs(p.lam - float(grid[i])) < 1e-9 else float(t) for p, i, t in zip(own, places, moved, strict=True)]
        exact[0] = min(exact[0], path.sde.span[1])
        if exact == [p.t for p in own]:
            return path
        found = points(path.sde, torch.tensor(exact, dtype=torch.float64))
        return Path(path.sde, (*found, *([CLEAN] if path.ends_clean else [])), path.end)

    def _places(self, path: Path) -> list[int]:
        """Return the places of the points of a path on the grid, without the clean end."""
        lam = self._given.lam
        low, h = float(lam[0]), float(lam.diff().mean())
        own = path.points[:-1] if path.ends_clean else path.points
        exact = [(p.lam - low) / h if math.isfinite(p.lam) else -math.inf for p in own]
        if not all(-0.5 < e < len(lam) - 0.5 for e in exact):
            raise ValueError(
                f"got a path from lam = {own[0].lam:.4g} to {own[-1].lam:.4g} for statistics from {low:.4g} to "
                f"{float(lam[-1]):.4g}; expected t_max and t_min between those of the statistics"
            )
        places = [round(e) for e in exact]
        if any(b <= a for a, b in itertools.pairwise(places)):
            raise ValueError(
                f"got a path with points closer than the grid of {len(lam)} statistics, or one that goes back; expected "
                "fewer steps, or statistics on a finer grid"
            )
        return places

    def _rows(self, path: Path) -> list[Update]:
        path = self.followed(path)
        places = self._places(path)
        own, steps = path.points[: len(places)], len(places) - 1
        rows: list[Update] = []
        before = 0  # the number of nodes of the step before
        for k in range(steps):
            nodes = min(self.nodes, k + 1)
            nodes = min(nodes, steps - k) if self.lower_order_final else nodes
            fresh = k > 0 and self.corrector and before + self.corrector_pseudo > 1
            if fresh:
                order = [k - 1, k, *range(k - 2, -1, -1)][: before + self.corrector_pseudo]
                rows.append(self._row(own, places, k - 1, k, order, self.corrector_pseudo, at=own[k], newest=k))
            last = k == steps - 1
            corrected = not last and self.corrector and nodes + self.corrector_pseudo > 1
            order = list(range(k, k - nodes, -1))
            at = None if fresh else own[k]
            rows.append(self._row(own, places, k, k + 1, order, self.pseudo, at=at, newest=k, ends=not corrected))
            before = nodes
        return [*rows, last_move(path)] if path.ends_clean else rows

    def _row(
        self,
        own: Sequence[Point],
        places: Sequence[int],
        start: int,
        to: int,
        order: Sequence[int],
        pseudo: bool,
        *,
        at: Point | None,
        newest: int,
        ends: bool = True,
    ) -> Affine:
        """Return the update from the point ``start`` to the point ``to`` with the nodes ``order``, the start first."""
        known, lam = self._known, self._given.lam
        s, t = places[start], places[to]
        u, v = own[start], own[to]
        shrink = (-known.linear[t]).exp()
        span = known.kernel[t] - known.kernel[s]
        # The factors of g at the nodes, which is f times `scale`, less `shift`: see the module.
        factors = [torch.zeros_like(shrink) for _ in order]
        factors[0] = factors[0] - v.alpha * shrink * (-known.growth[s]).exp() * span
        constant = -v.alpha * shrink * (known.both[t] - known.both[s] - known.constant[s] * span)
        lams = [float(lam[places[i]]) for i in order]
        for k, weights in enumerate(_derivatives(lams, pseudo), start=1):
            gain = v.alpha * (known.linear[s] - known.linear[t]).exp() * self._moment(s, t, k)
            for j, weight in enumerate(weights):
                factors[j] = factors[j] - weight * gain
        w = [torch.zeros_like(shrink) for _ in range(newest - min(order) + 1)]
        for i, factor in zip(order, factors, strict=True):
            scale = (known.growth[s] - known.growth[places[i]]).exp()
            shift = known.growth[s].exp() * (known.constant[places[i]] - known.constant[s])
            w[newest - i] = factor * scale
            constant = constant - factor * shift
        a = v.alpha / u.alpha * (known.linear[s] - known.linear[t]).exp()
        here = own[newest] if at is not None else u
        p = (1 - self._given.linear[places[newest]]) / here.alpha
        return Affine(v, at, a, tuple(w), constant, p, -1.0, ends)

    def _moment(self, s: int, t: int, k: int) -> Tensor:
        """Return E_k of the module, by trapezoids."""
        known, lam = self._known, self._given.lam
        x = (lam[s : t + 1] - lam[s]).reshape(-1, *[1] * len(self._given.event))
        exponent = known.linear + known.growth
        values = (exponent[s : t + 1] - exponent[s]).exp() * x**k / math.factorial(k)
        found: Tensor = torch.trapezoid(values, x.expand_as(values), dim=0)
        return found


def _derivatives(lams: Sequence[float], pseudo: bool) -> list[list[float]]:
    """Return the factors of the values at ``lams`` in the derivatives at the first of them, from the first one on."""
    n = len(lams) - 1
    if not n:
        return []
    if not pseudo:
        powers = torch.tensor([[(lam - lams[0]) ** k for k in range(1, n + 1)] for lam in lams[1:]], dtype=torch.float64)
        inverse = torch.linalg.inv(powers).tolist()
        return [[math.factorial(k + 1) * c for c in (-math.fsum(row), *row)] for k, row in enumerate(inverse)]
    table = [[float(i == j) for j in range(n + 1)] for i in range(n + 1)]  # divided differences of unit values
    found = []
    for k in range(1, n + 1):
        table = [
            [(a - b) / (lams[j] - lams[j + k]) for a, b in zip(table[j], table[j + 1], strict=True)]
            for j in range(n + 1 - k)
        ]
        found.append([math.factorial(k) * c for c in table[0]])
    return found
