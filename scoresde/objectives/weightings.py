r"""Weightings of the squared error as functions of time.

Here :math:`\hat\sigma = \sigma / \alpha`, SNR = :math:`\alpha^2 / \sigma^2 = e^{2 \lambda}`, and :math:`\sigma_d` is the
standard deviation of the data. The score is :math:`-\epsilon / \sigma`, and an error of x_0 is :math:`-\hat\sigma` times the
error of eps:

===========  ==========================================  ===================================================
weighting    in its source                               w, in terms of eps
===========  ==========================================  ===================================================
ncsn         :math:`\sigma^2` on the score               1
ddpm         1 on eps ("simple")                         1
likelihood   :math:`g^2` on the score                    :math:`g^2 / \sigma^2 = -2\, d\lambda/dt`
edm          :math:`(\hat\sigma^2 + \sigma_d^2) /        :math:`(\hat\sigma^2 + \sigma_d^2) / \sigma_d^2`
             (\hat\sigma \sigma_d)^2` on x_0
v            1 on :math:`\alpha \epsilon - \sigma x_0`   :math:`(\alpha^2 + \sigma^2)^2 / \alpha^2`
velocity     1 on :math:`\epsilon - x_0`                 :math:`(\alpha + \sigma)^2 / \alpha^2`
min-snr      min(SNR, 5) on x_0                          min(1, 5 / SNR)
p2           1 / (1 + SNR) on eps                        1 / (1 + SNR)
sigmoid      sigmoid(2 - log SNR) in the likelihood      :math:`-2\, d\lambda/dt\; \mathrm{sigmoid}(2 - 2 \lambda)`
===========  ==========================================  ===================================================

Sources: Song and Ermon, 2019, https://arxiv.org/abs/1907.05600; Ho et al., 2020, https://arxiv.org/abs/2006.11239; Song et
al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258; Karras et al.,
2022, https://arxiv.org/abs/2206.00364; Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512; Liu et al., 2022,
https://arxiv.org/abs/2209.03003; Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
https://arxiv.org/abs/2303.09556; Choi et al., "Perception Prioritized Training of Diffusion Models", 2022,
https://arxiv.org/abs/2204.00227; Kingma and Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data
Augmentation", 2023, https://arxiv.org/abs/2303.00848.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.sde import GaussianSDE

__all__ = ["WEIGHTINGS", "Weighting", "min_snr", "p2", "sigmoid"]


@dataclass(frozen=True)
class Weighting:
    """A weight on the squared error of eps or of x_0, whichever keeps the weight finite at the ends of time.

    Args:
        name: the name of the weighting.
        on: the quantity whose error is weighted, ``"eps"`` or ``"x0"``.
        function: ``function(sde, t, sigma_data)`` returns the weights, float64, shape of ``t``.

    Raises:
        ValueError: if ``on`` is another quantity.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> mine = Weighting("mine", "eps", lambda sde, t, sigma_data: sde.sigma(t) ** 2)
        >>> mine.function(RectifiedFlow(), torch.tensor([0.5], dtype=torch.float64), 1.0)
        tensor([0.2500], dtype=torch.float64)
    """

    name: str
    on: Literal["eps", "x0"]
    function: Callable[[GaussianSDE, Tensor, float], Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        if self.on not in ("eps", "x0"):
            raise ValueError(f"got a weighting on {self.on!r}; expected 'eps' or 'x0'")


def _one(sde: GaussianSDE, t: Tensor, sigma_data: float) -> Tensor:
    return torch.ones_like(t)


def likelihood(sde: GaussianSDE, t: Tensor, sigma_data: float) -> Tensor:
    """Return the likelihood weighting g^2 / sigma^2 = -2 dlam/dt of an error of eps."""
    return sde.diffusion_squared(t) * (-2 * sde.log_sigma(t)).exp()


def _edm(sde: GaussianSDE, t: Tensor, sigma_data: float) -> Tensor:
    # (s^2 + d^2) / (s d)^2 = 1 / d^2 + 1 / s^2 with s = sigma / alpha, which is infinite, harmlessly, for alpha = 0.
    return sigma_data**-2 + (2 * sde.lam(t)).exp()


def _v(sde: GaussianSDE, t: Tensor, sigma_data: float) -> Tensor:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return ((alpha**2 + sigma**2) / sigma) ** 2


def _velocity(sde: GaussianSDE, t: Tensor, sigma_data: float) -> Tensor:
    return (1 + sde.lam(t).exp()) ** 2


def min_snr(gamma: float = 5.0) -> Weighting:
    """Return the min-SNR-gamma weighting: min(SNR, gamma) on x_0, which is min(1, gamma / SNR) on eps.

    Example:
        >>> from scoresde import VP
        >>> t = torch.tensor([0.01, 0.5], dtype=torch.float64)
        >>> min_snr(5.0).function(VP(), t, 0.5) * (2 * VP().lam(t)).exp() <= 5.0
        tensor([True, True])
    """
    _check(gamma > 0, f"gamma={gamma}")
    return Weighting("min-snr", "eps", lambda sde, t, d: (gamma * (-2 * sde.lam(t)).exp()).clamp(max=1.0))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Return the P2 weighting, (k + SNR)^-gamma on eps.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> t = torch.tensor([0.5], dtype=torch.float64)  # where SNR = 1
        >>> round(p2().function(RectifiedFlow(), t, 1.0).item(), 9)
        0.5
    """
    _check(gamma >= 0 and k > 0, f"gamma={gamma}, k={k}")
    return Weighting("p2", "eps", lambda sde, t, d: (k + (2 * sde.lam(t)).exp()) ** -gamma)


def sigmoid(bias: float = 2.0) -> Weighting:
    """Return sigmoid(bias - log SNR) times the likelihood weighting; with times uniform in lam only the sigmoid is left.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> t = torch.tensor([0.5], dtype=torch.float64)  # where SNR = 1
        >>> round((sigmoid(0.0).function(RectifiedFlow(), t, 1.0) / likelihood(RectifiedFlow(), t, 1.0)).item(), 9)
        0.5
    """
    return Weighting("sigmoid", "eps", lambda sde, t, d: torch.sigmoid(bias - 2 * sde.lam(t)) * likelihood(sde, t, d))


def _check(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"got {what}; expected positive numbers")


WEIGHTINGS: Table[Weighting] = Table(
    "weighting",
    "scoresde.objectives.WEIGHTINGS",
    {
        "ncsn": Weighting("ncsn", "eps", _one),
        "ddpm": Weighting("ddpm", "eps", _one),
        "likelihood": Weighting("likelihood", "eps", likelihood),
        "edm": Weighting("edm", "x0", _edm),
        "v": Weighting("v", "x0", _v),
        "velocity": Weighting("velocity", "x0", _velocity),
        "x0": Weighting("x0", "x0", _one),
        "min-snr": min_snr(),
        "p2": p2(),
        "sigmoid": sigmoid(),
    },
    also="a Weighting",
    check=lambda value: isinstance(value, Weighting),
    expects="a Weighting",
)
"""The published weightings by name."""
