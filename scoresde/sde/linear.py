r"""SDEs with constant matrices, run at a rate: Langevin diffusions with velocities and accelerations.

.. math:: dz = \beta(t)\, F z\, dt + \sqrt{\beta(t)}\; G\, dw

With :math:`\tau = \int \beta` the transition is :math:`e^{F \tau}`. Van Loan's exponential gives the covariance that the
noise adds,

.. math:: \exp \begin{pmatrix} -F & G G^T \\ 0 & F^T \end{pmatrix} \tau
          = \begin{pmatrix} \cdot & e^{-F \tau} C \\ 0 & e^{F^T \tau} \end{pmatrix}, \qquad
          C = \int_0^\tau e^{F s} G G^T e^{F^T s} ds .

It is taken over a short time and doubled, :math:`C(2 \tau) = C + e^{F \tau} C e^{F^T \tau}`, which adds positive terms.

Source: Van Loan, "Computing Integrals Involving the Matrix Exponential", 1978, https://doi.org/10.1109/TAC.1978.1101743.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scoresde.sde.base import Time
from scoresde.sde.matrix import MatrixSDE
from scoresde.sde.modes import Basis, Pixels

__all__ = ["CLD", "ConstantMatrices", "LinearSDE", "ThirdOrderLangevin", "exponential", "van_loan"]


def van_loan(drift: Tensor, noise: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(F tau) and the covariance that the noise adds over ``tau``: see the module.

    Args:
        drift, noise: the matrices F and G G^T, shape ``(b, b)``, float64.
        tau: durations of at least zero, any shape.

    Returns:
        The transition and the covariance, each of shape ``(*tau.shape, b, b)``.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> transition, covariance = van_loan(-0.5 * one, one, torch.tensor(2.0, dtype=torch.float64))
        >>> bool(torch.allclose(transition**2 + covariance, one))  # the variance-preserving SDE
        True
    """
    b = len(drift)
    block = torch.cat([torch.cat([-drift, noise], 1), torch.cat([torch.zeros_like(drift), drift.mT], 1)])
    doublings = _halvings(block, tau)
    found = _taylor(block * (tau / 2**doublings)[..., None, None])
    step = found[..., b:, b:].mT
    covariance = step @ found[..., :b, b:]
    for _ in range(doublings):
        covariance = covariance + step @ covariance @ step.mT
        step = step @ step
    return step, 0.5 * (covariance + covariance.mT)


def exponential(matrix: Tensor, tau: Tensor) -> Tensor:
    """Return exp(matrix tau), shape ``(*tau.shape, b, b)``, with small relative errors of small entries.

    Where the position follows the noise over two integrals, an entry is of order tau^3 beside others of order 1.
    ``torch.matrix_exp`` is accurate next to the largest entry alone.
    """
    squarings = _halvings(matrix, tau)
    found = _taylor(matrix * (tau / 2**squarings)[..., None, None])
    for _ in range(squarings):
        found = found @ found
    return found


def _halvings(matrix: Tensor, tau: Tensor) -> int:
    """Return how often the longest duration is halved until the norm of the exponent is at most 1/2."""
    size = float(torch.linalg.matrix_norm(matrix, 1)) * float(tau.abs().max()) if tau.numel() else 0.0
    return max(0, math.ceil(math.log2(max(size, 1e-300) / 0.5)))


def _taylor(exponent: Tensor) -> Tensor:
    """Sum the series of the exponential for a norm of at most 1/2, to rounding."""
    eye = torch.eye(exponent.shape[-1], dtype=exponent.dtype)
    found = eye.expand_as(exponent)
    for k in range(18, 0, -1):
        found = eye + exponent @ found / k
    return found


