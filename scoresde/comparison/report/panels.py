"""The panels of a figure and the lines in them, all in one style."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scoresde.comparison.records import Record, Records
from scoresde.comparison.report.series import DASHES, MARKERS, Line, Style, drawn, log_scale
from scoresde.plots import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GREY", "SIZE", "draw", "grid", "known", "look", "plain_axes"]

GREY = "0.78"
"""The colour of lines in the background."""

SIZE = 8.0
"""The size of names in points."""

_ASIDE = 5.0  # the width in points over which intervals at one number of evaluations are spread: a marker's


def known(comparison: Records, attribute: str, name: str | None) -> str:
    """Return the problem or metric of that name, by default the first of the comparison.

    Raises:
        ValueError: for a name that is not in the comparison.
    """
    names = comparison.named(attribute)
    if not names or (name is not None and name not in names):
        raise ValueError(
            f"got {attribute} {name!r}; expected one of the comparison: {', '.join(names) or 'it has no records'}"
        )
    return names[0] if name is None else name


def grid(
    count: int, columns: int, width: float, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``count`` panels, ``width`` by ``height`` inches each, ``columns`` of them side by side."""
    across = min(columns, count)
    down = -(-count // across)
    figure = new_figure(width * across, height * down + 0.3)
    figure.set_layout_engine("constrained", w_pad=0.1)  # space between the names of a panel and the numbers of the next
    axes = list(figure.subplots(down, across, squeeze=False, sharex=sharex, sharey=sharey).ravel())
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def look(style: Style) -> dict[str, Any]:
    """Return the arguments of Matplotlib for a line of that style."""
    colour = PALETTE[style.pick(PALETTE)]
    dash = DASHES[style.pick(DASHES)]
    return {
        "color": colour,
        "marker": MARKERS[style.pick(MARKERS)],
        "linestyle": (0, dash) if dash else "-",
        "linewidth": 1.4,
        "markersize": 5,
        "markerfacecolor": colour if style.filled else "white",
        "markeredgecolor": colour,
    }


def draw(
    ax: Axes,
    panel: Sequence[Line],
    chosen: Sequence[Line],
    style: Mapping[Any, Style],
    across: Callable[[Record], int],
    direction: str = "lower",
) -> None:
    """Draw the lines of a panel: the chosen ones in colour with intervals, the others in grey beneath."""
    from matplotlib.transforms import offset_copy

    values = [drawn(r, direction)[0] for line in panel for r in line.points]
    if log_scale(values):
        ax.set_yscale("log")
        floor = max(0.5 * min(v for v in values if v > 0), 1e-250)
        if min(values) <= 0:  # an unbiased estimate close to zero may be negative, and is among the best
            ax.axhline(floor, color="0.35", linewidth=0.8, linestyle=":", zorder=0, label="_floor")
    else:
        floor = -math.inf
    others: list[list[float]] = [[], []]  # one curve with gaps: hundreds of artists would take minutes
    for line in panel:
        x = [across(r) for r in line.points]
        y, low, high = (
            [max(v, floor) for v in column] for column in zip(*(drawn(r, direction) for r in line.points), strict=True)
        )
        if line not in chosen:
            others = [[*before, *new, math.nan] for before, new in zip(others, (x, y), strict=True)]
            continue
        ax.plot(x, y, zorder=3, label=f"_{line.solver}", gid=f"{line.solver}|{line.path}", **look(style[line.key]))
        bars = ax.vlines(x, low, high, color=PALETTE[style[line.key].pick(PALETTE)], linewidth=1.0, zorder=2)
        # Lines share their numbers of evaluations. Intervals are moved aside so that one does not hide another.
        aside = _ASIDE * (chosen.index(line) - 0.5 * (len(chosen) - 1)) / max(len(chosen) - 1, 1)
        bars.set_transform(offset_copy(ax.transData, bars.get_figure(root=True), aside, units="points"))
    if others[0]:
        ax.plot(*others, color=GREY, linewidth=0.7, zorder=1, label="_other")
    ax.set_xscale("log")
    plain_axes(ax)


def plain_axes(ax: Axes) -> None:
    """Set readable ticks: powers of ten, and where the axis is short also 2 and 5 times these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.grid(True, which="major", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SIZE)
    for axis, bounds in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if axis.get_scale() == "log":
            short = bounds[1] < 300 * bounds[0]
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(
                FuncFormatter(lambda v, _: f"{v:g}" if 0.99e-3 < v < 1e5 else f"{v:.0e}".replace("e-0", "e-"))
            )
