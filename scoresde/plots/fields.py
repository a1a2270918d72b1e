"""Figures of vector fields in the plane: the score at several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.plots.figure import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Score", "arrows", "draw_arrows", "score_field"]

Score = Callable[[Tensor, float], Tensor]
"""A score, such as ``model.score``: a function of points, shape ``(n, 2)``, and a time."""

Array = np.ndarray[Any, Any]


def arrows(score: Score, t: float, centre: Sequence[float], half: float, across: int = 15) -> tuple[Array, Array]:
    r"""Return places on a square grid and an arrow at each, shapes ``(across^2, 2)``.

    An arrow points along the score s. Its length is :math:`1.3 |s| / (|s| + m)` of the distance between places, with the
    median m of :math:`|s|`: long and short scores, which differ by orders of magnitude, can both be seen.

    Example:
        >>> places, along = arrows(lambda x, t: -x, 0.5, (0.0, 0.0), 1.0, across=3)
        >>> places[0].tolist(), bool((along[0] > 0).all())
        ([-1.0, -1.0], True)
    """
    sides = [torch.linspace(c - half, c + half, across, dtype=torch.float64) for c in centre]
    places = torch.cartesian_prod(*sides)
    along = score(places, t).detach().double().cpu()
    norm = along.norm(dim=1, keepdim=True)
    middle = norm[norm.isfinite()].median().clamp(min=1e-300) if bool(norm.isfinite().any()) else torch.ones(())
    scaled = along / (norm + middle) * (1.3 * 2 * half / (across - 1))
    return places.numpy(), scaled.nan_to_num(0.0, 0.0, 0.0).numpy()


def draw_arrows(axes: Axes, places: Array, along: Array) -> Any:
    """Draw arrows in grey beneath everything else and return the artist, whose arrows can be moved.

    Example:
        >>> axes = new_figure(2, 2).subplots()
        >>> draw_arrows(axes, *arrows(lambda x, t: -x, 0.5, (0.0, 0.0), 1.0, across=3)).N
        9
    """
    look: Any = {"color": "0.6", "width": 0.006, "headwidth": 3.2, "headlength": 4.0, "headaxislength": 3.6}
    return axes.quiver(*places.T, *along.T, pivot="mid", angles="xy", scale_units="xy", scale=1, zorder=1, **look)


def score_field(
    score: Score, times: Sequence[float], points: Tensor | None = None, *, half: float | None = None, title: str = ""
) -> Figure:
    r"""Draw the score in the plane at several times, one panel for each.

    Args:
        score: the score, such as ``model.score``, a function of points ``(n, 2)`` and a time.
        times: the times of the panels.
        points: samples of the noised data at these times, shape ``(len(times), n, 2)``, drawn above the arrows.
        half: half the side of the square that is drawn, by default as large as holds the points, or 3.
        title: the title of the figure.

    Long and short scores are both visible: see :func:`scoresde.plots.fields.arrows`.

    Raises:
        ValueError: for no times, and points of another shape.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> figure = score_field(model.score, [1.0, 0.3, 0.05])
        >>> [ax.get_title() for ax in figure.axes]
        ['t = 1', 't = 0.3', 't = 0.05']
    """
    if not len(times):
        raise ValueError("got no times; expected at least one, such as [1.0, 0.3, 0.05]")
    if points is not None and (points.ndim != 3 or len(points) != len(times) or points.shape[2] != 2):
        raise ValueError(f"got points of shape {tuple(points.shape)} for {len(times)} times; expected ({len(times)}, n, 2)")
    if half is None:
        half = 3.0 if points is None else 1.05 * float(points.detach().abs().max())
    figure = new_figure(2.6 * len(times) + 0.3, 2.8 + (0.3 if title else 0.0))
    axes = figure.subplots(1, len(times), squeeze=False, sharex=True, sharey=True)[0]
    for i, (ax, t) in enumerate(zip(axes, times, strict=True)):
        draw_arrows(ax, *arrows(score, t, (0.0, 0.0), half))
        if points is not None:
            ax.scatter(
                *points[i].detach().double().cpu().T.numpy(), s=4, color=PALETTE[0], alpha=0.5, linewidths=0, zorder=2
            )
        ax.set_title(f"t = {t:.3g}", fontsize=9)
        ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
