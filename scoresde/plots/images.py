"""Figures of images, in grids and along trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.plots.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["overview", "panels", "show", "strips", "tile"]

_TINT = "#d3e7f5"  # between images: no grey, which a pixel might be
_PIXEL = 0.085  # inches that a pixel of an 8 x 8 image takes; larger images take less


def _check_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"got images of shape {tuple(images.shape)}; expected (n, 1, h, w) or (n, 3, h, w) with n of at least 1"
        )
    return images.detach().float().cpu()


def tile(images: Tensor, columns: int, border: int = 1) -> Tensor:
    """Lay out images row by row in one image, with NaN in the borders between them and where there is no image.

    Args:
        images: shape ``(n, c, h, w)`` with one channel or three.
        columns: the number of images per row.
        border: the number of pixels between images.

    Returns:
        One image, shape ``(c, rows (h + border) - border, columns (w + border) - border)``.

    Raises:
        ValueError: for no column, a negative border, and images of other shapes.

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


def show(axes: Axes, page: Tensor) -> None:
    """Draw an image in [-1, 1], with NaN between images: dark on light for one channel, RGB for three.

    Example:
        >>> axes = new_figure(1, 1).subplots()
        >>> show(axes, tile(torch.zeros(4, 1, 8, 8), columns=2))
        >>> axes.images[0].get_array().shape
        (17, 17)
    """
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
    show(axes, tile(images.transpose(0, 1).flatten(0, 1), columns=steps))
    axes.set_ylabel(label, fontsize=9)
    if times is not None:
        axes.set_xticks([i * (w + 1) + 0.5 * (w - 1) for i in range(steps)], [f"{t:.2g}" for t in times])
        axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=2, labelsize=8)
        axes.set_xlabel("time t", fontsize=9)
        axes.xaxis.set_label_position("top")


def strips(processes: Mapping[str, Tensor], times: Sequence[float], title: str = "") -> Figure:
    """Draw images along their trajectories: one row per image, one column per time, several processes below one another.

    Args:
        processes: the label of each process and its images, shape ``(len(times), n, c, h, w)``.
        times: the times of the columns.
        title: the title of the figure.

    Raises:
        ValueError: for a process whose images are not ``(len(times), n, c, h, w)``.

    Example:
        >>> figure = strips({"forward": torch.zeros(3, 2, 1, 8, 8)}, [0.0, 0.5, 1.0])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['0', '0.5', '1']
    """
    for images in processes.values():
        if images.ndim != 5 or len(images) != len(times):
            raise ValueError(
                f"got a process of shape {tuple(images.shape)} for {len(times)} times; expected (times, n, c, h, w)"
            )
    heights = [images.shape[1] for images in processes.values()]
    figure = new_figure(0.72 * len(times) + 0.4, 0.73 * sum(heights) + 0.12 * len(heights) + 0.65)
    axes = figure.subplots(len(processes), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for i, (label, images) in enumerate(processes.items()):
        _strip(axes[i], images, times if i == 0 else None, label)
    figure.suptitle(title, fontsize=11)
    return figure


def panels(grids: Mapping[str, Tensor], *, columns: int = 8, across: int = 5, title: str = "") -> Figure:
    """Draw grids of images side by side, each with its title.

    Args:
        grids: the title of each grid and its images, shape ``(n, c, h, w)``.
        columns: the number of images per row of a grid.
        across: the number of grids per row of the figure.
        title: the title of the figure.

    Example:
        >>> figure = panels({"data": torch.zeros(4, 1, 8, 8), "samples": torch.zeros(6, 1, 8, 8)}, columns=2)
        >>> [ax.get_title() for ax in figure.axes]
        ['data', 'samples']
    """
    down, across = -(-len(grids) // across), min(across, len(grids))
    pages = [tile(images, columns) for images in grids.values()]
    size = min(_PIXEL / 2, 6.0 / max(page.shape[2] for page in pages)) if len(grids) > 1 else 5.0 / pages[0].shape[2]
    width, height = (size * max(page.shape[i] for page in pages) for i in (2, 1))
    lines = max(name.count("\n") + 1 for name in grids)
    figure = new_figure(across * (width + 0.2), down * (height + 0.1 + 0.18 * lines) + (0.35 if title else 0.0))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(pages) :]:
        ax.set_axis_off()
    for ax, name, page in zip(axes, grids, pages, strict=False):
        show(ax, page)
        ax.set_title(name, fontsize=8.5, linespacing=1.25)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def overview(
    processes: Mapping[str, Tensor], times: Sequence[float], grids: Mapping[str, Tensor], columns: int = 8
) -> Figure:
    """Draw one figure for an overview: :func:`strips` of processes above a row of :func:`panels`.

    Example:
        >>> process, grid = torch.zeros(3, 2, 1, 8, 8), torch.zeros(4, 1, 8, 8)
        >>> figure = overview({"forward": process}, [0.0, 0.5, 1.0], {"data": grid, "samples": grid}, columns=2)
        >>> len(figure.subfigs)
        2
    """
    width, rows = 9.0, sum(images.shape[1] for images in processes.values())
    heights = [width / (len(times) + 0.5) * rows + 0.55, width / len(grids) + 0.25]
    figure = new_figure(width, sum(heights))
    places = figure.add_gridspec(2, 1, height_ratios=heights)
    above, below = figure.add_subfigure(places[0]), figure.add_subfigure(places[1])
    axes = above.subplots(len(processes), 1, squeeze=False)[:, 0]
    for i, (label, images) in enumerate(processes.items()):
        _strip(axes[i], images, times if i == 0 else None, label)
    for ax, (name, images) in zip(below.subplots(1, len(grids), squeeze=False)[0], grids.items(), strict=True):
        show(ax, tile(images, columns))
        ax.set_title(name, fontsize=9)
    return figure
