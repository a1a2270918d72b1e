"""The names of lines, written beside their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scoresde.comparison.report.panels import GREY, SIZE, look
from scoresde.comparison.report.series import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["finish"]


def finish(figure: Figure, axes: Sequence[Axes], style: Mapping[str, Style], names: Mapping[tuple[str, str], str]) -> None:
    """Add a legend for the lines without names, and names beside the others, and fix the layout."""
    called = {f"{solver}|{path}": name for (solver, path), name in names.items()}
    ends = [[(called.get(line.get_gid() or "", str(line.get_label())), line) for line in ax.get_lines()] for ax in axes]
    ends = [[(name, line) for name, line in panel if name in style] for panel in ends]
    entries = _legend(axes, all(style[name].filled for panel in ends for name, _ in panel))
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=SIZE)
    layout = figure.get_layout_engine()
    assert layout is not None  # grid has set it
    layout.execute(figure)  # now the height of the axes is known
    for ax, panel in zip(axes, ends, strict=True):
        _name(ax, panel)
    layout.execute(figure)  # makes room for the names
    figure.set_layout_engine("none")


def _legend(axes: Sequence[Axes], ours: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    found = {line.get_label() for ax in axes for line in ax.get_lines()}
    entries = []
    if "_other" in found:
        entries.append(Line2D([], [], color=GREY, linewidth=0.7, label="others"))
    if "_floor" in found:
        entries.append(Line2D([], [], color="0.35", linewidth=0.8, linestyle=":", label="on this line: zero or less"))
    if not ours:
        hollow = {**look(Style(0, filled=False)), "color": "0.3", "markeredgecolor": "0.3"}
        entries.append(Line2D([], [], **hollow, label="hollow: another package"))
    return entries


def _name(ax: Axes, ends: Sequence[tuple[str, Any]]) -> None:
    """Write each line's name right of the axes, near its last point without overlap, with a connecting line."""
    from sklearn.isotonic import isotonic_regression

    if not ends:
        return
    height = ax.get_window_extent().height / ax.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    gap = 1.3 * SIZE / height
    last = [(line.get_xdata()[-1], line.get_ydata()[-1]) for _, line in ends]
    places = ax.transAxes.inverted().transform(ax.transData.transform(last))
    ranked = sorted(range(len(ends)), key=lambda i: places[i][1])
    # Isotonic regression keeps the order and a gap between places, and moves them as little as possible.
    moved = isotonic_regression(
        [places[i][1] - j * gap for j, i in enumerate(ranked)], y_min=0.0, y_max=max(0.0, 1 - (len(ends) - 1) * gap)
    )
    for j, i in enumerate(ranked):
        (name, line), y = ends[i], moved[j] + j * gap
        same = {"color": line.get_color(), "linewidth": 0.6, "clip_on": False, "transform": ax.transAxes, "label": "_leader"}
        ax.plot([places[i][0], 1.04], [places[i][1], y], alpha=0.6, zorder=0, **same)
        ax.plot([1.04], [y], marker=line.get_marker(), markersize=5, markerfacecolor=line.get_markerfacecolor(), **same)
        ax.text(1.065, y, name, transform=ax.transAxes, va="center", fontsize=SIZE, gid="name")
