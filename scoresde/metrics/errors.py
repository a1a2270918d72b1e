"""Errors against a truth that is known exactly: end points, moments, weights of modes, or a density."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from scoresde.base.shape import check_batch
from scoresde.metrics.intervals import (
    Estimate,
    combined,
    jackknife,
    mean_estimate,
    positive_mean_estimate,
    quantile_estimate,
)
from scoresde.metrics.kernels import kernel_distance_estimate

__all__ = [
    "covariance_error",
    "error_quantile",
    "mean_error",
    "mode_weight_error",
    "negative_log_likelihood",
    "rms_error",
]


def _errors(x: Tensor, reference: Tensor) -> Tensor:
    """Return the mean square error of each sample over its coordinates, shape ``(n,)``, float64."""
    if check_batch(x).shape != reference.shape or len(x) < 2:
        raise ValueError(
            f"got samples of shape {tuple(x.shape)} and their references of shape {tuple(reference.shape)}; expected the "
            "same shape (n, *event) of at least two samples"
        )
    return (x.double() - reference.to(x.device).double()).flatten(1).square().mean(1)


def rms_error(x: Tensor, reference: Tensor, confidence: float = 0.95) -> Estimate:
    """Return the root mean square distance of the samples from their references, over samples and coordinates.

    If the reference is the end of the flow from the same start, this is the end-point error of a deterministic solver. If it
    is a much finer run on the same Brownian path, this is the strong error of a stochastic solver. The interval is that of
    the mean over starts, for the logarithm by the delta method. If a few starts contribute most of the error, the interval
    is too short and :func:`error_quantile` is more informative.

    Args:
        x, reference: samples and their references, shape ``(n, *event)``, in the same order.
        confidence: the level of the interval.

    Example:
        >>> import torch
        >>> rms_error(torch.tensor([[1.0, 7.0], [5.0, 5.0]]), torch.zeros(2, 2)).value  # the root of (1 + 49 + 25 + 25) / 4
        5.0
    """
    return positive_mean_estimate(_errors(x, reference), confidence).map(math.sqrt)


def error_quantile(x: Tensor, reference: Tensor, q: float = 0.5, confidence: float = 0.95) -> Estimate:
    """Return the ``q``-quantile over samples of the root mean square error, with an interval of order statistics.

    Example:
        >>> import torch
        >>> error_quantile(torch.tensor([[1.0], [-5.0], [2.0]]), torch.zeros(3, 1)).value
        2.0
    """
    return quantile_estimate(_errors(x, reference).sqrt(), q, confidence)


# Moments -------------------------------------------------------------------------------------------------------------


def _moments(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples minus the true mean, ``(n, d)``, and the true covariance, ``(d, d)``."""
    d = check_batch(x)[0].numel()
    if mean.numel() != d or covariance.shape != (d, d) or len(x) < 2:
        raise ValueError(
            f"got samples of shape {tuple(x.shape)}, a mean of shape {tuple(mean.shape)} and a covariance of shape "
            f"{tuple(covariance.shape)}; expected (n, *event) with n >= 2, event and ({d}, {d})"
        )
    return x.flatten(1).double() - mean.to(x.device).double().flatten(), covariance.to(x.device).double()


def _root(squared: Estimate, scale: float) -> Estimate:
    return squared.map(lambda value: math.sqrt(max(value, 0.0)) / scale)


def mean_error(x: Tensor, mean: Tensor, covariance: Tensor, confidence: float = 0.95) -> Estimate:
    r"""Return the relative error of the mean of the samples, :math:`\|E X - \mu\| / \sqrt{\operatorname{tr} C}`.

    The square is estimated without bias, so samples from the truth give zero on average, whatever their number. If the
    estimate of the square is negative, the result is zero.

    Args:
        x: samples ``(n, *event)``.
        mean, covariance: the true moments, shapes ``event`` and ``(d, d)``.
        confidence: the level of the interval.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0], [4.0]])
        >>> mean_error(x, torch.zeros(1), torch.tensor([[4.0]])).value  # sqrt(2 * 4 / 4)
        1.4142135623730951
    """
    centred, covariance = _moments(x, mean, covariance)
    return _root(kernel_distance_estimate(centred, lambda a, b: a @ b.T, confidence), math.sqrt(covariance.trace()))


