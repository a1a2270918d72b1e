"""Figures of the error against the evaluations of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from scoresde.comparison.records import Records
from scoresde.comparison.report.line_labels import finish
from scoresde.comparison.report.panels import draw, grid, known
from scoresde.comparison.report.series import COSTS, better, called, coloured, labels, lines, styles, titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["work_precision"]


def work_precision(
    comparison: Records,
    metric: str | None = None,
    problems: Iterable[str] | None = None,
    *,
    highlight: Collection[str] = (),
    columns: int = 3,
) -> Figure:
    """Draw the error against the number of evaluations: one panel for each problem and SDE, better towards the lower left.

    Both axes are logarithmic. Vertical bars are confidence intervals. Where lines are many, at most twelve are in colour:
    those to highlight, by default the solvers that were asked for, and those on the front (no other is as accurate with as
    few evaluations). The others are grey. Solvers with equal numbers share a line.

    Args:
        comparison: the comparison.
        metric: the name of the metric, by default the first.
        problems: the names of the problems, by default all that have the metric.
        highlight: the solvers to draw in colour, whether on the front or not.
        columns: the largest number of panels side by side.

    Raises:
        ValueError: for a problem or metric that is not in the comparison, or where there is nothing to draw.
    """
    metric = known(comparison, "metric", metric)
    style = styles(comparison, highlight)
    names = labels(comparison) if metric in COSTS else called(comparison, 1)
    wanted = comparison.named("problem") if problems is None else [known(comparison, "problem", p) for p in problems]
    places = {title: (p, sde) for (p, sde), title in titles(comparison).items() if p in wanted}
    panels = {title: panel for title, (p, sde) in places.items() if (panel := lines(comparison, p, metric, sde))}
    if not panels:
        raise ValueError(f"got no finite number of {metric!r}; expected at least one: see the errors of the records")
    figure, axes = grid(len(panels), columns, 4.4, 3.6)
    direction = better(comparison, metric)
    unit = comparison.about.get("metrics", {}).get(metric, {}).get("unit", "")
    for i, (ax, (title, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        ax.set_title(title, fontsize=10)
        chosen = coloured(panel, style, direction)
        draw(ax, panel, chosen, style, lambda r: r.evaluations, direction)
        ax.set_xlabel("evaluations of the model")
        if i % columns == 0:
            ax.set_ylabel((f"|{metric}|" if direction == "zero" else metric) + (f" ({unit})" if unit else ""))
    finish(figure, axes, {names[key]: s for key, s in style.items()}, names)
    return figure
