"""Figures and tables of vectors: every pair of coordinates, and the summary of a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.plots.figure import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pairs", "posterior_table"]

_MOST = 8  # coordinates: more panels cannot be read


def _checked(clouds: Mapping[str, Tensor], names: Sequence[str] | None) -> tuple[dict[str, Tensor], list[str]]:
    """Return the points in float64 on the host and the names of their coordinates."""
    shapes = {name: tuple(x.shape) for name, x in clouds.items()}
    widths = {shape[1:] for shape in shapes.values()}
    if len(widths) != 1 or any(len(shape) != 2 or shape[0] < 2 or not shape[1] for shape in shapes.values()):
        raise ValueError(f"got points of shapes {shapes}; expected (n, d) with n of at least 2 and the same d for all")
    ((d,),) = widths
    names = [f"x{i + 1}" for i in range(d)] if names is None else list(names)
    if len(names) != d:
        raise ValueError(f"got {len(names)} names for {d} coordinates; expected a name for each")
    return {name: x.detach().double().cpu() for name, x in clouds.items()}, names


def pairs(
    clouds: Mapping[str, Tensor],
    names: Sequence[str] | None = None,
    truth: Tensor | Sequence[float] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draw vectors by pairs of coordinates: histograms on the diagonal, points below it, all clouds in each panel.

    Args:
        clouds: the label of each cloud and its points, shape ``(n, d)`` with d up to 8: samples, and exact ones for
            comparison.
        names: the names of the coordinates, by default x1, x2, ..
        truth: the true values, d numbers, drawn as lines.
        title: the title of the figure.

    The axes hold 99.8 % of each coordinate of each cloud.

    Raises:
        ValueError: for clouds of other shapes, more than eight coordinates, and names or a truth of another number.

    Example:
        >>> figure = pairs({"exact": torch.randn(200, 3), "samples": torch.randn(200, 3)})
        >>> len(figure.axes)
        6
    """
    points, names = _checked(clouds, names)
    d = len(names)
    if d > _MOST:
        raise ValueError(f"got {d} coordinates; expected at most {_MOST}: choose some, such as x[:, :{_MOST}]")
    true = _truth(truth, d)
    figure = new_figure(1.7 * d + 0.5, 1.7 * d + 0.6 + (0.3 if title else 0.0))
    axes = figure.subplots(d, d, squeeze=False, sharex="col")
    ends = torch.tensor([0.001, 0.999], dtype=torch.float64)
    bounds = torch.stack([x.quantile(ends, dim=0) for x in points.values()])  # (clouds, 2, d)
    low, high = bounds[:, 0].amin(0), bounds[:, 1].amax(0)
    pad = (0.05 * (high - low)).clamp(min=1e-12)
    limits = list(zip((low - pad).tolist(), (high + pad).tolist(), strict=True))
    for i in range(d):
        for j in range(d):
            ax = axes[i, j]
            if j > i:
                ax.remove()
                continue
            for colour, (label, x) in zip(PALETTE, points.items(), strict=False):
                if i == j:
                    bins = torch.linspace(*limits[i], 31).tolist()
                    shape = {"histtype": "step", "density": True, "linewidth": 1.4}
                    ax.hist(x[:, i].numpy(), bins=bins, color=colour, label=label, **shape)
                else:
                    ax.scatter(x[:, j].numpy(), x[:, i].numpy(), s=3, color=colour, alpha=0.35, linewidths=0)
                    ax.set_ylim(*limits[i])
            ax.set_xlim(*limits[j])
            if true is not None:
                ax.axvline(true[j], color="black", linewidth=0.8, linestyle="--")
                if i != j:
                    ax.axhline(true[i], color="black", linewidth=0.8, linestyle="--")
            ax.tick_params(labelsize=7, labelleft=i != j and j == 0, left=i != j, labelbottom=i == d - 1)
            ax.spines[["top", "right"]].set_visible(False)
            if i == d - 1:
                ax.set_xlabel(names[j], fontsize=9)
            if j == 0 and i > 0:
                ax.set_ylabel(names[i], fontsize=9)
    figure.align_ylabels()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def posterior_table(
    clouds: Mapping[str, Tensor],
    names: Sequence[str] | None = None,
    truth: Tensor | Sequence[float] | None = None,
    *,
    level: float = 0.9,
) -> str:
    """Return a Markdown table of posterior samples: mean, standard deviation and central interval of each parameter.

    Args:
        clouds: the label of each method and its samples, shape ``(n, d)``.
        names: the names of the parameters, by default x1, x2, ..
        truth: the true values, d numbers; an interval that misses its value is marked with an asterisk.
        level: the probability of the intervals, between their quantiles (1 - level) / 2 and (1 + level) / 2.

    Raises:
        ValueError: for clouds of other shapes, names or a truth of another number, and a level that is no probability.

    Example:
        >>> print(posterior_table({"samples": torch.linspace(0, 1, 101)[:, None]}, ["rate"], [2.0]))
        | parameter | true | samples: mean ± sd | samples: 90 % |
        |---|---:|---:|---:|
        | rate | 2 | 0.5 ± 0.29 | 0.05 to 0.95 * |
        <BLANKLINE>
        \\* The interval misses the true value.
        <BLANKLINE>
    """
    points, names = _checked(clouds, names)
    if not 0 < level < 1:
        raise ValueError(f"got level={level}; expected a probability between 0 and 1, such as 0.9")
    true = _truth(truth, len(names))
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
    intervals = {label: x.quantile(ends, dim=0) for label, x in points.items()}
    head = ["parameter", *(["true"] if true else [])]
    for label in points:
        shown = " ".join(label.split()).replace("|", "\\|")
        head += [f"{shown}: mean ± sd", f"{shown}: {100 * level:g} %"]
    rows, missed = [], False
    for i, name in enumerate(names):
        row = [name.replace("|", "\\|"), *([f"{true[i]:.3g}"] if true else [])]
        for label, x in points.items():
            low, high = intervals[label][:, i].tolist()
            misses = true is not None and not low <= true[i] <= high
            missed |= misses
            row += [f"{float(x[:, i].mean()):.3g} ± {float(x[:, i].std()):.2g}", f"{low:.3g} to {high:.3g}{' *' * misses}"]
        rows.append(row)
    written = [f"| {' | '.join(line)} |" for line in [head, *rows]]
    table = "\n".join([written[0], "|---" + "|---:" * (len(head) - 1) + "|", *written[1:]])
    return table + ("\n\n\\* The interval misses the true value.\n" if missed else "\n")


def _truth(truth: Tensor | Sequence[float] | None, d: int) -> list[float] | None:
    if truth is None:
        return None
    found = torch.as_tensor(truth).detach().double().cpu().flatten().tolist()
    if len(found) != d:
        raise ValueError(f"got a truth of {len(found)} numbers for {d} coordinates; expected a number for each")
    return found