def covariance_error(x: Tensor, mean: Tensor, covariance: Tensor, confidence: float = 0.95) -> Estimate:
    r"""Return the relative error of the second moments of the samples about the true mean.

    .. math:: \| E[(X - \mu) (X - \mu)^T] - C \|_F \, / \, \|C\|_F

    The square is estimated without bias, as in :func:`mean_error`, in time n^2 d and memory that does not grow with d^2.

    Args:
        x: samples ``(n, *event)``.
        mean, covariance: the true moments, shapes ``event`` and ``(d, d)``.
        confidence: the level of the interval.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0], [-2.0]])
        >>> covariance_error(x, torch.zeros(1), torch.ones(1, 1)).value  # (4 - 1) / 1
        3.0
    """
    centred, covariance = _moments(x, mean, covariance)
    size = covariance.square().sum()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # <a a^T - C, b b^T - C>, without the matrices.
        of_a, of_b = (((z @ covariance) * z).sum(1) for z in (a, b))
        return (a @ b.T).square() - of_a[:, None] - of_b + size

    return _root(kernel_distance_estimate(centred, kernel, confidence), math.sqrt(size))


# Modes and densities ---------------------------------------------------------------------------------------------------


def mode_weight_error(responsibilities: Tensor, weights: Tensor, confidence: float = 0.95) -> Estimate:
    r"""Return the total variation distance of the weights of the modes, :math:`\tfrac12 \sum_k |\hat w_k - w_k|`.

    It is zero if every mode has its true weight, and one if all samples are in modes of weight zero. The estimate is biased
    upwards, so compare samples of the same size. The interval, by the jackknife, is for its expectation at this size.

    Args:
        responsibilities: the probability of each mode given each sample, shape ``(n, K)``; its mean over samples is the
            estimated weight.
        weights: the true weights, shape ``(K,)``.
        confidence: the level of the interval.

    Raises:
        ValueError: for responsibilities and weights of shapes that do not fit, and fewer than two samples.

    Example:
        >>> import torch
        >>> found = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
        >>> mode_weight_error(found, torch.tensor([0.5, 0.5])).value
        0.25
    """
    if responsibilities.ndim != 2 or responsibilities.shape[1:] != weights.shape:
        raise ValueError(
            f"got responsibilities of shape {tuple(responsibilities.shape)} and weights of shape {tuple(weights.shape)}; "
            "expected (n, K) and (K,)"
        )
    true = weights.to(responsibilities.device).double()
    return jackknife(lambda r: 0.5 * (r.mean(0) - true).abs().sum(), responsibilities.double(), confidence=confidence)


def negative_log_likelihood(
    log_prob: Callable[[Tensor], Tensor], x: Tensor, truth: Tensor | None = None, confidence: float = 0.95
) -> Estimate:
    """Return the negative log-likelihood of the samples under the true density, in nats per coordinate.

    It is smallest for samples that are all at the highest mode, so it should be compared with the entropy. If exact samples
    ``truth`` are given, their negative log-likelihood is subtracted, and zero is best. The interval is that of the means.

    Args:
        log_prob: the true log-density in nats, ``(n, *event) -> (n,)``.
        x, truth: samples ``(n, *event)`` and ``(m, *event)``.
        confidence: the level of the interval.

    Example:
        >>> import torch
        >>> negative_log_likelihood(lambda x: -x.abs().sum(1), torch.tensor([[1.0], [3.0]])).value
        2.0
    """
    d = check_batch(x)[0].numel()
    found = mean_estimate(-log_prob(x).double() / d, confidence)
    if truth is None:
        return found
    return combined([found, mean_estimate(-log_prob(truth).double() / d, confidence)], [1.0, -1.0])
