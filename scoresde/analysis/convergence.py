r"""Measured orders of convergence: the error of a solver as a function of the number of steps.

An error :math:`e_n = C n^{-p} (1 + O(1/n))` shows the order p in a range of n. Below this range the leading term does not
dominate, above it rounding does. The error of a deterministic solver is measured at its end point on a smooth mixture,
against SciPy's Dormand-Prince method of order 8. The error of a stochastic solver is that of the mean and covariance on
Gaussian data, which :func:`scoresde.analysis.moments` computes exactly without samples.

The order is measured from lam = 0, where signal and noise are equal, to lam = 1. From pure noise the errors of the
first steps hardly matter, and near the data those of the last: a multistep method of order 4 whose first or last step
is DDIM has order 2, but shows order 4 from the prior to the data at every practical number of steps. Errors from the
prior are measured too, at few steps.

An order cannot show a wrong coefficient that keeps it: a method of three nodes that starts with DDIM has order two
whether its second difference is right or has the wrong sign. So the error constants of multistep steps are compared
with those of interpolation through the same nodes, or with those that the solver declares: see
:mod:`scoresde.analysis.error_constants`.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.analysis.error_constants import ErrorConstant, error_constants
from scoresde.analysis.moments import exact, moments
from scoresde.discrete import (
    Absorbing,
    MarkovChain,
    TokenProcess,
    TokenSolver,
    noised_law,
    solver_law,
    total_variation,
)
from scoresde.discrete.solvers import token_solver
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sampling import sample
from scoresde.score import ScoreModel
from scoresde.sde import VP, GaussianSDE
from scoresde.solvers.methods.third_party import rk45
from scoresde.solvers.path import PathLike, make_path
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get
from scoresde.solvers.updates import evaluations

__all__ = ["Convergence", "Measurement", "convergence", "judge"]

WITHIN = 0.25
"""The tolerance for a slope around the declared order, less than half the distance between two orders."""


@dataclass(frozen=True)
class Measurement:
    """The error at one number of steps, and the number of evaluations of the model.

    Example:
        >>> ten = Measurement(steps=10, evaluations=20, error=1e-3)
        >>> ten.evaluations // ten.steps
        2
    """

    steps: int
    evaluations: int
    error: float


@dataclass(frozen=True, repr=False)
class Convergence:
    """The result of :func:`convergence`, printed as a table.

    Attributes:
        solver: the name of the solver.
        declared: the declared order or, for a stochastic solver, weak order.
        measurements: the errors for the order, by growing number of steps.
        few: the errors at few steps from the prior.
        asymptotic: the first and the last number of steps of the range in which the error falls as a power, or ``None``.
        rounding: the first number of steps at which rounding or the error of the reference dominates, or ``None``.
        order: the measured order, the slope in the asymptotic range; NaN if there is no such range.
        interval: the confidence interval of the order.
        weak: the errors are errors of mean and covariance.
        constants: the error constants of a multistep solver, each with the expected one.

    Example:
        >>> found = judge("mine", 2.0, [Measurement(n, n, n**-2.0) for n in (10, 20, 40)])
        >>> found.verdict, round(found.order, 6), found.asymptotic
        ('confirmed', 2.0, (10, 40))
    """

    solver: str
    declared: float
    measurements: tuple[Measurement, ...]
    few: tuple[Measurement, ...]
    asymptotic: tuple[int, int] | None
    rounding: int | None
    order: float
    interval: tuple[float, float]
    weak: bool
    constants: tuple[ErrorConstant, ...] = ()

    @property
    def verdict(self) -> str:
        """The comparison with the declared order: "confirmed", "lower", "higher", or "undecided" without a clear slope.

        It is "other constant" where the order is confirmed and an error constant of a step is not.
        """
        low, high = self.interval
        if self.asymptotic is None or not high - low < 4 * WITHIN:
            return "undecided"
        if abs(self.order - self.declared) <= WITHIN:
            return "confirmed" if all(c.agrees for c in self.constants) else "other constant"
        return "lower" if self.order < self.declared else "higher"

    def __repr__(self) -> str:
        kind = "weak order" if self.weak else "order"
        lines = [f"{self.solver}: {kind} {self.declared:g} declared, {self.verdict}"]
        if self.asymptotic is not None:
            lines[0] += f": {self.order:.2f} in [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"
        if self.constants:
            lines.append(f"error constants: {'; '.join(map(str, self.constants))}")
        lines.append(f"{'steps':>7} {'evaluations':>12} {'error':>10} {'slope':>6}")
        lines += [f"{m.steps:>7} {m.evaluations:>12} {m.error:>10.2e} {'':>6} from the prior" for m in self.few]
        for before, m in zip([None, *self.measurements], self.measurements, strict=False):
            slope = "" if before is None else f"{_slope(before, m):.2f}"
            low, high = self.asymptotic or (math.inf, -math.inf)
            mark = "asymptotic" if low <= m.steps <= high else ""
            if self.rounding is not None and m.steps >= self.rounding:
                mark = "rounding"
            lines.append(f"{m.steps:>7} {m.evaluations:>12} {m.error:>10.2e} {slope:>6} {mark}".rstrip())
        return "\n".join(lines)


def convergence(
    solver: str | Solver | TokenSolver,
    problem: GaussianMixture | ScoreModel | MarkovChain | None = None,
    sde: GaussianSDE | TokenProcess | None = None,
    *,
    steps: Sequence[int] = (20, 40, 80, 160, 320),
    few: Sequence[int] = (5, 10, 20),
    path: PathLike = "lam",
    t_max: float | None = None,
    t_min: float | None = None,
    start: Tensor | None = None,
    confidence: float = 0.95,
) -> Convergence:
    """Measure the order of a solver, and compare it with the declared order.

    Args:
        solver: a name in :data:`scoresde.solvers.SOLVERS` or a solver. A solver on tokens is a
            :class:`~scoresde.discrete.TokenSolver`, or its name where the problem is a Markov chain; its errors are total
            variations between laws of sequences, by enumeration, from t = 0.9 to 0.3.
        problem: for a deterministic solver a mixture, by default of three modes in the plane, or any smooth score model in
            float64 together with ``start``. For a stochastic solver a Gaussian, by default with three unequal variances.
        sde: the SDE; by default VP, or the SDE of the model.
        steps: the numbers of steps for the order, growing.
        few: the numbers of steps at which errors from the prior are measured too.
        path: the spacing of times.
        t_max: the start of the paths for the order, by default the time at which lam = 0. Paths from the prior start at the
            end of the SDE's span, or at nine tenths of it if alpha = 0 there.
        t_min: the end of the paths for the order, by default the time at which lam = 1; with a ``t_max`` or a ``start``, by
            default the end of the SDE's span, where paths from the prior end.
        start: initial states of all paths, shape ``(batch, *event)``, float64, noised to ``t_max``, whose default then is
            the end of the span. By default four noised samples of the problem from a fixed seed.
        confidence: the level of the confidence interval.

    Returns:
        The errors, the measured order with its confidence interval, and the verdict.

    Raises:
        ValueError: for a solver without a declared order; for a stochastic solver that makes no rows, has corrections that
            depend on the state, or is given a problem that is not Gaussian; for fewer than three numbers of steps.

    Example:
        >>> convergence("ddim", steps=(20, 40, 80), few=(10,))
        ddim: order 1 declared, confirmed: 1.00 in [1.00, 1.00]
          steps  evaluations      error  slope
             10           10   1.56e-01        from the prior
             20           20   4.92e-03        asymptotic
             40           40   2.46e-03   1.00 asymptotic
             80           80   1.23e-03   1.00 asymptotic
    """
    tokens = isinstance(problem, MarkovChain) or isinstance(solver, TokenSolver)
    method: Any = token_solver(solver) if tokens else get(solver) if isinstance(solver, str) else solver  # type: ignore[arg-type]
    if list(steps) != sorted(set(steps)) or len(steps) < 3:
        raise ValueError(f"got steps={tuple(steps)}; expected at least three growing numbers, such as (20, 40, 80)")
    if not 0 < confidence < 1:
        raise ValueError(f"got confidence={confidence}; expected a number between 0 and 1")
    stochastic = tokens or method.stochastic
    declared = method.description.weak_order if stochastic else method.description.order
    if declared is None:
        raise ValueError(
            f"solver {method.name!r} declares no order (its tolerance determines the error, or its error does not fall with "
            "the step); expected a solver with an order, such as 'ddim'"
        )
    if tokens:
        chain = MarkovChain(*_TOKENS, length=3) if problem is None else cast(MarkovChain, problem)
        at = (0.9 if t_max is None else t_max, 0.3 if t_min is None else t_min)
        measured = _law_errors(method, chain, Absorbing(chain.vocabulary) if sde is None else sde, steps, at)
        first = _law_errors(method, chain, Absorbing(chain.vocabulary) if sde is None else sde, few, (1.0, 0.0))
        return judge(method.name, float(declared), measured, first, 1e-12, confidence, weak=True)
    if isinstance(problem, ScoreModel):
        if sde is not None and sde != problem.sde:
            raise ValueError(f"got sde={sde!r} and a model on {problem.sde!r}; expected the same, or no sde")
        sde = problem.sde
    where = VP() if sde is None else cast(GaussianSDE, sde)
    known = cast(GaussianMixture | ScoreModel | None, problem)
    prior = t_start(where)
    begin = t_max or (prior if start is not None else _equal_signal_and_noise(where))
    stop = t_min if t_min is not None or t_max is not None or start is not None else _where_the_model_changes(where)
    if method.stochastic:
        first, _ = _weak_errors(method, known, where, few, path, prior, None)
        measured, floor = _weak_errors(method, known, where, steps, path, begin, stop)
    else:
        first, _ = _end_errors(method, known, where, few, path, prior if start is None else begin, None, start)
        measured, floor = _end_errors(method, known, where, steps, path, begin, stop, start)
    found = judge(method.name, float(declared), measured, first, floor, confidence, weak=method.stochastic)
    return replace(found, constants=error_constants(method))


def t_start(sde: GaussianSDE) -> float:
    """Return the end of an SDE's span, or nine tenths of it if alpha = 0 there, where not every solver can start.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> t_start(VP()), t_start(RectifiedFlow())
        (1.0, 0.9)
    """
    t = sde.span[1]
    return t if math.isfinite(float(sde.lam(t))) else 0.9 * t


def _equal_signal_and_noise(sde: GaussianSDE) -> float:
    """Return the time at which lam = 0, or :func:`t_start` if lam does not pass through zero."""
    low, high = float(sde.lam(sde.span[1])), float(sde.lam(max(sde.span[0], 1e-12)))
    return float(sde.time(0.0)) if low < 0 < high else t_start(sde)


def _where_the_model_changes(sde: GaussianSDE) -> float | None:
    """The time at which lam = 1, or ``None``, the end of the span, where lam does not pass from zero through one."""
    low, high = float(sde.lam(sde.span[1])), float(sde.lam(max(sde.span[0], 1e-12)))
    return float(sde.time(1.0)) if low < 0 and high > 1 else None


# Errors --------------------------------------------------------------------------------------------------------------


@functools.cache
def _smooth() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.2, 0.9]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.15, 0.1, 0.2]), torch.tensor([0.3, 0.5, 0.2]))


@functools.cache
def _gaussian() -> Gaussian:
    return Gaussian([0.8, -0.3, 0.0], [0.25, 1.5, 0.08])


@functools.lru_cache(maxsize=64)
def _problem_reference(
    problem: GaussianMixture, sde: GaussianSDE, t_max: float, t_min: float | None
) -> tuple[Tensor, Tensor]:
    """Return initial states and the reference solution at the end of the path."""
    generator = torch.Generator().manual_seed(5)
    eps = torch.randn(4, *problem.event, generator=generator, dtype=torch.float64)
    start = sde.perturb(problem.sample(4, generator, torch.float64), t_max, eps)
    return start, _reference(problem.model(sde), start, t_max, t_min)


def _reference(model: ScoreModel, start: Tensor, t_max: float, t_min: float | None) -> Tensor:
    tight = rk45(1e-12, 1e-12, "DOP853")
    return sample(model, start, tight, 1, t_max=t_max, t_min=t_min, end="stop", progress=False).x


def _end_errors(
    method: Solver,
    problem: GaussianMixture | ScoreModel | None,
    sde: GaussianSDE,
    steps: Sequence[int],
    path: PathLike,
    t_max: float,
    t_min: float | None,
    start: Tensor | None,
) -> tuple[list[Measurement], float]:
    if isinstance(problem, ScoreModel) and start is None:
        raise ValueError("got a model without a start; pass start=.., states of shape (batch, *event) in float64")
    if start is not None and start.dtype != torch.float64:
        raise ValueError(
            f"got a start of dtype {start.dtype}; expected float64, since rounding would hide the order: pass start.double()"
        )
    problem = _smooth() if problem is None else problem
    model = problem if isinstance(problem, ScoreModel) else problem.model(sde)
    if start is not None:
        truth = _reference(model, start, t_max, t_min)
    else:  # then the problem is a mixture
        assert isinstance(problem, GaussianMixture)
        start, truth = _problem_reference(problem, sde, t_max, t_min)
    measured = []
    for n in steps:
        end = sample(model, start, method, n, path, t_max=t_max, t_min=t_min, end="stop", progress=False)
        measured.append(Measurement(n, end.evaluations, float((end.x - truth).square().mean().sqrt())))
    return measured, 3e-11 * max(1.0, float(truth.abs().max()))


def _weak_errors(
    method: Solver,
    problem: GaussianMixture | ScoreModel | None,
    sde: GaussianSDE,
    steps: Sequence[int],
    path: PathLike,
    t_max: float,
    t_min: float | None,
) -> tuple[list[Measurement], float]:
    problem = _gaussian() if problem is None else problem
    if not isinstance(problem, GaussianMixture) or len(problem.means) != 1:
        raise ValueError(
            f"got problem {problem!r} for a stochastic solver; expected a Gaussian: pass "
            "scoresde.problems.Gaussian(mean, covariance)"
        )
    if not isinstance(method, RowSolver):
        raise ValueError(
            f"got stochastic solver {method.name!r}, which makes no rows; expected one that makes rows, such as 'ddpm'"
        )
    measured = []
    for n in steps:
        where = make_path(sde, path, n, t_max=t_max, t_min=t_min, end="stop")
        error = moments(method, where, problem.mean, problem.covariance).distance(
            exact(where, problem.mean, problem.covariance)
        )
        measured.append(Measurement(n, evaluations(method.rows(where)), error))
    return measured, 1e-12


_TOKENS = [0.4, 0.3, 0.3], [[0.4, 0.35, 0.25], [0.3, 0.3, 0.4], [0.25, 0.4, 0.35]]
"""A Markov chain in which tokens determine each other a little, so that extrapolated rates are positive."""


def _law_errors(
    method: TokenSolver, problem: Any, process: Any, steps: Sequence[int], at: tuple[float, float]
) -> list[Measurement]:
    """Return total variations at the end of paths from one time to another, from the exact law at the first."""
    if not isinstance(problem, MarkovChain) or not isinstance(process, TokenProcess):
        raise ValueError(
            f"got problem {problem!r:.60} and process {process!r:.60} for a solver on tokens; expected a MarkovChain and a "
            "process on tokens, such as Absorbing(3)"
        )
    start, end = (noised_law(process, problem.law, t) for t in at)
    start = start if at[0] < 1 else None  # type: ignore[assignment]
    measured = []
    for n in steps:
        times = torch.linspace(*at, n + 1, dtype=torch.float64).tolist()
        found = solver_law(problem.model(process), problem.length, method, times, start)
        each = method.description.evaluations or 1
        measured.append(Measurement(n, each * n if at[1] > 0 else each * (n - 1) + 1, total_variation(found, end)))
    return measured


# Judgement -----------------------------------------------------------------------------------------------------------


def _slope(one: Measurement, other: Measurement) -> float:
    if not (0 < one.error < math.inf and 0 < other.error < math.inf):
        return math.nan
    return math.log(one.error / other.error) / math.log(other.steps / one.steps)


def judge(
    solver: str,
    declared: float,
    measured: Sequence[Measurement],
    few: Sequence[Measurement] = (),
    floor: float = 0.0,
    confidence: float = 0.95,
    *,
    weak: bool = False,
) -> Convergence:
    """Estimate the order from measured errors, and compare it with the declared order.

    Infinite and NaN errors are in no range. The first error that is zero or below ``floor`` starts the range of rounding.

    Args:
        solver: the name of the solver.
        declared: the declared order.
        measured: the errors, by growing number of steps.
        few: errors at few steps, which are only shown.
        floor: the error below which rounding or the error of the reference dominates.
        confidence: the level of the confidence interval.
        weak: the errors are errors of mean and covariance.

    Example:
        >>> judge("mine", 2.0, [Measurement(n, n, n**-2.0) for n in (10, 20, 40)]).verdict
        'confirmed'
    """
    floor = max(floor, sys.float_info.min)
    usable = list(itertools.takewhile(lambda m: not m.error < floor, measured))
    rounding = measured[len(usable)].steps if len(usable) < len(measured) else None
    slopes = [_slope(a, b) for a, b in itertools.pairwise(usable)]
    # The asymptotic range ends where rounding starts, and reaches back as far as the slope is within 0.3 of its last value.
    settled = list(itertools.takewhile(lambda p: abs(p - slopes[-1]) < 0.3, reversed(slopes)))
    members = usable[len(usable) - len(settled) - 1 :] if len(settled) >= 2 else []
    order, interval = _fit(members, confidence) if members else (math.nan, (-math.inf, math.inf))
    return Convergence(
        solver=solver,
        declared=declared,
        measurements=tuple(measured),
        few=tuple(few),
        asymptotic=(members[0].steps, members[-1].steps) if members else None,
        rounding=rounding,
        order=order,
        interval=interval,
        weak=weak,
    )


def _fit(members: Sequence[Measurement], confidence: float) -> tuple[float, tuple[float, float]]:
    """Return the least-squares slope of log error against log steps, negated, and its confidence interval by Student's t."""
    from scipy.special import stdtrit

    x = [-math.log(m.steps) for m in members]
    y = [math.log(m.error) for m in members]
    n, x_mean, y_mean = len(x), math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - x_mean) ** 2 for a in x)
    slope = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    residual = math.fsum((b - y_mean - slope * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True))
    half = float(stdtrit(n - 2, 0.5 * (1 + confidence))) * math.sqrt(residual / (n - 2) / spread)
    return slope, (slope - half, slope + half)