@dataclass(frozen=True)
class ConstantMatrices(MatrixSDE):
    """Interface of the SDEs with constant matrices: three matrices and the fields ``beta_min`` .. ``t_max``.

    Raises:
        ValueError: if not 0 < beta_min <= beta_max and 0 < t_min < t_max, all finite.
    """

    @property
    @abstractmethod
    def drift_matrix(self) -> Tensor:
        """The matrix F, shape ``(b, b)``."""

    @property
    @abstractmethod
    def noise_matrix(self) -> Tensor:
        """The matrix G, shape ``(b, k)``."""

    @property
    @abstractmethod
    def initial_covariance(self) -> Tensor:
        """The covariance of the state at t = 0 given the data, shape ``(b, b)``."""

    def __post_init__(self) -> None:
        rates: Any = self
        if not 0 < rates.beta_min <= rates.beta_max < math.inf or not 0 < rates.t_min < rates.t_max < math.inf:
            raise ValueError(
                f"got beta_min={rates.beta_min}, beta_max={rates.beta_max}, t_min={rates.t_min} and t_max={rates.t_max}; "
                "expected 0 < beta_min <= beta_max and 0 < t_min < t_max, all finite"
            )

    @property
    def span(self) -> tuple[float, float]:
        rates: Any = self
        return rates.t_min, rates.t_max

    @property
    def variables(self) -> int:
        return len(self.drift_matrix)

    @property
    def basis(self) -> Basis:
        return Pixels()

    @cached_property
    def _noise(self) -> Tensor:
        return self.noise_matrix @ self.noise_matrix.mT

    @property
    def stationary_covariance(self) -> Tensor:
        r"""The covariance that the SDE tends to, the solution of :math:`F S + S F^T + G G^T = 0`, shape ``(b, b)``."""
        f, eye = self.drift_matrix, torch.eye(self.variables, dtype=torch.float64)
        system = torch.kron(f, eye) + torch.kron(eye, f)
        solution: Tensor = torch.linalg.solve(system, -self._noise.flatten())
        return solution.reshape(f.shape)

    def beta(self, t: Time) -> Tensor:
        """Return the rate beta(t) = beta_min + t (beta_max - beta_min), shape of ``t``."""
        rates: Any = self
        found: Tensor = rates.beta_min + torch.as_tensor(t, dtype=torch.float64) * (rates.beta_max - rates.beta_min)
        return found

    def elapsed(self, t: Time) -> Tensor:
        """Return the integral of the rate from 0 to ``t``, shape of ``t``."""
        rates: Any = self
        t = torch.as_tensor(t, dtype=torch.float64)
        found: Tensor = t * (rates.beta_min + 0.5 * t * (rates.beta_max - rates.beta_min))
        return found

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        beta = self.beta(t).cpu()[..., None, None]
        return beta * self.drift_matrix, beta * self._noise

    def transition(self, s: Time, t: Time) -> Tensor:
        length = (self.elapsed(s) - self.elapsed(t)).cpu()
        return exponential(self.drift_matrix, length)

    def mean_factor(self, t: Time) -> Tensor:
        return exponential(self.drift_matrix, self.elapsed(t).cpu())[..., :, :1]

    def covariance(self, t: Time) -> Tensor:
        transition, added = van_loan(self.drift_matrix, self._noise, self.elapsed(t).cpu())
        return transition @ self.initial_covariance @ transition.mT + added


