"""Restoration in the spectrum of the operator (DDRM): every singular value has a step and a noise of its own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.inverse.conditioned import check_gaussian, check_linear, check_observation, observed
from scoresde.inverse.observation import Observation
from scoresde.inverse.operators import Singular
from scoresde.solvers import Description, Path, Point, RowSolver, Update
from scoresde.solvers.rows import forward_move, last_move

__all__ = ["SpectralStep", "ddrm", "decomposition", "stepwise"]


def ddrm(observation: Observation, eta: float = 0.85, eta_b: float = 1.0) -> RowSolver:
    r"""Denoising diffusion restoration, as a solver for the model of the data.

    In the basis of the right singular vectors of A, with :math:`\rho = \sigma / \alpha`, the state :math:`x / \alpha`, the
    data prediction m, the measurement :math:`\bar y = U^T y / s` and its noise :math:`\bar\sigma = \sigma_y / s`, a step to
    :math:`\rho_v` is

    .. math:: s = 0: &\quad m + \sqrt{1 - \eta^2}\, \rho_v\, \epsilon + \eta \rho_v \xi \\
              \rho_v < \bar\sigma: &\quad m + \sqrt{1 - \eta^2}\, \rho_v\, (\bar y - m) / \bar\sigma + \eta \rho_v \xi \\
              \rho_v > \bar\sigma: &\quad (1 - \eta_b)\, m + \eta_b\, \bar y
                                   + \sqrt{\rho_v^2 - \eta_b^2 \bar\sigma^2}\; \xi .

    It is a solver, because the noise of a step depends on the singular value and not on the data prediction alone. It runs
    on every driver that runs updates one after another. The start is drawn from the prior; with eta_b = 1 the
    first step keeps nothing of what is measured. What is measured passes to the rest by the network alone, and the network
    takes the state to be noised data, which it is not: samples are biased.

    Linear operators with a singular value decomposition; Gaussian noise of any level, zero too. A prediction costs one
    forward call.

    Args:
        observation: the measurement.
        eta: the share of fresh noise where the state is not measured, or less noisy than the measurement; from 0 to 1.
        eta_b: the weight of the measurement where the state is noisier; from 0 to 1.

    Raises:
        ValueError: for a nonlinear operator or one without a decomposition, Poisson noise, and other values.

    Source: Kawar et al., "Denoising Diffusion Restoration Models", 2022, https://arxiv.org/abs/2201.11793, equations (7)
    and (8).

    Example:
        >>> import scoresde
        >>> from scoresde.inverse import Observation, ddrm
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.1)
        >>> scoresde.sample(model, (64, 2), ddrm(seen), 20, progress=False).x.shape
        torch.Size([64, 2])
    """
    of = decomposition(observation, "ddrm")
    for name, value in (("eta", eta), ("eta_b", eta_b)):
        if not 0 <= value <= 1:
            raise ValueError(f"got {name}={value}; expected a number from 0 to 1")

    def step(u: Point, v: Point) -> Update:
        return _DDRM(u, v, observation, of, eta, eta_b)

    paper = "Kawar et al. 2022, arXiv:2201.11793"
    return RowSolver(Description("ddrm", "inverse", paper, stochastic=True), lambda path: stepwise(step, path))


def decomposition(observation: Observation, method: str) -> Singular:
    """Return the singular value decomposition of an observation's operator, and refuse what has none.

    Raises:
        TypeError: for what is not an observation.
        ValueError: for a nonlinear operator or one without a decomposition, and for Poisson noise.
    """
    check_observation(observation, method)
    check_linear(observation, method)
    check_gaussian(observation, method)
    try:
        found: Singular = observation.operator.singular()
    except ValueError as error:
        raise ValueError(
            f"{error}; or a method that needs no decomposition in place of {method}: PiGDM, TMPD, MMPS, DDNM, DiffPIR, daps "
            "or smc"
        ) from error
    return found


def stepwise(step: Callable[[Point, Point], Update], path: Path, last: bool = False) -> list[Update]:
    """Return ``step(u, v)`` for every move of a path towards the data.

    A move towards the noise is the forward kernel, as in every solver, and so is the last move to sigma = 0 unless it is to
    be a step too.
    """

    def update(u: Point, v: Point) -> Update:
        if v.sigma == 0 and not last:
            return last_move(path)
        return forward_move(u, v) if v.lam < u.lam else step(u, v)

    return [update(u, v) for u, v in path.moves]


@dataclass(frozen=True, eq=False)
class SpectralStep(Update):
    """Interface of a step from ``at`` to ``to`` in the basis of the right singular vectors; a subclass gives ``next``."""

    at: Point
    to: Point
    observation: Observation
    of: Singular
    ends_step: ClassVar[bool] = True  # type: ignore[misc]

    def apply(self, on: Any) -> None:
        m = on.predict()
        xi = on.draw_apart(self.at, self.to, 0.0)
        of, seen = self.of, observed(self.observation, m)
        values = of.values.to(device=m.device, dtype=m.dtype)
        level = torch.where(values > 0, seen.sigma / values.where(values > 0, 1.0), math.inf)
        y = of.from_y(seen.for_batch(len(m), m)) / values.where(values > 0, 1.0)
        found = self.next(of.from_x(on.x / self.at.alpha if self.at.alpha else on.x), of.from_x(m), y, level, of.from_x(xi))
        on.replace(self.to.alpha * of.to_x(found), self.to, True)

    @abstractmethod
    def next(self, x: Tensor, m: Tensor, y: Tensor, level: Tensor, xi: Tensor) -> Tensor:
        r"""Return the coefficients of the state over alpha at ``to``.

        Args:
            x, m, xi: coefficients of the state over alpha, the data prediction and standard normal noise, ``(batch, d)``.
            y: those of the measurement, :math:`U^T y / s`, arbitrary where s = 0.
            level: the standard deviation of y's noise, :math:`\sigma_y / s`, infinite where s = 0; shape ``(d,)``.
        """

    def __str__(self) -> str:
        return f"* {self.at.t:9.5f} {self.to.t:9.5f} {type(self).__name__.strip('_')}: {self.observation!r}"


@dataclass(frozen=True, eq=False)
class _DDRM(SpectralStep):
    eta: float
    eta_b: float

    def next(self, x: Tensor, m: Tensor, y: Tensor, level: Tensor, xi: Tensor) -> Tensor:
        rho, kept = math.exp(-self.to.lam), math.sqrt(1 - self.eta**2)
        eps = (x - m) / math.exp(-self.at.lam) if self.at.alpha else x / self.at.sigma
        fresh = self.eta * rho * xi
        unseen = m + kept * rho * eps + fresh
        finite = level.clamp(max=torch.finfo(level.dtype).max)
        late = m + kept * rho * (y - m) / finite.where(level > 0, 1.0) + fresh
        early = (1 - self.eta_b) * m + self.eta_b * y + (rho**2 - (self.eta_b * level) ** 2).clamp(min=0.0).sqrt() * xi
        return torch.where(rho > level, early, torch.where((rho < level) & (level < math.inf), late, unseen))
