"""The lines of a chart: their records, their points on the front, and their style, the same in all figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scoresde.comparison.records import Record, Records, Trace

__all__ = [
    "DASHES",
    "FEW",
    "MARKERS",
    "MOST",
    "Line",
    "Style",
    "better",
    "coloured",
    "cost",
    "drawn",
    "front",
    "labels",
    "lines",
    "log_scale",
    "styles",
    "titles",
]

MOST = 12
"""The most lines in colour in one panel: more cannot be told apart."""

FEW = 8
"""The most lines in a panel that are all drawn in colour."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h", "*")
"""Markers of Matplotlib, as many as a panel has lines in colour, so that lines can be told apart without colours."""

DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1.2, 1, 1.2, 1, 1.2))
"""The lengths of strokes and gaps in units of the line's width; the first has no gaps."""

Key = tuple[str, str]
"""A solver and a path, which identify a line."""

Panel = tuple[str, str]
"""A problem and an SDE, which identify a panel."""


@dataclass(frozen=True)
class Style:
    """The style of a line: its ``rank`` gives colour, marker and dash; the markers of other packages are not filled."""

    rank: int
    filled: bool = True

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

    Args:
        comparison: the comparison.
        problem, metric: the names of the problem and the metric.
        sde: the name of the SDE, by default the first of the problem.

    Example:
        >>> records = [Record("ring", s, "lam", n, n, n, "rms", 1 / n, 1 / n, 1 / n) for s in ("a", "b") for n in (20, 10)]
        >>> [(line.key, [r.value for r in line.points]) for line in lines(Records(tuple(records)), "ring", "rms")]
        [(('a', 'lam'), [0.1, 0.05]), (('b', 'lam'), [0.1, 0.05])]
    """
    if sde is None:
        sde = next((r.sde for r in comparison.records if r.problem == problem), "")
    found: dict[Key, dict[int, Record]] = {}
    for r in comparison.records:
        if (r.problem, r.sde, r.metric) == (problem, sde, metric) and math.isfinite(r.value):
            found.setdefault((r.solver, r.path), {}).setdefault(r.evaluations, r)
    return [Line(*key, tuple(points[n] for n in sorted(points))) for key, points in found.items()]


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


def styles(comparison: Records, highlight: Collection[str] = ()) -> dict[Key, Style]:
    """Return a style for every line, the same in all panels: first those to highlight, then by their points on fronts.

    Raises:
        ValueError: for a solver to highlight that is not in the comparison, or more of them than a panel can show.
    """
    names = labels(comparison)
    unknown = set(highlight) - {solver for solver, _ in names}
    if unknown:
        raise ValueError(
            f"got {sorted(unknown)} to highlight; expected solvers of the comparison: {comparison.named('solver')}"
        )
    if sum(solver in highlight for solver, _ in names) > MOST:
        raise ValueError(f"got more than {MOST} lines to highlight; expected fewer solvers, or fewer paths")
    panels: dict[tuple[str, str, str], dict[Key, list[Record]]] = {}
    packages = {}
    for r in comparison.records:
        packages[r.solver, r.path] = r.package
        if math.isfinite(r.value):
            panels.setdefault((r.problem, r.sde, r.metric), {}).setdefault((r.solver, r.path), []).append(r)
    wins = Counter[Key]()
    for (_, _, metric), panel in panels.items():
        wins += front([Line(*key, tuple(points)) for key, points in panel.items()], better(comparison, metric))
    ranked = sorted(names, key=lambda key: (key[0] not in highlight, -wins[key]))
    return {key: Style(rank, packages.get(key, "scoresde") == "scoresde") for rank, key in enumerate(ranked)}


def coloured(panel: list[Line], style: Mapping[Key, Style], highlight: Collection[str], direction: str) -> list[Line]:
    """Return the lines to draw in colour: all where they are few, else those to highlight, then those on the front."""
    wins = front(panel, direction)
    if len(panel) <= FEW:
        return panel
    ranked = sorted(panel, key=lambda line: (line.solver not in highlight, -wins[line.key], style[line.key].rank))
    return [line for line in ranked if line.solver in highlight or wins[line.key]][:MOST]


def log_scale(values: Collection[float]) -> bool:
    """Tell whether to use a logarithmic axis: most numbers are positive, and they span more than a factor of three."""
    positive = [v for v in values if v > 0]
    return len(positive) > 0.75 * len(values) and max(positive) > 3 * min(positive)
