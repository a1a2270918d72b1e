"""Decoupled annealing (DAPS): draw the data given the state and the measurement, and noise them anew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import expand
from scoresde.inverse.conditioned import check_observation, check_scale, noise_variance, observed
from scoresde.inverse.likelihood import likelihood_gradient
from scoresde.inverse.methods.ddrm import SpectralStep, stepwise
from scoresde.inverse.methods.pigdm import prior_variance
from scoresde.inverse.normal_equations import singular_or_none
from scoresde.inverse.observation import Observation
from scoresde.solvers import Description, Point, RowSolver, Update
from scoresde.solvers.updates import States

__all__ = ["daps"]


def daps(
    observation: Observation, std: float = 1.0, langevin: int = 100, step: float = 0.1, curvature: float = 1.0
) -> RowSolver:
    r"""Decoupled annealing posterior sampling, as a solver for the model of the data.

    A step from u to v draws the data given the state and the measurement, and the state at v given the data:

    .. math:: x_0 \sim \propto N(x_0;\, m,\, r_u^2 I)\; p(y \mid x_0), \qquad x_v = \alpha_v x_0 + \sigma_v \xi, \qquad
              r_u^2 = \frac{s^2 \sigma_u^2}{\sigma_u^2 + s^2 \alpha_u^2} .

    Both keep the marginals of the posterior where the data given the state are :math:`N(m, r_u^2 I)`, as for data
    :math:`N(\mu, s^2 I)`. On other data the draw has the wrong covariance, which is the bias. (The paper takes
    :math:`r_u = \sigma_u / \alpha_u`, a large s, and a data prediction of several steps of the flow.) It draws noise inside
    a step, so it is a solver, which runs on every driver that runs updates one after another.

    For a linear operator with a singular value decomposition and Gaussian noise the draw is exact, whatever the noise, zero
    too. Otherwise it is unadjusted Langevin dynamics from m with the step size

    .. math:: h = \mathrm{step} \Big/ \Big( \frac{1}{r_u^2} + \frac{\mathrm{curvature}}{\sigma_y^2} \Big),

    which costs calls of the operator and none of the network: any operator, Gaussian noise with sigma > 0 and Poisson noise.
    What the measurement does not determine takes about r_u^2 / h steps to be drawn; with fewer its variance is too small.

    Args:
        observation: the measurement.
        std: s, the standard deviation of the data in any direction.
        langevin: the number of Langevin steps where the draw is not exact.
        step: the size of a Langevin step, relative to where the dynamics become unstable at 2.
        curvature: the largest squared singular value of the operator's Jacobian, as far as it is known.

    Raises:
        ValueError: for Langevin dynamics without noise, and for other values.

    Source: Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing", 2024,
    https://arxiv.org/abs/2407.01521, algorithm 1.

    Example:
        >>> import scoresde
        >>> from scoresde.inverse import Observation, daps
        >>> from scoresde.inverse.operators import Function
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Function(lambda x: x.square().sum(1, keepdim=True), (2,)), torch.tensor([1.0]), 0.1)
        >>> scoresde.sample(model, (64, 2), daps(seen, langevin=20, curvature=8.0), 20, progress=False).x.shape
        torch.Size([64, 2])
    """
    check_observation(observation, "daps")
    check_scale("std", std)
    check_scale("step", step)
    check_scale("curvature", curvature)
    langevin = whole("langevin", langevin, 1)
    exact = observation.operator.linear and observation.noise == "gaussian"
    of = singular_or_none(observation.operator) if exact else None
    if of is None and observation.noise == "gaussian" and observation.sigma == 0:
        raise ValueError(
            f"got sigma=0 for daps with {observation.operator!r}, which has no singular value decomposition, so that the "
            "data are drawn by Langevin dynamics on the likelihood; expected sigma > 0"
        )

    def update(u: Point, v: Point) -> Update:
        if of is not None:
            return _Exact(u, v, observation, of, std)
        return _Langevin(u, v, observation, std, langevin, step, curvature)

    description = Description("daps", "inverse", "Zhang et al. 2024, arXiv:2407.01521", stochastic=True)
    return RowSolver(description, lambda path: stepwise(update, path, last=True))


def _variance(u: Point, std: float) -> float:
    return float(prior_variance(torch.tensor(u.alpha), torch.tensor(u.sigma), std))


@dataclass(frozen=True, eq=False)
class _Exact(SpectralStep):
    std: float

    def next(self, x: Tensor, m: Tensor, y: Tensor, level: Tensor, xi: Tensor) -> Tensor:
        prior, noise = _variance(self.at, self.std), level**2
        seen = torch.where(level < math.inf, prior / (prior + noise), 0.0)  # the weight of the measurement
        variance = prior * (1 - seen) + math.exp(-2 * self.to.lam)
        return m + seen * (y - m) + variance.sqrt() * xi


@dataclass(frozen=True, eq=False)
class _Langevin(Update):
    at: Point
    to: Point
    observation: Observation
    std: float
    langevin: int
    step: float
    curvature: float
    ends_step: ClassVar[bool] = True  # type: ignore[misc]

    def apply(self, on: States) -> None:
        m: Tensor = on.predict()
        seen, prior = observed(self.observation, m), _variance(self.at, self.std)
        noise = noise_variance(seen)
        least = noise.flatten(1).amin(1) if noise.ndim else noise  # of each sample, which does not depend on the others
        h = expand(self.step / (1 / prior + self.curvature / least), m).to(m)
        x0 = m.clone()
        for _ in range(self.langevin):
            drift = (m - x0) / prior + likelihood_gradient(seen, x0)
            x0 = x0 + h * drift + (2 * h).sqrt() * on.draw_apart(self.at, self.at, 0.0)
        on.replace(self.to.alpha * x0 + self.to.sigma * on.draw_apart(self.at, self.to, 0.0), self.to, True)

    def __str__(self) -> str:
        return f"* {self.at.t:9.5f} {self.to.t:9.5f} DAPS: {self.langevin} Langevin steps of {self.step:g}"
