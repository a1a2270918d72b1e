r"""Predictions: the quantity N = p x + q m that a solver interpolates, its clock, and the exact linear flow.

With the data prediction m and half the log signal-to-noise ratio :math:`\lambda`, every reverse process is

.. math:: d(x / \sigma) = \left[ -\eta\, x / \sigma + (1 + \eta)\, e^{\lambda} m \right] d\lambda
          + \sqrt{2 \eta}\, dW_\lambda,

where eta = 0 is the probability-flow ODE and eta = 1 the time-reversed SDE. A prediction writes the step u -> v as

.. math:: x_v = \mathrm{carry}(u, v)\, x_u + \mathrm{gain}(v) \int_u^v e^{\mathrm{rate}\,(s - v)} N\, ds
          + \mathrm{noise}(u, v)\, \xi.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.sde import GaussianSDE
from scoresde.solvers import scalar
from scoresde.solvers.path import Point

__all__ = ["Data", "Drift", "Noise", "Prediction", "Rho", "Velocity"]


def _step(u: Point, v: Point) -> float:
    return v.lam - u.lam


@dataclass(frozen=True)
class Prediction(ABC):
    """Interface of predictions: the exact linear part of a step, and the quantity that is left to interpolate."""

    carries_zero_alpha = False
    """Whether a step may start at alpha = 0."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """The exponent of the integral, per unit of the clock."""

    @abstractmethod
    def clock(self, u: Point) -> float:
        """Return the variable of integration at ``u``."""

    @abstractmethod
    def time(self, sde: GaussianSDE, clock: Tensor) -> Tensor:
        """Return the times at which the clock shows ``clock``."""

    @abstractmethod
    def carry(self, u: Point, v: Point) -> float:
        """Return the factor of x_u in x_v."""

    @abstractmethod
    def gain(self, v: Point) -> float:
        """Return the factor in front of the integral."""

    @abstractmethod
    def mix(self, u: Point) -> tuple[float, float]:
        """Return p and q of N = p x + q m."""

    @abstractmethod
    def noise(self, u: Point, v: Point) -> float:
        """Return the standard deviation of the noise of the step."""

    @property
    def kernel(self) -> float:
        """The rate k in the noise of a step, which is the integral of e^{k s} dW_s with s counted from its end."""
        return 0.0

    def starting_at(self, u: Point, inner: bool = False) -> Prediction:
        """Return the prediction of a step that starts at ``u``: itself, or one that can start at alpha = 0.

        At alpha = 0 the substitute is ``Data`` with the same eta, which holds the data prediction constant over the step.
        For a step of the flow with ``inner`` stages, which need a finite clock, it is ``Velocity``.
        """
        if u.log_alpha != -math.inf:
            return self
        eta = getattr(self, "eta", 0.0)
        if inner and not eta:
            return self if self.carries_zero_alpha and scalar.isfinite(self.clock(u)) else Velocity()
        return self if self.carries_zero_alpha else Data(eta)


@dataclass(frozen=True)
class Data(Prediction):
    r"""N = m, carried as :math:`x / (\sigma e^{-\eta \lambda})` in lam: DPM-Solver++, DDIM; eta = 1: SDE-DPM-Solver++.

    Example:
        >>> from scoresde import EDM, solvers
        >>> u, v = solvers.make_path(EDM(), [4.0, 2.0], end="stop").points
        >>> Data().mix(u), round(Data().carry(u, v), 12), round(Data(eta=1.0).carry(u, v), 12)
        ((0.0, 1.0), 0.5, 0.25)
    """

    eta: float = 0.0
    carries_zero_alpha = True

    @property
    def rate(self) -> float:
        return 1 + self.eta

    def clock(self, u: Point) -> float:
        return u.lam

    def time(self, sde: GaussianSDE, clock: Tensor) -> Tensor:
        return sde.time(clock)

    def carry(self, u: Point, v: Point) -> float:
        decay = self.eta * _step(u, v) if self.eta else 0.0  # not 0 times infinity where alpha_u = 0
        return scalar.exp(v.log_sigma - u.log_sigma - decay)

    def gain(self, v: Point) -> float:
        return (1 + self.eta) * v.alpha

    def mix(self, u: Point) -> tuple[float, float]:
        return 0.0, 1.0

    def noise(self, u: Point, v: Point) -> float:
        return v.sigma * scalar.sqrt(-scalar.expm1(-2 * self.eta * _step(u, v))) if self.eta else 0.0

    @property
    def kernel(self) -> float:
        return scalar.value(self.eta)


class _NoiseKernel(Prediction):
    """The methods that Noise and Rho share: N = eps, carried as x / alpha."""

    eta: float

    def carry(self, u: Point, v: Point) -> float:
        return scalar.exp(v.log_alpha - u.log_alpha)

    def mix(self, u: Point) -> tuple[float, float]:
        return 1 / u.sigma, -u.alpha / u.sigma

    def noise(self, u: Point, v: Point) -> float:
        return v.sigma * scalar.sqrt(self.eta * scalar.expm1(2 * _step(u, v))) if self.eta else 0.0

    @property
    def kernel(self) -> float:
        return -1.0


@dataclass(frozen=True)
class Noise(_NoiseKernel):
    """N = eps in the clock lam: DPM-Solver, exponential Adams-Bashforth.

    Example:
        >>> from scoresde import EDM, solvers
        >>> u, v = solvers.make_path(EDM(), [4.0, 2.0], end="stop").points
        >>> [round(value, 12) for value in Noise().mix(u)], Noise().carry(u, v)  # eps = (x - m) / sigma
        ([0.25, -0.25], 1.0)
    """

    eta: float = 0.0

    @property
    def rate(self) -> float:
        return -1.0

    def clock(self, u: Point) -> float:
        return u.lam

    def time(self, sde: GaussianSDE, clock: Tensor) -> Tensor:
        return sde.time(clock)

    def gain(self, v: Point) -> float:
        return -(1 + self.eta) * v.sigma


@dataclass(frozen=True)
class Rho(_NoiseKernel):
    """N = eps in the clock rho = sigma / alpha, in which it is the slope of x / alpha: EDM's Euler and Heun, LMS.

    Example:
        >>> from scoresde import EDM, solvers
        >>> u, v = solvers.make_path(EDM(), [4.0, 2.0], end="stop").points
        >>> round(Rho().clock(u), 12), Rho().gain(v)
        (4.0, 1.0)
    """

    eta: float = 0.0

    @property
    def rate(self) -> float:
        return 0.0

    def clock(self, u: Point) -> float:
        return scalar.exp(-u.lam)

    def time(self, sde: GaussianSDE, clock: Tensor) -> Tensor:
        return sde.time(-torch.log(clock))

    def gain(self, v: Point) -> float:
        return (1 + self.eta) * v.alpha


@dataclass(frozen=True)
class Velocity(Prediction):
    r"""N = eps - m in the clock :math:`\sigma / (\alpha + \sigma)`, carried as x / (alpha + sigma): rectified flow.

    Example:
        >>> from scoresde import RectifiedFlow, solvers
        >>> u, v = solvers.make_path(RectifiedFlow(), [0.75, 0.5], end="stop").points
        >>> round(Velocity().clock(u), 12), round(Velocity().carry(u, v), 12)
        (0.75, 1.0)
    """

    carries_zero_alpha = True

    @property
    def rate(self) -> float:
        return 0.0

    def clock(self, u: Point) -> float:
        return 1 / (1 + scalar.exp(u.lam))

    def time(self, sde: GaussianSDE, clock: Tensor) -> Tensor:
        return sde.time(torch.log1p(-clock) - torch.log(clock))

    def carry(self, u: Point, v: Point) -> float:
        return (v.alpha + v.sigma) / (u.alpha + u.sigma)

    def gain(self, v: Point) -> float:
        return v.alpha + v.sigma

    def mix(self, u: Point) -> tuple[float, float]:
        return 1 / u.sigma, -(u.alpha + u.sigma) / u.sigma

    def noise(self, u: Point, v: Point) -> float:
        return 0.0


@dataclass(frozen=True)
class Drift(Prediction):
    """N = dx/dt, the drift of the reverse process itself, in the clock t: Euler, Heun, Runge-Kutta, Euler-Maruyama.

    Example:
        >>> from scoresde import EDM, solvers
        >>> u, v = solvers.make_path(EDM(), [4.0, 2.0], end="stop").points
        >>> [round(value, 12) for value in Drift().mix(u)]  # dx/dt = (x - m) / t
        [0.25, -0.25]
    """

    eta: float = 0.0

    @property
    def carries_zero_alpha(self) -> bool:  # type: ignore[override]  # a property of the instance here
        return self.eta == 0

    @property
    def rate(self) -> float:
        return 0.0

    def clock(self, u: Point) -> float:
        return u.t

    def time(self, sde: GaussianSDE, clock: Tensor) -> Tensor:
        return clock

    def carry(self, u: Point, v: Point) -> float:
        return 1.0

    def gain(self, v: Point) -> float:
        return 1.0

    def mix(self, u: Point) -> tuple[float, float]:
        # f x - (1 + eta) / 2 g^2 score, regrouped so that nothing is infinite at alpha = 0 while eta = 0.
        extra = 0.5 * self.eta * u.diffusion_squared / u.sigma**2 if self.eta else 0.0
        slope = u.d_log_sigma + extra
        return slope, u.d_alpha - u.alpha * slope

    def noise(self, u: Point, v: Point) -> float:
        return scalar.sqrt(self.eta * u.diffusion_squared * abs(v.t - u.t)) if self.eta else 0.0
