"""Anomaly scores by the likelihood along the probability flow: the likelihood itself, and typicality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.evaluation.anomaly.statistics import AnomalyScore, ReferenceStatistics, Statistics
from scoresde.sampling import log_likelihood
from scoresde.score import Conditions, ScoreModel

__all__ = ["LikelihoodScore", "Typicality"]


@dataclass(frozen=True)
class LikelihoodScore(AnomalyScore):
    r"""The negative log-density :math:`-\log p(x)` in nats, by :func:`scoresde.log_likelihood`.

    The score needs no reference. It is known to fail on images: simple ones, such as digits under a model of clothes, have a
    larger density than the data themselves.

    Args:
        steps, path, tolerance, probes, t_min, trace: arguments of :func:`scoresde.log_likelihood`. Its steps keep to the
            tolerance, unless their number or a path is given; two probes or more give an error.

    Source of the failure: Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2018,
    https://arxiv.org/abs/1810.09136.

    Example:
        >>> import torch
        >>> from scoresde import VP, evaluation, problems
        >>> detector = evaluation.Detector(problems.ring().model(VP()), LikelihoodScore())
        >>> score, error = detector(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
        >>> bool(score[1] > score[0]), bool(error.max() < 0.05)
        (True, True)
    """

    steps: int | None = None
    path: str | None = None
    tolerance: float = 1e-2
    probes: int = 2
    t_min: float | None = None
    trace: str = "auto"
    needs_reference: ClassVar[bool] = False

    def statistics(self, model: ScoreModel, x: Tensor, seeds: list[int], conditions: Conditions) -> Statistics:
        """Return the negative log-density, shape ``(batch, 1)``."""
        found = log_likelihood(
            model,
            x,
            self.tolerance,
            steps=self.steps,
            path=self.path,
            trace=self.trace,
            probes=self.probes,
            seed=seeds,
            t_min=self.t_min,
            conditions=conditions.values,
        )
        error = found.probe_error + found.discretization
        return Statistics(-found.log_prob[:, None], error[:, None])

    def combine(self, found: Statistics, reference: ReferenceStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the negative log-density and its error."""
        return found.values[:, 0], found.error[:, 0]


@dataclass(frozen=True)
class Typicality(LikelihoodScore):
    r"""The distance :math:`|-\log p(x) - H|` of the log-density from its mean over the data, the entropy H.

    Data lie where the log-density is about -H, in the typical set. A density that is too large is as anomalous as one that
    is too small.

    Source: Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality", 2019,
    https://arxiv.org/abs/1906.02994, with batches of one sample.

    Example:
        >>> import torch
        >>> from scoresde import EDM, evaluation, problems
        >>> problem = problems.Gaussian(torch.zeros(16), torch.eye(16))
        >>> x = problem.sample(200, torch.Generator().manual_seed(0))
        >>> detector = evaluation.Detector(problem.model(EDM()), Typicality(trace="exact"), x)
        >>> bool(detector(torch.zeros(1, 16)).score > detector(x).score.median())  # the mode is not typical
        True
    """

    needs_reference: ClassVar[bool] = True

    def combine(self, found: Statistics, reference: ReferenceStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the distance from the mean of the reference, and the error of the log-density."""
        assert reference is not None
        return torch.abs(found.values[:, 0] - reference.mean[0]), found.error[:, 0]
