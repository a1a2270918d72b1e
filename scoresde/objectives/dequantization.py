r"""Dequantization: noise turns data on a grid into data with a density, whose likelihood bounds the probability of the grid.

For x on a grid of a given width, u in :math:`(0, 1)^d` and a density p of :math:`x + \mathrm{width}\,(u - \tfrac12)`,

.. math:: -\log P(x) \le E_{q(u | x)} \left[ -\log p(x + \mathrm{width}\,(u - \tfrac12)) + \log q(u | x) \right]
          - d \log \mathrm{width}

for any q. The gap is the Kullback-Leibler divergence of q from the model's own posterior of u. A uniform u is the simplest
choice; a learned q (variational dequantization) makes the gap smaller.

Sources: Theis et al., "A Note on the Evaluation of Generative Models", 2016, https://arxiv.org/abs/1511.01844; Ho et al.,
"Flow++", 2019, https://arxiv.org/abs/1902.00275, section 3.1; for score models Song et al., "Maximum Likelihood Training of
Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, SigmoidTransform, Transform

from scoresde.base.shape import check_batch
from scoresde.objectives.bound import VariationalBound
from scoresde.objectives.matching import DSM, Around, Objective, times_of
from scoresde.objectives.times import AdaptiveTimes, LogNormalTimes
from scoresde.objectives.weightings import WEIGHTINGS
from scoresde.score import ScoreModel

__all__ = ["LearnedDequantization", "LogisticNoise", "bits_per_dim", "dequantize"]


def dequantize(x: Tensor, width: float, generator: torch.Generator) -> Tensor:
    r"""Add uniform noise of the width of a cell to data on a grid: x + ``width`` (u - 1/2).

    Args:
        x: data of shape ``(batch, *event)``, floating point.
        width: the distance between neighbouring points of the grid: 2 / 255 for bytes scaled to [-1, 1].
        generator: the source of the random numbers.

    Raises:
        ValueError: if ``x`` is not floating point, or ``width`` is not positive.

    Source: Theis et al., "A Note on the Evaluation of Generative Models", 2016, https://arxiv.org/abs/1511.01844.

    Example:
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> bool(((dequantize(x, 0.1, torch.Generator()) - x).abs() <= 0.05).all())
        True
    """
    _check_width(width)
    if not x.is_floating_point():
        raise ValueError(f"got data of dtype {x.dtype}; expected a floating point tensor: use x.float()")
    return x + width * (_uniform(x, generator) - 0.5)


class LogisticNoise(nn.Module):
    r"""A density q(u | x) on :math:`(0, 1)^d`: the sigmoid of logistic noise whose location and scale a network computes.

    .. math:: u = \mathrm{sigmoid}(\mu(x) + e^{s(x)} \ell), \qquad \ell = \log \frac{r}{1 - r}, \quad r \sim U(0, 1),

    independently for each dimension given x. Where the network returns zeros, u = r: a network whose last layer is
    initialised to zero starts as uniform dequantization.

    Args:
        net: ``net(x)`` returns twice the channels (dimension 1) of x: first mu, then s.

    Example:
        >>> q = LogisticNoise(nn.Linear(1, 2))
        >>> _ = nn.init.constant_(q.net.bias, -0.5)
        >>> x, u = torch.zeros(1000, 1), ((torch.arange(1000) + 0.5) / 1000)[:, None]
        >>> round(q.log_prob(u, x).exp().mean().item(), 4)  # its integral
        1.0
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw of u, computed from ``uniform`` numbers in [0, 1), and log q(u | x).

        Args:
            x: data of shape ``(batch, *event)``.
            uniform: independent uniform numbers of the shape of ``x``.

        Returns:
            u of the shape of ``x``, and log q(u | x) of shape ``(batch,)``.
        """
        transform = self._transform(x)
        u = transform(uniform)
        return u, -_log_determinant(transform, uniform, u)

    def log_prob(self, u: Tensor, x: Tensor) -> Tensor:
        """Return log q(u | x), shape ``(batch,)``, for ``u`` of the shape of ``x``."""
        back = self._transform(x).inv
        return _log_determinant(back, u, back(u))

    def _transform(self, x: Tensor) -> ComposeTransform:
        """Return the transform that takes the uniform distribution to q."""
        output = self.net(x).to(x.dtype)
        if output.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(
                f"the network of the noise returned shape {tuple(output.shape)} for x of shape {tuple(x.shape)}; expected "
                f"twice the channels, {(x.shape[0], 2 * x.shape[1], *x.shape[2:])}"
            )
        location, log_scale = output.chunk(2, dim=1)
        return ComposeTransform([SigmoidTransform().inv, AffineTransform(location, log_scale.exp()), SigmoidTransform()])


@dataclass(frozen=True)
class LearnedDequantization(Around):
    r"""A bound of the likelihood of data on a grid, with a learned dequantization q that is trained with the score model.

    The inner objective estimates a bound L of :math:`-\log p` per dimension, up to a constant. Two terms are added to it:
    the contribution of the prior, :math:`\tfrac12 \mathrm{SNR}(t_{max})\, \overline{y^2}`, which the inner objective leaves
    out, and the negative entropy of q. The loss is

    .. math:: E_q \left[ L(y) + \tfrac1d \log q(u | x) \right], \qquad y = x + \mathrm{width}\,(u - \tfrac12),

    in the unit of the inner objective. Its gradient reaches the network of q through y. Continuous denoising score matching
    bounds the likelihood of the data with the noise of ``t_min``, whose standard deviation should be below the width.

    Args:
        inner: a :class:`VariationalBound` without ``levels``, or a :class:`DSM` with the likelihood weighting and times
            that are uniform or importance-sampled with weights.
        noise: q, such as :class:`LogisticNoise`: ``noise(x, uniform)`` returns u and log q(u | x). The trainer trains,
            averages and stores it together with the network.
        width: the distance between neighbouring points of the grid: 2 / 255 for bytes scaled to [-1, 1].

    Raises:
        ValueError: if ``inner`` is not a bound of the likelihood, or ``width`` is not positive.
        TypeError: if ``noise`` is not a module.

    Example:
        >>> from scoresde import VP
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None].to(x), VP(t_min=1e-5))
        >>> objective = LearnedDequantization(DSM("likelihood", "likelihood"), LogisticNoise(nn.Linear(2, 4)), width=0.5)
        >>> loss, t = objective(model, torch.zeros(8, 2), torch.Generator().manual_seed(0))
        >>> loss.mean().backward()
        >>> bool((objective.noise.net.weight.grad.isfinite()).all())
        True
    """

    noise: nn.Module
    width: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_width(self.width)
        if not _bounds(self.wrapped):
            raise ValueError(
                f"got inner={self.inner!r}; expected a bound of the likelihood: VariationalBound() without levels, or "
                "DSM('likelihood', 'likelihood')"
            )
        if not isinstance(self.noise, nn.Module):
            raise TypeError(f"got a {type(self.noise).__name__} for the noise; expected a module such as LogisticNoise(net)")

    @property
    def companion(self) -> nn.Module:
        """The module q, which is trained together with the network."""
        return self.noise

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the ``uniform`` numbers from which q makes its noise."""
        return {"uniform": _uniform(x0, generator)}

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        uniform: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Return the bound at given times and noise, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data on the grid and noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            uniform: uniform numbers of the shape of ``x0``; with ``None`` the inner objective is evaluated on the grid.
            conditions: passed to the network and the inner objective.
        """
        if uniform is None:
            return self.wrapped.at(model, x0, t, eps, **conditions)
        u, log_q = self.noise(x0, uniform)
        y = x0 + self.width * (u - 0.5)
        low, high = model.sde.span
        prior = 0.5 * math.exp(2 * float(model.sde.lam(high))) * y.square().flatten(1).mean(1)
        # The variational bound is in bits; score matching is 2 / (high - low) times the bound of the likelihood in nats.
        unit = 1 / math.log(2) if isinstance(self.wrapped, VariationalBound) else 2 / (high - low)
        loss: Tensor = self.wrapped.at(model, y, t, eps, **conditions) + unit * (log_q / x0[0].numel() + prior)
        return loss


def bits_per_dim(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    width: float,
    generator: torch.Generator,
    noise: nn.Module | None = None,
    samples: int = 1,
) -> Tensor:
    r"""Return an upper bound of :math:`-\tfrac1d \log_2 P(x)`, the bits per dimension of data on a grid, from a density.

    Args:
        log_prob: log p in nats, or a lower bound of it, ``(batch, *event) -> (batch,)``. For a score model use
            ``lambda y: log_likelihood(model, y).log_prob``, see :func:`scoresde.log_likelihood`.
        x: points of the grid, shape ``(batch, *event)``.
        width: the distance between neighbouring points of the grid: 2 / 255 for bytes scaled to [-1, 1].
        generator: the source of the random numbers.
        noise: q, as in :class:`LearnedDequantization`; ``None`` for uniform dequantization.
        samples: the number of draws of u over which the bound is averaged.

    Returns:
        The bound of each sample, shape ``(batch,)``.

    Raises:
        ValueError: if ``width`` is not positive, or ``samples`` is below 1.

    Example:
        >>> from scoresde.problems import Gaussian
        >>> x = torch.tensor([[0.0]], dtype=torch.float64)
        >>> bits = bits_per_dim(Gaussian([0.0], 1.0).log_prob, x, 1.0, torch.Generator().manual_seed(0), samples=1000)
        >>> bool(bits > -math.log2(math.erf(0.5 / math.sqrt(2))))  # P(0) is the probability of (-1/2, 1/2)
        True
    """
    check_batch(x)
    _check_width(width)
    if samples < 1:
        raise ValueError(f"got samples={samples}; expected at least 1")
    nats = x.new_zeros(len(x))
    for _ in range(samples):
        u, log_q = _uniform(x, generator), torch.zeros_like(nats)
        if noise is not None:
            u, log_q = noise(x, u)
        nats = nats + (log_q - log_prob(x + width * (u - 0.5))) / samples
    return nats / (x[0].numel() * math.log(2)) - math.log2(width)


def _log_determinant(transform: Transform, x: Tensor, y: Tensor) -> Tensor:
    """Return the log-determinant of the Jacobian of the elementwise y = transform(x), shape ``(batch,)``."""
    each: Tensor = transform.log_abs_det_jacobian(x, y)  # type: ignore[no-untyped-call]
    return each.flatten(1).sum(1)


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)


def _check_width(width: float) -> None:
    if not width > 0:
        raise ValueError(f"got width={width}; expected the positive distance of the grid's points")


def _bounds(inner: Objective) -> bool:
    """Return whether the mean of an objective bounds the likelihood of data with a density, up to a constant."""
    if isinstance(inner, VariationalBound):
        return inner.levels is None
    times = inner.distribution
    base = times_of(times.base) if isinstance(times, AdaptiveTimes) else times
    likelihood = inner.weight == WEIGHTINGS["likelihood"]
    return isinstance(inner, DSM) and likelihood and not isinstance(base, LogNormalTimes)
