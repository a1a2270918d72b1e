"""Figures: losses, images in time, grids of samples. Each function returns a figure of Matplotlib, :func:`save` writes it.

They are drawn without pyplot: no display is needed and no global state is touched. Colours are those of Okabe and Ito
("Color Universal Design", 2008), which the colour-blind can tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "losses", "overview", "panels", "save", "scatter", "strips", "tile"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, the most distinct first."""

_TINT = "#d3e7f5"  # between images: no grey, which a pixel might be
_PIXEL = 0.085  # inches that a pixel of an 8 x 8 image takes; larger images take less


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 130) -> None:
    """Write ``figure`` to ``path``, whose suffix is the format; the file is whole or not there."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, facecolor="white")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _check_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"got images of shape {tuple(images.shape)}; expected (n, 1, h, w) or (n, 3, h, w) with n of at least 1"
        )
    return images.detach().float().cpu()


def tile(images: Tensor, columns: int, border: int = 1) -> Tensor:
    """Lay images out row by row, ``columns`` a row, with NaN in the borders between them and where there is no image.

    Args:
        images: shape ``(n, c, h, w)`` with one channel or three.
        columns: images per row.
        border: pixels between images.

    Returns:
        One image, shape ``(c, rows (h + border) - border, columns (w + border) - border)``.

    Example:
        >>> tile(torch.zeros(5, 1, 8, 8), columns=3).shape
        torch.Size([1, 17, 26])
    """
    if columns < 1 or border < 0:
        raise ValueError(f"got columns={columns} and border={border}; expected columns >= 1 and border >= 0")
    images = _check_images(images)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    cells = torch.full((rows * columns, c, h + border, w + border), torch.nan)
    cells[:n, :, :h, :w] = images
    page = cells.reshape(rows, columns, c, h + border, w + border).permute(2, 0, 3, 1, 4)
    page = page.reshape(c, rows * (h + border), columns * (w + border))
    return page[:, : page.shape[1] - border, : page.shape[2] - border]


def _show(axes: Axes, page: Tensor) -> None:
    """An image in [-1, 1]: ink on paper for one channel, colours for three."""
    if page.shape[0] == 1:
        axes.imshow(page[0].numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    else:
        colours = torch.cat([(0.5 * (page + 1)).clamp(0, 1).nan_to_num(), (~page[:1].isnan()).float()])  # the last: opacity
        axes.imshow(colours.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_facecolor(_TINT)  # seen where the page is NaN
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _strip(axes: Axes, images: Tensor, times: Sequence[float] | None, label: str) -> None:
    steps, _, _, _, w = images.shape
    _show(axes, tile(images.transpose(0, 1).flatten(0, 1), columns=steps))
    axes.set_ylabel(label, fontsize=9)
    if times is not None:
        axes.set_xticks([i * (w + 1) + 0.5 * (w - 1) for i in range(steps)], [f"{t:.2g}" for t in times])
        axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=2, labelsize=8)
        axes.set_xlabel("time t", fontsize=9)
        axes.xaxis.set_label_position("top")


def strips(processes: Mapping[str, Tensor], times: Sequence[float], title: str = "") -> Figure:
    """Images in time: one row per image, one column per time; several processes below one another.

    Args:
        processes: label -> images, shape ``(len(times), n, c, h, w)``.
        times: of the columns.
        title: above all.
    """
    for images in processes.values():
        if images.ndim != 5 or len(images) != len(times):
            raise ValueError(
                f"got a process of shape {tuple(images.shape)} for {len(times)} times; expected (times, n, c, h, w)"
            )
    heights = [images.shape[1] for images in processes.values()]
    figure = _figure(0.72 * len(times) + 0.4, 0.73 * sum(heights) + 0.12 * len(heights) + 0.65)
    axes = figure.subplots(len(processes), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for i, (label, images) in enumerate(processes.items()):
        _strip(axes[i], images, times if i == 0 else None, label)
    figure.suptitle(title, fontsize=11)
    return figure


def panels(grids: Mapping[str, Tensor], *, columns: int = 8, across: int = 5, title: str = "") -> Figure:
    """Grids of images side by side, each with its title.

    Args:
        grids: title -> images, shape ``(n, c, h, w)``.
        columns: images per row of a grid.
        across: grids per row of the figure.
        title: above all.
    """
    down, across = -(-len(grids) // across), min(across, len(grids))
    pages = [tile(images, columns) for images in grids.values()]
    size = min(_PIXEL / 2, 6.0 / max(page.shape[2] for page in pages)) if len(grids) > 1 else 5.0 / pages[0].shape[2]
    width, height = (size * max(page.shape[i] for page in pages) for i in (2, 1))
    lines = max(name.count("\n") + 1 for name in grids)
    figure = _figure(across * (width + 0.2), down * (height + 0.1 + 0.18 * lines) + (0.35 if title else 0.0))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(pages) :]:
        ax.set_axis_off()
    for ax, name, page in zip(axes, grids, pages, strict=False):
        _show(ax, page)
        ax.set_title(name, fontsize=8.5, linespacing=1.25)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def overview(
    processes: Mapping[str, Tensor], times: Sequence[float], grids: Mapping[str, Tensor], columns: int = 8
) -> Figure:
    """One picture for a first page: :func:`strips` of processes above a row of :func:`panels`."""
    width, rows = 9.0, sum(images.shape[1] for images in processes.values())
    heights = [width / (len(times) + 0.5) * rows + 0.55, width / len(grids) + 0.25]
    figure = _figure(width, sum(heights))
    places = figure.add_gridspec(2, 1, height_ratios=heights)
    above, below = figure.add_subfigure(places[0]), figure.add_subfigure(places[1])
    axes = above.subplots(len(processes), 1, squeeze=False)[:, 0]
    for i, (label, images) in enumerate(processes.items()):
        _strip(axes[i], images, times if i == 0 else None, label)
    for ax, (name, images) in zip(below.subplots(1, len(grids), squeeze=False)[0], grids.items(), strict=True):
        _show(ax, tile(images, columns))
        ax.set_title(name, fontsize=9)
    return figure


def _smooth(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """The mean over the ``width`` values up to each, fewer at the start."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    mean: np.ndarray[Any, Any] = (total[end] - total[start]) / (end - start)
    return mean


def losses(history: Sequence[tuple[int, float]], edges: Tensor, loss: Tensor, excess: Tensor | None = None) -> Figure:
    """The loss against the steps of training, and the loss per bin of time, with the excess where it is known.

    Args:
        history: pairs of a step and the loss of its batch.
        edges: times between the bins, shape ``(bins + 1,)``.
        loss, excess: of the trained model in each bin, shape ``(bins,)``.
    """
    figure = _figure(9.0, 3.4)
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
    """Points in the plane, one panel for each cloud, all with the same axes.

    Args:
        clouds: title -> points, shape ``(n, 2)``.
        title: above all.
    """
    for points in clouds.values():
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"got points of shape {tuple(points.shape)}; expected (n, 2)")
    figure = _figure(3.2 * len(clouds) + 0.2, 3.4 + (0.3 if title else 0.0))
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
