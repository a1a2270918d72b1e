r"""SDEs with Gaussian marginals, given by two functions of time.

The marginals are

.. math:: x_t \mid x_0 \sim N(\alpha_t x_0, \sigma_t^2 I), \qquad \lambda_t = \log(\alpha_t / \sigma_t),

and everything else is derived from alpha and sigma (Kingma et al., "Variational Diffusion Models", 2021, appendix B):

.. math:: dx = f(t)\,x\,dt + g(t)\,dw, \qquad f = \frac{d \log \alpha}{dt}, \qquad
          g^2 = -2 \sigma^2 \frac{d\lambda}{dt}.

Time runs from ``t_min`` (data, where sampling stops) to ``t_max`` (noise, where sampling starts). Times are tensors of
shape ``()`` or ``(batch,)``, or Python numbers; states have shape ``(batch, *event)``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.shape import as_time, expand
from scoresde.sde.base import SDE, Time

__all__ = ["LARGEST_LOG", "FunctionSDE", "GaussianSDE", "derivative", "log1mexp"]

TimeFunction = Callable[[Tensor], Tensor]
LARGEST_LOG = 700.0
"""The largest size of log alpha and log sigma whose exponential float64 holds: exp(700) = 1e304."""


def log1mexp(u: Tensor) -> Tensor:
    """Return log(1 - e^-u) for u >= 0, to full relative precision at both ends."""
    return torch.where(u < math.log(2), torch.log(-torch.expm1(-u)), torch.log1p(-torch.exp(-u)))


def derivative(function: TimeFunction, t: Tensor) -> Tensor:
    """Return the derivative of an elementwise ``function`` at ``t``, by automatic differentiation.

    Backwards where that is enough: the first use of PyTorch's forward mode takes seconds. Forwards where the derivative is
    itself differentiated, and where a branch of ``torch.where`` that is not taken spoils the gradient.

    Example:
        >>> derivative(lambda t: t**3, torch.tensor([0.0, 2.0])).tolist()
        [0.0, 12.0]
    """
    if not function(t).requires_grad:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                at = t.clone().requires_grad_()
                (slope,) = torch.autograd.grad(function(at).sum(), at)
            if not bool(slope.isnan().any()):
                return slope
        except RuntimeError:  # a transform of torch.func, a tensor of inference mode, or a function that is constant in t
            pass
    return cast(Tensor, torch.func.jvp(function, (t,), (torch.ones_like(t),))[1])


@dataclass(frozen=True)
class GaussianSDE(SDE):
    r"""Interface of the SDEs with Gaussian marginals :math:`N(\alpha_t x_0, \sigma_t^2 I)`.

    A subclass implements ``log_alpha(t)`` and ``log_sigma(t)``. It may also override ``d_log_alpha`` and
    ``diffusion_squared`` with closed forms, which are exact at the ends of time where the derivative of a logarithm is not,
    and ``time`` if lam has a closed inverse.

    Raises:
        ValueError: if the span is not 0 <= t_min < t_max, both finite.
    """

    def __post_init__(self) -> None:
        t_min, t_max = self.span
        if not 0 <= t_min < t_max < math.inf:
            raise ValueError(f"got t_min={t_min} and t_max={t_max}; expected 0 <= t_min < t_max, both finite")

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha_t, the log of the factor of the data in the mean, shape of ``t``."""

    @abstractmethod
    def log_sigma(self, t: Time) -> Tensor:
        """Return log sigma_t, the log of the standard deviation, shape of ``t``."""

    # Derived ---------------------------------------------------------------------------------------------------------

    def alpha(self, t: Time) -> Tensor:
        """Return alpha_t, the factor of the data in the mean, shape of ``t``."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """Return sigma_t, the standard deviation given the data, shape of ``t``."""
        return self.log_sigma(t).exp()

    def lam(self, t: Time) -> Tensor:
        """Return half the log signal-to-noise ratio, log(alpha_t / sigma_t), which decreases in ``t``."""
        return self.log_alpha(t) - self.log_sigma(t)

    def time(self, lam: Time) -> Tensor:
        """Return the time at which ``lam(t) = lam``; differentiable in ``lam``.

        The default is bisection in float64 on ``[0, t_max]``. Subclasses with a closed form override it.
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
        """Return f(t) = d log alpha / dt, the factor of x in the drift."""
        return derivative(self.log_alpha, as_time(t))

    def d_log_sigma(self, t: Time) -> Tensor:
        """Return d log sigma / dt, derived from f and g^2."""
        return 0.5 * (-2 * self.log_sigma(t)).exp() * self.diffusion_squared(t) + self.d_log_alpha(t)

    def d_alpha(self, t: Time) -> Tensor:
        """Return d alpha / dt = alpha f; the SDEs that reach alpha = 0 override it, so that it is finite there."""
        return self.alpha(t) * self.d_log_alpha(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        """Return the squared diffusion g(t)^2 = -2 sigma^2 d lam / dt."""
        t = as_time(t)
        return 2 * (2 * self.log_sigma(t)).exp() * (derivative(self.log_sigma, t) - self.d_log_alpha(t))

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the drift f(t) x, shape of ``x``."""
        return expand(self.d_log_alpha(t), x) * x

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """Return the diffusion g(t), broadcastable to ``x``."""
        return expand(self.diffusion_squared(t).sqrt(), x)

    def diffusion_divergence(self, x: Tensor, t: Time) -> float:
        return 0.0

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Return the mean of x_t given ``x0``, shape of ``x0``, and the standard deviation, broadcastable to it.

        Example:
            >>> from scoresde import RectifiedFlow
            >>> mean, std = RectifiedFlow().marginal(torch.ones(1, 2), 0.25)
            >>> mean, std.item()
            (tensor([[0.7500, 0.7500]]), 0.25)
        """
        return expand(self.alpha(t), x0) * x0, expand(self.sigma(t), x0)

    def perturb(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Return x_t = alpha_t x0 + sigma_t eps, for standard normal ``eps`` of the shape of ``x0``."""
        if eps.shape != x0.shape:
            raise ValueError(f"got eps of shape {tuple(eps.shape)} for x0 of shape {tuple(x0.shape)}; expected the same")
        mean, std = self.marginal(x0, t)
        return mean + std * eps

    @property
    def prior_std(self) -> float:
        return float(self.sigma(self.span[1]))

    def config(self) -> dict[str, Any]:
        """Return the name and the fields as plain values, which a checkpoint stores."""
        return {"type": type(self).__name__, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def check_schedule(self) -> None:
        """Refuse a schedule whose lam does not fall from ``t_min`` to ``t_max``, on a grid of 512 intervals.

        Raises:
            ValueError: if lam rises, is constant or is NaN, or if alpha or sigma overflows or underflows in float64 while
                its logarithm is finite.
        """
        t = torch.linspace(*self.span, 513, dtype=torch.float64, device="cpu")
        log_alpha, log_sigma = (f(t).detach().expand(t.shape) for f in (self.log_alpha, self.log_sigma))
        lam = log_alpha - log_sigma
        falls = lam.diff() < 0
        if not bool(falls.all()):
            i = int(falls.logical_not().nonzero()[0])
            hint = ": time 0 is the data and t_max the noise, here it is the other way round" * bool((lam.diff() > 0).all())
            raise ValueError(
                f"got a schedule of {type(self).__name__} whose lam goes from {lam[i]:.6g} at t={t[i]:.6g} to "
                f"{lam[i + 1]:.6g} at t={t[i + 1]:.6g}; expected lam = log_alpha - log_sigma to fall with t" + hint
            )
        # where alpha = 0 or sigma = 0 the logarithm is infinite, which the rest of the code handles
        for name, log in (("alpha", log_alpha), ("sigma", log_sigma)):
            beyond = torch.isfinite(log) & (log.abs() > LARGEST_LOG)
            if bool(beyond.any()):
                i = int(beyond.nonzero()[0])
                raise ValueError(
                    f"got {name} = exp({log[i]:.6g}) at t={t[i]:.6g} from {type(self).__name__}, which float64 cannot hold; "
                    "expected rates for the unit of time that t_min and t_max are in"
                )

    def check_time(self, t: Time) -> Tensor:
        """Return ``t`` as a tensor; a Python number becomes float64 and must be between 0 and ``t_max``.

        Raises:
            ValueError: for a Python number outside the time of the SDE.
        """
        # Only Python numbers are checked: the value of a tensor may live on a device or under a transformation.
        if not isinstance(t, Tensor) and not 0 <= t <= self.span[1]:
            raise ValueError(f"got time {t}; {type(self).__name__} is defined for 0 <= t <= {self.span[1]}")
        return as_time(t)


@dataclass(frozen=True)
class FunctionSDE(GaussianSDE):
    """The SDE given by any two functions ``log_alpha(t)`` and ``log_sigma(t)`` with decreasing lam = log_alpha - log_sigma.

    Args:
        log_alpha_fn, log_sigma_fn: elementwise functions of a tensor of times.
        d_log_alpha_fn, d_log_sigma_fn: the derivatives of these functions; by default from automatic differentiation.
        t_min, t_max: the span of time.

    Raises:
        ValueError: if lam does not fall from ``t_min`` to ``t_max``.

    Example:
        >>> sde = FunctionSDE(lambda t: 0 * t, lambda t: torch.log(t), t_min=0.01, t_max=10.0)  # the schedule of EDM
        >>> round(float(sde.diffusion_squared(3.0)), 12), round(float(sde.time(0.0)), 12)
        (6.0, 1.0)
    """

    log_alpha_fn: TimeFunction
    log_sigma_fn: TimeFunction
    d_log_alpha_fn: TimeFunction | None = None
    d_log_sigma_fn: TimeFunction | None = None
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_schedule()

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
            "a FunctionSDE made of functions cannot be written to a checkpoint; pass the same sde when loading it"
        )
