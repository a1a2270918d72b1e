"""The mean and covariance of samples that come in parts and are not kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.metrics import gaussian_frechet_distance

__all__ = ["FeatureMoments", "frechet"]


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    r"""The number of samples, their mean, and the sum of the products of their deviations from it, in float64.

    Two parts A and B make a whole by

    .. math:: \mu = \mu_A + \frac{n_B}{n}\,\delta, \qquad M = M_A + M_B + \frac{n_A n_B}{n}\, \delta \delta^T, \qquad
              \delta = \mu_B - \mu_A,

    which subtracts no large numbers, so that it stays accurate where the mean is far from zero, in any order of the parts.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979,
    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.

    Args:
        n: the number of samples.
        mean: the mean, shape ``(d,)``.
        products: the sum of the products of deviations from the mean, shape ``(d, d)``.

    Example:
        >>> whole = FeatureMoments.of(torch.tensor([[0.0], [2.0]])) + FeatureMoments.of(torch.tensor([[4.0]]))
        >>> whole.mean, whole.covariance
        (tensor([2.], dtype=torch.float64), tensor([[4.]], dtype=torch.float64))
    """

    n: int
    mean: Tensor
    products: Tensor

    @classmethod
    def of(cls, x: Tensor) -> FeatureMoments:
        """Return the moments of samples, shape ``(n, d)``."""
        x = x.double()
        mean = x.mean(0)
        deviations = x - mean
        return cls(len(x), mean, deviations.T @ deviations)

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        n, delta = self.n + other.n, other.mean - self.mean
        products = self.products + other.products + torch.outer(delta, delta) * (self.n * other.n / n)
        return FeatureMoments(n, self.mean + delta * (other.n / n), products)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, shape ``(d, d)``.

        Raises:
            ValueError: for fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"got {self.n} samples; expected at least 2, to have a covariance")
        return self.products / (self.n - 1)


def frechet(x: FeatureMoments, y: FeatureMoments) -> float:
    """Return the Fréchet distance of the Gaussians with these moments; see :func:`scoresde.metrics.frechet_distance`.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(frechet(FeatureMoments.of(x), FeatureMoments.of(x + 3)), 12)
        9.0
    """
    return float(gaussian_frechet_distance(x.mean, x.covariance, y.mean, y.covariance))
