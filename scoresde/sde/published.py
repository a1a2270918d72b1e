"""The published SDEs with Gaussian marginals: VP, sub-VP, cosine VP, VE, EDM and rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.base.shape import as_time
from scoresde.sde.base import Time
from scoresde.sde.gaussian import LARGEST_LOG, GaussianSDE, log1mexp

__all__ = ["EDM", "VE", "VP", "CosineVP", "RectifiedFlow", "SubVP"]


@dataclass(frozen=True)
class _LinearBeta(GaussianSDE):
    """Base of VP and SubVP: alpha for a rate beta(t) that is linear in time."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"got beta_min={self.beta_min} and beta_max={self.beta_max}; expected 0 < beta_min <= beta_max")
        if self.t_max > 1 and float(self.log_alpha(self.t_max)) < -LARGEST_LOG:
            raise ValueError(
                f"got beta_min={self.beta_min:g}, beta_max={self.beta_max:g} and t_max={self.t_max:g}, where alpha is zero "
                "in float64: these are the rates at t = 0 and t = 1; expected t_max=1 and n times the betas of n steps: "
                f"{type(self).__name__}(0.1, 20) for 1e-4 to 0.02 in 1000, or the chain itself, DDPM.linear(n, first, last)"
            )
        self.check_schedule()

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    def beta(self, t: Time) -> Tensor:
        """Return the rate beta(t) = beta_min + t (beta_max - beta_min), shape of ``t``."""
        return self.beta_min + self.check_time(t) * self._slope

    @property
    def _slope(self) -> float:
        return self.beta_max - self.beta_min

    def log_alpha(self, t: Time) -> Tensor:
        t = self.check_time(t)
        return -0.5 * t * (self.beta_min + 0.5 * t * self._slope)

    def d_log_alpha(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The root of the quadratic in the form that does not cancel for small t.
        u = -2 * log_alpha
        root = torch.sqrt(self.beta_min**2 + 2 * self._slope * u)
        return 2 * u / (self.beta_min + root)


@dataclass(frozen=True)
class VP(_LinearBeta):
    r"""Variance preserving, the limit of DDPM: :math:`dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dw`.

    :math:`\beta` is linear, :math:`\alpha_t = e^{-\frac12 \int_0^t \beta}`, :math:`\sigma_t^2 = 1 - \alpha_t^2`.
    Source: Song et al., 2021, https://arxiv.org/abs/2011.13456, equations (11) and (32).

    Args:
        beta_min, beta_max: the rates at t = 0 and t = 1, which are n times the betas of DDPM in n steps.
        t_min: the time at which sampling and training stop. The drift of the reverse process grows as 1/t, so a small value
            costs steps; a large value leaves noise of variance ``sigma(t_min)^2`` in the samples.
        t_max: the time at which sampling starts.

    Example:
        >>> sde = VP()
        >>> t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        >>> bool(torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t)))
        True
        >>> bool(torch.allclose(sde.time(sde.lam(t)), t, atol=1e-12, rtol=0))
        True
    """

    def log_sigma(self, t: Time) -> Tensor:
        return 0.5 * log1mexp(-2 * self.log_alpha(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.beta(t)

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        return self._time_of_log_alpha(-0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    r"""Sub-variance preserving: the mean of VP with the smaller standard deviation :math:`\sigma_t = 1 - \alpha_t^2`.

    :math:`g^2 = \beta(t) (1 - \alpha_t^4)`. Source: Song et al., 2021, equation (14).

    Example:
        >>> bool(SubVP().sigma(0.3) < VP().sigma(0.3))
        True
    """

    def log_sigma(self, t: Time) -> Tensor:
        return log1mexp(-2 * self.log_alpha(t))

    def diffusion_squared(self, t: Time) -> Tensor:
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def time(self, lam: Time) -> Tensor:
        # e^lam = alpha / (1 - alpha^2) = 1 / (2 sinh y) with y = -log alpha.
        return self._time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-as_time(lam))))


@dataclass(frozen=True)
class CosineVP(GaussianSDE):
    r"""Variance preserving with the cosine schedule, :math:`\alpha_t = \cos(u_t) / \cos(u_0)`.

    Here :math:`u_t = \frac{\pi}{2} \frac{t + s}{1 + s}`, so :math:`\alpha = 0` at t = 1.

    Source: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
    https://arxiv.org/abs/2102.09672, equation (17), in continuous time and without clipping.

    Raises:
        ValueError: if ``s`` is not positive, or the span is not 0 <= t_min < t_max <= 1.

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
        self.check_schedule()

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
class VE(GaussianSDE):
    r"""Variance exploding, the limit of NCSN: :math:`\alpha = 1, \sigma_t = \sigma_{min} (\sigma_{max} / \sigma_{min})^t`.

    As in the authors' code, sigma(t) is the standard deviation of the marginal, so at t = 0 the data carry noise of standard
    deviation sigma_min. Source: Song et al., 2021, equations (9) and (30).

    Raises:
        ValueError: if not 0 < sigma_min < sigma_max, both finite, or the span is not 0 <= t_min < t_max.

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
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}; expected 0 < sigma_min < sigma_max"
            )
        self.check_schedule()

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
class EDM(GaussianSDE):
    r"""Variance exploding with the noise level as time: :math:`\alpha = 1, \sigma_t = t`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, table 1. The span of time is ``(sigma_min, sigma_max)``.

    Raises:
        ValueError: if not 0 < sigma_min < sigma_max, both finite.

    Example:
        >>> EDM().span, float(EDM().diffusion_squared(3.0))
        ((0.002, 80.0), 6.0)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}; expected 0 < sigma_min < sigma_max"
            )

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
class RectifiedFlow(GaussianSDE):
    r"""Rectified flow, the straight path from data to noise: :math:`\alpha = 1 - t, \sigma = t`.

    No signal is left at t = 1, where alpha = 0. Source: Liu et al., "Flow Straight and Fast", 2022,
    https://arxiv.org/abs/2209.03003, and Lipman et al., "Flow Matching for Generative Modeling", 2022,
    https://arxiv.org/abs/2210.02747, here written as a diffusion.

    Raises:
        ValueError: if the span is not 0 <= t_min < t_max <= 1.

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
