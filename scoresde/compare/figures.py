"""Figures of a comparison: work and precision, orders, trajectories, and where errors come from.

Each function returns a figure of Matplotlib; :func:`scoresde.plots.save` writes it as PNG, SVG or PDF. A line has the same
colour, marker and dash in all figures of a comparison, and its name beside it: either tells it apart without colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.compare import analysis
from scoresde.compare.records import Comparison, Record, Trace
from scoresde.compare.series import (
    DASHES,
    MARKERS,
    MOST,
    Line,
    Style,
    better,
    coloured,
    drawn,
    labels,
    lines,
    log_scale,
    named,
    styles,
)
from scoresde.plots import PALETTE, _figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["attribution", "decomposition", "orders", "trajectories", "work_precision"]

_GREY = "0.78"
_SIZE = 8.0  # of the names, in points


def work_precision(
    comparison: Comparison,
    metric: str | None = None,
    problems: Iterable[str] | None = None,
    *,
    highlight: Collection[str] = (),
    columns: int = 3,
) -> Figure:
    """What each solver makes of each number of evaluations: one panel for each problem, the better the lower left.

    Both axes are logarithmic; vertical bars are confidence intervals. Where lines are many, those on the front (no other is
    as accurate with as few evaluations) and those to highlight are in colour, at most twelve, and the others grey.

    Args:
        comparison: of which.
        metric: by default the first.
        problems: by default all that have the metric.
        highlight: solvers to draw in colour, whether on the front or not.
        columns: panels side by side, at most.

    Raises:
        ValueError: for a problem or metric that the comparison has not, or where there is nothing to draw.
    """
    metric = _known(comparison, "metric", metric)
    style, names = styles(comparison, highlight), labels(comparison)
    wanted = named(comparison, "problem") if problems is None else [_known(comparison, "problem", p) for p in problems]
    panels = {p: panel for p in wanted if (panel := lines(comparison, p, metric))}
    if not panels:
        raise ValueError(f"got no finite number of {metric!r}; expected at least one: see the errors of the records")
    figure, axes = _grid(len(panels), columns, 4.4, 3.6)
    direction = better(comparison, metric)
    unit = comparison.about.get("metrics", {}).get(metric, {}).get("unit", "")
    for i, (ax, (problem, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        ax.set_title(problem, fontsize=10)
        chosen = coloured(panel, style, highlight, direction)
        _draw(ax, panel, chosen, style, lambda r: r.evaluations, direction)
        ax.set_xlabel("evaluations of the model")
        if i % columns == 0:
            ax.set_ylabel((f"|{metric}|" if direction == "zero" else metric) + (f" ({unit})" if unit else ""))
    _finish(figure, axes, {names[key]: s for key, s in style.items()}, names)
    return figure


def orders(
    comparison: Comparison, metric: str | None = None, problem: str | None = None, *, highlight: Collection[str] = ()
) -> Figure:
    """How the error falls as the *steps* grow in number: one panel for each declared order, with a triangle of that slope.

    Behind a name stands the order that was measured, where a range was found in which the error falls as a power: see
    :func:`scoresde.compare.analysis.orders`. The last move of a path, to zero noise, is the same for all and not counted.

    Args:
        comparison: of which; ``about["solvers"]`` says the order that each declares.
        metric, problem: by default the first.
        highlight: solvers to draw in colour.

    Raises:
        ValueError: for a problem or metric that the comparison has not, or where no deterministic solver declares an order.
    """
    metric, problem = _known(comparison, "metric", metric), _known(comparison, "problem", problem)
    style, names = styles(comparison, highlight), dict(labels(comparison))
    described = comparison.about.get("solvers", {})
    measured = analysis.orders(comparison, metric)
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
    figure, axes = _grid(len(groups), 4, 4.0, 3.8, sharey=True)
    for i, (ax, order) in enumerate(zip(axes, sorted(groups), strict=True)):
        ax.set_title(f"declared order {order:g}", fontsize=10)
        _draw(ax, groups[order], coloured(groups[order], style, highlight, "lower"), style, lambda r: r.steps - last)
        ax.set_xlabel("steps")
        if i == 0:
            ax.set_ylabel(f"{metric}, {problem}")
    for ax, order in zip(axes, sorted(groups), strict=True):
        _triangle(ax, order)
    _finish(figure, axes, {names[key]: s for key, s in style.items()}, names)
    return figure


def trajectories(
    traces: Sequence[Trace],
    background: Tensor | None = None,
    *,
    style: Mapping[tuple[str, str], Style] | None = None,
    columns: int = 4,
) -> Figure:
    """The ways of a few samples in the plane from noise to data, one panel for each solver, over samples of the data.

    Args:
        traces: of one problem, at most twelve: the first are drawn.
        background: samples of the data, ``(n, 2)``, drawn in grey.
        style: from the solver and the path to a style; by default in the order of the traces.
        columns: panels side by side.

    Raises:
        ValueError: for no traces, or states that are not in the plane.
    """
    if not traces or any(trace.x.ndim != 3 or trace.x.shape[2] != 2 for trace in traces):
        raise ValueError(
            f"got traces of shapes {[tuple(t.x.shape) for t in traces]}; expected at least one of shape (points, samples, 2)"
        )
    traces = traces[:MOST]
    figure, axes = _grid(len(traces), columns, 2.5, 2.7, sharey=True, sharex=True)
    # The data set the frame, where they are known: a solver that diverges must not.
    frame = torch.cat([trace.x[-1] for trace in traces]) if background is None else background
    frame = torch.cat([torch.zeros(1, 2, dtype=torch.float64), frame.detach().cpu().double()])
    frame = frame[frame.isfinite().all(1)]
    low, high = frame.amin(0), frame.amax(0)
    half = 0.75 * float((high - low).max()) or 1.0
    (x0, y0), (x1, y1) = (0.5 * (low + high) - half).tolist(), (0.5 * (low + high) + half).tolist()
    for i, (ax, trace) in enumerate(zip(axes, traces, strict=True)):
        rank = style[trace.solver, trace.path].rank if style else i
        colour = PALETTE[rank % len(PALETTE)]
        if background is not None:
            ax.scatter(
                background[:, 0].cpu().numpy(), background[:, 1].cpu().numpy(), s=3, color=_GREY, linewidths=0, zorder=1
            )
        x = trace.x.detach().cpu().double().numpy()
        ax.plot(x[:, :, 0], x[:, :, 1], color=colour, linewidth=0.8, alpha=0.75, zorder=2)
        ax.scatter(x[-1, :, 0], x[-1, :, 1], s=12, color=colour, marker=MARKERS[rank % len(MARKERS)], linewidths=0, zorder=3)
        ax.set_title(f"{trace.solver}, {trace.budget} evaluations", fontsize=8.5)
        ax.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        ax.tick_params(labelsize=7, labelbottom=i + columns >= len(traces))
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{traces[0].problem}: from noise to data (markers)", fontsize=10)
    return figure


def attribution(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str = "half log-SNR lam"
) -> Figure:
    """Where on the path each solver loses accuracy: the part of its error that each step contributes, a curve for each.

    Args:
        curves: from a solver to the points of the path and the contributions of the steps that end there; at most twelve.
        xlabel: what the points are.

    Raises:
        ValueError: for no curve, more than twelve, or a curve whose two sequences differ in length.
    """
    if not 0 < len(curves) <= MOST or any(len(x) != len(y) or not len(x) for x, y in curves.values()):
        raise ValueError(
            f"got {len(curves)} curves; expected one to {MOST}, each as many points as contributions, not empty"
        )
    figure, (ax,) = _grid(1, 1, 6.4, 3.8)
    style = {name: Style(i) for i, name in enumerate(curves)}
    for name, (x, y) in curves.items():
        ax.plot(x, y, label=name, **_look(style[name]))
    if log_scale([float(v) for _, y in curves.values() for v in y]):
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel="contribution to the error at the end")
    _plain_axes(ax)
    _finish(figure, [ax], style, {})
    return figure


def decomposition(parts: Mapping[str, Mapping[str, float]], *, xlabel: str = "error") -> Figure:
    """What each solver's error is made of: one bar for each solver, one section for each source.

    Args:
        parts: from a solver to a mapping from sources (prior, score, discretization, early stopping) to what each adds.
        xlabel: what is added up.

    Raises:
        ValueError: for nothing to draw, more sources than seven, or a part that is negative or not finite.
    """
    sources = list(dict.fromkeys(source for bar in parts.values() for source in bar))
    bad = {s: v for bar in parts.values() for s, v in bar.items() if not 0 <= v < math.inf}
    if not sources or len(sources) > len(PALETTE) or bad:
        raise ValueError(
            f"got {len(parts)} solvers, {len(sources)} sources and {bad or 'no bad parts'}; expected one to {len(PALETTE)} "
            "sources, each adding a finite number of at least 0: leave out what has none"
        )
    figure, (ax,) = _grid(1, 1, 6.8, 1.3 + 0.34 * len(parts))
    left = [0.0] * len(parts)
    for source, colour, hatch in zip(sources, PALETTE, ("", "///", "...", "xx", "\\\\\\", "||", "oo"), strict=False):
        values = [bar.get(source, 0.0) for bar in parts.values()]
        bars = ax.barh(list(parts), values, left=left, color=colour, edgecolor="white", height=0.7, label=source)
        for bar in bars:
            bar.set_hatch(hatch)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, total in enumerate(left):
        ax.annotate(f"{total:.3g}", (total, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=_SIZE)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel(xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(4, len(sources)), frameon=False, fontsize=_SIZE)
    return figure


# Parts ---------------------------------------------------------------------------------------------------------------


def _known(comparison: Comparison, attribute: str, name: str | None) -> str:
    known = named(comparison, attribute)
    if not known or (name is not None and name not in known):
        raise ValueError(
            f"got {attribute} {name!r}; expected one of the comparison: {', '.join(known) or 'it has no records'}"
        )
    return known[0] if name is None else name


def _grid(
    count: int, columns: int, width: float, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    across = min(columns, count)
    down = -(-count // across)
    figure = _figure(width * across, height * down + 0.3)
    axes = list(figure.subplots(down, across, squeeze=False, sharex=sharex, sharey=sharey).ravel())
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _look(style: Style) -> dict[str, Any]:
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


def _draw(
    ax: Axes,
    panel: Sequence[Line],
    chosen: Sequence[Line],
    style: Mapping[Any, Style],
    across: Callable[[Record], int],
    direction: str = "lower",
) -> None:
    """The lines of a panel: the chosen in colour with intervals, the others in grey beneath."""
    values = [drawn(r, direction)[0] for line in panel for r in line.points]
    if log_scale(values):
        ax.set_yscale("log")
        floor = 0.5 * min(v for v in values if v > 0)
        if min(values) <= 0:  # an unbiased estimate of almost nothing may be negative, and is among the best
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
        ax.plot(x, y, zorder=3, label=f"_{line.solver}", gid=f"{line.solver}|{line.path}", **_look(style[line.key]))
        ax.vlines(x, low, high, color=PALETTE[style[line.key].pick(PALETTE)], linewidth=1.0, zorder=2)
    if others[0]:
        ax.plot(*others, color=_GREY, linewidth=0.7, zorder=1, label="_other")
    ax.set_xscale("log")
    _plain_axes(ax)


def _plain_axes(ax: Axes) -> None:
    """Ticks that can be read: powers of ten, and where the axis is short 2 and 5 times these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.grid(True, which="major", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=_SIZE)
    for axis, bounds in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if axis.get_scale() == "log":
            short = bounds[1] < (300 if axis is ax.xaxis else 50) * bounds[0]
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(
                FuncFormatter(lambda v, _: f"{v:g}" if 1e-3 < v < 1e5 else f"{v:.0e}".replace("e-0", "e-"))
            )


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


