r"""Bounds of the likelihood in continuous time: the variational bound, and importance-weighted estimates.

The reverse SDE of a model is a generative model of whole trajectories. By Girsanov's theorem the log-density of data
:math:`x_0` is at least

.. math:: L = -D\big(q(x_T | x_0) \,\|\, p(x_T)\big)
          - \int_{\lambda_T}^{\lambda_0} E\, |\epsilon - \hat\epsilon(x_\lambda, \lambda)|^2\, d\lambda
          + E \log p(x_0 | x_{t_{min}}), \qquad x_\lambda = \alpha x_0 + \sigma \epsilon,

with the noise prediction :math:`\hat\epsilon` and the half log signal-to-noise ratio :math:`\lambda`. The last term, the
decoder, is :math:`N(m(x_{t_{min}}), (\sigma / \alpha)^2 I)` at :math:`t_{min}`. In contrast to the likelihood along the flow
no divergence is needed. The bound is that of the SDE, whose density differs from that of the flow unless the score is exact.
For an exact score it is tight for each sample, up to the decoder.

An importance-weighted estimate stops the trajectory at a time t, from where the flow gives the density:

.. math:: \log \frac1K \sum_{k=1}^K \frac{p_t(x_t^k)\, p(x_0 | x_t^k)}{q(x_t^k | x_0)} \le \log p(x_0)
          \quad \text{in expectation}, \qquad x_t^k \sim q(x_t | x_0) .

It grows with K towards the log-density of the model that decodes a state of the flow at t.

Sources: Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258,
theorem 3; Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630; Burda et al., "Importance
Weighted Autoencoders", 2015, https://arxiv.org/abs/1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import expand
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.likelihood.change_of_variables import log_likelihood
from scoresde.sampling.start import check_data
from scoresde.score import Conditions, DataMoments, ScoreModel
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds

__all__ = ["Bound", "importance_weighted", "variational_bound"]


class Bound(NamedTuple):
    """The result of :func:`variational_bound`. All but ``evaluations`` have the shape ``(batch,)``, in nats, float64.

    Args:
        log_prob: the lower bound of the log-density, the sum of the three terms.
        prior: minus the divergence of the noised data from the prior at ``t_max``.
        path: minus the integral of the squared error of the noise prediction.
        decoder: the expected log-density of the data given the state at ``t_min``.
        error: the standard error of ``log_prob`` from the random draws.
        evaluations: the number of network calls.

    Example:
        >>> from scoresde import VP, problems
        >>> found = variational_bound(problems.gaussian(2).model(VP()), torch.zeros(3, 2), draws=4, repeats=2)
        >>> bool(torch.allclose(found.log_prob, found.prior + found.path + found.decoder)), found.evaluations
        (True, 10)
    """

    log_prob: Tensor
    prior: Tensor
    path: Tensor
    decoder: Tensor
    error: Tensor
    evaluations: int


def variational_bound(
    model: ScoreModel,
    x: Tensor,
    draws: int = 64,
    *,
    repeats: int = 4,
    seed: int | Sequence[int] = 0,
    t_min: float | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Bound:
    r"""Return the variational bound of the log-density of ``x`` in nats, term by term, without any divergence.

    The integral is estimated at ``draws`` values of lambda, one in each of as many intervals of equal length, at a uniformly
    distributed place and with noise of its own; it is unbiased. For a chain, :class:`scoresde.objectives.VariationalBound`
    is the bound of its ancestral steps.

    Args:
        model: the score model.
        x: clean data of shape ``(batch, *event)``, floating point.
        draws: the number of intervals. Each draw costs one evaluation.
        repeats: the number of independent estimates, at least 2; their mean is the result and their spread its error.
        seed: the seed or seeds of the draws, as in :func:`scoresde.sample`.
        t_min: the time at which the data are decoded, by default that of the SDE.
        conditions: the values on which the model is conditioned, as in :func:`scoresde.sample`.

    Raises:
        TypeError, ValueError: as :func:`scoresde.log_likelihood`.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.gaussian(2)
        >>> x = problem.sample(3, torch.Generator().manual_seed(0))
        >>> found = variational_bound(problem.model(VP()), x)
        >>> bool(((found.log_prob - problem.log_prob(x)).abs() < 5 * found.error + 0.05).all())
        True
    """
    check_data(model, x)
    draws, repeats = whole("draws", draws, 1), whole("repeats", repeats, 2)
    sde, told = model.sde, Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    start, end = _ends(model, t_min)
    noise = FreshNoise(sample_seeds(seed, len(x)), x.device)
    low, high = (float(sde.lam(t)) for t in (end, start))
    if not math.isfinite(low):  # where alpha = 0: the integrand falls like e^(2 lam), and is below rounding long before
        low = -18.0
    size = _size(model, x, told)
    prior = _prior(x.double(), size, float(sde.alpha(end)), float(sde.sigma(end)), sde.prior_std)
    estimates, evaluations = [], 0
    with torch.no_grad(), evaluation_mode(model):
        model.check_start(x, **told)
        for _ in range(repeats):
            path = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for i in range(draws):
                place = torch.special.ndtr(noise.normal(x.new_empty(len(x), 1))[:, 0].double())
                t = sde.time(low + (high - low) * (i + place) / draws).clamp(start, end)
                path = path - (high - low) / draws * _squared_error(model, x, t, noise, told)
            t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
            # The error of the data prediction is sigma / alpha times that of the noise prediction.
            log_unit = float(sde.log_sigma(start) - sde.log_alpha(start)) + 0.5 * math.log(2 * math.pi)
            decoder = -0.5 * _squared_error(model, x, t, noise, told) - size * log_unit
            estimates.append((path, decoder))
            evaluations += (draws + 1) * model.calls.forward
    path, decoder = (torch.stack(parts) for parts in zip(*estimates, strict=True))
    error = (path + decoder).std(0) / math.sqrt(repeats)
    path, decoder = path.mean(0), decoder.mean(0)
    return Bound(prior + path + decoder, prior, path, decoder, error, evaluations)


def importance_weighted(
    model: ScoreModel,
    x: Tensor,
    samples: int = 16,
    *,
    t: float | None = None,
    seed: int | Sequence[int] = 0,
    tolerance: float = 1e-3,
    probes: int = 4,
    moments: DataMoments | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""Return the importance-weighted estimate of the log-density of clean data ``x``, shape ``(batch,)``, in nats, float64.

    The data are noised ``samples`` times to the time ``t``, the flow gives the density of each noised sample, and the
    decoder :math:`N(m(x_t), (\sigma_t / \alpha_t)^2 I)` that of the data. The expectation of the result is a lower bound of
    the log-density of the model, and rises with ``samples``. Random probes make each weight noisy, which lowers it further.

    Args:
        model: the score model.
        x: clean data of shape ``(batch, *event)``, floating point.
        samples: K, the number of noised states for each sample.
        t: the time, by default ``t_min`` of the SDE.
        seed: the seed or seeds of the noise and the probes, as in :func:`scoresde.sample`.
        tolerance, probes, moments, conditions: as in :func:`scoresde.log_likelihood`.

    Raises:
        TypeError, ValueError, ArithmeticError: as :func:`scoresde.log_likelihood`.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.gaussian(2)
        >>> x = problem.sample(3, torch.Generator().manual_seed(0), torch.float64)
        >>> found = importance_weighted(problem.model(VP()), x, 64, t=0.01)
        >>> bool(((found - problem.log_prob(x)).abs() < 0.2).all())
        True
    """
    check_data(model, x)
    samples = whole("samples", samples, 1)
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    start, _ = _ends(model, t)
    alpha, sigma = float(model.sde.alpha(start)), float(model.sde.sigma(start))
    seeds = sample_seeds(seed, len(x))
    noise, size = FreshNoise(seeds, x.device), _size(model, x, told)
    weights = []
    for k in range(samples):
        eps = model.project(noise.normal(torch.empty_like(x)), **told)
        noised = alpha * x + sigma * eps
        found = log_likelihood(
            model,
            noised,
            tolerance,
            t_min=start,
            probes=probes,
            seed=[s + k + 1 for s in seeds],
            moments=moments,
            conditions=conditions,
        )
        with torch.no_grad(), evaluation_mode(model):
            off = (x - model.x0(noised, torch.tensor(start, dtype=torch.float64), **told)).flatten(1).double()
        ratio = alpha / sigma  # the normalisations of decoder and noise differ by alpha^d
        energy = 0.5 * (eps.flatten(1).double().square().sum(1) - (ratio * off).square().sum(1))
        weights.append(found.log_prob + energy + size * math.log(alpha))
    return torch.stack(weights).logsumexp(0) - math.log(samples)


