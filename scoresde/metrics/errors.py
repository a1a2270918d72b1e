"""Errors against a truth that is known exactly: an end point, moments, the weights of modes, a density."""

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
    """The mean square error of each sample over its coordinates, shape ``(n,)``, float64."""
    if check_batch(x).shape != reference.shape or len(x) < 2:
        raise ValueError(
            f"got samples of shape {tuple(x.shape)} and their references of shape {tuple(reference.shape)}; expected the "
            "same shape (n, *event) of at least two samples"
        )
    return (x.double() - reference.to(x.device).double()).flatten(1).square().mean(1)


def rms_error(x: Tensor, reference: Tensor, confidence: float = 0.95) -> Estimate:
    """The root mean square distance of each sample from its own reference, over samples and coordinates.

    Against the end of the flow from the same start it is the end-point error of a deterministic solver; against a much finer
    run on the same Brownian path, the strong error of a stochastic one. The interval is that of the mean over starts, for
    the logarithm by the delta method; where a few starts make most of the error it is too short, and quantiles tell more.

    Args:
        x, reference: shape ``(n, *event)``, one for one.

    Example:
        >>> import torch
        >>> rms_error(torch.tensor([[1.0, 7.0], [5.0, 5.0]]), torch.zeros(2, 2)).value  # the root of (1 + 49 + 25 + 25) / 4
        5.0
    """
    return positive_mean_estimate(_errors(x, reference), confidence).map(math.sqrt)


def error_quantile(x: Tensor, reference: Tensor, q: float = 0.5, confidence: float = 0.95) -> Estimate:
    """The ``q``-quantile over samples of the root mean square error over coordinates, with an interval of order statistics.

    Example:
        >>> import torch
        >>> error_quantile(torch.tensor([[1.0], [-5.0], [2.0]]), torch.zeros(3, 1)).value
        2.0
    """
    return quantile_estimate(_errors(x, reference).sqrt(), q, confidence)


# Moments -------------------------------------------------------------------------------------------------------------


def _moments(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The samples less the mean of the truth, ``(n, d)``, and its covariance, ``(d, d)``."""
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
    r"""How far the mean of the samples is from the true one, in units of the data's size: :math:`\|E X - \mu\| /
    \sqrt{\operatorname{tr} C}`.

    The square is estimated without bias, so that samples from the truth give zero on average, whatever their number; the
    root of an estimate below zero is zero.

    Args:
        x: samples ``(n, *event)``.
        mean, covariance: of the truth, shapes ``event`` and ``(d, d)``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0], [4.0]])
        >>> mean_error(x, torch.zeros(1), torch.tensor([[4.0]])).value  # sqrt(2 * 4 / 4)
        1.4142135623730951
    """
    centred, covariance = _moments(x, mean, covariance)
    return _root(kernel_distance_estimate(centred, lambda a, b: a @ b.T, confidence), math.sqrt(covariance.trace()))


def covariance_error(x: Tensor, mean: Tensor, covariance: Tensor, confidence: float = 0.95) -> Estimate:
    r"""How far the second moments about the true mean are from the covariance C of the truth, relative to it.

    .. math:: \| E[(X - \mu) (X - \mu)^T] - C \|_F \, / \, \|C\|_F

    The square is estimated without bias, as in :func:`mean_error`, in time n^2 d and memory that does not grow with d^2.

    Args:
        x: samples ``(n, *event)``.
        mean, covariance: of the truth, shapes ``event`` and ``(d, d)``.

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
    r"""The total variation distance of the weights of the modes, :math:`\tfrac12 \sum_k |\hat w_k - w_k|`.

    Zero where every mode has its weight, one where all samples went to modes that do not exist. It is not unbiased: compare
    sets of the same size; the interval, by the jackknife, is that of its expectation for a set of this size.

    Args:
        responsibilities: shape ``(n, K)``: the probability of each mode given each sample, whose mean is the weight found.
        weights: shape ``(K,)``: the true ones.

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
    """The negative log-likelihood of the samples under the true density, in nats per coordinate.

    It is lowest for samples that all lie at the highest mode, so its distance from the entropy is what counts: with exact
    samples ``truth`` theirs is taken away, and zero is best. The interval is that of the means.

    Args:
        log_prob: ``(n, *event) -> (n,)``, in nats.
        x, truth: samples ``(n, *event)`` and ``(m, *event)``.

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
