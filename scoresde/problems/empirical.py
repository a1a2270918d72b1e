r"""The empirical distribution of a dataset, on which solvers can be compared on real images without training.

If the data are :math:`\sum_i w_i N(y_i, s^2 I)`, the noised data are the same mixture with centres
:math:`\alpha y_i` and variance :math:`v = \alpha^2 s^2 + \sigma^2`. With the softmax
:math:`r_i \propto w_i \exp(-|x - \alpha y_i|^2 / 2v)` over the data and :math:`m = \sum_i r_i y_i`,

.. math:: \nabla \log p(x) = \frac{\alpha m - x}{v}, \qquad E[x_0 \mid x] = m + \frac{\alpha s^2}{v} (x - \alpha m).

In the exponent :math:`|x|^2` is common to all i, so only inner products are needed. Their rounding errors are divided by v,
which is small at a sampler's last steps, so they are computed in float64. The mean m, whose weights are at most one, keeps
the dtype of ``x``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.problems.base import Posterior, Problem, draw, normal, normalised, parameter, working_dtype
from scoresde.problems.conditioning import Given, matrix_of, measurement, reweighted
from scoresde.problems.mixture import GaussianMixture, given_measurement

__all__ = ["Empirical"]


class _Tables(NamedTuple):
    data: Tensor  # (n, d), in their own dtype
    squares: Tensor  # (n,), half the square of each, in float64
    log_weights: Tensor | None  # (n,), in float64; None where all are equal


@dataclass(frozen=True, eq=False, repr=False)
class Empirical(Problem[_Tables]):
    r"""The distribution with a weight on each of n samples, smoothed by Gaussians of standard deviation ``std``.

    Args:
        data: shape ``(n, *event)``; kept in its dtype, integers in float64.
        std: the standard deviation s. With zero, the data have no density before noise is added and no score where
            sigma = 0, and the probability flow ends on the samples themselves.
        weights: shape ``(n,)``, positive, scaled to sum to one; equal by default.
        chunk: the largest number of entries of any matrix that is formed at once. The softmax runs over the data in
            pieces of this size, which changes results by rounding errors only.

    Raises:
        ValueError: for data that are empty, of another shape or not finite, a negative ``std``, weights that are not
            positive, and ``chunk`` below 1.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, appendix B.3,
    https://arxiv.org/abs/2206.00364.

    Example:
        >>> from scoresde import EDM
        >>> points = Empirical([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> points.x0(torch.tensor([[0.9, 0.4]]), EDM(), 0.01)  # at low noise: the nearest sample
        tensor([[1., 0.]])
    """

    data: Tensor
    std: float
    weights: Tensor | None
    _chunk: int

    def __init__(self, data: Any, std: float = 0.0, weights: Any = None, *, chunk: int = 2**22) -> None:
        data = parameter(data, "data", None)
        if not data.is_floating_point():
            data = data.to(torch.float64)
        if data.ndim < 2 or data.numel() == 0:
            raise ValueError(
                f"got data of shape {tuple(data.shape)}; expected (n, *event) with at least one sample and one event "
                "dimension: write scalars as (n, 1)"
            )
        if not 0 <= std < math.inf:
            raise ValueError(f"got std={std}; expected a finite standard deviation >= 0")
        chunk = whole("chunk", chunk, 1)
        if weights is not None:
            weights = normalised(weights, len(data))
            if bool((weights == 0).any()):
                raise ValueError("got a weight of zero; expected positive weights: leave such samples out of the data")
        flat = data.flatten(1)
        squares = torch.cat(
            [0.5 * (part.to(torch.float64) ** 2).sum(1) for part in flat.split(max(1, chunk // flat.shape[1]))]
        )
        tables = _Tables(flat, squares, None if weights is None else weights.log())
        self._store(tables, data=data, std=float(std), weights=weights, _chunk=chunk)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={len(self.data)}, std={self.std:g}, event={tuple(self.event)})"

    @property
    def event(self) -> torch.Size:
        """The shape of one sample."""
        return self.data.shape[1:]

    @property
    def mean(self) -> Tensor:
        """The mean of the data, shape ``event``, float64."""
        if self.weights is None:
            return self.data.mean(0, dtype=torch.float64)
        return (self.weights @ self.data.flatten(1).to(torch.float64)).reshape(self.event)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the flattened data, shape ``(d, d)``, float64."""
        centred = self.data.flatten(1).to(torch.float64) - self.mean.flatten()
        weighted = centred / len(centred) if self.weights is None else self.weights[:, None] * centred
        return centred.T @ weighted + self.std**2 * torch.eye(centred.shape[1], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent samples, shape ``(n, *event)``, in float64 on the device of ``generator``."""
        n = whole("n", n, 1)
        data, _, log_weights = self._tables(generator.device)
        if log_weights is None:
            i = torch.randint(len(data), (n,), generator=generator, device=generator.device)
        else:
            i = draw(log_weights, n, generator)
        x = data[i].to(torch.float64)
        if self.std:
            x = x + self.std * normal(tuple(x.shape), generator)
        return x.reshape(n, *self.event).to(dtype or torch.get_default_dtype())

    def posterior(self, operator: Any, y: Any, sigma: float) -> Empirical | GaussianMixture:
        """Return the distribution given a measurement.

        With ``std`` = 0 it is on the same samples, with other weights, and the operator may be any function of a batch of
        data; with sigma = 0 it is on the samples whose measurement is y up to rounding. Samples whose weight underflows are
        left out. With ``std`` > 0 it is a mixture of Gaussians. See :meth:`scoresde.problems.Problem.posterior`.
        """
        log_prior = torch.full((len(self.data),), -math.log(len(self.data)), dtype=torch.float64)
        log_prior = log_prior if self._exact.log_weights is None else self._exact.log_weights
        if self.std:
            roots = self.std * torch.eye(self.event.numel(), dtype=torch.float64)[None]
            means = self._exact.data.to(torch.float64)
            return given_measurement(GaussianMixture, self, means, roots, log_prior, operator, y, sigma)
        measured = self._measured(operator)
        flat, rounding = measurement(y, measured.shape[1], sigma)
        errors = (measured - flat).norm(dim=1)
        if sigma > 0:
            log_evidence = -0.5 * (errors / sigma) ** 2 - len(flat) * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        else:
            same = errors <= rounding * (flat.norm() + measured.norm(dim=1))
            if not bool(same.any()):
                raise ValueError(
                    f"got a measurement without noise that no sample has: the nearest differs by {float(errors.min()):.3g}; "
                    "expected sigma > 0, or the measurement of a sample"
                )
            log_evidence = torch.where(same, 0.0, -math.inf)
        weights, total = reweighted(log_prior, log_evidence)
        kept = weights > 0
        made = Empirical(self.data[kept], weights=weights[kept], chunk=self._chunk)
        object.__setattr__(made, "given", Given(self, operator, flat, float(sigma), total))
        return made

    def _measured(self, operator: Any) -> Tensor:
        """Return the measurements of all samples, shape ``(n, measurements)``, float64."""
        size = max(1, self._chunk // self.event.numel())
        if callable(operator) and not isinstance(operator, Tensor):
            parts = (self.data[i : i + size].to(torch.float64) for i in range(0, len(self.data), size))
            return torch.cat([operator(part).detach().to("cpu", torch.float64).flatten(1) for part in parts])
        return self._exact.data.to(torch.float64) @ matrix_of(operator, self.event).T

    @property
    def _singular(self) -> bool:
        return self.std == 0

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        dtype, tables = working_dtype(x), self._tables(x.device)
        (n, d), x = tables.data.shape, x.to(torch.float64)
        variance = alpha**2 * self.std**2 + sigma**2
        # The softmax, piece by piece: the largest exponent so far, the sum of the weights, and their mean.
        top = torch.full_like(x[:, :1], -math.inf)
        total, mean = torch.zeros_like(top, dtype=dtype), torch.zeros_like(x, dtype=dtype)
        size = max(1, self._chunk // max(len(x), d))
        for i in range(0, n, size):
            part, squares = tables.data[i : i + size], tables.squares[i : i + size]
            logits = alpha / variance * (x @ part.to(torch.float64).T - alpha * squares)
            if tables.log_weights is not None:
                logits = logits + tables.log_weights[i : i + size]
            new = torch.maximum(top, logits.detach().amax(1, keepdim=True))
            weights, shrink = (logits - new).to(dtype).exp(), (top - new).to(dtype).exp()
            total = shrink * total + weights.sum(1, keepdim=True)
            mean = shrink * mean + weights @ part.to(dtype)
            top = new
        mean = (mean / total).to(torch.float64)
        residual = (x - alpha * mean) / variance
        log_prob = (top + total.to(torch.float64).log())[:, 0]
        log_prob = log_prob - math.log(n) if tables.log_weights is None else log_prob
        log_prob = log_prob - 0.5 * ((x**2).sum(1, keepdim=True) / variance + d * (2 * math.pi * variance).log())[:, 0]
        return Posterior(log_prob, -residual, mean + alpha * self.std**2 * residual)
