"""The anomaly score by the norms of the score over the levels of noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.evaluation.anomaly.statistics import AnomalyScore, Levels, ReferenceStatistics, Statistics, level_times
from scoresde.score import Conditions, ScoreModel

__all__ = ["ScoreNorms"]


@dataclass(frozen=True)
class ScoreNorms(AnomalyScore):
    r"""The distance between the norms of the score over the levels of noise and the same norms for the data.

    The statistics are :math:`\log \|\sigma_t \nabla \log p_t(\alpha_t x)\|`, at the sample without noise. Together they show
    on which scale a sample is unlike the data. The score is the Mahalanobis distance of their vector from the vectors of the
    reference. A norm that is too small thus counts like one that is too large.

    Args:
        levels: the number of levels, or their times.

    Source: Mahmood, Oliva and Styner, "Multiscale Score Matching for Out-of-Distribution Detection", 2020,
    https://arxiv.org/abs/2010.13132, with one Gaussian for the density of the norms.

    Example:
        >>> import torch
        >>> from scoresde import VP, evaluation, problems
        >>> problem = problems.ring()
        >>> x = problem.sample(300, torch.Generator().manual_seed(0))
        >>> detector = evaluation.Detector(problem.model(VP()), ScoreNorms(), x[:200])
        >>> bool(detector(torch.tensor([[0.0, 3.0]])).score > detector(x[200:]).score.max())
        True
    """

    levels: Levels = 8

    def statistics(self, model: ScoreModel, x: Tensor, seeds: list[int], conditions: Conditions) -> Statistics:
        """Return the logarithms of the norms, shape ``(batch, levels)``; no random numbers are drawn."""
        norms = []
        for t in level_times(model, self.levels):
            eps = model.eps(float(model.sde.alpha(t)) * x, t, **conditions.values)
            norms.append(torch.linalg.vector_norm(eps.double().flatten(1), dim=1).clamp(min=1e-12).log())
        values = torch.stack(norms, 1)
        return Statistics(values, torch.zeros_like(values))

    def combine(self, found: Statistics, reference: ReferenceStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the Mahalanobis distance from the reference; its error is zero."""
        assert reference is not None
        centred = reference.values - reference.mean
        covariance = centred.T @ centred / max(1, len(centred) - 1)
        # A ridge of a millionth of the variances, for norms that are exactly correlated.
        covariance = covariance + 1e-6 * torch.diag(reference.deviation.square())
        z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (found.values - reference.mean).T, upper=False)
        return torch.linalg.vector_norm(z, dim=0), torch.zeros(len(found.values), dtype=torch.float64, device=z.device)
