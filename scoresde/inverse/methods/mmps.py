"""Moment matching posterior sampling (MMPS): TMPD's system, solved by conjugate gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import expand
from scoresde.inverse.conditioned import Conditioned, check_linear, noise_variance
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.normal_equations import conjugate_gradients
from scoresde.inverse.observation import Observation
from scoresde.score import Calls, ScoreModel
from scoresde.sde import Time

__all__ = ["MMPS"]


class MMPS(Conditioned):
    r"""Moment matching posterior sampling: the data given the state have their own covariance, without forming a matrix.

    As in :class:`TMPD` the data prediction of the posterior is

    .. math:: \hat x_0 + V^T A^T u, \qquad \big(A V A^T + \sigma_y^2 I\big)\, u = y - A \hat x_0, \qquad
              V = \frac{\sigma_t^2}{\alpha_t} \frac{\partial \hat x_0}{\partial x},

    and u comes from conjugate gradients, each iteration with one backward call. As many iterations as a measurement has
    numbers solve the system; fewer are close where few eigenvalues dominate. It is exact for Gaussian data then, and the
    dependence of V on the state is the bias on other data. Each sample has a trajectory of its own and stops by itself.

    The condition number of the system is up to :math:`\|A V A^T\| / \sigma_y^2`: large at high noise and for an
    ill-conditioned A, about 1 at low noise. So no one number of iterations fits all times. With a ``tolerance`` the
    iterations go on to that relative residual, and ``iterations`` is their largest number:
    ``MMPS(model, observation, iterations=50, tolerance=1e-3)``.

    Linear operators; Gaussian noise of any level, zero too, and Poisson noise by its estimated variance.

    Args:
        model: the model of the data.
        observation: the measurement.
        iterations: the number of conjugate gradient iterations, at least 1; with a ``tolerance`` the largest number.
        tolerance: the residual of the system, relative to that of u = 0, at which a sample stops; 0 for rounding error.

    Raises:
        ValueError: for a nonlinear operator, fewer than one iteration, and a tolerance that is not from 0 to 1.

    Source: Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization", 2024,
    https://arxiv.org/abs/2405.13712, section 4.2 and algorithm 3.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import MMPS, Observation
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]).model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.1)
        >>> samples = scoresde.sample(MMPS(model, seen, iterations=1), (64, 2), steps=20, progress=False)
        >>> samples.evaluations, samples.backward
        (20, 20)
    """

    def __init__(self, model: ScoreModel, observation: Observation, iterations: int = 3, tolerance: float = 0.0) -> None:
        super().__init__(model, observation)
        check_linear(observation, "MMPS")
        self.iterations = whole("iterations", iterations, 1)
        if not 0 <= tolerance < 1:
            raise ValueError(f"got tolerance={tolerance!r}; expected a relative residual from 0 (rounding error) to 1")
        self.tolerance = float(tolerance)

    @property
    def calls(self) -> Calls:
        """The calls of the inner model, and one backward for each iteration; with a tolerance the most there can be."""
        return self._calls(self.iterations)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the posterior, shape of ``x``."""
        at, seen = Linearization(self.model, x, t, conditions), self._observed(x, t)
        residual, noise = seen.residual(at.m), noise_variance(seen)
        noise = (expand(noise, residual) if noise.ndim <= 1 else noise).to(residual)

        def system(p: Tensor) -> tuple[Tensor, Tensor]:
            back = at.covariance_times(seen.operator.adjoint(p))
            return seen.operator(back) + noise * p, back

        return at.m + conjugate_gradients(system, residual, self.iterations, self.tolerance)
