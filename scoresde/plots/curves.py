"""Figures of losses, and of points in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from scoresde.plots.figure import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["losses", "scatter"]


def _smooth(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Return the mean over the last ``width`` values up to each value, over fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    mean: np.ndarray[Any, Any] = (total[end] - total[start]) / (end - start)
    return mean


def losses(history: Sequence[tuple[int, float]], edges: Tensor, loss: Tensor, excess: Tensor | None = None) -> Figure:
    """Plot the loss against the steps of training, and the loss in each bin of time.

    Args:
        history: pairs of a step and the loss of its batch.
        edges: the edges of the bins of time, shape ``(bins + 1,)``.
        loss: the loss of the trained model in each bin, shape ``(bins,)``.
        excess: the loss above the smallest possible one in each bin, shape ``(bins,)``, if it is known.

    Example:
        >>> import torch
        >>> figure = losses([(1, 2.0), (2, 1.0)], torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.3, 0.2]))
        >>> [ax.get_title() for ax in figure.axes]
        ['Training', 'Trained model, by time']
    """
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    steps, values = np.array([s for s, _ in history]), np.array([v for _, v in history])
    width = max(1, len(values) // 50)
    left.plot(steps, values, color=PALETTE[5], alpha=0.45, linewidth=0.7, label="of each batch")
    left.plot(steps, _smooth(values, width), color=PALETTE[0], linewidth=1.6, label=f"mean of {width} batches")
    left.set(xlabel="step", ylabel="loss", yscale="log", title="Training")
    left.legend(frameon=False, fontsize=8)

    times = edges.tolist()
    shown = {"loss": loss, "excess, which training could remove": excess}
    for colour, (name, bins) in zip(PALETTE, shown.items(), strict=False):
        if bins is not None:
            right.stairs(bins.tolist(), times, color=colour, linewidth=1.6, label=name, baseline=None)
    right.set(xlabel="time t", ylabel="loss", yscale="log", title="Trained model, by time")
    if 0 < times[0] < 2 < times[-1]:  # a noise level for a time, which spans orders of magnitude
        right.set_xscale("log")
    if excess is not None:
        right.legend(frameon=False, fontsize=8, loc="lower left")
    for ax in (left, right):
        ax.set_axisbelow(True)
        ax.grid(True, which="major", color="0.9", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def scatter(clouds: Mapping[str, Tensor], *, title: str = "") -> Figure:
    """Plot points in the plane, one panel for each cloud, all with the same axes.

    Args:
        clouds: the title of each panel and its points, shape ``(n, 2)``.
        title: the title of the figure.

    Raises:
        ValueError: for points that are not in the plane.

    Example:
        >>> import torch
        >>> figure = scatter({"data": torch.randn(50, 2), "samples": torch.randn(50, 2)})
        >>> [ax.get_title() for ax in figure.axes]
        ['data', 'samples']
    """
    for points in clouds.values():
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"got points of shape {tuple(points.shape)}; expected (n, 2)")
    figure = new_figure(3.2 * len(clouds) + 0.2, 3.4 + (0.3 if title else 0.0))
    axes = figure.subplots(1, len(clouds), squeeze=False, sharex=True, sharey=True)[0]
    for colour, ax, (name, points) in zip(PALETTE, axes, clouds.items(), strict=False):
        x, y = points.detach().cpu().float().T.numpy()
        ax.scatter(x, y, s=4, color=colour, alpha=0.5, linewidths=0)
        ax.set_title(name, fontsize=9)
        ax.set_aspect("equal", adjustable="box")
        ax.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
