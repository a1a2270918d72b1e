"""Estimates: numbers with confidence intervals, at 95 % by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate", "jackknife", "mean_estimate", "quantile_estimate"]


@dataclass(frozen=True)
class Estimate:
    """A ``value`` and its confidence interval from ``low`` to ``high``; all three are equal for a number known exactly.

    Example:
        >>> mean_estimate(torch.tensor([1.0, 3.0])).value, Estimate(1.0, 0.5, 1.5).high
        (2.0, 1.5)
    """

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """Return the estimate of a number that is known exactly.

        Example:
            >>> Estimate.exact(2.0)
            Estimate(value=2.0, low=2.0, high=2.0)
        """
        return cls(value, value, value)

    def map(self, function: Callable[[float], float]) -> Estimate:
        """Apply an increasing ``function`` to the value and both ends of the interval.

        Example:
            >>> Estimate(4.0, 1.0, 9.0).map(math.sqrt)
            Estimate(value=2.0, low=1.0, high=3.0)
        """
        return Estimate(function(self.value), function(self.low), function(self.high))


def check_confidence(confidence: float) -> None:
    """Raise a ValueError for a level of confidence that is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"got confidence={confidence}; expected a number between 0 and 1")


def normal_quantile(confidence: float) -> float:
    """Return the half-width of a two-sided normal interval in standard deviations."""
    check_confidence(confidence)
    return float(torch.special.ndtri(torch.tensor(0.5 + 0.5 * confidence, dtype=torch.float64)))


def student_quantile(confidence: float, degrees: int) -> float:
    """Return the half-width of a two-sided interval of Student's t with ``degrees`` of freedom."""
    from scipy.special import stdtrit

    check_confidence(confidence)
    return float(stdtrit(degrees, 0.5 + 0.5 * confidence))


def check_values(values: Tensor) -> Tensor:
    """Return ``values`` in float64, and raise a ValueError unless they are a vector of at least two."""
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"got values of shape {tuple(values.shape)}; expected (n,), one for each of at least two samples")
    return values.to(torch.float64)


def mean_estimate(values: Tensor, confidence: float = 0.95) -> Estimate:
    """Return the mean of independent ``values``, shape ``(n,)``, with Student's interval.

    Example:
        >>> mean_estimate(torch.tensor([1.0, 2.0, 3.0])).value
        2.0
    """
    values = check_values(values)
    mean = float(values.mean())
    half = student_quantile(confidence, len(values) - 1) * float(values.std()) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def positive_mean_estimate(values: Tensor, confidence: float = 0.95) -> Estimate:
    """Return the mean of non-negative values, with an interval for its logarithm by the delta method.

    If a few samples contribute most of the mean, the coverage is better than that of a symmetric interval. The lower end is
    never below zero.
    """
    values = check_values(values)
    mean = float(values.mean())
    if not 0 < mean < math.inf:
        return Estimate.exact(mean)
    factor = math.exp(student_quantile(confidence, len(values) - 1) * float(values.std()) / (mean * math.sqrt(len(values))))
    return Estimate(mean, mean / factor, mean * factor)


def quantile_estimate(values: Tensor, q: float, confidence: float = 0.95) -> Estimate:
    """Return the ``q``-quantile of independent ``values``, shape ``(n,)``, with an interval of order statistics.

    The number of values below the quantile is binomial, whatever their distribution. The ends of the interval are order
    statistics, chosen so that each is on the wrong side of the quantile with probability at most (1 - confidence) / 2. If
    there are too few values, an end is infinite.

    Source: Conover, "Practical Nonparametric Statistics", 1999, section 3.2.

    Raises:
        ValueError: for a ``q`` or ``confidence`` that is not between 0 and 1, and values that are not a vector of at least
            two.

    Example:
        >>> quantile_estimate(torch.arange(101.0), 0.5)
        Estimate(value=50.0, low=40.0, high=60.0)
    """
    from scipy.stats import binom

    check_confidence(confidence)
    if not 0 < q < 1:
        raise ValueError(f"got q={q}; expected a number between 0 and 1")
    ordered = check_values(values).sort().values
    n, miss = len(ordered), 0.5 * (1 - confidence)
    # X_(k) lies above the quantile if fewer than k values lie below it, and X_(k) below it if at least k do.
    below, above = int(binom.ppf(miss, n, q)), int(binom.isf(miss, n, q)) + 1
    low = float(ordered[below - 1]) if below >= 1 else -math.inf
    high = float(ordered[above - 1]) if above <= n else math.inf
    return Estimate(float(torch.quantile(ordered, q)), low, high)


def jackknife(
    statistic: Callable[..., Tensor], *samples: Tensor, groups: int = 20, confidence: float = 0.95, variance: float = 0.0
) -> Estimate:
    r"""Return a smooth ``statistic(*samples)`` of independent samples with its jackknife interval.

    With :math:`\theta_g` the statistic without the g-th part of every sample, its variance is estimated by
    :math:`\frac{G-1}{G} \sum_g (\theta_g - \bar\theta)^2`, and the interval is Student's with G - 1 degrees of freedom. The
    interval is for the expectation of the statistic at these sample sizes; it does not correct a bias.

    Source: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 3.

    Args:
        statistic: a function of as many tensors as there are ``samples``, which returns a number.
        samples: each of shape ``(n, ...)`` with its own n, in any order.
        groups: the number G of parts; the cost is G + 1 evaluations of the statistic.
        confidence: the level of the interval.
        variance: a variance from another source, which is added to the estimated one.

    Raises:
        ValueError: for fewer than two groups or samples, and a ``confidence`` that is not between 0 and 1.

    Example:
        >>> x = torch.arange(40.0)
        >>> by_groups, by_values = jackknife(torch.mean, x, groups=40), mean_estimate(x)  # the same for a mean
        >>> abs(by_groups.low - by_values.low) < 1e-4
        True
    """
    groups = min(groups, *(len(x) for x in samples))
    if groups < 2:
        raise ValueError(f"got {groups} groups; expected at least 2, and samples enough for them")
    value = float(statistic(*samples))
    without = torch.stack([statistic(*(_without(x, g, groups) for x in samples)) for g in range(groups)]).double()
    variance += float((without - without.mean()).square().sum()) * (groups - 1) / groups
    half = student_quantile(confidence, groups - 1) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)


def _without(x: Tensor, group: int, groups: int) -> Tensor:
    """Return all samples except every ``groups``-th one, counted from ``group``."""
    keep = torch.arange(len(x), device=x.device) % groups != group
    return x[keep]


def combined(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Return the weighted sum of independent estimates with symmetric intervals."""
    value = math.fsum(w * e.value for w, e in zip(weights, estimates, strict=True))
    half = math.hypot(*(w * (e.high - e.value) for w, e in zip(weights, estimates, strict=True)))
    return Estimate(value, value - half, value + half)
