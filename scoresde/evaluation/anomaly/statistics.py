"""The interface of anomaly scores: statistics of each sample under a model, combined into one number."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.score import Conditions, ScoreModel

__all__ = ["AnomalyScore", "Levels", "ReferenceStatistics", "Statistics", "level_times", "mean_and_error", "mean_excess"]

Levels = int | Sequence[float]
"""A number of levels of noise, or their times."""


class Statistics(NamedTuple):
    """The statistics of a batch, float64.

    Args:
        values: the statistics, shape ``(batch, k)``.
        error: their standard errors from random draws, shape ``(batch, k)``; NaN where they are unknown.

    Example:
        >>> import torch
        >>> from scoresde import VP, problems
        >>> from scoresde.evaluation import ANOMALY_SCORES
        >>> from scoresde.score import Conditions
        >>> told, score = Conditions.of(None, 3), ANOMALY_SCORES["score-norms"]()
        >>> found = score.statistics(problems.ring().model(VP()), torch.zeros(3, 2), [0, 1, 2], told)
        >>> found.values.shape == found.error.shape, len(found.values)
        (True, 3)
    """

    values: Tensor
    error: Tensor


@dataclass(frozen=True)
class ReferenceStatistics:
    """The statistics that an anomaly score has of n samples of the data, shape ``(n, k)``, float64.

    Example:
        >>> import torch
        >>> seen = ReferenceStatistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> seen.mean.tolist(), float(seen.deviation[1]) > 0
        ([2.0, 5.0], True)
    """

    values: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of each statistic, shape ``(k,)``."""
        return self.values.mean(0)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each statistic, shape ``(k,)``; never zero."""
        return self.values.std(0).clamp(min=1e-12)


class AnomalyScore(ABC):
    """Interface of anomaly scores: frozen dataclasses whose fields are their options.

    A subclass defines :meth:`statistics` of a batch, and :meth:`combine`, which turns them into one number for each sample,
    larger for anomalies.

    Attributes:
        needs_reference: whether the score compares with samples of the data.
    """

    needs_reference: ClassVar[bool] = True

    @abstractmethod
    def statistics(self, model: ScoreModel, x: Tensor, seeds: list[int], conditions: Conditions) -> Statistics:
        """Return the statistics of ``x``, shape ``(batch, *event)``, with random numbers from one seed for each sample."""

    @abstractmethod
    def combine(self, found: Statistics, reference: ReferenceStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the score and its standard error, both of shape ``(batch,)``; the error is NaN where it is unknown."""


def level_times(model: ScoreModel, levels: Levels) -> Tensor:
    """Return the times of the levels of noise, float64, from little noise to much.

    A number of levels is spread evenly in lam between 3 and -2, as far as the span of the SDE goes. For data with a standard
    deviation of about one, that is from little noise to much more noise than signal.

    Raises:
        ValueError: for fewer than one level, and for times outside the span.
    """
    sde = model.sde
    low, high = sde.span
    if isinstance(levels, Sequence | Tensor):
        t = torch.as_tensor(levels, dtype=torch.float64)
        if t.ndim != 1 or not len(t) or not bool(((t > 0) & (t >= low) & (t <= high)).all()):
            raise ValueError(
                f"got levels={levels!r}; expected times from {low:.6g} to {high:.6g}, with some noise, or a number of levels"
            )
        return t.sort().values
    n = whole("levels", levels, 1)
    top, bottom = min(3.0, float(sde.lam(low))), max(-2.0, float(sde.lam(high)))
    return sde.time(torch.linspace(top, bottom, n + 2, dtype=torch.float64)[1:-1])


def mean_excess(found: Statistics, reference: ReferenceStatistics) -> tuple[Tensor, Tensor]:
    """Return the mean over the statistics of their distance above the data's mean, in standard deviations of the data."""
    z = (found.values - reference.mean) / reference.deviation
    error = (found.error / reference.deviation).square().sum(1).sqrt() / z.shape[1]
    return z.mean(1), error


def mean_and_error(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of repeated draws, each of shape ``(batch,)``, and its standard error: NaN for a single draw."""
    stacked = torch.stack(list(values)).double()
    n = len(stacked)
    error = stacked.std(0) / math.sqrt(n) if n > 1 else torch.full_like(stacked[0], math.nan)
    return stacked.mean(0), error
