"""Figures of attributed errors: along the steps of a path, and over the parts of the method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scoresde.comparison.report.line_labels import finish
from scoresde.comparison.report.panels import SIZE, grid, look, plain_axes
from scoresde.comparison.report.series import MOST, Style, log_scale
from scoresde.plots import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attribution", "decomposition"]


def attribution(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str = "half log-SNR lam"
) -> Figure:
    """Draw the part of each solver's error that each step of the path contributes, as one curve for each solver.

    Args:
        curves: a mapping from solvers, at most twelve, to the points of the path and the contribution of the step to each.
        xlabel: the label of the points.

    Raises:
        ValueError: for no curve, more than twelve, or a curve whose two sequences differ in length.
    """
    if not 0 < len(curves) <= MOST or any(len(x) != len(y) or not len(x) for x, y in curves.values()):
        raise ValueError(
            f"got {len(curves)} curves; expected one to {MOST}, each as many points as contributions, not empty"
        )
    figure, (ax,) = grid(1, 1, 6.4, 3.8)
    style = {name: Style(i) for i, name in enumerate(curves)}
    for name, (x, y) in curves.items():
        ax.plot(x, y, label=name, **look(style[name]))
    if log_scale([float(v) for _, y in curves.values() for v in y]):
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel="contribution to the error at the end")
    plain_axes(ax)
    finish(figure, [ax], style, {})
    return figure


def decomposition(
    parts: Mapping[str, Mapping[str, float]], *, totals: Mapping[str, float] | None = None, xlabel: str = "error"
) -> Figure:
    """Draw the sources of each solver's error: one bar for each solver, with one section for each source and the total.

    Args:
        parts: a mapping from solvers to mappings from sources (prior, score, discretization, early stopping) to their part.
        totals: a mapping from solvers to their total where it is not the sum of the parts, drawn as a line across the bar.
        xlabel: the label of the error.

    Raises:
        ValueError: for nothing to draw, more sources than seven, a part that is negative or not finite, or totals of other
            solvers than the parts.
    """
    sources = list(dict.fromkeys(source for bar in parts.values() for source in bar))
    bad = {s: v for bar in parts.values() for s, v in bar.items() if not 0 <= v < math.inf}
    if not sources or len(sources) > len(PALETTE) or bad:
        raise ValueError(
            f"got {len(parts)} solvers, {len(sources)} sources and {bad or 'no bad parts'}; expected one to {len(PALETTE)} "
            "sources, each adding a finite number of at least 0: leave out what has none"
        )
    if totals is not None and totals.keys() != parts.keys():
        raise ValueError(f"got totals of {sorted(totals)} for parts of {sorted(parts)}; expected the same solvers")
    figure, (ax,) = grid(1, 1, 6.8, 1.3 + 0.34 * len(parts))
    left = [0.0] * len(parts)
    for source, colour, hatch in zip(sources, PALETTE, ("", "///", "...", "xx", "\\\\\\", "||", "oo"), strict=False):
        values = [bar.get(source, 0.0) for bar in parts.values()]
        bars = ax.barh(list(parts), values, left=left, color=colour, edgecolor="white", height=0.7, label=source)
        for bar in bars:
            bar.set_hatch(hatch)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, (solver, end) in enumerate(zip(parts, left, strict=True)):
        total = end if totals is None else totals[solver]
        if totals is not None:
            ax.plot([total] * 2, [i - 0.45, i + 0.45], color="black", linewidth=2.5, solid_capstyle="butt", zorder=4)
        place = (max(total, end), i)
        ax.annotate(f"{total:.3g}", place, xytext=(4, 0), textcoords="offset points", va="center", fontsize=SIZE)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.set_xlabel(xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(4, len(sources)), frameon=False, fontsize=SIZE)
    return figure