def _square(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@dataclass(frozen=True)
class LinearSDE(ConstantMatrices):
    r"""The SDE with given constant matrices, :math:`dz = \beta(t) F z\, dt + \sqrt{\beta(t)}\, G\, dw`.

    Args:
        F: the drift, shape ``(b, b)``; the data are the first variable.
        G: the diffusion, shape ``(b, k)``.
        initial: the covariance of the state at t = 0 given the data, shape ``(b, b)``; zero by default. It is the place of
            the noise of velocities, whose first row and column are zero.
        beta_min, beta_max: the rates at t = 0 and t = 1, linear between.
        t_min, t_max: the span of time; ``t_min`` is above zero, where the data have no density.

    Raises:
        ValueError: for matrices of other shapes or numbers that are not finite; for an F that is not stable, under which the
            state would never forget the data; for noise that never reaches a direction of the state; and for an ``initial``
            that is no covariance.

    Example:
        >>> sde = LinearSDE([[-0.5]], [[1.0]], beta_min=0.1, beta_max=20.0)  # VP
        >>> from scoresde import VP
        >>> bool(torch.allclose(sde.lam(torch.tensor([0.1, 1.0])), VP().lam(torch.tensor([0.1, 1.0]).double())))
        True
    """

    F: Tensor
    G: Tensor
    initial: Tensor | None = None
    beta_min: float = 1.0
    beta_max: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        with torch.inference_mode(False):
            f, g = (torch.as_tensor(m, dtype=torch.float64, device="cpu").detach().clone() for m in (self.F, self.G))
            start = torch.zeros_like(f) if self.initial is None else self.initial
            start = torch.as_tensor(start, dtype=torch.float64, device="cpu").detach().clone()
        if f.ndim != 2 or f.shape[0] != f.shape[1] or not len(f):
            raise ValueError(f"got F of shape {tuple(f.shape)}; expected a square matrix (b, b), b the number of variables")
        if g.ndim != 2 or len(g) != len(f):
            raise ValueError(f"got G of shape {tuple(g.shape)} for F of shape {tuple(f.shape)}; expected ({len(f)}, k)")
        if not all(bool(torch.isfinite(m).all()) for m in (f, g, start)):
            raise ValueError("got F, G or initial with numbers that are not finite; expected finite numbers")
        growth = float(torch.linalg.eigvals(f).real.max())
        if not growth < 0:
            raise ValueError(
                f"got an F that is not stable: an eigenvalue has the real part {growth:.3g}, so the state never forgets the "
                "data; expected all real parts negative"
            )
        _check_reached(f, g)
        if start.shape != f.shape or not torch.allclose(start, start.mT) or float(torch.linalg.eigvalsh(start)[0]) < -1e-12:
            raise ValueError(
                f"got initial of shape {tuple(start.shape)}, which is no covariance of {len(f)} variables; expected a "
                f"symmetric, positive semi-definite matrix ({len(f)}, {len(f)})"
            )
        for name, value in {"F": f, "G": g, "initial": start}.items():
            object.__setattr__(self, name, value)

    @property
    def drift_matrix(self) -> Tensor:
        return self.F

    @property
    def noise_matrix(self) -> Tensor:
        return self.G

    @property
    def initial_covariance(self) -> Tensor:
        assert self.initial is not None
        return self.initial


def _check_reached(f: Tensor, g: Tensor) -> None:
    """Refuse noise that never reaches a direction of the state: the matrix (G, F G, F^2 G, ..) lacks rank (Kalman)."""
    scaled = f / float(torch.linalg.matrix_norm(f, 2))
    blocks, block = [], g
    for _ in range(len(f)):
        blocks.append(block)
        block = scaled @ block
    left, sizes, _ = torch.linalg.svd(torch.cat(blocks, 1))
    reached = int((sizes > 1e-12 * sizes[0]).sum()) if float(sizes[0]) > 0 else 0
    if reached < len(f):
        unreached = left[:, reached] * left[:, reached].sum().sign()
        direction = ", ".join(f"{v:.3g}" for v in unreached.tolist())
        raise ValueError(
            f"got noise that never reaches the direction ({direction}) of the state, directly or through F, so that the "
            "state has no density; expected a G, or a coupling in F, that reaches every variable"
        )


@dataclass(frozen=True)
class CLD(ConstantMatrices):
    r"""Critically damped Langevin diffusion: the data are positions, and the noise enters their velocities.

    .. math:: dx = \beta M^{-1} v\, dt, \qquad dv = -\beta (x + \Gamma M^{-1} v)\, dt + \sqrt{2 \Gamma \beta}\, dw,
              \qquad \Gamma = 2 \sqrt M .

    Velocities start from N(0, gamma M). The stationary law is :math:`N(0, \operatorname{diag}(1, M))`.

    Source: Dockhorn, Vahdat and Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", 2022,
    https://arxiv.org/abs/2112.07068.

    Args:
        mass: M.
        gamma: the variance of the velocity at t = 0 in units of M.
        beta_min, beta_max: the rates at t = 0 and t = 1; the paper takes 4 for both.
        t_min, t_max: the span of time.

    Raises:
        ValueError: for a mass that is not positive, and a negative ``gamma``.

    Example:
        >>> CLD().stationary_covariance.diagonal()
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    mass: float = 0.25
    gamma: float = 0.04
    beta_min: float = 4.0
    beta_max: float = 4.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mass < math.inf or not 0 <= self.gamma < math.inf:
            raise ValueError(f"got mass={self.mass} and gamma={self.gamma}; expected mass > 0 and gamma >= 0")

    @cached_property
    def drift_matrix(self) -> Tensor:
        """The matrix F, shape ``(2, 2)``."""
        return _square([[0.0, 1 / self.mass], [-1.0, -2 / math.sqrt(self.mass)]])

    @cached_property
    def noise_matrix(self) -> Tensor:
        """The matrix G, shape ``(2, 1)``."""
        return _square([[0.0], [2 * self.mass**0.25]])

    @cached_property
    def initial_covariance(self) -> Tensor:
        """The covariance diag(0, gamma M) at t = 0."""
        return _square([[0.0, 0.0], [0.0, self.gamma * self.mass]])


@dataclass(frozen=True)
class ThirdOrderLangevin(ConstantMatrices):
    r"""Third-order Langevin diffusion with positions, velocities and accelerations, critically damped.

    .. math:: dx = \beta v\, dt, \qquad dv = \beta (-x + \gamma a)\, dt, \qquad
              da = -\beta (\gamma v + \xi a)\, dt + \sqrt{2 \xi \beta}\, dw

    With :math:`\gamma = 2 \sqrt 2` and :math:`\xi = 3 \sqrt 3` all eigenvalues are :math:`-\sqrt 3`. The stationary law is
    standard normal.

    Sources: Shi and Liu, "Generative Modelling with High-Order Langevin Dynamics", 2024, https://arxiv.org/abs/2404.12814;
    Sterling and Bugallo, "Critically Damped Third-Order Langevin Dynamics", 2024, https://arxiv.org/abs/2409.07697.

    Args:
        variance: the variance of velocity and acceleration at t = 0.
        beta_min, beta_max: the rates at t = 0 and t = 1.
        t_min, t_max: the span of time.

    Raises:
        ValueError: for a negative variance.

    Example:
        >>> sde = ThirdOrderLangevin()
        >>> bool(torch.allclose(sde.stationary_covariance, torch.eye(3, dtype=torch.float64)))
        True
    """

    variance: float = 0.04
    beta_min: float = 5.0
    beta_max: float = 5.0
    t_min: float = 1e-2
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.variance < math.inf:
            raise ValueError(f"got variance={self.variance}; expected a number of at least zero")

    @cached_property
    def drift_matrix(self) -> Tensor:
        """The matrix F, shape ``(3, 3)``."""
        gamma, xi = 2 * math.sqrt(2), 3 * math.sqrt(3)
        return _square([[0.0, 1.0, 0.0], [-1.0, 0.0, gamma], [0.0, -gamma, -xi]])

    @cached_property
    def noise_matrix(self) -> Tensor:
        """The matrix G, shape ``(3, 1)``."""
        return _square([[0.0], [0.0], [math.sqrt(6 * math.sqrt(3))]])

    @cached_property
    def initial_covariance(self) -> Tensor:
        """The covariance diag(0, variance, variance) at t = 0."""
        return torch.diag(torch.tensor([0.0, self.variance, self.variance], dtype=torch.float64))