def _ends(model: ScoreModel, t: float | None) -> tuple[float, float]:
    start, end = model.sde.span[0] if t is None else t, model.sde.span[1]
    if not (0 <= start < end and float(model.sde.sigma(start)) > 0):
        raise ValueError(
            f"got data decoded at t={start}; expected a time with some noise, below {end:.6g}, such as "
            f"{model.sde.span[0] or 1e-3 * end:.6g}"
        )
    return start, end


def _size(model: ScoreModel, x: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """Return the number of dimensions of each sample, those of its subspace where it has one; ``(batch,)``, float64."""
    whole_space = torch.full((len(x),), float(x[0].numel()), dtype=torch.float64, device=x.device)
    outside = model.outside(x, **conditions)
    return whole_space if outside is None else whole_space - outside


def _prior(x: Tensor, size: Tensor, alpha: float, sigma: float, prior_std: float) -> Tensor:
    """Return minus the divergence of N(alpha x, sigma^2) from N(0, prior_std^2), shape ``(batch,)``."""
    ratio = (sigma / prior_std) ** 2
    means = (alpha * x / prior_std).flatten(1).square().sum(1)
    return -0.5 * (means + size * (ratio - 1 - math.log(ratio)))


def _squared_error(model: ScoreModel, x: Tensor, t: Tensor, noise: FreshNoise, conditions: Mapping[str, Any]) -> Tensor:
    """Return the squared error of the noise prediction at times ``t``, shape ``(batch,)``, in float64."""
    eps = noise.normal(torch.empty_like(x))
    alpha, sigma = (expand(c(t), x).to(x) for c in (model.sde.alpha, model.sde.sigma))
    return (model.eps(alpha * x + sigma * eps, t, **conditions) - eps).flatten(1).double().square().sum(1)
