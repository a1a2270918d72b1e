"""The lines of a chart: their records, their points on the front, and their style, the same in all figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoresde.comparison.records import Record, Records, Trace

__all__ = [
    "COSTS",
    "DASHES",
    "FEW",
    "MARKERS",
    "MOST",
    "Line",
    "Style",
    "better",
    "called",
    "coloured",
    "cost",
    "drawn",
    "front",
    "labels",
    "lines",
    "log_scale",
    "styles",
    "titles",
    "twins",
]

MOST = 12
"""The most lines in colour in one panel: more cannot be told apart."""

FEW = 8
"""The most lines in a panel that are all drawn in colour."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h", "*")
"""Markers of Matplotlib, as many as a panel has lines in colour, so that lines can be told apart without colours."""

DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1.2, 1, 1.2, 1, 1.2))
"""The lengths of strokes and gaps in units of the line's width; the first has no gaps."""

COSTS = ("time", "memory")
"""Metrics of the run, in which two solvers with equal samples differ."""

Key = tuple[str, str]
"""A solver and a path, which identify a line."""

Panel = tuple[str, str]
"""A problem and an SDE, which identify a panel."""


@dataclass(frozen=True)
class Style:
    """The style of a line: its ``rank`` gives colour, marker and dash; the markers of other packages are not filled.

    A ``chosen`` line is in colour whether on the front or not.
    """

    rank: int
    filled: bool = True
    chosen: bool = False

    def pick(self, among: Collection[object]) -> int:
        """Return the place of the line in a table of colours, markers or dashes."""
        return self.rank % len(among)


@dataclass(frozen=True)
class Line:
    """The finite numbers of one solver on one path in one panel by one metric, ordered by evaluations."""

    solver: str
    path: str
    points: tuple[Record, ...]

    @property
    def key(self) -> Key:
        """The solver and the path, which give a line the same style in all figures."""
        return self.solver, self.path


def titles(comparison: Records) -> dict[Panel, str]:
    """Return the title of each panel: its problem, with the SDE where the problem is on several.

    Example:
        >>> records = [Record("ring", "a", "lam", 5, 5, 5, "rms", 0.1, 0.1, 0.1, sde=sde) for sde in ("VP", "VE")]
        >>> titles(Records(tuple(records)))
        {('ring', 'VP'): 'ring, VP', ('ring', 'VE'): 'ring, VE'}
    """
    items: tuple[Record | Trace, ...] = (*comparison.records, *comparison.traces)
    panels = dict.fromkeys((item.problem, item.sde) for item in items)
    count = Counter(problem for problem, _ in panels)
    return {panel: panel[0] if count[panel[0]] == 1 else f"{panel[0]}, {panel[1]}" for panel in panels}


def lines(comparison: Records, problem: str, metric: str, sde: str | None = None) -> list[Line]:
    """Return the lines of one panel in the order of the records; of two budgets with equal evaluations, the first counts.

    Solvers with equal numbers have one line, that of the first: see :func:`twins`.

    Args:
        comparison: the comparison.
        problem, metric: the names of the problem and the metric.
        sde: the name of the SDE, by default the first of the problem.

    Example:
        >>> two = (("a", 1), ("b", 2))
        >>> records = [Record("ring", s, "lam", n, n, n, "rms", k / n, k / n, k / n) for s, k in two for n in (20, 10)]
        >>> [(line.key, [r.value for r in line.points]) for line in lines(Records(tuple(records)), "ring", "rms")]
        [(('a', 'lam'), [0.1, 0.05]), (('b', 'lam'), [0.2, 0.1])]
    """
    if sde is None:
        sde = next((r.sde for r in comparison.records if r.problem == problem), "")
    found: dict[Key, dict[int, Record]] = {}
    for r in comparison.records:
        if (r.problem, r.sde, r.metric) == (problem, sde, metric) and math.isfinite(r.value):
            found.setdefault((r.solver, r.path), {}).setdefault(r.evaluations, r)
    first = {} if metric in COSTS else twins(comparison)
    kept = {key: points for key, points in found.items() if first.get(key, key) == key}
    return [Line(*key, tuple(points[n] for n in sorted(points))) for key, points in kept.items()]


