"""The Fréchet distance between two Gaussians, and between two samples by their means and covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.metrics._samples import check_pair
from scoresde.metrics.intervals import Estimate, jackknife

__all__ = ["frechet_distance", "frechet_estimate", "gaussian_frechet_distance"]


def gaussian_frechet_distance(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> Tensor:
    r"""Return the Fréchet (squared 2-Wasserstein) distance of two Gaussians, for means ``(d,)`` and covariances ``(d, d)``.

    .. math:: \|\mu_x - \mu_y\|^2 + \operatorname{tr} \left( C_x + C_y - 2 (C_x C_y)^{1/2} \right)

    The trace of the root is computed as the sum of the singular values of :math:`C_x^{1/2} C_y^{1/2}`, which is accurate for
    singular covariances too.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982,
    https://doi.org/10.1016/0047-259X(82)90077-X.

    Example:
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> round(gaussian_frechet_distance(zero, one, zero + 1, 4 * one).item(), 12)  # 2 + 2 (2 - 1)^2
        4.0
    """
    mean_x, covariance_x, mean_y, covariance_y = (v.to(torch.float64) for v in (mean_x, covariance_x, mean_y, covariance_y))
    cross: Tensor = torch.linalg.svdvals(_half(covariance_x).mT @ _half(covariance_y)).sum()
    return ((mean_x - mean_y) ** 2).sum() + covariance_x.trace() + covariance_y.trace() - 2 * cross


def _half(covariance: Tensor) -> Tensor:
    """Return a matrix A with A A^T = C."""
    values, vectors = torch.linalg.eigh(covariance)
    half: Tensor = vectors * values.clamp(min=0).sqrt()
    return half


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the Fréchet distance of Gaussians with the means and (unbiased) covariances of ``x`` and ``y``.

    On Inception features this is FID. It is biased upwards by an amount that falls with the number of samples, so compare
    samples of the same size.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017,
    https://arxiv.org/abs/1706.08500, equation (6).

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_distance(x, x + 3).item(), 12)
        9.0
    """
    x, y = check_pair(x, y)
    # torch.cov returns a number for one-dimensional vectors; the reshape makes it a matrix again.
    moments = [(z.mean(0), z.T.cov().reshape(z.shape[1], z.shape[1])) for z in (x, y)]
    return gaussian_frechet_distance(*moments[0], *moments[1])


def frechet_estimate(x: Tensor, y: Tensor, confidence: float = 0.95) -> Estimate:
    """Return :func:`frechet_distance` with a jackknife interval for its expectation at these sample sizes.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = frechet_estimate(x[:200], x[200:] + 3)
        >>> found.low < 18 < found.high
        True
    """
    return jackknife(frechet_distance, *check_pair(x, y), confidence=confidence)
