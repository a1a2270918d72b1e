r"""Scale mixtures of Gaussians, x0 = s z with z normal and a random scale s: heavy tails and a funnel, by quadrature.

Given s, the noised data are Gaussian with variance :math:`v = \alpha^2 s^2 + \sigma^2`, so density, score and data
prediction are one-dimensional integrals over u = log s. The integrands are analytic in a strip around the real axis and
vanish at both ends. For such integrands the trapezoidal rule converges exponentially, and its results here are exact to
1e-12 (Trefethen and Weideman, "The Exponentially Convergent Trapezoidal Rule", SIAM Review 56, 2014,
https://doi.org/10.1137/130932132).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import is_whole, whole
from scoresde.problems.base import Posterior, Problem, draw, normal, normalised, parameter

__all__ = ["Funnel", "ScaleMixture", "funnel", "laplace", "student_t"]

_STEP = 0.14


class _Scales(NamedTuple):
    squares: Tensor  # (J,), of the scales
    log_weights: Tensor  # (J,)


@dataclass(frozen=True, eq=False, repr=False)
class ScaleMixture(Problem[_Scales]):
    r"""The distribution of :math:`s z`, where z is standard normal and s is one of ``scales``, chosen with ``weights``.

    With the nodes and weights of a quadrature it is a continuous mixture, to the accuracy of the quadrature. Samples,
    density and scores all belong to the same distribution. They are computed in float64 whatever the dtype of ``x``.

    Args:
        scales: positive, shape ``(J,)``.
        weights: shape ``(J,)``, scaled to sum to one.
        event: the shape of one sample.
        independent: whether every coordinate has its own scale; otherwise one scale multiplies all coordinates.

    Raises:
        ValueError: for scales that are not positive, weights that do not fit them, and an empty event.

    Example:
        >>> problem = ScaleMixture([1.0, 3.0], [0.5, 0.5], (2,))
        >>> problem.covariance
        tensor([[5., 0.],
                [0., 5.]], dtype=torch.float64)
    """

    scales: Tensor
    weights: Tensor
    shape: tuple[int, ...]
    independent: bool

    def __init__(self, scales: Any, weights: Any, event: tuple[int, ...], independent: bool = False) -> None:
        scales, shape = parameter(scales, "scales"), _check_event(event)
        if scales.ndim != 1 or not len(scales) or bool((scales <= 0).any()):
            raise ValueError(f"got scales of shape {tuple(scales.shape)}; expected at least one positive number, shape (J,)")
        weights = normalised(weights, len(scales))
        values = {"scales": scales, "weights": weights, "shape": shape, "independent": bool(independent)}
        self._store(_Scales(scales**2, weights.log()), **values)

    def __repr__(self) -> str:
        kind = ", independent=True" if self.independent else ""
        return f"{type(self).__name__}(nodes={len(self.scales)}, event={self.shape}{kind})"

    @property
    def event(self) -> torch.Size:
        """The shape of one sample."""
        return torch.Size(self.shape)

    @property
    def mean(self) -> Tensor:
        """The mean of the data: zero, shape ``event``, float64."""
        return torch.zeros(self.shape, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the flattened data, shape ``(d, d)``, float64; finite, because the scales are finite."""
        return (self.weights @ self._exact.squares) * torch.eye(self.event.numel(), dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent samples, shape ``(n, *event)``, in float64 on the device of ``generator``."""
        n = whole("n", n, 1)
        tables, d = self._tables(generator.device), self.event.numel()
        groups = d if self.independent else 1
        squares = tables.squares[draw(tables.log_weights, n * groups, generator)].reshape(n, groups)
        x = squares.sqrt() * normal((n, d), generator)
        return x.reshape(n, *self.shape).to(dtype or torch.get_default_dtype())

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        tables, x = self._tables(x.device), x.to(torch.float64)
        grouped = x[:, :, None] if self.independent else x[:, None]  # (batch, groups, coordinates that share a scale)
        # Everything depends on x through its squared norm in each group alone, (batch, groups, 1).
        squares, d = (grouped**2).sum(2, keepdim=True), grouped.shape[2]
        variance = alpha**2 * tables.squares + sigma**2  # (batch or 1, J)
        inverse = 1 / variance
        alone = tables.log_weights - 0.5 * d * (2 * math.pi * variance).log()
        log_joint = alone[:, None] - 0.5 * squares * inverse[:, None]
        averages, log_prob = _average(log_joint, inverse, tables.squares * inverse)
        precision, gain = averages[..., :1], averages[..., 1:]
        return Posterior(log_prob.sum(1), -(precision * grouped).flatten(1), alpha * (gain * grouped).flatten(1))


def _average(log_joint: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    """Return averages of ``values`` under the softmax of ``log_joint`` over its last dimension, and its log-sum-exp.

    One exponential serves both results and one matrix product serves all values, because these two dominate the cost.

    Args:
        log_joint: shape ``(batch, groups, J)``.
        values: each of shape ``(batch or 1, J)``.

    Returns:
        The averages, shape ``(batch, groups, len(values))``, and the log-sum-exp, shape ``(batch, groups)``.
    """
    top = log_joint.detach().amax(-1, keepdim=True)
    weights = (log_joint - top).exp()
    total = weights.sum(-1, keepdim=True)
    sums = weights @ torch.stack(values, -1)
    return sums / total, (top + total.log())[..., 0]


def student_t(d: int = 2, df: float = 3.0) -> ScaleMixture:
    r"""Return Student's t in ``d`` dimensions with ``df`` degrees of freedom, scaled to unit variance where ``df`` > 2.

    The scale is :math:`s^2 = df / \chi^2_{df}`. The density falls like :math:`|x|^{-df - d}`; its relative error is below
    1e-12 out to a radius of 1e6.

    Raises:
        ValueError: if ``d`` is not a whole number of at least 1, or ``df`` is not positive and finite.

    Example:
        >>> heavy, x = student_t(1, df=1.0), torch.zeros(1, 1, dtype=torch.float64)
        >>> round(math.pi * heavy.log_prob(x).exp().item(), 12)  # Cauchy's density is 1 / pi at zero
        1.0
    """
    d = whole("d", d, 1)
    if not 0 < df < math.inf:
        raise ValueError(f"got df={df}; expected a finite number of degrees of freedom > 0")
    # Integrals over s meet exp(-g/2) g^((df + d) / 2) with g = df / s^2 at most, and a tail like s^(-df - d).
    k = df + d
    low = -0.5 * math.log((k + 12 * math.sqrt(k) + 80) / df)
    high = 13 * math.log(10) / df + (math.log(1e6) if df > 2 else 0)
    u = torch.arange(low, high, _STEP / math.sqrt(1 + k / 16), dtype=torch.float64)
    g = df * torch.exp(-2 * u)
    log_weights = 0.5 * (df * g.log() - g)
    unit = math.sqrt((df - 2) / df) if df > 2 else 1.0
    return ScaleMixture(unit * u.exp(), (log_weights - log_weights.max()).exp(), (d,))


def laplace(d: int = 2) -> ScaleMixture:
    r"""Return independent coordinates with Laplace's density :math:`\exp(-\sqrt2 |x|) / \sqrt2`, of unit variance.

    The scale is :math:`s^2 \sim \mathrm{Exp}(1)` (Andrews and Mallows, "Scale Mixtures of Normal Distributions", 1974,
    https://doi.org/10.1111/j.2517-6161.1974.tb00989.x). The density is exact to 1e-12 for :math:`|x|` up to 100, and up to
    100 alpha under noise.

    Example:
        >>> density = laplace(1).log_prob(torch.zeros(1, 1, dtype=torch.float64)).exp()
        >>> round(density.item() * math.sqrt(2), 12)
        1.0
    """
    d = whole("d", d, 1)
    # s = log(1 + e^y): far to the right, where the integrand has one width in s whatever x, nodes are even in s and not in
    # log s; far to the left it falls like e^y only, at x = 0.
    y = torch.arange(-30.0, 12.5, _STEP, dtype=torch.float64)
    s = torch.log1p(y.exp())
    return ScaleMixture(s, s * torch.exp(-(s**2)) * y.sigmoid(), (d,), independent=True)


class _Nodes(NamedTuple):
    nodes: Tensor  # (J,)
    log_weights: Tensor  # (J,)


@dataclass(frozen=True, eq=False, repr=False)
class Funnel(Problem[_Nodes]):
    r"""Neal's funnel with its axes scaled to unit variance: :math:`u \sim N(0, 1)`, then d - 1 coordinates :math:`s(u) z`.

    Here :math:`s(u) = e^{a u / 2 - a^2 / 4}`, where a is ``spread``. Given the noised :math:`u_t`, u is Gaussian with mean
    :math:`\alpha u_t / S` and variance :math:`\sigma^2 / S`, where :math:`S = \alpha^2 + \sigma^2`. With the likelihood
    :math:`L(u) = N(x_t; 0, (\alpha^2 s(u)^2 + \sigma^2) I)` everything follows from integrals against this Gaussian,

    .. math:: \partial_{u_t} \log p = \frac{\alpha E[(\log L)'] - u_t}{S}, \qquad
              E[u \mid x_t] = \frac{\alpha u_t + \sigma^2 E[(\log L)']}{S}.

    Args:
        d: the number of dimensions, at least 2.
        spread: a > 0; Neal's value is 3. At u = -2 the funnel is :math:`e^{2a}` times narrower than at u = 2.

    Everything is computed in float64 whatever the dtype of ``x``. It is exact to 1e-12 unless the other coordinates of a
    sample contradict the first one by ten standard deviations or more.

    Raises:
        ValueError: for fewer than two dimensions or a spread that is not positive.

    Source: Neal, "Slice Sampling", Annals of Statistics 31, 2003, https://doi.org/10.1214/aos/1056562461.

    Example:
        >>> torch.equal(Funnel(3).covariance, torch.eye(3, dtype=torch.float64))
        True
    """

    d: int
    spread: float

    def __init__(self, d: int = 2, spread: float = 2.0) -> None:
        d = whole("d", d, 2)
        if not 0 < spread < math.inf:
            raise ValueError(f"got spread={spread}; expected a finite number > 0")
        # log s(u) moves by spread / 2 at most where a node moves by one, and the Gaussian itself is smooth on half a unit.
        step = 2 * _STEP / (spread * math.sqrt(1 + (d - 1) / 16))
        y = torch.arange(-12.0, 12.0, min(0.4, step), dtype=torch.float64)
        self._store(_Nodes(y, (-0.5 * y**2).log_softmax(0)), d=d, spread=float(spread))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(d={self.d}, spread={self.spread:g})"

    @property
    def event(self) -> torch.Size:
        """The shape of one sample."""
        return torch.Size((self.d,))

    @property
    def mean(self) -> Tensor:
        """The mean of the data: zero, shape ``event``, float64."""
        return torch.zeros(self.d, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the data: the identity, shape ``(d, d)``, float64."""
        return torch.eye(self.d, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent samples, shape ``(n, *event)``, in float64 on the device of ``generator``."""
        n = whole("n", n, 1)
        z = normal((n, self.d), generator)
        x = torch.cat([z[:, :1], torch.exp(0.5 * self.spread * z[:, :1] - 0.25 * self.spread**2) * z[:, 1:]], 1)
        return x.to(dtype or torch.get_default_dtype())

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        nodes, log_weights = self._tables(x.device)
        x = x.to(torch.float64)
        first, rest, total = x[:, :1], x[:, 1:], alpha**2 + sigma**2
        squares = (rest**2).sum(1, keepdim=True)
        u = alpha / total * first + sigma / total.sqrt() * nodes  # (batch, J)
        clean = torch.exp(self.spread * u - 0.5 * self.spread**2)
        variance = alpha**2 * clean + sigma**2
        inverse = 1 / variance
        log_joint = log_weights - 0.5 * (self.d - 1) * (2 * math.pi * variance).log() - 0.5 * squares * inverse
        share = clean * inverse  # of the data in the variance, over alpha^2
        slope = 0.5 * self.spread * alpha**2 * share * (squares * inverse - (self.d - 1))
        averages, log_rest = _average(log_joint[:, None], slope, inverse, share)
        slope, precision, gain = averages[:, 0].split(1, 1)  # type: ignore[no-untyped-call]
        score = torch.cat([(alpha * slope - first) / total, -precision * rest], 1)
        x0 = torch.cat([(alpha * first + sigma**2 * slope) / total, alpha * gain * rest], 1)
        log_first = -0.5 * (first**2 / total + (2 * math.pi * total).log())
        return Posterior(log_rest[:, 0] + log_first[:, 0], score, x0)


def funnel(d: int = 2, spread: float = 2.0) -> Funnel:
    """Return Neal's funnel in ``d`` dimensions, see :class:`Funnel`.

    Example:
        >>> funnel(3).event
        torch.Size([3])
    """
    return Funnel(d, spread)


def _check_event(event: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(event)
    if not shape or not all(is_whole(size) and size >= 1 for size in shape):
        raise ValueError(f"got event={event!r}; expected at least one positive whole number: write scalars as (1,)")
    return tuple(int(size) for size in shape)
