"""Detectors of anomalies: a model, an anomaly score, and the statistics of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.base.numbers import whole
from scoresde.evaluation.anomaly.likelihood import LikelihoodScore, Typicality
from scoresde.evaluation.anomaly.loss_excess import LossExcess
from scoresde.evaluation.anomaly.reconstruction import Reconstruction
from scoresde.evaluation.anomaly.score_norms import ScoreNorms
from scoresde.evaluation.anomaly.statistics import AnomalyScore, ReferenceStatistics, Statistics
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_data, check_model
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers import sample_seeds

__all__ = ["ANOMALY_SCORES", "Anomaly", "Detector"]

ANOMALY_SCORES: Table[Callable[..., AnomalyScore]] = Table(
    "anomaly score",
    "scoresde.evaluation.ANOMALY_SCORES",
    {
        "likelihood": LikelihoodScore,
        "typicality": Typicality,
        "reconstruction": Reconstruction,
        "score-norms": ScoreNorms,
        "loss-excess": LossExcess,
    },
    also="an AnomalyScore",
    check=lambda make: callable(make) and isinstance(make(), AnomalyScore),
    expects="a function that returns an AnomalyScore when it is called without arguments",
)
"""The anomaly scores by name, with default options; settings may follow a name: ``"reconstruction: levels=3"``."""


class Anomaly(NamedTuple):
    """The result of a :class:`Detector`.

    Args:
        score: the anomaly score, larger for anomalies, shape ``(batch,)``, float64.
        error: the standard error from random draws, shape ``(batch,)``, float64; NaN where it is unknown.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.ring()
        >>> x = problem.sample(8, torch.Generator().manual_seed(0))
        >>> found = Detector(problem.model(VP()), "score-norms", x[:6])(x[6:])
        >>> found.score.shape, found.error.dtype
        (torch.Size([2]), torch.float64)
    """

    score: Tensor
    error: Tensor


class Detector:
    """A detector that tells anomalies from the data of a model: ``Detector(model, "loss-excess", reference)(x)``.

    Args:
        model: the score model, trained on the data or exact.
        score: an anomaly score, or its name in :data:`ANOMALY_SCORES`, with settings if need be.
        reference: samples of the data, shape ``(n, *event)``, preferably samples on which the model was not trained; the
            likelihood needs none.
        seed: the seed of the random draws, for the reference and for the samples to score.
        conditions: the values on which the model is conditioned, as in :func:`scoresde.sample`, for the reference.
        batch_size: the number of samples in one call of the model; a score does not depend on it.

    Raises:
        TypeError: if ``model`` is not a score model, or ``score`` no anomaly score.
        ValueError: for an unknown name, a reference that is missing, smaller than two samples, or not finite, and an SDE
            without Gaussian marginals.

    Example:
        >>> from scoresde import VP, problems
        >>> from scoresde.metrics import auroc_estimate
        >>> problem = problems.ring()
        >>> x = problem.sample(400, torch.Generator().manual_seed(0))
        >>> detector = Detector(problem.model(VP()), "loss-excess", x[:200])
        >>> found = auroc_estimate(detector(x[200:]).score, detector(0.5 * x[200:]).score)
        >>> found.low > 0.9
        True
    """

    def __init__(
        self,
        model: ScoreModel,
        score: str | AnomalyScore = "loss-excess",
        reference: Tensor | None = None,
        *,
        seed: int = 0,
        conditions: Mapping[str, Any] | None = None,
        batch_size: int = 256,
    ) -> None:
        found = ANOMALY_SCORES.make(score) if isinstance(score, str) else score
        if not isinstance(found, AnomalyScore):
            raise TypeError(f"got anomaly score {score!r}; expected a name ({', '.join(ANOMALY_SCORES)}) or an AnomalyScore")
        check_model(model)
        if found.needs_reference and (reference is None or len(reference) < 2):
            count = "no" if reference is None else len(reference)
            raise ValueError(
                f"got {count} reference samples for {type(found).__name__}, which compares with the data; expected at "
                "least two, better some hundred, that the model was not trained on: Detector(model, score, reference)"
            )
        self.model, self.score, self.seed = model, found, seed
        self.batch_size = whole("batch_size", batch_size, 1)
        self.reference = None
        if found.needs_reference and reference is not None:
            self.reference = ReferenceStatistics(self._statistics(reference, conditions, seed + 1).values)

    def __call__(self, x: Tensor, *, conditions: Mapping[str, Any] | None = None) -> Anomaly:
        """Return the scores of ``x``, shape ``(batch, *event)``.

        Raises:
            ValueError: for data that are empty, of a wrong shape or not finite.
        """
        return Anomaly(*self.score.combine(self._statistics(x, conditions, self.seed), self.reference))

    def _statistics(self, x: Tensor, conditions: Mapping[str, Any] | None, seed: int | Sequence[int]) -> Statistics:
        check_data(self.model, x)
        seeds, parts = sample_seeds(seed, len(x)), []
        told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype)
        with torch.no_grad(), evaluation_mode(self.model):
            for start in range(0, len(x), self.batch_size):
                here = slice(start, start + self.batch_size)
                own = {name: v[here] if name in told.per_sample else v for name, v in told.values.items()}
                some = Conditions(own, told.per_sample, len(seeds[here]))
                parts.append(self.score.statistics(self.model, x[here], seeds[here], some))
        return Statistics(*(torch.cat(part) for part in zip(*parts, strict=True)))
