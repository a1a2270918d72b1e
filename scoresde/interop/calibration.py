r"""Simulation-based calibration: whether posteriors are right on average over the prior.

Draw :math:`\theta^* \sim p(\theta)` and :math:`y \sim p(y \mid \theta^*)`, and L draws :math:`\theta_l` from the estimated
posterior given y. If the estimate is the posterior, then :math:`\theta^*` is one more draw from it, and its rank among the
others, the number of :math:`\theta_l < \theta^*`, is uniform on 0..L in each component. Ranks that pile up at both ends show
posteriors that are too narrow, ranks in the middle ones that are too wide, and ranks at one end a bias.

Source: Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based Calibration", 2018,
https://arxiv.org/abs/1804.06788.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.interop.posterior import EstimatedPosterior
from scoresde.plots.figure import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "calibration"]

_BINS = 20


@dataclass(frozen=True, eq=False)
class Calibration:
    """The ranks of true parameters among draws from their posteriors.

    Attributes:
        ranks: whole numbers from 0 to ``draws``, shape ``(n, size)``.
        draws: the number of draws for each observation.

    Example:
        >>> ranks = torch.arange(100)[:, None]  # uniform: one of each from 0 to 99
        >>> found = Calibration(ranks, draws=99)
        >>> found.counts(4).tolist(), found.p_values().tolist()
        ([[25, 25, 25, 25]], [1.0])
    """

    ranks: Tensor
    draws: int

    def counts(self, bins: int = _BINS) -> Tensor:
        """Return how many ranks fall into each of ``bins`` parts of 0..draws, shape ``(size, bins)``."""
        part = (self.ranks * bins).div(self.draws + 1, rounding_mode="floor")
        found = torch.zeros(self.ranks.shape[1], bins, dtype=torch.int64)
        return found.scatter_add_(1, part.T, torch.ones_like(part.T))

    def p_values(self) -> Tensor:
        """Return for each parameter the p-value of uniform ranks, by the chi-squared test, shape ``(size,)``, float64."""
        from scipy.stats import chisquare

        bins = _parts(self.draws, len(self.ranks))
        probability = _probabilities(self.draws, bins)
        expected = len(self.ranks) * probability
        return torch.tensor([chisquare(row.numpy(), expected).pvalue for row in self.counts(bins)], dtype=torch.float64)

    def figure(self, names: list[str] | None = None) -> Figure:
        """Plot a histogram of the ranks of each parameter, with the band in which 99 % of the counts of uniform ranks lie.

        Args:
            names: the names of the parameters.
        """
        from scipy.stats import binom

        size = self.ranks.shape[1]
        columns = min(size, 4)
        figure = new_figure(3.0 * columns, 2.5 * -(-size // columns))
        axes = figure.subplots(-(-size // columns), columns, squeeze=False, sharex=True, sharey=True).flatten()
        bins = _parts(self.draws, len(self.ranks))
        probability, edges = _probabilities(self.draws, bins), np.linspace(0, 1, bins + 1)
        low, high = (binom.ppf(q, len(self.ranks), probability) for q in (0.005, 0.995))
        for i, (ax, counts) in enumerate(zip(axes, self.counts(bins), strict=False)):
            ax.fill_between(
                edges, [*low, low[-1]], [*high, high[-1]], step="post", color="0.88", label="99 % of uniform ranks"
            )
            ax.stairs(counts.numpy(), edges, color=PALETTE[0], linewidth=1.6, label="ranks", baseline=None)
            ax.set(title=names[i] if names else f"parameter {i + 1}", xlim=(0, 1), ylim=(0, None))
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes[size:]:
            ax.set_axis_off()
        figure.supxlabel("rank of the true parameter among the draws, from 0 to 1", fontsize=9)
        axes[0].set_ylabel("count")
        axes[0].legend(frameon=False, fontsize=8, loc="lower left")
        return figure


def _parts(draws: int, n: int) -> int:
    """Return the number of bins: at most 20 and at most draws + 1, with about five ranks or more in each."""
    return max(2, min(_BINS, draws + 1, n // 5))


def _probabilities(draws: int, bins: int) -> np.ndarray[Any, Any]:
    """Return the probability of each bin for uniform ranks; bins may hold one rank more or less than others."""
    part = np.arange(draws + 1) * bins // (draws + 1)
    found: np.ndarray[Any, Any] = np.bincount(part, minlength=bins) / (draws + 1)
    return found


def calibration(
    posterior: EstimatedPosterior,
    theta: Tensor,
    observations: Tensor,
    draws: int = 99,
    *,
    batch_size: int = 10_000,
    **options: Any,
) -> Calibration:
    """Return the ranks of the true parameters among draws from the posteriors of their observations.

    Args:
        posterior: the estimated posterior.
        theta: parameters drawn from the prior, shape ``(n, size)``.
        observations: an observation simulated for each, shape ``(n, *observation)``.
        draws: the number of draws for each observation; one more should be a multiple of 20.
        batch_size: the number of samples drawn at once.
        options: as in :meth:`EstimatedPosterior.sample`.

    Raises:
        ValueError: for different numbers of parameters and observations.

    Example:
        >>> import scoresde
        >>> class Prior(scoresde.ScoreModel):  # ignores the observation: a posterior that is calibrated all the same
        ...     def x0(self, x, t, observation):
        ...         return self.sde.alpha(t).to(x) * x
        >>> posterior = EstimatedPosterior(Prior(None, scoresde.VP()), 1)
        >>> theta = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> ranks = calibration(posterior, theta, theta, draws=19, steps=10)
        >>> ranks.p_values().item() > 0.01
        True
    """
    draws = whole("draws", draws, 1)
    if theta.ndim != 2 or len(theta) != len(observations):
        raise ValueError(
            f"got theta of shape {tuple(theta.shape)} and {len(observations)} observations; expected (n, size) and n of them"
        )
    seed = options.pop("seed", 0)
    ranks = []
    for i, some in enumerate(range(0, len(theta), max(1, batch_size // draws))):
        here = slice(some, some + max(1, batch_size // draws))
        seen = observations[here].repeat_interleave(draws, dim=0)
        drawn = posterior.sample_each(seen, seed=seed + i, **options)
        drawn = drawn.reshape(-1, draws, theta.shape[1])
        ranks.append((drawn < theta[here, None].to(drawn)).sum(1).cpu())
    return Calibration(torch.cat(ranks), draws)
