"""Statistics of a comparison: orders, fronts, the evaluations that an accuracy takes, ranks, and the ratio to peers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scoresde.analysis.convergence import Convergence, Measurement, judge
from scoresde.comparison.records import Record, Records
from scoresde.comparison.report.series import better, cost

__all__ = ["Curve", "Rank", "Ratio", "best_ratio", "evaluations_to_reach", "orders", "pareto", "ranking"]


class Curve(NamedTuple):
    """The problem, solver, path and SDE of a line, by name."""

    problem: str
    solver: str
    path: str
    sde: str


def _curves(comparison: Records, metric: str) -> dict[Curve, list[Record]]:
    """Return the records of a metric that have a value, by line and ordered by evaluations, each number once."""
    found: dict[Curve, dict[int, Record]] = {}
    known = {r.metric for r in comparison.records}
    if metric not in known:
        raise ValueError(f"got metric {metric!r}; expected one of those compared: {', '.join(sorted(known))}")
    for record in comparison.select(metric=metric):
        if math.isfinite(record.value):
            curve = found.setdefault(Curve(record.problem, record.solver, record.path, record.sde), {})
            curve.setdefault(record.evaluations, record)
    return {curve: sorted(records.values(), key=lambda r: r.evaluations) for curve, records in found.items()}


def orders(
    comparison: Records, metric: str = "rms", *, floor: float = 1e-9, confidence: float = 0.95
) -> dict[Curve, Convergence]:
    """Estimate the order at which the error of each solver falls with its steps, beside the order it declares.

    The estimator, and the search for the range of a power law, are those of :func:`scoresde.analysis.convergence`, applied
    to errors from the prior. At the few steps of most comparisons that range has often not begun. A verdict "lower" is
    therefore a reason to run ``convergence``, which starts where the first step counts as much as any other.

    Args:
        comparison: a comparison with at least three budgets.
        metric: an error that goes to zero with the step.
        floor: the error below which rounding, or the reference, dominates.
        confidence: the confidence level of the interval.

    Example:
        >>> from scoresde import compare
        >>> found = compare("gaussian", ["ddim"], [40, 80, 160], metrics=["rms"], n=16, progress=False)
        >>> orders(found)["gaussian", "ddim", "lam", "VP"].verdict
        'confirmed'
    """
    solvers: Mapping[str, Mapping[str, object]] = comparison.about.get("solvers", {})
    last = 0 if comparison.about.get("end") == "stop" else 1  # the move to sigma = 0 is the same for all
    direction = better(comparison, metric)
    judged = {}
    for curve, records in _curves(comparison, metric).items():
        declared = solvers.get(curve.solver, {}).get("order")
        errors = {r.steps - last: Measurement(r.steps - last, r.evaluations, cost(r.value, direction)) for r in records}
        measured = [errors[n] for n in sorted(errors) if n > 0]
        if isinstance(declared, int | float) and len(measured) >= 3:
            judged[curve] = judge(curve.solver, float(declared), measured, (), floor, confidence)
    return judged


def pareto(comparison: Records, problem: str, metric: str = "rms", sde: str | None = None) -> tuple[Record, ...]:
    """Return the records of a problem that no other beats in both evaluations and error, ordered by evaluations.

    Where the problem is on several SDEs, all of them count, unless ``sde`` names one.

    Example:
        >>> def record(solver, calls, error):
        ...     return Record("ring", solver, "lam", calls, calls, calls, "rms", error, error, error)
        >>> both = Records((record("a", 10, 0.5), record("b", 10, 0.4), record("a", 20, 0.6), record("b", 20, 0.1)))
        >>> [(r.solver, r.evaluations) for r in pareto(both, "ring")]
        [('b', 10), ('b', 20)]
    """
    curves = _curves(comparison, metric).items()
    records = itertools.chain(*(r for c, r in curves if c.problem == problem and sde in (None, c.sde)))
    direction = better(comparison, metric)
    front: list[Record] = []
    for record in sorted(records, key=lambda r: (r.evaluations, cost(r.value, direction))):
        if not front or cost(record.value, direction) < cost(front[-1].value, direction):
            front.append(record)
    return tuple(front)


def evaluations_to_reach(comparison: Records, error: float, metric: str = "rms") -> dict[Curve, float]:
    """Return the number of evaluations at which each solver's error falls to ``error`` and stays below.

    Between two budgets it follows the line through them in logarithms. It is infinite where the last budget is not enough.

    Raises:
        ValueError: if ``error`` is not positive, or no record has the metric.

    Example:
        >>> def record(calls, error):
        ...     return Record("ring", "a", "lam", calls, calls, calls, "rms", error, error, error)
        >>> found = evaluations_to_reach(Records((record(10, 1e-1), record(40, 1e-3))), 1e-2)
        >>> round(found["ring", "a", "lam", ""], 6)
        20.0
    """
    if not error > 0:
        raise ValueError(f"got error={error}; expected a positive number")
    direction = better(comparison, metric)
    return {
        curve: _reached([(r.evaluations, cost(r.value, direction)) for r in records], error)
        for curve, records in _curves(comparison, metric).items()
    }


def _reached(measured: list[tuple[int, float]], error: float) -> float:
    above = [i for i, (_, e) in enumerate(measured) if e > error]
    if not above:
        return float(measured[0][0])
    if above[-1] == len(measured) - 1:
        return math.inf
    (few, large), (many, small) = measured[above[-1]], measured[above[-1] + 1]
    if small <= 0:
        return float(many)
    part = math.log(large / error) / math.log(large / small)
    return float(few * (many / few) ** part)


@dataclass(frozen=True)
class Rank:
    """The mean rank of a solver on a path over all problems and budgets (1 is the best), with its 95 % interval.

    Example:
        >>> best = Rank("dpmpp-2m", "lam", mean=1.25, low=1.0, high=1.5)
        >>> best.solver, best.mean
        ('dpmpp-2m', 1.25)
    """

    solver: str
    path: str
    mean: float
    low: float
    high: float


def ranking(comparison: Records, metric: str = "rms", *, resamples: int = 1000, seed: int = 0) -> tuple[Rank, ...]:
    """Rank all solvers, each on each path, by their mean rank; solvers without a value share the last rank.

    A problem on another SDE counts as another problem. The interval is a percentile bootstrap over problems, since the
    question is how the solvers would rank on other problems of the kind.

    Raises:
        ValueError: if no record has the metric.

    Example:
        >>> def record(problem, solver, error):
        ...     return Record(problem, solver, "lam", 10, 10, 10, "rms", error, error, error)
        >>> both = Records(tuple(record(p, s, e) for p in ("ring", "grid") for s, e in (("a", 0.5), ("b", 0.1))))
        >>> [(rank.solver, rank.mean) for rank in ranking(both)]
        [('b', 1.0), ('a', 2.0)]
    """
    import numpy as np
    from scipy.stats import rankdata

    records = comparison.select(metric=metric)
    if not records:
        raise ValueError(f"got no records of metric {metric!r}; expected one of those compared")
    names = list(dict.fromkeys((r.solver, r.path) for r in records))
    problems = list(dict.fromkeys((r.problem, r.sde) for r in records))
    cells = sorted({r.budget for r in records})
    values = np.full((len(problems), len(cells), len(names)), np.inf)
    direction = better(comparison, metric)
    for r in records:
        if math.isfinite(r.value):
            place = problems.index((r.problem, r.sde)), cells.index(r.budget), names.index((r.solver, r.path))
            values[place] = cost(r.value, direction)
    ranks = rankdata(values, axis=2).mean(1)  # (problems, names)
    drawn = np.random.default_rng(seed).integers(len(problems), size=(resamples, len(problems)))
    low, high = np.quantile(ranks[drawn].mean(1), [0.025, 0.975], axis=0)
    found = [Rank(*name, float(ranks[:, i].mean()), float(low[i]), float(high[i])) for i, name in enumerate(names)]
    return tuple(sorted(found, key=lambda rank: rank.mean))


@dataclass(frozen=True)
class Ratio:
    """The best solver of this package and the best peer, on one problem and SDE within one budget.

    ``ratio`` is the error of the first over the error of the second.

    Example:
        >>> ours = Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.1, 0.1)
        >>> peer = Record("ring", "DDIM", "lam", 5, 5, 5, "rms", 0.2, 0.2, 0.2, package="diffusers")
        >>> Ratio("ring", 5, ours, peer).ratio
        0.5
    """

    problem: str
    budget: int
    ours: Record
    peer: Record
    sde: str = ""

    @property
    def ratio(self) -> float:
        """The ratio of errors: below 1 where this package is ahead."""
        return abs(self.ours.value / self.peer.value) if self.peer.value else math.inf


def best_ratio(comparison: Records, metric: str = "rms") -> tuple[Ratio, ...]:
    """Compare the best solver of this package with the best peer, for every problem, SDE and budget that has both.

    Raises:
        ValueError: for a comparison without peers.

    Example:
        >>> ours = Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.1, 0.1)
        >>> peer = Record("ring", "DDIM", "lam", 5, 5, 5, "rms", 0.2, 0.2, 0.2, package="diffusers")
        >>> [(found.budget, found.ratio) for found in best_ratio(Records((ours, peer)))]
        [(5, 0.5)]
    """
    direction = better(comparison, metric)
    best: dict[tuple[str, str, int, bool], Record] = {}
    for record in comparison.select(metric=metric):
        key = (record.problem, record.sde, record.budget, record.package == "scoresde")
        if math.isfinite(record.value) and (
            key not in best or cost(record.value, direction) < cost(best[key].value, direction)
        ):
            best[key] = record
    found = [
        Ratio(problem, budget, record, best[problem, sde, budget, False], sde)
        for (problem, sde, budget, ours), record in best.items()
        if ours and (problem, sde, budget, False) in best
    ]
    if not found:
        raise ValueError("got a comparison without peers; expected compare(..., peers=True), with the packages installed")
    return tuple(found)