def better(comparison: Records, metric: str) -> str:
    """Return which values of a metric are the better ones: "lower", "higher" or "zero"."""
    described: Mapping[str, Mapping[str, str]] = comparison.about.get("metrics", {})
    return described.get(metric, {}).get("better", "lower")


def cost(value: float, direction: str) -> float:
    """Return a cost, lower is better: the value, its negative where higher is better, or its distance from zero."""
    return {"higher": -value, "zero": abs(value)}.get(direction, value)


_LARGEST = 1e250  # the margins of an axis overflow around larger numbers


def drawn(record: Record, direction: str) -> tuple[float, float, float]:
    """Return the number and its interval as they are drawn: without signs where zero is the best.

    Example:
        >>> drawn(Record("ring", "a", "lam", 5, 5, 5, "mmd", -0.1, -0.3, 0.2), "zero")
        (0.1, 0.0, 0.3)
    """
    value, low, high = (min(max(v, -_LARGEST), _LARGEST) for v in (record.value, record.low, record.high))
    if direction != "zero":
        return value, low, high
    return abs(value), 0.0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high))


def front(panel: Collection[Line], direction: str = "lower") -> Counter[Key]:
    """Count the points of each line on the front, where no other point has as few evaluations and as good a number.

    Example:
        >>> def line(solver, *values):
        ...     points = [Record("ring", solver, "lam", n, n, n, "rms", v, v, v) for n, v in enumerate(values, 5)]
        ...     return Line(solver, "lam", tuple(points))
        >>> front([line("a", 0.5, 0.4, 0.1), line("b", 0.6, 0.2, 0.3)])
        Counter({('a', 'lam'): 2, ('b', 'lam'): 1})
    """
    points = sorted(
        (r.evaluations, cost(r.value, direction), i, line.key) for i, line in enumerate(panel) for r in line.points
    )
    best, found = math.inf, Counter[Key]()
    for _, value, _, key in points:
        if value < best:
            best = value
            found[key] += 1
    return found


def labels(comparison: Records) -> dict[Key, str]:
    """Return the label of each line: its solver, with the path where the solver has several.

    Solvers with a trace and no number have a label as well.
    """
    items: tuple[Record | Trace, ...] = (*comparison.records, *comparison.traces)
    keys = dict.fromkeys((item.solver, item.path) for item in items)
    count = Counter(solver for solver, _ in keys)
    return {key: key[0] if count[key[0]] == 1 else f"{key[0]}, {key[1]}" for key in keys}


def twins(comparison: Records) -> dict[Key, Key]:
    """Return for each line the first line with the same numbers, often itself.

    The numbers agree to a relative 1e-6 at the same evaluations in all metrics but :data:`COSTS`. Such solvers are one
    method by several names, or by several packages.

    Example:
        >>> numbers = (("ddim", 0.1), ("dpm-1", 0.1), ("heun", 0.2))
        >>> records = tuple(Record("ring", name, "lam", 5, 5, 5, "rms", v, v, v) for name, v in numbers)
        >>> twins(Records(records))["dpm-1", "lam"]
        ('ddim', 'lam')
    """
    numbers: dict[Key, dict[tuple[str, str, str, int], float]] = {key: {} for key in labels(comparison)}
    for r in comparison.records:
        if r.metric not in COSTS and math.isfinite(r.value):
            numbers[r.solver, r.path].setdefault((r.problem, r.sde, r.metric, r.evaluations), r.value)
    first: dict[Key, Key] = {}
    for key, values in numbers.items():
        leaders = (other for other in first if first[other] == other and _agree(values, numbers[other]))
        first[key] = next(leaders, key)
    return first


