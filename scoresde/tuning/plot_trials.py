"""The figure of a pilot: the errors of all that was tried, and the choices among them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scoresde.plots.figure import PALETTE, new_figure
from scoresde.solvers.fitted import Chosen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_trials"]


def plot_trials(solver: Chosen) -> Figure:
    """Plot the errors of all trials of a pilot against the evaluations, the choices as a line.

    Example:
        >>> from scoresde.solvers import Pilot, Trial, get
        >>> pilots = [Pilot(n, (Trial("abm-3", error=1 / n**2), Trial("ddim", error=1 / n))) for n in (5, 10)]
        >>> plot_trials(Chosen.of(pilots, get)).axes[0].get_xlabel()
        'evaluations'
    """
    figure = new_figure(6.4, 4.0)
    ax = figure.subplots()
    kinds = {"named solvers": [], "families on arctan spacings": []}  # type: dict[str, list[tuple[int, float]]]
    for pilot in solver.pilots:
        for trial in pilot.trials:
            if math.isfinite(trial.error):
                kinds["named solvers" if isinstance(trial.spacing, str) else "families on arctan spacings"].append(
                    (pilot.evaluations, trial.error)
                )
    for colour, shift, (name, points) in zip(PALETTE[4:6], (1.012, 1 / 1.012), kinds.items(), strict=True):
        counts, errors = [n * shift for n, _ in points], [error for _, error in points]
        ax.plot(counts, errors, "_", color=colour, markersize=9, label=name)
    counts = [pilot.evaluations for pilot in solver.pilots]
    ax.plot(counts, [p.trials[0].error for p in solver.pilots], "o-", color=PALETTE[0], label="chosen")
    ax.plot(counts, [p.held_out for p in solver.pilots], "s:", color=PALETTE[1], label="chosen, on held-out starts")
    ax.set(xlabel="evaluations", ylabel="rms error", xscale="log", yscale="log")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.set_axisbelow(True)
    ax.grid(True, which="major", color="0.9", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure
