"""How errors fall with the steps, beside the slopes that solvers declare."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from scoresde.comparison.records import Records
from scoresde.comparison.report import statistics
from scoresde.comparison.report.line_labels import finish
from scoresde.comparison.report.panels import draw, grid, known
from scoresde.comparison.report.series import Line, coloured, labels, lines, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["orders"]


def orders(
    comparison: Records, metric: str | None = None, problem: str | None = None, *, highlight: Collection[str] = ()
) -> Figure:
    """How the error falls as the *steps* grow in number: one panel for each declared order, with a triangle of that slope.

    Behind a name stands the order that was measured, where a range was found in which the error falls as a power: see
    :func:`scoresde.comparison.report.statistics.orders`. The last move of a path, to zero noise, is the same for all and not
    counted.

    Args:
        comparison: of which; ``about["solvers"]`` says the order that each declares.
        metric, problem: by default the first.
        highlight: solvers to draw in colour.

    Raises:
        ValueError: for a problem or metric that the comparison has not, or where no deterministic solver declares an order.
    """
    metric, problem = known(comparison, "metric", metric), known(comparison, "problem", problem)
    style, names = styles(comparison, highlight), dict(labels(comparison))
    described = comparison.about.get("solvers", {})
    measured = statistics.orders(comparison, metric)
    groups: dict[float, list[Line]] = {}
    for line in lines(comparison, problem, metric):
        order = described.get(line.solver, {}).get("order")
        if order and len(line.points) > 1:
            groups.setdefault(float(order), []).append(line)
            found = measured.get((problem, *line.key))
            if found is not None and math.isfinite(found.order):
                names[line.key] += f" ({found.order:.1f})"
    if not groups:
        raise ValueError("got no solver that declares an order; expected about['solvers'][name]['order'] of at least one")
    last = 0 if comparison.about.get("end") == "stop" else 1
    figure, axes = grid(len(groups), 4, 4.0, 3.8, sharey=True)
    for i, (ax, order) in enumerate(zip(axes, sorted(groups), strict=True)):
        ax.set_title(f"declared order {order:g}", fontsize=10)
        draw(ax, groups[order], coloured(groups[order], style, highlight, "lower"), style, lambda r: r.steps - last)
        ax.set_xlabel("steps")
        if i == 0:
            ax.set_ylabel(f"{metric}, {problem}")
    for ax, order in zip(axes, sorted(groups), strict=True):
        _triangle(ax, order)
    finish(figure, axes, {names[key]: s for key, s in style.items()}, names)
    return figure


def _triangle(ax: Axes, order: float) -> None:
    """A triangle of the declared slope in the lower left corner, where falling lines are not."""
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