def _finish(figure: Figure, axes: Sequence[Axes], style: Mapping[str, Style], names: Mapping[tuple[str, str], str]) -> None:
    """A legend of what is not named, and names beside the lines; the layout is done then, and stays."""
    called = {f"{solver}|{path}": name for (solver, path), name in names.items()}
    ends = [[(called.get(line.get_gid() or "", str(line.get_label())), line) for line in ax.get_lines()] for ax in axes]
    ends = [[(name, line) for name, line in panel if name in style] for panel in ends]
    entries = _legend(axes, all(style[name].filled for panel in ends for name, _ in panel))
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=_SIZE)
    layout = figure.get_layout_engine()
    assert layout is not None  # that of _grid
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
        entries.append(Line2D([], [], color=_GREY, linewidth=0.7, label="others"))
    if "_floor" in found:
        entries.append(Line2D([], [], color="0.35", linewidth=0.8, linestyle=":", label="on this line: zero or less"))
    if not ours:
        look = {**_look(Style(0, filled=False)), "color": "0.3", "markeredgecolor": "0.3"}
        entries.append(Line2D([], [], **look, label="hollow: another package"))
    return entries


def _name(ax: Axes, ends: Sequence[tuple[str, Any]]) -> None:
    """Write each line's name right of the axes, as close to its last point as the other names allow, and point there."""
    from sklearn.isotonic import isotonic_regression

    if not ends:
        return
    height = ax.get_window_extent().height / ax.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    gap = 1.3 * _SIZE / height
    last = [(line.get_xdata()[-1], line.get_ydata()[-1]) for _, line in ends]
    places = ax.transAxes.inverted().transform(ax.transData.transform(last))
    ranked = sorted(range(len(ends)), key=lambda i: places[i][1])
    # Places in order, none closer than a gap to the next, as little moved as possible: a monotone regression.
    moved = isotonic_regression(
        [places[i][1] - j * gap for j, i in enumerate(ranked)], y_min=0.0, y_max=max(0.0, 1 - (len(ends) - 1) * gap)
    )
    for j, i in enumerate(ranked):
        (name, line), y = ends[i], moved[j] + j * gap
        look = {"color": line.get_color(), "linewidth": 0.6, "clip_on": False, "transform": ax.transAxes, "label": "_leader"}
        ax.plot([places[i][0], 1.04], [places[i][1], y], alpha=0.6, zorder=0, **look)
        ax.plot([1.04], [y], marker=line.get_marker(), markersize=5, markerfacecolor=line.get_markerfacecolor(), **look)
        ax.text(1.065, y, name, transform=ax.transAxes, va="center", fontsize=_SIZE, gid="name")
