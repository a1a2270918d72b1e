r"""Forward stochastic differential equations: data becomes noise.

Every SDE with Gaussian marginals is written by two functions of time alone,

.. math:: x_t \mid x_0 \sim N(\alpha_t x_0, \sigma_t^2 I), \qquad \lambda_t = \log(\alpha_t / \sigma_t),

and everything else is derived from them (Kingma et al., "Variational Diffusion Models", 2021, appendix B):

.. math:: dx = f(t)\,x\,dt + g(t)\,dw, \qquad f = \frac{d \log \alpha}{dt}, \qquad
          g^2 = -2 \sigma^2 \frac{d\lambda}{dt}.

Time runs from ``t_min`` (data, where sampling stops) to ``t_max`` (noise, where sampling starts). Times are tensors of
shape ``()`` or ``(batch,)``, or Python numbers; states have shape ``(batch, *event)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from scoresde._shape import as_time, expand

if TYPE_CHECKING:
    from scoresde.chain import Chain

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "AffineSDE",
    "CosineVP",
    "ForwardSDE",
    "GaussianSDE",
    "RectifiedFlow",
    "ReverseSDE",
    "SubVP",
]

Time = Tensor | float
TimeFunction = Callable[[Tensor], Tensor]
Field = Callable[[Tensor, Tensor], Tensor]
S = TypeVar("S", bound="ForwardSDE")


class HasScore(Protocol):
    """Anything with ``score(x, t)``; a plain function of ``(x, t)`` does as well."""

    def score(self, x: Tensor, t: Time, /) -> Tensor: ...


def _log1mexp(u: Tensor) -> Tensor:
    """log(1 - e^-u) for u >= 0, to full relative precision at both ends."""
    return torch.where(u < math.log(2), torch.log(-torch.expm1(-u)), torch.log1p(-torch.exp(-u)))


def _derivative(function: TimeFunction, t: Tensor) -> Tensor:
    return cast(Tensor, torch.func.jvp(function, (t,), (torch.ones_like(t),))[1])


@dataclass(frozen=True)
class ReverseSDE:
    r"""The process that turns noise into data, :math:`dx = b(x,t)\,dt + c(x,t)\,d\bar w`, run from ``t_max`` to ``t_min``.

    ``eta`` = 1 is the time reversal (Anderson, "Reverse-time diffusion equation models", 1982), ``eta`` = 0 the
    probability-flow ODE (Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    2021); every ``eta`` in between or above has the same marginals:

    .. math:: b = f - \tfrac{1+\eta}{2} \left( \nabla\cdot(g g^T) + g g^T\, \nabla_x \log p_t \right),
              \qquad c = \sqrt{\eta}\, g.
    """

    forward: ForwardSDE
    score: Field
    eta: float = 1.0

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """The drift b(x, t), shape of ``x``."""
        t = as_time(t)
        g = self.forward.diffusion(x, t)
        spread = g**2 * self.score(x, t) + self.forward.diffusion_divergence(x, t)
        return self.forward.drift(x, t) - 0.5 * (1 + self.eta) * spread

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """The diffusion c(x, t), broadcastable to ``x``."""
        return math.sqrt(self.eta) * self.forward.diffusion(x, t)


@dataclass(frozen=True)
class ForwardSDE(ABC):
    """Interface of every forward process: a drift, a diffusion, a span of time and a Gaussian prior at its noisy end."""

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """``(t_min, t_max)``."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the zero-mean Gaussian from which sampling starts, at ``t_max``."""

    @abstractmethod
    def drift(self, x: Tensor, t: Time) -> Tensor:
        """The forward drift at ``x`` and ``t``, shape of ``x``."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """The forward diffusion at ``x`` and ``t``, broadcastable to ``x``."""

    @abstractmethod
    def diffusion_divergence(self, x: Tensor, t: Time) -> Tensor | float:
        r""":math:`\nabla_x \cdot (g g^T)`, which is zero where the diffusion does not depend on the state."""

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw from the prior N(0, prior_std^2 I): a tensor of ``shape``, from ``generator`` and nothing else."""
        return self.prior_std * torch.randn(*shape, generator=generator, dtype=dtype, device=device)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior at ``x`` of shape ``(batch, *event)``, in nats, shape ``(batch,)``."""
        z = (x / self.prior_std).flatten(1)
        return -0.5 * (z**2).sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    def reverse(self, model: HasScore | Field, eta: float = 1.0) -> ReverseSDE:
        """The reverse-time SDE driven by ``model``, anything with ``score(x, t)`` or such a function itself.

        Example:
            >>> import torch
            >>> sde = VP()
            >>> reverse = sde.reverse(lambda x, t: -x)  # standard normal data stay so at all times
            >>> x = torch.ones(1, 2)
            >>> bool(torch.allclose(reverse.drift(x, 0.5), -sde.drift(x, 0.5)))
            True
        """
        if not eta >= 0:
            raise ValueError(f"got eta={eta}; expected a number >= 0 (0: probability flow, 1: time reversal)")
        score = cast(Field, getattr(model, "score", model))
        return ReverseSDE(self, score, eta)

    def probability_flow(self, model: HasScore | Field) -> ReverseSDE:
        """The deterministic process with the same marginals: ``reverse(model, eta=0)``."""
        return self.reverse(model, eta=0.0)


@dataclass(frozen=True)
class SDE(ForwardSDE):
    r"""A forward SDE from any drift and diffusion, :math:`dx = f(x,t)\,dt + g(x,t)\,dw`.

    It has no closed-form marginals, so it is sampled by Euler-Maruyama, Heun and torchsde only. The noise is diagonal:
    each component of ``diffusion(x, t)`` may depend on that component of ``x`` and on ``t``.

    Args:
        f: drift, ``f(x, t) -> (batch, *event)``.
        g: diffusion, ``g(x, t)``, broadcastable to ``(batch, *event)``.
        t_min, t_max: the span of time.
        std: standard deviation of the prior at ``t_max``.

    Example:
        >>> sde = SDE(f=lambda x, t: -x, g=lambda x, t: 2.0 ** 0.5 * torch.ones_like(x), t_max=3.0)
        >>> sde.drift(torch.ones(1, 2), 0.0)
        tensor([[-1., -1.]])
    """

    f: Field
    g: Field
    t_min: float = 0.0
    t_max: float = 1.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.t_min < self.t_max:
            raise ValueError(f"got t_min={self.t_min} and t_max={self.t_max}; expected t_min < t_max")

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    @property
    def prior_std(self) -> float:
        return self.std

    def drift(self, x: Tensor, t: Time) -> Tensor:
        return self.f(x, as_time(t))

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        return self.g(x, as_time(t))

    def diffusion_divergence(self, x: Tensor, t: Time) -> Tensor:
        # Each component of g depends on its own component of x alone, so the gradient of the sum is the divergence.
        def total(y: Tensor) -> Tensor:
            return (self.g(y, as_time(t)).expand_as(y) ** 2).sum()

        return cast(Tensor, torch.func.grad(total)(x))


@dataclass(frozen=True)
class AffineSDE(ForwardSDE):
    r"""Interface of the SDEs with Gaussian marginals :math:`N(\alpha_t x_0, \sigma_t^2 I)`.

    A subclass gives ``log_alpha(t)`` and ``log_sigma(t)``. It may give ``d_log_alpha`` and ``diffusion_squared`` where
    a closed form is exact at the ends of time, at which a derivative of a logarithm is not, and ``time`` where the
    inverse of lam has one.
    """

    def __post_init__(self) -> None:
        t_min, t_max = self.span
        if not 0 <= t_min < t_max:
            raise ValueError(f"got t_min={t_min} and t_max={t_max}; expected 0 <= t_min < t_max")

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """log alpha_t, the log of the factor of the data in the mean."""

    @abstractmethod
    def log_sigma(self, t: Time) -> Tensor:
        """log sigma_t, the log of the standard deviation."""

    # Derived ---------------------------------------------------------------------------------------------------------

    def alpha(self, t: Time) -> Tensor:
        """alpha_t, shape of ``t``."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """sigma_t, shape of ``t``."""
        return self.log_sigma(t).exp()

    def lam(self, t: Time) -> Tensor:
        """Half the log signal-to-noise ratio, log(alpha_t / sigma_t): decreasing in ``t``."""
        return self.log_alpha(t) - self.log_sigma(t)

    def time(self, lam: Time) -> Tensor:
        """The time at which ``lam(t) = lam``; differentiable.

        Here by bisection in float64 on ``[0, t_max]``, good to 1e-12 wherever lam is steeper than that; subclasses
        with a closed form override it.
        """
        lam = as_time(lam)
        target = lam.detach().to(torch.float64)
        low, high = torch.zeros_like(target), torch.full_like(target, self.span[1])
        for _ in range(60):
            t = 0.5 * (low + high)
            above = self.lam(t).detach() < target  # lam falls with t, so t is too large where lam is too small
            low, high = torch.where(above, low, t), torch.where(above, t, high)
        # One Newton step, whose value is a rounding error and whose gradient is that of the inverse function.
        t = (0.5 * (low + high)).clamp(max=self.span[1])
        slope = (-2 * self.log_sigma(t)).exp() * self.diffusion_squared(t) / -2
        step = (self.lam(t).detach() - lam) / slope.detach()
        return torch.where(torch.isfinite(step), t - step, t).clamp(0.0, self.span[1]).to(lam.dtype)

    def d_log_alpha(self, t: Time) -> Tensor:
        """f(t) = d log alpha / dt, the drift's factor of x."""
        return _derivative(self.log_alpha, as_time(t))

    def d_log_sigma(self, t: Time) -> Tensor:
        """d log sigma / dt, derived from f and g^2."""
        return 0.5 * (-2 * self.log_sigma(t)).exp() * self.diffusion_squared(t) + self.d_log_alpha(t)

    def d_alpha(self, t: Time) -> Tensor:
        """d alpha / dt = alpha f; finite where alpha = 0 for the SDEs that override it."""
        return self.alpha(t) * self.d_log_alpha(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        """g(t)^2 = -2 sigma^2 d lam / dt."""
        t = as_time(t)
        return 2 * (2 * self.log_sigma(t)).exp() * (_derivative(self.log_sigma, t) - self.d_log_alpha(t))

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f(t) x, shape of ``x``."""
        return expand(self.d_log_alpha(t), x) * x

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """g(t), broadcastable to ``x``."""
        return expand(self.diffusion_squared(t).sqrt(), x)

    def diffusion_divergence(self, x: Tensor, t: Time) -> float:
        return 0.0

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean, shape of ``x0``, and standard deviation, broadcastable to it, of x_t given ``x0``.

        Example:
            >>> mean, std = RectifiedFlow().marginal(torch.ones(1, 2), 0.25)
            >>> mean, std.item()
            (tensor([[0.7500, 0.7500]]), 0.25)
        """
        return expand(self.alpha(t), x0) * x0, expand(self.sigma(t), x0)

    def perturb(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps, for standard normal ``eps`` of the shape of ``x0``."""
        if eps.shape != x0.shape:
            raise ValueError(f"got eps of shape {tuple(eps.shape)} for x0 of shape {tuple(x0.shape)}; expected the same")
        mean, std = self.marginal(x0, t)
        return mean + std * eps

    @property
    def prior_std(self) -> float:
        return float(self.sigma(self.span[1]))

    def discretize(self, n: int, form: str = "exact") -> Chain:
        """The Markov chain of ``n`` steps of this SDE: see :func:`scoresde.chain.discretize`."""
        from scoresde.chain import discretize  # the two modules convert into each other

        return discretize(self, n, form)

    def config(self) -> dict[str, Any]:
        """The name and the fields, as plain values: what a checkpoint stores."""
        return {"type": type(self).__name__, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def check_time(self, t: Time) -> Tensor:
        """``t`` as a tensor, float64 where it is a Python number, which must lie in the SDE's time."""
        # Only Python numbers are checked: the value of a tensor may live on a device or under a transformation.
        if not isinstance(t, Tensor) and not 0 <= t <= self.span[1]:
            raise ValueError(f"got time {t}; {type(self).__name__} is defined for 0 <= t <= {self.span[1]}")
        return as_time(t)


@dataclass(frozen=True)
class GaussianSDE(AffineSDE):
    """The SDE of any two functions ``log_alpha(t)`` and ``log_sigma(t)`` with lam = log_alpha - log_sigma decreasing.

    Args:
        log_alpha_fn, log_sigma_fn: elementwise functions of a tensor of times.
        d_log_alpha_fn, d_log_sigma_fn: their derivatives; by automatic differentiation where not given.
        t_min, t_max: the span of time.

    Example:
        >>> sde = GaussianSDE(lambda t: 0 * t, lambda t: torch.log(t), t_min=0.01, t_max=10.0)  # EDM's
        >>> round(float(sde.diffusion_squared(3.0)), 12), round(float(sde.time(0.0)), 12)
        (6.0, 1.0)
    """

    log_alpha_fn: TimeFunction
    log_sigma_fn: TimeFunction
    d_log_alpha_fn: TimeFunction | None = None
    d_log_sigma_fn: TimeFunction | None = None
    t_min: float = 1e-3
    t_max: float = 1.0

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    def log_alpha(self, t: Time) -> Tensor:
        return self.log_alpha_fn(self.check_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return self.log_sigma_fn(self.check_time(t))

    def d_log_alpha(self, t: Time) -> Tensor:
        t = self.check_time(t)
        return super().d_log_alpha(t) if self.d_log_alpha_fn is None else self.d_log_alpha_fn(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        t = self.check_time(t)
        if self.d_log_sigma_fn is None:
            return super().diffusion_squared(t)
        return 2 * (2 * self.log_sigma(t)).exp() * (self.d_log_sigma_fn(t) - self.d_log_alpha(t))

    def config(self) -> dict[str, Any]:
        raise ValueError(
            "a GaussianSDE made of functions cannot be written to a checkpoint; pass the same sde when loading it"
        )


@dataclass(frozen=True)
class _LinearBeta(AffineSDE):
    """The part that VP and SubVP share: alpha of a rate beta(t) linear in time."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"got beta_min={self.beta_min} and beta_max={self.beta_max}; expected 0 < beta_min <= beta_max")

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    def beta(self, t: Time) -> Tensor:
        """The rate beta(t) = beta_min + t (beta_max - beta_min)."""
        return self.beta_min + self.check_time(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Time) -> Tensor:
        t = self.check_time(t)
        return -0.5 * t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def d_log_alpha(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The root of the quadratic in the form that does not cancel for small t.
        u = -2 * log_alpha
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * u)
        return 2 * u / (self.beta_min + root)


@dataclass(frozen=True)
class VP(_LinearBeta):
    r"""Variance preserving, the limit of DDPM: :math:`dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dw`.

    :math:`\beta` is linear, :math:`\alpha_t = e^{-\frac12 \int_0^t \beta}`, :math:`\sigma_t^2 = 1 - \alpha_t^2`.
    Source: Song et al., 2021, https://arxiv.org/abs/2011.13456, equations (11) and (32).

    Args:
        beta_min, beta_max: the rate at t = 0 and t = 1.
        t_min: where sampling and training stop. The drift of the reverse process grows as 1/t, so a small value costs
            steps; a large one leaves noise of variance ``sigma(t_min)^2`` in the samples.
        t_max: where sampling starts.

    Example:
        >>> sde = VP()
        >>> t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        >>> bool(torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t)))
        True
        >>> bool(torch.allclose(sde.time(sde.lam(t)), t, atol=1e-12, rtol=0))
        True
    """

    def log_sigma(self, t: Time) -> Tensor:
        return 0.5 * _log1mexp(-2 * self.log_alpha(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.beta(t)

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        return self._time_of_log_alpha(-0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    r"""Sub-variance preserving: the mean of VP with the smaller deviation :math:`\sigma_t = 1 - \alpha_t^2`.

    :math:`g^2 = \beta(t) (1 - \alpha_t^4)`. Source: Song et al., 2021, equation (14).

    Example:
        >>> bool(SubVP().sigma(0.3) < VP().sigma(0.3))
        True
    """

    def log_sigma(self, t: Time) -> Tensor:
        return _log1mexp(-2 * self.log_alpha(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def time(self, lam: Time) -> Tensor:
        # e^lam = alpha / (1 - alpha^2) = 1 / (2 sinh y) with y = -log alpha.
        return self._time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-as_time(lam))))


@dataclass(frozen=True)
class CosineVP(AffineSDE):
    r"""Variance preserving with the cosine schedule, :math:`\alpha_t = \cos(u_t) / \cos(u_0)`,
    :math:`u_t = \frac{\pi}{2} \frac{t + s}{1 + s}`, so that :math:`\alpha = 0` at t = 1.

    Source: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
    https://arxiv.org/abs/2102.09672, equation (17), in continuous time and without clipping.

    Example:
        >>> float(CosineVP().alpha(1.0)), float(CosineVP().sigma(1.0))
        (0.0, 1.0)
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.s > 0 or not self.t_max <= 1:
            raise ValueError(f"got s={self.s} and t_max={self.t_max}; expected s > 0 and t_max <= 1")

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.s)

    def log_alpha(self, t: Time) -> Tensor:
        t, c, u0 = self.check_time(t), self._rate, self._rate * self.s
        # 1 - t is exact for t >= 1/2, and cos(u_0 + d) - cos(u_0) a product: neither end cancels.
        near_noise = torch.log(torch.sin(c * (1 - t)) / math.cos(u0))
        near_data = torch.log1p(-2 * torch.sin(u0 + 0.5 * c * t) * torch.sin(0.5 * c * t.clamp(max=0.75)) / math.cos(u0))
        return torch.where(t < 0.5, near_data, near_noise)

    def log_sigma(self, t: Time) -> Tensor:
        t, c, u0 = self.check_time(t), self._rate, self._rate * self.s
        return 0.5 * torch.log(torch.sin(c * t) * torch.sin(c * t + 2 * u0)) - math.log(math.cos(u0))

    def d_log_alpha(self, t: Time) -> Tensor:
        t = self.check_time(t)
        return -self._rate / torch.tan(self._rate * (1 - t))

    def d_log_sigma(self, t: Time) -> Tensor:
        angle, u0 = self._rate * self.check_time(t), self._rate * self.s
        return 0.5 * self._rate * (1 / torch.tan(angle) + 1 / torch.tan(angle + 2 * u0))

    def d_alpha(self, t: Time) -> Tensor:
        u0 = self._rate * self.s
        return -self._rate * torch.sin(self._rate * self.check_time(t) + u0) / math.cos(u0)

    def diffusion_squared(self, t: Time) -> Tensor:
        return -2 * self.d_log_alpha(t)

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        c0, s0 = math.cos(self._rate * self.s), math.sin(self._rate * self.s)
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        alpha, variance = log_alpha.exp(), torch.sigmoid(-2 * lam)
        cos_u, sin_u = alpha * c0, torch.sqrt(s0**2 + variance * c0**2)
        # u - u_0 by the two-argument arctangent, its sine with the common part cancelled by hand.
        sine = c0**2 * variance / (sin_u * c0 + cos_u * s0)
        return torch.atan2(sine, cos_u * c0 + sin_u * s0) / self._rate


@dataclass(frozen=True)
class VE(AffineSDE):
    r"""Variance exploding, the limit of NCSN: :math:`\alpha = 1`,
    :math:`\sigma_t = \sigma_{min} (\sigma_{max} / \sigma_{min})^t`.

    Source: Song et al., 2021, equations (9) and (30), with the marginal deviation sigma(t) itself (the data at t = 0
    carry noise of deviation sigma_min), as in the authors' code.

    Example:
        >>> [round(float(VE().sigma(t)), 12) for t in (0.0, 1.0)]
        [0.01, 50.0]
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}; expected 0 < sigma_min < sigma_max"
            )

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(self.check_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return math.log(self.sigma_min) + self.check_time(t) * self._log_ratio

    def d_log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(self.check_time(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return 2 * self._log_ratio * (2 * self.log_sigma(t)).exp()

    def time(self, lam: Time) -> Tensor:
        return (-as_time(lam) - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class EDM(AffineSDE):
    r"""Variance exploding with time itself the noise level: :math:`\alpha = 1, \sigma_t = t`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, table 1. The span of time is ``(sigma_min, sigma_max)``.

    Example:
        >>> EDM().span, float(EDM().diffusion_squared(3.0))
        ((0.002, 80.0), 6.0)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def span(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(self.check_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(self.check_time(t))

    def d_log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(self.check_time(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return 2 * self.check_time(t)

    def time(self, lam: Time) -> Tensor:
        return torch.exp(-as_time(lam))


@dataclass(frozen=True)
class RectifiedFlow(AffineSDE):
    r"""The straight path from data to noise: :math:`\alpha = 1 - t, \sigma = t`; alpha = 0 at t = 1.

    Source: Liu et al., "Flow Straight and Fast", 2022, https://arxiv.org/abs/2209.03003, and Lipman et al., "Flow
    Matching for Generative Modeling", 2022, https://arxiv.org/abs/2210.02747, written as a diffusion.

    Example:
        >>> float(RectifiedFlow().lam(0.5))
        0.0
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.t_max <= 1:
            raise ValueError(f"got t_max={self.t_max}; expected t_max <= 1, where alpha = 1 - t reaches zero")

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log1p(-self.check_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(self.check_time(t))

    def d_log_alpha(self, t: Time) -> Tensor:
        return -1 / (1 - self.check_time(t))

    def d_log_sigma(self, t: Time) -> Tensor:
        return 1 / self.check_time(t)

    def d_alpha(self, t: Time) -> Tensor:
        return -torch.ones_like(self.check_time(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        t = self.check_time(t)
        return 2 * t / (1 - t)

    def time(self, lam: Time) -> Tensor:
        return torch.sigmoid(-as_time(lam))
