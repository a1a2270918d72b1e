r"""The order of a solver, measured: how its error falls as its steps grow in number.

An error :math:`e_n = C n^{-p} (1 + O(1/n))` shows its order p between the few steps at which the leading term does not rule
yet and the many at which rounding does. Deterministic solvers are measured at their end point on a smooth mixture, against
SciPy's Dormand-Prince method of order 8; stochastic ones by the mean and covariance that they make of Gaussian data, which
:func:`scoresde.analysis.moments` propagates exactly, so that no sample is ever drawn.

The order is measured from where signal and noise are equal, lam = 0, to lam = 1, because from pure noise the first steps
hardly matter, and near the data the last ones: a multistep method of order 4 whose first step, or last, is DDIM is of order
2, and from the prior to the data shows 4 at any number of steps that one would take. What one would take is measured as
well: the errors at few steps are those from the prior.

What an order cannot show is a wrong coefficient that keeps it: a method of three nodes that starts with DDIM is of order two
whether its second difference is right or has the wrong sign. So the error constants of multistep steps are compared with
those of interpolation through the same nodes, or those that the solver declares: see
:mod:`scoresde.analysis.error_constants`.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.analysis.error_constants import ErrorConstant, error_constants
from scoresde.analysis.moments import exact, moments
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
"""How far from the declared order a slope may be: less than half the distance between the orders that methods have."""


@dataclass(frozen=True)
class Measurement:
    """The error of one number of steps, and the evaluations that it cost."""

    steps: int
    evaluations: int
    error: float


@dataclass(frozen=True, repr=False)
class Convergence:
    """What :func:`convergence` found; its repr is a table.

    Attributes:
        solver: its name.
        declared: the order, or weak order, that it claims.
        measurements: the errors, by the number of steps, from which the order is read.
        few: the errors at few steps, from the prior.
        asymptotic: the first and the last number of steps between which the error falls as a power, or ``None``.
        rounding: the first number of steps at which rounding, or the reference's own error, takes over, or ``None``.
        order: the slope over the asymptotic range; NaN where there is none.
        interval: its confidence interval.
        weak: whether the errors are those of mean and covariance.
        constants: the error constants of a multistep solver, each with the one expected.
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
        """ "confirmed", "lower" or "higher" than declared, "undecided" where no slope can be told, or "other constant" where
        the order is as declared and an error constant of a step is not."""
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
    solver: str | Solver,
    problem: GaussianMixture | ScoreModel | None = None,
    sde: GaussianSDE | None = None,
    *,
    steps: Sequence[int] = (20, 40, 80, 160, 320),
    few: Sequence[int] = (5, 10, 20),
    path: PathLike = "lam",
    t_max: float | None = None,
    t_min: float | None = None,
    start: Tensor | None = None,
    confidence: float = 0.95,
) -> Convergence:
    """Measure the order of a solver, and compare it with the one that it declares.

    Args:
        solver: a name of the table or a solver.
        problem: a mixture, or any smooth model in float64, which then needs a ``start``; by default three modes in
            the plane. For a stochastic solver a Gaussian; by default one of three unequal variances.
        sde: by default VP, or that of the model.
        steps: the numbers of steps for the order, growing.
        few: the numbers of steps at which to measure the errors from the prior as well.
        path: the spacing.
        t_max: where the paths for the order start, by default where lam = 0; those from the prior start at the end of the
            SDE's span, or at nine tenths of it where alpha = 0 there.
        t_min: where the paths for the order end, by default where lam = 1; with a ``t_max`` or a ``start``, by default at
            the end of the SDE's span, where those from the prior end.
        start: states to start all paths from, float64, noised to ``t_max``, which is then by default the end of the span.
            By default four noised samples of the problem, from a fixed seed.
        confidence: of the interval.

    Raises:
        ValueError: for a solver that declares no order, one that is stochastic and makes no rows or has corrections that
            depend on the state, a problem that is not Gaussian for a stochastic one, or fewer than three numbers of steps.

    Example:
        >>> convergence("ddim", steps=(20, 40, 80), few=(10,))
        ddim: order 1 declared, confirmed: 1.00 in [1.00, 1.00]
          steps  evaluations      error  slope
             10           10   1.56e-01        from the prior
             20           20   4.92e-03        asymptotic
             40           40   2.46e-03   1.00 asymptotic
             80           80   1.23e-03   1.00 asymptotic
    """
    method = get(solver) if isinstance(solver, str) else solver
    if list(steps) != sorted(set(steps)) or len(steps) < 3:
        raise ValueError(f"got steps={tuple(steps)}; expected at least three growing numbers: a slope needs them")
    if not 0 < confidence < 1:
        raise ValueError(f"got confidence={confidence}; expected a number between 0 and 1")
    declared = method.description.weak_order if method.stochastic else method.description.order
    if declared is None:
        raise ValueError(
            f"solver {method.name!r} declares no order (its tolerance decides, or its error does not fall with the step); "
            "expected one that does"
        )
    if isinstance(problem, ScoreModel):
        if sde is not None and sde != problem.sde:
            raise ValueError(f"got sde={sde!r} and a model on {problem.sde!r}; expected the same, or no sde")
        sde = problem.sde
    where = VP() if sde is None else sde
    prior = t_start(where)
    begin = t_max or (prior if start is not None else _equal_signal_and_noise(where))
    stop = t_min if t_min is not None or t_max is not None or start is not None else _where_the_model_changes(where)
    if method.stochastic:
        first, _ = _weak_errors(method, problem, where, few, path, prior, None)
        measured, floor = _weak_errors(method, problem, where, steps, path, begin, stop)
    else:
        first, _ = _end_errors(method, problem, where, few, path, prior if start is None else begin, None, start)
        measured, floor = _end_errors(method, problem, where, steps, path, begin, stop, start)
    found = judge(method.name, float(declared), measured, first, floor, confidence, weak=method.stochastic)
    return replace(found, constants=error_constants(method))


