r"""The early steps of ``solver="auto"``, made with the Gaussian of the data in place of the model, at no evaluation.

The departure of a model from the Gaussian with the moments of its data is known, :mod:`scoresde.score.departure`. Then the
start is carried along the flow of this Gaussian to the last level at which the departure is small, and all n evaluations of
a run of n steps lie after it. Two things make this more than a later start. The evaluation at this level is the Gaussian's,
so that n + 1 steps are made. And the Gaussian's predictions at a few times before it stand for the history of the multistep
method, which so begins at its full order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import expand
from scoresde.score import Calls, DataMoments, ScoreModel, Wrapper
from scoresde.sde import GaussianSDE, Time
from scoresde.solvers.chooser import Chooser
from scoresde.solvers.path import CLOSEST, Path, points
from scoresde.solvers.solver import Solver
from scoresde.solvers.spacings import PRIOR

__all__ = ["Early", "EarlyGaussian", "early"]

HISTORY = (1.0, 1.0, 1.0, 0.5, 0.25)
"""The gaps in lam between the times before the level, newest first, in units of the first step after it. The oldest are
short, since the method begins there at its lowest order."""

FEWEST = 4
"""The smallest number of steps with early ones; with less there is no room to correct an error."""

SAME = 1e-9
"""The relative difference of two times that are one but for rounding."""


class EarlyGaussian(Wrapper):
    """A score model that is the Gaussian with the moments of the data from a time on towards the noise, at no evaluation.

    Args:
        model: the model at smaller times.
        gaussian: the moments.
        until: the smallest time at which the Gaussian predicts.
    """

    def __init__(self, model: ScoreModel, gaussian: DataMoments, until: float) -> None:
        super().__init__(model)
        self.gaussian, self.until = gaussian, until

    def is_early(self, t: float) -> bool:
        """Tell whether the Gaussian predicts at a time."""
        return t >= self.until * (1 - SAME)

    def calls_at(self, t: float) -> Calls:
        """Return no calls at early times, and those of the inner model at others."""
        return Calls(0, 0) if self.is_early(t) else self.model.calls_at(t)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the Gaussian at early times, and of the inner model at others; shape of ``x``."""
        t = self.sde.check_time(t)
        first = t >= self.until * (1 - SAME)
        if bool(first.all()):
            return self.gaussian.x0(x, self.sde, t)
        m = self.model.x0(x, t, **conditions)
        if not bool(first.any()):
            return m
        return torch.where(expand(first, x).to(x.device), self.gaussian.x0(x, self.sde, t), m)

    def at(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the data predictions at ``times``, each a function of ``x`` alone; see :meth:`ScoreModel.at`."""
        own = [self.is_early(t) for t in times.tolist()]
        later = times[[not early for early in own]]
        inner: Any = iter(self.model.at(later, device=device, dtype=dtype, **conditions) if len(later) else ())
        return [
            partial(_gaussian, self.gaussian, self.sde, t) if early else next(inner)
            for t, early in zip(times.to(torch.float64), own, strict=True)
        ]


def _gaussian(moments: DataMoments, sde: GaussianSDE, t: Tensor, x: Tensor) -> Tensor:
    return moments.x0(x, sde, t)


@dataclass(frozen=True)
class Early:
    """The plan of a run with early steps.

    Attributes:
        model: the model with the Gaussian at early times.
        method: the solver that runs.
        path: the path, from the first of the early times on.
        begin: the time of the start, from which the Gaussian carries it to the path.
    """

    model: EarlyGaussian
    method: Solver
    path: Path
    begin: float

    @property
    def whole(self) -> Path:
        """The path with the time of the start before its first."""
        first = points(self.path.sde, torch.tensor([self.begin], dtype=torch.float64))
        return Path(self.path.sde, (*first, *self.path.points), self.path.end)

    def carry(self, x: Tensor, t: float | None = None) -> Tensor:
        """Carry the start ``x`` to the first time of the path, or to a time ``t`` before it."""
        return self.model.gaussian.flow(x, self.path.sde, self.begin, self.path.times[0] if t is None else t)


def early(
    model: ScoreModel, method: Solver, steps: int, *, t_max: float | None, t_min: float | None, end: str | None
) -> Early | None:
    """Return the plan of early steps for a solver on its own path, or ``None`` where there are none to make.

    There are some if the solver allows for them, :attr:`scoresde.solvers.Chooser.early`, and the model carries the moments
    of its data and its departure from them. The level is the last one at which d / rho is below
    ``early / steps^4`` and :data:`LARGEST`.

    Args:
        model: the score model.
        method, steps, t_max, t_min, end: those of the run, as for :func:`scoresde.sample`.
    """
    departs, sde = model.departure, model.sde
    if not isinstance(method, Chooser) or not method.early or departs is None or (moments := model.moments) is None:
        return None
    if not isinstance(sde, GaussianSDE) or whole("steps", steps, 1) < FEWEST:
        return None
    begin = sde.span[1] if t_max is None else t_max
    prior = begin >= sde.span[1] * (1 - SAME) or float(sde.lam(begin)) <= PRIOR + SAME
    level = departs.level(min(method.early / steps**4, LARGEST))
    if level is None or not prior or not departs.fits(model):
        return None
    start = float(sde.lam(begin))
    until = float(sde.time(torch.tensor(level, dtype=torch.float64)))
    if not math.isfinite(level) or level - start < LEAST or not sde.span[0] < until < begin:
        return None
    choice = method.choice(steps)
    own = choice.path(sde, steps + 1, t_max=until, t_min=t_min, end=end)
    gap = own.points[1].lam - own.points[0].lam
    back = [level - gap * sum(HISTORY[: i + 1]) for i in range(len(HISTORY))]
    lams = torch.tensor([lam for lam in reversed(back) if lam > start + CLOSEST], dtype=torch.float64)
    before = points(sde, sde.time(lams)) if len(lams) else []
    path = Path(sde, (*before, *own.points), own.end)
    return Early(EarlyGaussian(model, moments, until), choice.solver, path, begin)


LARGEST = 1.4e-2
"""The largest departure d / rho that is allowed."""

LEAST = 0.1
"""The least length in lam by which the Gaussian must carry the start."""
