"""The anomaly score by the denoising loss in excess of the irreducible one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.evaluation.anomaly.statistics import (
    AnomalyScore,
    Levels,
    ReferenceStatistics,
    Statistics,
    level_times,
    mean_and_error,
    mean_excess,
)
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers import FreshNoise

__all__ = ["LossExcess"]


@dataclass(frozen=True)
class LossExcess(AnomalyScore):
    r"""The denoising loss of a sample in excess of the irreducible loss, over the levels of noise.

    The statistics are :math:`E_\epsilon \|\hat\epsilon(x_t) - \epsilon\|^2 / d` with
    :math:`x_t = \alpha_t x + \sigma_t \epsilon`. Their mean over the data is the irreducible loss if the model is exact; the
    reference gives it, with the standard deviation over the data. The score is the mean excess over the levels in these
    units. Without the units, the sum over levels evenly spaced in lam is the evidence bound, up to a factor.

    Args:
        levels: the number of levels, or their times.
        draws: the number of draws of noise for each level; with two or more the error is known.

    Source of the loss as a likelihood: Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630.

    Example:
        >>> import torch
        >>> from scoresde import VP, evaluation, problems
        >>> problem = problems.ring()
        >>> x = problem.sample(300, torch.Generator().manual_seed(0))
        >>> detector = evaluation.Detector(problem.model(VP()), LossExcess(draws=8), x[:200])
        >>> bool(detector(torch.tensor([[0.0, 3.0]])).score > detector(x[200:]).score.max())
        True
    """

    levels: Levels = 8
    draws: int = 4

    def statistics(self, model: ScoreModel, x: Tensor, seeds: list[int], conditions: Conditions) -> Statistics:
        """Return the loss at each level, shape ``(batch, levels)``."""
        noise, draws, columns = FreshNoise(seeds, x.device), whole("draws", self.draws, 1), []
        for t in level_times(model, self.levels):
            errors = []
            for _ in range(draws):
                eps = noise.normal(torch.empty_like(x))
                x_t = model.sde.perturb(x, t, eps).to(x)
                errors.append((model.eps(x_t, t, **conditions.values) - eps).double().square().flatten(1).mean(1))
            columns.append(mean_and_error(errors))
        return Statistics(*(torch.stack(c, 1) for c in zip(*columns, strict=True)))

    def combine(self, found: Statistics, reference: ReferenceStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the mean excess over the levels, in standard deviations of the reference, and its error."""
        assert reference is not None
        return mean_excess(found, reference)
