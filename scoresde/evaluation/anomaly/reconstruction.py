"""The anomaly score by reconstruction from partial noise."""

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
from scoresde.sampling import sdedit
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers import sample_seeds

__all__ = ["Reconstruction"]


@dataclass(frozen=True)
class Reconstruction(AnomalyScore):
    r"""The error of reconstructions from partial noise, at several levels.

    A sample is noised up to each level and denoised by the model, :func:`scoresde.sampling.sdedit`. A model returns its own
    data nearly as they were and turns others into something like its own. The statistics are the mean squared errors; the
    score is the mean over the levels of how many standard deviations of the reference each lies above the reference's mean.

    Args:
        levels: the number of levels, or their times.
        solver, steps: the solver that denoises and its number of steps, of which few are enough.
        draws: the number of reconstructions from each level.

    Source: Graham et al., "Denoising Diffusion Models for Out-of-Distribution Detection", 2022,
    https://arxiv.org/abs/2211.07740, with the mean squared error for the distance.

    Example:
        >>> import torch
        >>> from scoresde import VP, evaluation, problems
        >>> problem = problems.ring()
        >>> x = problem.sample(300, torch.Generator().manual_seed(0))
        >>> detector = evaluation.Detector(problem.model(VP()), Reconstruction(), x[:200])
        >>> bool(detector(torch.tensor([[0.0, 3.0]])).score > detector(x[200:]).score.max())
        True
    """

    levels: Levels = 5
    solver: str = "dpmpp-2m"
    steps: int = 6
    draws: int = 1

    def statistics(self, model: ScoreModel, x: Tensor, seeds: list[int], conditions: Conditions) -> Statistics:
        """Return the mean squared error from each level, shape ``(batch, levels)``."""
        draws, columns = whole("draws", self.draws, 1), []
        for i, t in enumerate(level_times(model, self.levels).tolist()):
            errors = []
            for j in range(draws):
                own = [sample_seeds(seed + i * draws + j, 1)[0] for seed in seeds]
                back = sdedit(model, x, t, self.solver, self.steps, seed=own, conditions=conditions.values).x
                errors.append((back - x).double().square().flatten(1).mean(1))
            columns.append(mean_and_error(errors))
        return Statistics(*(torch.stack(c, 1) for c in zip(*columns, strict=True)))

    def combine(self, found: Statistics, reference: ReferenceStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the mean excess over the levels, in standard deviations of the reference, and its error."""
        assert reference is not None
        return mean_excess(found, reference)
