r"""The quantities that a network may predict: how its output is converted, and the target on which it is trained.

With :math:`x = \alpha x_0 + \sigma \epsilon`, a prediction of any one of

==========  ==================================================  ===========================================
predicts    the network's output                                source
==========  ==================================================  ===========================================
eps         the noise :math:`\epsilon`                          Ho et al., 2020
x0          the data :math:`x_0`                                Vincent, 2011; Ho et al., 2020
v           :math:`\alpha \epsilon - \sigma x_0`                Salimans and Ho, 2022
velocity    :math:`\epsilon - x_0`                              Lipman et al., 2022; Liu et al., 2022
score       :math:`\nabla \log p_t(x) = -\epsilon / \sigma`     Song and Ermon, 2019
edm         F of the preconditioned denoiser, eq. (7)           Karras et al., 2022
==========  ==================================================  ===========================================

determines the others. Each conversion is linear in ``x`` and the output. The coefficients are float64, in a form without
cancellation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.base.shape import expand

__all__ = ["PREDICTIONS", "Coefficients", "Parametrization", "target"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of x0 = ``x0[0]`` x + ``x0[1]`` n and eps = ``eps[0]`` x + ``eps[1]`` n, where n = net(``c_in`` x).

    Example:
        >>> found = PREDICTIONS["eps"].coefficients(torch.tensor(0.8), torch.tensor(0.6), 0.5)
        >>> [round(float(value), 6) for value in found.x0]  # x0 = (x - sigma eps) / alpha
        [1.25, -0.75]
    """

    x0: Pair
    eps: Pair
    c_in: Tensor | None = None


@dataclass(frozen=True)
class Parametrization:
    r"""A kind of prediction: how the output n of the network is converted, and its target.

    Args:
        coefficients: a function of (alpha, sigma, sigma_data), two float64 tensors of one shape and a number, that returns
            the :class:`Coefficients` of the conversion.
        target: a function of the same arguments that returns the factors (a, b) of the target
            :math:`n^* = a x_0 + b\, \epsilon`. By default they are derived from ``coefficients`` by least squares, which is
            exact where the coefficients are finite.

    Example:
        >>> one, half = torch.tensor(0.8), torch.tensor(0.6)
        >>> mine = Parametrization(PREDICTIONS["v"].coefficients)  # the target is derived
        >>> [round(float(factor), 6) for factor in mine.factors(one, half, 0.5)]  # v = alpha eps - sigma x0
        [-0.6, 0.8]
    """

    coefficients: Callable[[Tensor, Tensor, float], Coefficients]
    target: Callable[[Tensor, Tensor, float], Pair] | None = None

    def factors(self, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
        """Return the factors of x0 and eps in the target."""
        if self.target is not None:
            return self.target(alpha, sigma, sigma_data)
        c = self.coefficients(alpha, sigma, sigma_data)
        (x_in_x0, n_in_x0), (x_in_eps, n_in_eps) = c.x0, c.eps
        size = n_in_x0**2 + n_in_eps**2
        of_x0 = (n_in_x0 * (1 - x_in_x0 * alpha) - n_in_eps * x_in_eps * alpha) / size
        of_eps = (n_in_eps * (1 - x_in_eps * sigma) - n_in_x0 * x_in_x0 * sigma) / size
        return of_x0, of_eps


def _eps(a: Tensor, s: Tensor, d: float) -> Coefficients:
    return Coefficients((1 / a, -s / a), (torch.zeros_like(a), torch.ones_like(a)))


def _x0(a: Tensor, s: Tensor, d: float) -> Coefficients:
    return Coefficients((torch.zeros_like(a), torch.ones_like(a)), (1 / s, -a / s))


def _v(a: Tensor, s: Tensor, d: float) -> Coefficients:
    r = a**2 + s**2
    return Coefficients((a / r, -s / r), (s / r, a / r))


def _velocity(a: Tensor, s: Tensor, d: float) -> Coefficients:
    r = a + s
    return Coefficients((1 / r, -s / r), (1 / r, a / r))


def _score(a: Tensor, s: Tensor, d: float) -> Coefficients:
    return Coefficients((1 / a, s**2 / a), (torch.zeros_like(a), -s))


def _edm(a: Tensor, s: Tensor, d: float) -> Coefficients:
    # D = c_skip x / a + c_out F(c_in x / a) with rho = s / a, multiplied out so that a = 0 and s = 0 are both finite.
    r = torch.hypot(a * d, s)
    return Coefficients((d**2 * a / r**2, s * d / r), (s / r**2, -a * d / r), c_in=1 / r)


def _edm_target(a: Tensor, s: Tensor, d: float) -> Pair:
    r = torch.hypot(a * d, s)
    return s / (d * r), -a * d / r


PREDICTIONS: Table[Parametrization] = Table(
    "prediction",
    "scoresde.score.PREDICTIONS",
    {
        "eps": Parametrization(_eps, lambda a, s, d: (torch.zeros_like(a), torch.ones_like(a))),
        "x0": Parametrization(_x0, lambda a, s, d: (torch.ones_like(a), torch.zeros_like(a))),
        "v": Parametrization(_v, lambda a, s, d: (-s, a)),
        "velocity": Parametrization(_velocity, lambda a, s, d: (-torch.ones_like(a), torch.ones_like(a))),
        "score": Parametrization(_score, lambda a, s, d: (torch.zeros_like(a), -1 / s)),
        "edm": Parametrization(_edm, _edm_target),
    },
    check=lambda value: isinstance(value, Parametrization),
    expects="a Parametrization",
)
"""The predictions by name."""


def target(predicts: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    r"""Return the target of a network that predicts ``predicts``: the output for given ``x0`` and ``eps``.

    The target of EDM's F is :math:`(\sigma x_0 / \sigma_d - \alpha \sigma_d\, \epsilon) / r` with
    :math:`r^2 = \sigma^2 + \alpha^2 \sigma_d^2`.

    Args:
        predicts: a name in :data:`PREDICTIONS`.
        x0, eps: data and noise, shape ``(batch, *event)``.
        alpha, sigma: float64, shape ``(batch,)``.
        sigma_data: standard deviation of the data.

    Example:
        >>> one, alpha, sigma = torch.ones(1, 1), torch.tensor([0.8]), torch.tensor([0.6])
        >>> round(target("v", one, one, alpha, sigma, 0.5).item(), 6)
        0.2
    """
    of_x0, of_eps = PREDICTIONS[predicts].factors(alpha, sigma, sigma_data)
    return expand(of_x0, x0).to(x0) * x0 + expand(of_eps, x0).to(x0) * eps
