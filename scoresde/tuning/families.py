"""Families of solvers with free numbers: a multistep method, its times, and corrections of its coefficients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.score import Conditions, ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers.drivers import readable
from scoresde.solvers.fitted import TunedSteps, mixed_rows
from scoresde.solvers.history import exact_rule
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import CLEAN, Point, points
from scoresde.solvers.prediction import Prediction, Rho, Velocity
from scoresde.solvers.updates import Row

__all__ = ["BASES", "Copies", "Family"]

_METHODS: dict[str, tuple[Prediction, int]] = {
    "velocity-2": (Velocity(), 2),
    "velocity-3": (Velocity(), 3),
    "velocity-4": (Velocity(), 4),
    "lms-3": (Rho(), 3),
}

BASES = tuple(_METHODS)
"""The multistep methods to start from: in the velocity or the rho prediction, with the number of nodes in their names."""


@dataclass(frozen=True)
class Family:
    r"""All solvers of n evaluations that are exact for constant predictions, with a multistep method at the origin.

    The numbers of a solver are a vector of n - 1 logarithms of gaps and n (n - 1) / 2 corrections. The gaps between the
    :math:`\lambda` of successive evaluations are relative to equal gaps. The corrections are added to the factors of the
    older predictions in each row (:mod:`scoresde.solvers.fitted.tuned`) and taken from the factor of the newest. At zero
    the solver is the multistep method at times even in :math:`\lambda`, carried on to sigma = 0. A vector with gaps
    alone is that method at other times.

    Args:
        sde: the SDE.
        evaluations: n.
        t_max: the time of the first evaluation.
        base: the name of the multistep method in :data:`BASES`.
        last: the gap between the last evaluation and the smallest time of the SDE, relative to the other gaps.
    """

    sde: GaussianSDE
    evaluations: int
    t_max: float
    base: str
    last: float = 0.02

    @property
    def gaps(self) -> int:
        """The number of free gaps, which come first in a vector."""
        return self.evaluations - 1

    @property
    def size(self) -> int:
        """The length of a vector of numbers."""
        return self.gaps + self.evaluations * (self.evaluations - 1) // 2

    @property
    def origin(self) -> Tensor:
        """The vector of the multistep method at even times."""
        return torch.zeros(self.size, dtype=torch.float64)

    def times(self, gaps: Tensor) -> Tensor:
        """Return the times of the evaluations, shape ``(copies, n)``, for gaps of shape ``(copies, n - 1)``."""
        low, high = (float(self.sde.lam(t)) for t in (self.t_max, self.sde.span[0]))
        low = max(low, -high - 1)  # at alpha = 0 the mirror image of the end, as in even spacings
        end = gaps.new_full((len(gaps), 1), self.last)
        widths = torch.cat([gaps.exp(), end], 1)
        reached = (widths / widths.sum(1, keepdim=True)).cumsum(1)[:, :-1]
        times = self.sde.time(low + (high - low) * reached)
        return torch.cat([torch.full_like(end, self.t_max), times], 1)

    def mixes(self, times: Sequence[float]) -> list[list[float]]:
        """Return the factors of the multistep method at these times: see :mod:`scoresde.solvers.fitted.tuned`."""
        prediction, order = _METHODS[self.base]
        where = [*points(self.sde, torch.tensor(times, dtype=torch.float64)), CLEAN]
        rows = []
        for i, (u, v) in enumerate(itertools.pairwise(where)):
            step = prediction.starting_at(u)
            nodes = [u, *reversed([w for w in where[max(0, i + 1 - order) : i] if w.log_alpha != -math.inf])]
            p, q = step.mix(u)
            rows.append(Row(to=v, at=u, a=step.carry(u, v), w=tuple(exact_rule(step, u, v, nodes)), p=p, q=q))
        return _in_data_form(rows, where)

    def unpack(self, numbers: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the times, shape ``(copies, n)``, and the factors of all rows, each of shape ``(copies,)``."""
        times = self.times(numbers[:, : self.gaps])
        found: dict[tuple[float, ...], list[list[float]]] = {}
        each = [found.setdefault(tuple(t), found.get(tuple(t)) or self.mixes(t)) for t in times.tolist()]
        mixes = [[numbers.new_tensor([mix[i][j] for mix in each]) for j in range(i + 1)] for i in range(self.evaluations)]
        column = self.gaps
        for mix in mixes:
            for j in range(1, len(mix)):
                mix[j] = mix[j] + numbers[:, column]
                mix[0] = mix[0] - numbers[:, column]
                column += 1
        return times, mixes

    def ends(self, numbers: Tensor, model: ScoreModel, x: Tensor, conditions: Conditions, *, apart: bool = False) -> Tensor:
        """Return the ends of several solvers of the family from the same starts.

        Args:
            numbers: the vectors of the solvers, shape ``(copies, size)``.
            model: the score model; ``x``: the starts, ``(batch, *event)``; ``conditions``: those of the batch.
            apart: whether the copies differ from the first in one number each, in order. Evaluations in which a copy cannot
                differ yet are then made once.

        Returns:
            The ends, shape ``(copies, batch, *event)``.
        """
        copies, shape = len(numbers), (-1, 1, *[1] * (x.ndim - 1))
        t, mixes = self.unpack(numbers)
        sde = self.sde
        columns = (sde.log_alpha(t), sde.log_sigma(t), sde.d_alpha(t), sde.d_log_sigma(t), sde.diffusion_squared(t))
        where = [
            Point(cast(float, t[:, i]), *(cast(float, c[:, i].reshape(shape)) for c in columns)) for i in range(len(mixes))
        ]
        rows = mixed_rows(where, [[factor.reshape(shape) for factor in mix] for mix in mixes])
        differ = self._differ(copies) if apart else [copies] * self.evaluations
        of = Copies(model, conditions, iter(differ))
        for state in readable(rows, of, x.expand(copies, *x.shape), FreshNoise([0], x.device)):  # type: ignore[arg-type]
            x = state.x
        return x

    def _differ(self, copies: int) -> list[int]:
        """Return for each evaluation how many copies, the first ones, may be in other states than the copy 0."""
        corrected = [i for i in range(self.evaluations) for _ in range(i)]
        counts = [1 + (self.gaps if e else 0) + sum(i < e for i in corrected) for e in range(self.evaluations)]
        return [min(count, copies) for count in counts]

    def solver(self, numbers: Tensor, **about: Any) -> TunedSteps:
        """Return the solver with these numbers, a vector."""
        times, mixes = self.unpack(numbers[None])
        where = points(self.sde, times[0])
        rows = []
        for mix in mixes:
            older = [float(factor) for factor in mix[1:]]
            rows.append((1 - math.fsum(older), *older))
        logs = tuple(p.log_alpha for p in where), tuple(p.log_sigma for p in where)
        return TunedSteps(tuple(times[0].tolist()), *logs, tuple(rows), self.base, **about)