def _agree(one: Mapping[Any, float], other: Mapping[Any, float]) -> bool:
    if not one or one.keys() != other.keys():
        return False
    return all(math.isclose(value, other[place], rel_tol=1e-6) for place, value in one.items())


def called(comparison: Records, most: int | None = None) -> dict[Key, str]:
    """Return the name of each line, of twins with all their labels: ``"ddim = dpm-1"``; at most ``most`` of them.

    Example:
        >>> records = tuple(Record("ring", name, "lam", 5, 5, 5, "rms", 0.1, 0.1, 0.1) for name in "abc")
        >>> called(Records(records))["a", "lam"], called(Records(records), most=1)["a", "lam"]
        ('a = b = c', 'a (+2 equal)')
    """
    first, names = twins(comparison), labels(comparison)
    groups: dict[Key, list[str]] = {}
    for key, label in names.items():
        groups.setdefault(first[key], []).append(label)
    return {key: _joined(groups.get(key, [label]), most) for key, label in names.items()}


def _joined(found: Sequence[str], most: int | None) -> str:
    left = 0 if most is None else len(found) - most
    return " = ".join(found) if left <= 0 else f"{' = '.join(found[:most])} (+{left} equal)"


def styles(comparison: Records, highlight: Collection[str] = ()) -> dict[Key, Style]:
    """Return a style for every line, the same in all panels: first the chosen, then by their points on fronts.

    Chosen are the lines to highlight, by default the solvers that were asked for (``about["asked"]``) if a panel can show
    them all. Points in the first metric count before those in others, so that colours are spread over the lines drawn.

    Raises:
        ValueError: for a solver to highlight that is not in the comparison, or more of them than a panel can show.
    """
    names, first = labels(comparison), twins(comparison)
    unknown = set(highlight) - {solver for solver, _ in names}
    if unknown:
        raise ValueError(
            f"got {sorted(unknown)} to highlight; expected solvers of the comparison: {comparison.named('solver')}"
        )
    chosen = {first[key] for key in names if key[0] in highlight}
    if len(chosen) > MOST:
        raise ValueError(f"got more than {MOST} lines to highlight; expected fewer solvers, or fewer paths")
    if not highlight:
        asked = {first[key] for key in names if key[0] in comparison.about.get("asked", ())}
        chosen = asked if len(asked) <= MOST else set()
    packages = {(r.solver, r.path): r.package for r in comparison.records}
    panels: dict[tuple[str, str, str], dict[Key, list[Record]]] = {}
    for r in comparison.records:
        key = (r.solver, r.path)
        if math.isfinite(r.value) and (r.metric in COSTS or first[key] == key):
            panels.setdefault((r.problem, r.sde, r.metric), {}).setdefault(key, []).append(r)
    wins, early, shown = Counter[Key](), Counter[Key](), comparison.named("metric")
    for (_, _, metric), panel in panels.items():
        found = front([Line(*key, tuple(points)) for key, points in panel.items()], better(comparison, metric))
        wins += found
        early += found if metric == shown[0] else Counter()
    ranked = sorted(names, key=lambda key: (first[key] != key, first[key] not in chosen, -early[key], -wins[key]))
    return {
        key: Style(rank, packages.get(key, "scoresde") == "scoresde", first[key] in chosen)
        for rank, key in enumerate(ranked)
    }


def coloured(panel: list[Line], style: Mapping[Key, Style], direction: str) -> list[Line]:
    """Return the lines to draw in colour: all where they are few, else the chosen ones, then those on the front."""
    wins = front(panel, direction)
    if len(panel) <= FEW:
        return panel
    ranked = sorted(panel, key=lambda line: (not style[line.key].chosen, -wins[line.key], style[line.key].rank))
    return [line for line in ranked if style[line.key].chosen or wins[line.key]][:MOST]


def log_scale(values: Collection[float]) -> bool:
    """Tell whether to use a logarithmic axis: most numbers are positive, and they span more than a factor of three."""
    positive = [v for v in values if v > 0]
    return len(positive) > 0.75 * len(values) and max(positive) > 3 * min(positive)
