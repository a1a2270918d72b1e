"""Animations of processes: points in the plane, numbers on the line, and images, as they change with time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.plots.encoding import write_frames
from scoresde.plots.fields import Score, arrows, draw_arrows
from scoresde.plots.figure import PALETTE, new_figure
from scoresde.plots.images import show, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_animation"]

_BINS = 60
Update = Callable[[int], None]


def save_animation(
    processes: Mapping[str, Tensor],
    times: Sequence[float],
    path: str | os.PathLike[str],
    *,
    score: Score | None = None,
    fps: float = 12,
    hold: float = 1.0,
    columns: int = 4,
    colours: int = 64,
    dpi: int = 80,
    title: str = "",
) -> None:
    """Write an animation of processes, one panel for each, to a GIF, an MP4 or an HTML file.

    The states of a process tell how it is drawn: points in the plane as points, numbers as a histogram, images as a grid.
    Forward or reverse is the order of the times. All panels of points have the same axes, which hold 99 % of the points at
    all times.

    Args:
        processes: the title of each panel and its states, shape ``(len(times), n, 2)``, ``(len(times), n, 1)`` or
            ``(len(times), n, c, h, w)`` with one channel or three, such as the ``kept`` states of :func:`scoresde.sample`.
        times: the times of the frames, in the order in which they play; each frame shows its time.
        path: the file, ``.gif``, ``.mp4`` (with the extra ``video``) or ``.html``.
        score: a score, such as ``model.score``, drawn as arrows behind points: see :func:`scoresde.plots.score_field`.
        fps: frames in a second.
        hold: seconds for which the last frame stays.
        columns: the number of images per row of a grid.
        colours: the number of colours of a GIF; fewer make a smaller file.
        dpi: pixels per inch; a panel is about 3 inches wide.
        title: the title of the figure.

    Raises:
        ValueError: for no process, states of other shapes or that are not finite, another suffix, and MP4 where no encoder
            is installed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_animation({"noise": torch.randn(3, 50, 2)}, [1.0, 0.5, 0.0], f"{folder}/points.gif", dpi=30)
        ...     os.listdir(folder)
        ['points.gif']
    """
    shown = _checked(processes, times)
    whole("columns", columns, 1), whole("colours", colours, 2), whole("dpi", dpi, 1)
    if not hold >= 0:
        raise ValueError(f"got hold={hold}; expected seconds, at least 0")
    figure = new_figure(3.0 * len(shown), 3.2 + (0.3 if title else 0.0))
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    points = [x for x in shown.values() if x.ndim == 3 and x.shape[2] == 2]
    half = _half(points) if points else 1.0
    updates: list[Update] = []
    for ax, colour, (name, x) in zip(axes, _cycle(len(shown)), shown.items(), strict=True):
        ax.set_title(name, fontsize=10)
        if x.ndim == 5:
            updates.append(_images(ax, x, columns))
        elif x.shape[2] == 2:
            updates.append(_points(ax, x, times, half, colour, score))
        else:
            updates.append(_numbers(ax, x[:, :, 0], colour))
    heading = f"{title}   " if title else ""
    widest = max((f"{heading}t = {t:.3f}" for t in times), key=len)
    text = figure.suptitle(widest, fontsize=11, fontfamily="monospace" if not title else None)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # else the panels would move with the width of what is written

    def frame(i: int) -> np.ndarray[Any, Any]:
        for update in updates:
            update(i)
        text.set_text(f"{heading}t = {times[i]:.3f}")
        return _pixels(figure, dpi)

    frames = [frame(i) for i in range(len(times))]
    frames += [frames[-1]] * round(hold * fps)
    alt = f"{title or 'animation'}: {', '.join(shown)} from t = {times[0]:.3g} to {times[-1]:.3g}"
    write_frames(np.stack(frames), path, fps, colours=min(colours, 256), alt=alt)


def _checked(processes: Mapping[str, Tensor], times: Sequence[float]) -> dict[str, Tensor]:
    shapes = {name: tuple(x.shape) for name, x in processes.items()}
    kinds = [(len(s) == 3 and s[2] in (1, 2)) or (len(s) == 5 and s[2] in (1, 3)) for s in shapes.values()]
    if not shapes or not len(times) or not all(kinds) or any(s[0] != len(times) or 0 in s for s in shapes.values()):
        raise ValueError(
            f"got processes of shapes {shapes} for {len(times)} times; expected (times, n, 2) for points, (times, n, 1) for "
            "numbers, or (times, n, c, h, w) for images of one channel or three"
        )
    found = {name: x.detach().double().cpu() for name, x in processes.items()}
    for name, x in found.items():
        if not bool(x.isfinite().all()):
            raise ValueError(f"got states of {name!r} that are not finite; expected finite ones")
    return found


def _cycle(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _half(points: Sequence[Tensor]) -> float:
    """Return half the side of a square around 0 that holds 99 % of the points of every process."""
    return 1.05 * max(float(np.quantile(x.abs().amax(2).numpy(), 0.99)) for x in points) or 1.0


def _pixels(figure: Figure, dpi: int) -> np.ndarray[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    figure.set_facecolor("white")
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _points(ax: Axes, x: Tensor, times: Sequence[float], half: float, colour: str, score: Score | None) -> Update:
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_color("0.8")
    field = None if score is None else draw_arrows(ax, *arrows(score, times[0], (0.0, 0.0), half))
    across, up = x[0].T.numpy()
    cloud = ax.scatter(across, up, s=6, color=colour, alpha=0.75, linewidths=0, zorder=2)

    def update(i: int) -> None:
        cloud.set_offsets(x[i].numpy())
        if field is not None and score is not None:
            field.set_UVC(*arrows(score, times[i], (0.0, 0.0), half)[1].T)

    return update


def _numbers(ax: Axes, x: Tensor, colour: str) -> Update:
    low, high = np.quantile(x.numpy(), [0.001, 0.999]).tolist()
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    heights = [np.histogram(values, edges, density=True)[0] for values in x.clamp(low, high).numpy()]
    area = ax.stairs(heights[0], edges, fill=True, color=colour, alpha=0.8)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.08 * max(float(h.max()) for h in heights)), yticks=[])
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return lambda i: area.set_data(heights[i])


def _images(ax: Axes, x: Tensor, columns: int) -> Update:
    pages = [tile(images.float(), columns) for images in x]
    show(ax, pages[0])

    def update(i: int) -> None:
        ax.images[0].remove()
        show(ax, pages[i])

    return update