def _in_data_form(rows: Sequence[Row], where: Sequence[Point]) -> list[list[float]]:
    """Return the factors of the data predictions that rows of any prediction have, newest first.

    The rows are run on the vectors of coefficients of (x_0, m_0, .., m_{n-1}), so that each state is a combination of these.
    """
    n = len(rows)
    basis = torch.eye(n + 1, dtype=torch.float64)
    states = [basis[0], *(state.x[0] for state in readable(rows, _Basis(basis), basis[:1], FreshNoise([0], basis.device)))]
    mixes = []
    for i, (u, v) in enumerate(itertools.pairwise(where)):
        a = math.exp(v.log_sigma - u.log_sigma)
        w = ((states[i + 1] - a * states[i]) / (v.alpha - u.alpha * a))[1:].tolist()
        mixes.append([w[i - j] for j in range(i + 1)])
    return mixes


@dataclass(frozen=True)
class _Basis:
    """A model whose i-th prediction is the unit vector of m_i."""

    basis: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError  # the rows hold floats, so that the model is bound to all times at once

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        return [partial(_constant, self.basis[i + 1 : i + 2]) for i in range(len(times))]


def _constant(value: Tensor, x: Tensor) -> Tensor:
    return value.clone()


class Copies:
    """A model for several copies of a batch, each at its own time, of which the first ``differ`` are evaluated apart."""

    def __init__(self, model: ScoreModel, conditions: Conditions, differ: Iterator[int]) -> None:
        self.model, self.conditions, self.differ = model, conditions, differ

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        some, (copies, batch) = next(self.differ), x.shape[:2]
        at = t[0] if bool((t[:some] == t[0]).all()) else t[:some].to(x.device).repeat_interleave(batch)
        m = self.model.x0(x[:some].flatten(0, 1), at, **self.conditions.repeated(some)).reshape(some, *x.shape[1:])
        return m if some == copies else torch.cat([m, m[:1].expand(copies - some, *m.shape[1:])])
