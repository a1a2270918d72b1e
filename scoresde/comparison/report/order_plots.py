"""Figures of the error against the number of steps, beside the slopes that solvers declare."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from scoresde.comparison.records import Record, Records
from scoresde.comparison.report import statistics
from scoresde.comparison.report.line_labels import finish
from scoresde.comparison.report.panels import draw, grid, known
from scoresde.comparison.report.series import Line, called, coloured, lines, styles, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["by_order", "orders"]


def by_order(comparison: Records, metric: str, problem: str, sde: str | None = None) -> dict[float, list[Line]]:
    """Return the lines of a panel by the order that their solvers declare, for lines of two points or more.

    Example:
        >>> from scoresde.comparison.records import Record
        >>> records = [Record("ring", "ddim", "lam", n, n, n, "rms", 1 / n, 1 / n, 1 / n) for n in (5, 10)]
        >>> found = Records(tuple(records), {"solvers": {"ddim": {"order": 1}}})
        >>> {order: [line.solver for line in group] for order, group in by_order(found, "rms", "ring").items()}
        {1.0: ['ddim']}
    """
    described = comparison.about.get("solvers", {})
    groups: dict[float, list[Line]] = {}
    for line in lines(comparison, problem, metric, sde):
        order = described.get(line.solver, {}).get("order")
        if order and len({r.steps for r in _moved(comparison, line)}) > 1:
            groups.setdefault(float(order), []).append(line)
    return groups


def _moved(comparison: Records, line: Line) -> list[Record]:
    """Return the points of a line that have steps of the solver's own besides the last move."""
    return [r for r in line.points if r.steps > _last(comparison)]


def _last(comparison: Records) -> int:
    """Return the number of moves to sigma = 0, the same for all solvers: one, or 0 where the path stops before."""
    return 0 if comparison.about.get("end") == "stop" else 1


def orders(
    comparison: Records,
    metric: str | None = None,
    problem: str | None = None,
    sde: str | None = None,
    *,
    highlight: Collection[str] = (),
) -> Figure:
    """Draw the error against the number of *steps*: one panel for each declared order, with a triangle of that slope.

    A measured order stands behind the name of a solver where the error falls as a power over some range: see
    :func:`scoresde.comparison.report.statistics.orders`. The last move of a path, to sigma = 0, is the same for all solvers
    and not counted.

    Args:
        comparison: the comparison; ``about["solvers"]`` holds the declared orders.
        metric, problem, sde: the names of the panel, by default the first.
        highlight: the solvers to draw in colour.

    Raises:
        ValueError: for a problem, metric or SDE that is not in the comparison, or where no solver that declares an order has
            two numbers of steps.
    """
    metric, problem = known(comparison, "metric", metric), known(comparison, "problem", problem)
    on = next(r.sde for r in comparison.records if r.problem == problem) if sde is None else known(comparison, "sde", sde)
    style, names = styles(comparison, highlight), called(comparison, 1)
    measured = statistics.orders(comparison, metric)
    groups = by_order(comparison, metric, problem, on)
    if not groups:
        raise ValueError(
            f"got no solver with an order and two numbers of steps by {metric!r} on {problem!r}; expected two budgets or "
            "more, and about['solvers'][name]['order'] of at least one solver"
        )
    for line in (line for group in groups.values() for line in group):
        found = measured.get(statistics.Curve(problem, *line.key, on))
        if found is not None and math.isfinite(found.order):
            names[line.key] += f" ({found.order:.1f})"
    last = _last(comparison)
    figure, axes = grid(len(groups), 4, 4.0, 3.8, sharey=True)
    for i, (ax, order) in enumerate(zip(axes, sorted(groups), strict=True)):
        ax.set_title(f"declared order {order:g}", fontsize=10)
        group = [replace(line, points=tuple(_moved(comparison, line))) for line in groups[order]]
        draw(ax, group, coloured(group, style, "lower"), style, lambda r: r.steps - last)
        ax.set_xlabel("steps")
        if i == 0:
            ax.set_ylabel(f"{metric}, {titles(comparison)[problem, on]}")
    for ax, order in zip(axes, sorted(groups), strict=True):
        _triangle(ax, order)
    finish(figure, axes, {names[key]: s for key, s in style.items()}, names)
    return figure


def _triangle(ax: Axes, order: float) -> None:
    """Draw a triangle of the declared slope in the lower left corner, which falling lines leave free."""
    if ax.get_yscale() != "log":
        return
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    width, height = math.log(x1 / x0), math.log(y1 / y0)
    run = min(0.22 * width, 0.3 * height / order)
    left, base = x0 * math.exp(0.06 * width), y0 * math.exp(0.08 * height)
    right, top = left * math.exp(run), base * math.exp(order * run)
    ax.plot([left, right, left, left], [top, base, base, top], color="0.25", linewidth=0.9, zorder=1, gid="triangle")
    ax.annotate(
        f"{order:g}", (left, math.sqrt(base * top)), (-3, 0), textcoords="offset points", ha="right", va="center", fontsize=7
    )
    ax.annotate("1", (math.sqrt(left * right), base), (0, -2), textcoords="offset points", ha="center", va="top", fontsize=7)
    ax.set(xlim=(x0, x1), ylim=(y0, y1))