def t_start(sde: GaussianSDE) -> float:
    """The end of the span, or a little before where alpha = 0 there, which not every solver can carry."""
    t = sde.span[1]
    return t if math.isfinite(float(sde.lam(t))) else 0.9 * t


def _equal_signal_and_noise(sde: GaussianSDE) -> float:
    """The time at which lam = 0, or the end of the span where lam does not pass through zero."""
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
    """The start and the end."""
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
        raise ValueError("got a model without a start; expected start: states of shape (batch, *event) in float64")
    if start is not None and start.dtype != torch.float64:
        raise ValueError(f"got a start of dtype {start.dtype}; expected float64, or rounding hides the order")
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
        raise ValueError(f"got problem {problem!r} for a stochastic solver; expected a Gaussian, whose moments are exact")
    if not isinstance(method, RowSolver):
        raise ValueError(f"got stochastic solver {method.name!r}, which makes no rows; expected one that does")
    measured = []
    for n in steps:
        where = make_path(sde, path, n, t_max=t_max, t_min=t_min, end="stop")
        error = moments(method, where, problem.mean, problem.covariance).distance(
            exact(where, problem.mean, problem.covariance)
        )
        measured.append(Measurement(n, evaluations(method.rows(where)), error))
    return measured, 1e-12


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
    """Read the order off errors that were measured, and compare it with the one declared.

    Errors that are infinite or NaN are in no range; one that is zero, or below ``floor``, is where rounding takes over.

    Args:
        solver: its name.
        declared: the order that it claims.
        measured: the errors, by growing numbers of steps.
        few: errors at few steps, to be kept beside them.
        floor: the error below which rounding, or the reference, rules.
        confidence: of the interval.
        weak: whether the errors are those of mean and covariance.

    Example:
        >>> judge("mine", 2.0, [Measurement(n, n, n**-2.0) for n in (10, 20, 40)]).verdict
        'confirmed'
    """
    floor = max(floor, sys.float_info.min)
    usable = list(itertools.takewhile(lambda m: not m.error < floor, measured))
    rounding = measured[len(usable)].steps if len(usable) < len(measured) else None
    slopes = [_slope(a, b) for a, b in itertools.pairwise(usable)]
    # The asymptotic range ends where rounding starts, and reaches back as far as the slope stays what it is there.
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
    """The least-squares slope of log error against log steps, and Student's interval for it."""
    from scipy.special import stdtrit

    x = [-math.log(m.steps) for m in members]
    y = [math.log(m.error) for m in members]
    n, x_mean, y_mean = len(x), math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - x_mean) ** 2 for a in x)
    slope = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    residual = math.fsum((b - y_mean - slope * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True))
    half = float(stdtrit(n - 2, 0.5 * (1 + confidence))) * math.sqrt(residual / (n - 2) / spread)
    return slope, (slope - half, slope + half)
