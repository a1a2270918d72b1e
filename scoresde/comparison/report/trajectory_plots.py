"""Figures of trajectories in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.comparison.records import Trace
from scoresde.comparison.report.panels import GREY, grid
from scoresde.comparison.report.series import MARKERS, MOST, Style
from scoresde.plots import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["trajectories"]


def trajectories(
    traces: Sequence[Trace],
    background: Tensor | None = None,
    *,
    style: Mapping[tuple[str, str], Style] | None = None,
    columns: int = 4,
    title: str | None = None,
) -> Figure:
    """Draw the trajectories of a few samples from noise to data, one panel for each solver, over samples of the data.

    Args:
        traces: the trajectories of one problem, of which the first twelve are drawn.
        background: samples of the data, ``(n, 2)``, drawn in grey.
        style: a mapping from the solver and the path to a style; by default in the order of the traces.
        columns: the number of panels side by side.
        title: the title, by default the name of the problem.

    Raises:
        ValueError: for no traces, or states that are not in the plane.
    """
    if not traces or any(trace.x.ndim != 3 or trace.x.shape[2] != 2 for trace in traces):
        raise ValueError(
            f"got traces of shapes {[tuple(t.x.shape) for t in traces]}; expected at least one of shape (points, samples, 2)"
        )
    traces = traces[:MOST]
    figure, axes = grid(len(traces), columns, 2.5, 2.7, sharey=True, sharex=True)
    # The data define the frame, where they are known, so that a solver that diverges does not.
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
                background[:, 0].cpu().numpy(), background[:, 1].cpu().numpy(), s=3, color=GREY, linewidths=0, zorder=1
            )
        x = trace.x.detach().cpu().double().numpy()
        ax.plot(x[:, :, 0], x[:, :, 1], color=colour, linewidth=0.8, alpha=0.75, zorder=2)
        ax.scatter(x[-1, :, 0], x[-1, :, 1], s=12, color=colour, marker=MARKERS[rank % len(MARKERS)], linewidths=0, zorder=3)
        ax.set_title(f"{trace.solver}, {trace.budget} evaluations", fontsize=8.5)
        ax.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        ax.tick_params(labelsize=7, labelbottom=i + columns >= len(traces))
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title or traces[0].problem}: from noise to data (markers)", fontsize=10)
    return figure
