r"""The area under the ROC curve: how well a score tells anomalies from data.

It is the probability that the score of an anomaly Y exceeds that of a sample X of the data,

.. math:: A = P(Y > X) + \tfrac12 P(Y = X),

1/2 for a score that tells nothing and 1 for one that separates both. For N(0, 1) against N(d, 1) it is
:math:`\Phi(d / \sqrt 2)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.metrics.intervals import Estimate, check_values, normal_quantile

__all__ = ["auroc", "auroc_estimate"]


def auroc(inside: Tensor, outside: Tensor) -> Tensor:
    """Return the area under the ROC curve, a float64 tensor without dimensions.

    Args:
        inside: the scores of samples of the data, shape ``(n,)``.
        outside: the scores of anomalies, shape ``(m,)``; larger is more anomalous.

    Raises:
        ValueError: for fewer than two scores on either side, another shape, and scores that are NaN.

    Source: Mann and Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other",
    1947, https://doi.org/10.1214/aoms/1177730491; Hanley and McNeil, "The Meaning and Use of the Area under a Receiver
    Operating Characteristic (ROC) Curve", 1982, https://doi.org/10.1148/radiology.143.1.7063747.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))  # three pairs in order, one tied
        tensor(0.8750, dtype=torch.float64)
    """
    return _placements(*_checked(inside, outside)).mean()


def auroc_estimate(inside: Tensor, outside: Tensor, confidence: float = 0.95) -> Estimate:
    r"""Return the area under the ROC curve with its confidence interval.

    The variance is DeLong's,

    .. math:: \frac{\mathrm{var}_i\, P(Y > X_i)}{n} + \frac{\mathrm{var}_j\, P(Y_j > X)}{m},

    with each probability over the other side. The interval is symmetric in :math:`\log (A / (1 - A))`, so that it stays
    between 0 and 1. Where all pairs are in order, or none, that variance is zero. The far end is then Newcombe's: the A at
    which the area found would be at the edge of the interval, with Hanley and McNeil's variance.

    Args:
        inside, outside: the scores, as in :func:`auroc`.
        confidence: the level of the interval.

    Source: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves", 1988, https://doi.org/10.2307/2531595; Newcombe, "Confidence intervals for an effect size measure
    based on the Mann-Whitney statistic. Part 2", 2006, https://doi.org/10.1002/sim.2324, method 5.

    Example:
        >>> found = auroc_estimate(torch.arange(50.0), torch.arange(50.0) + 20)
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (0.82, 0.728, 0.886)
    """
    x, y = _checked(inside, outside)
    z = normal_quantile(confidence)
    of_outside, of_inside = _placements(x, y), 1 - _placements(y, x)
    value, variance = float(of_outside.mean()), float(of_outside.var() / len(y) + of_inside.var() / len(x))
    if 0 < value < 1 and variance > 0:
        logit = math.log(value / (1 - value))
        half = z * math.sqrt(variance) / (value * (1 - value))
        return Estimate(value, _sigmoid(logit - half), _sigmoid(logit + half))
    if value in (0.0, 1.0):
        far = _newcombe(z, len(x), len(y))
        return Estimate(1.0, far, 1.0) if value == 1 else Estimate(0.0, 0.0, 1 - far)
    return Estimate(value, 0.0, 1.0)  # all scores are equal: they tell nothing of the area


def _checked(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    x, y = check_values(inside), check_values(outside)
    if bad := int(x.isnan().sum() + y.isnan().sum()):
        raise ValueError(f"got {bad} scores that are NaN; expected numbers that can be put in order")
    return x, y.to(x.device)


def _placements(x: Tensor, y: Tensor) -> Tensor:
    """For each of ``y``, the part of ``x`` below it, with half of the ties; shape of ``y``."""
    ordered = x.sort().values
    below, up_to = (torch.searchsorted(ordered, y.contiguous(), side=side) for side in ("left", "right"))
    return (below + up_to).double() / (2 * len(x))


def _newcombe(z: float, n: int, m: int) -> float:
    """The area A below which the found area 1 would lie more than ``z`` standard errors away, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        a = 0.5 * (low + high)
        more = (0.5 * (n + m) - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        near = (1 - a) ** 2 <= z**2 * a * (1 - a) * (1 + more) / (n * m)
        low, high = (low, a) if near else (a, high)
    return high


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
