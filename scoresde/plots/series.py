"""Figures of series: bands between quantiles of draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.plots.figure import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["quantile_bands"]


def quantile_bands(
    draws: Tensor,
    truth: Tensor | None = None,
    known: Tensor | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    title: str = "",
) -> Figure:
    """Draw the median of draws of a series, and bands that hold a share of them, one panel for each channel.

    Args:
        draws: shape ``(n, channels, length)``.
        truth: what happened, shape ``(channels, length)``; nan where that is not known.
        known: true where a value was given, shape ``(channels, length)``; these are marked.
        levels: the shares of the draws in the bands, between 0 and 1.
        title: the title of the figure.

    Raises:
        ValueError: for draws of another shape, levels that are no shares, and a truth or mask of another shape.

    Example:
        >>> figure = quantile_bands(torch.randn(50, 2, 12), truth=torch.zeros(2, 12))
        >>> len(figure.axes)
        2
    """
    if draws.ndim != 3 or not draws.numel():
        raise ValueError(f"got draws of shape {tuple(draws.shape)}; expected (n, channels, length), none of them 0")
    for name, given in (("truth", truth), ("known", known)):
        if given is not None and given.shape != draws.shape[1:]:
            raise ValueError(f"got {name} of shape {tuple(given.shape)}; expected {tuple(draws.shape[1:])}, one series")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"got levels={tuple(levels)}; expected shares between 0 and 1, such as (0.5, 0.9)")
    x, channels = draws.detach().double().cpu(), draws.shape[1]
    place = range(draws.shape[2])
    figure = new_figure(7, 1.9 * channels + 0.6)
    axes = figure.subplots(channels, 1, squeeze=False, sharex=True)[:, 0]
    for c, ax in enumerate(axes):
        for level in sorted(levels, reverse=True):
            low, high = x[:, c].quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64), dim=0)
            ax.fill_between(place, low, high, color=PALETTE[0], alpha=0.25, linewidth=0, label=f"{level:.0%} of the draws")
        ax.plot(place, x[:, c].median(0).values, color=PALETTE[0], label="median")
        if truth is not None:
            ax.plot(place, truth[c].detach().double().cpu(), color=PALETTE[6], linewidth=1, label="truth")
        if known is not None and bool(known[c].any()):
            at = known[c].cpu().nonzero()[:, 0]
            ax.plot(at, x[0, c, at], "o", color=PALETTE[1], markersize=3.5, label="given")
        ax.set_ylabel(f"channel {c}" if channels > 1 else "value", fontsize=9)
    axes[-1].set_xlabel("time step", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
