"""Diffusion posterior sampling (DPS): the gradient of the misfit of the data prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import expand
from scoresde.inverse.conditioned import Conditioned, check_scalar, check_scale
from scoresde.inverse.likelihood import likelihood_gradient
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.observation import Observation
from scoresde.score import Calls, ScoreModel
from scoresde.sde import Time

__all__ = ["DPS"]


class DPS(Conditioned):
    r"""Diffusion posterior sampling: a step down the gradient of the misfit :math:`\| y - A(\hat x_0(x)) \|`.

    The paper's sampler is the ancestral one of DDPM with the step
    :math:`x \leftarrow x - \zeta \nabla_x \|y - A(\hat x_0)\|` after each of its own. The data prediction enters a step of
    length 1 / ``steps`` with the weight w(t), so the same samples come from

    .. math:: \hat x_0 - \frac{\zeta}{w(t)} \nabla_x \| y - A(\hat x_0) \|, \qquad
              w(t) = \alpha_s \big(1 - e^{-2 (\lambda_s - \lambda_t)}\big), \quad s = t - T / \mathrm{steps},

    which other solvers and other numbers of steps can use as well: the guidance is that of a sampler with ``steps`` steps,
    whatever the solver. Since the gradient has about the same size for every misfit, neither the level of the noise nor the
    number of measurements enters, and the samples are not those of the posterior. ``step="likelihood"`` takes the
    likelihood at the data prediction in place of p(y | x_t), times ``scale``:

    .. math:: \hat x_0 + \zeta \frac{\sigma_t^2}{\alpha_t} \nabla_x \log p(y \mid x_0 = \hat x_0(x)) .

    On Gaussian data it is affine. It leaves out the variance of the data given the state, so the misfit counts for too much
    at early times, and a solver with few steps is unstable where the noise of the measurement is small.

    Any operator; Gaussian noise of any level, zero too with ``step="normalised"``; Poisson noise, where a normalised step
    weighs each number by its variance. Each sample has a misfit of its own: none depends on its batch. A prediction costs
    one backward call.

    Args:
        model: the model of the data.
        observation: the measurement.
        scale: zeta, positive. The paper takes 0.3 to 1 for images in [-1, 1].
        step: ``"normalised"`` or ``"likelihood"``.
        steps: the number of steps of the sampler whose guidance is taken, 1000 in the paper; for ``"normalised"`` only. An
            ancestral sampler with fewer steps overshoots.

    Raises:
        ValueError: for other values, and for ``step="likelihood"`` without noise, where there is no likelihood.

    Source: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
    https://arxiv.org/abs/2209.14687, algorithm 1.

    Example:
        >>> import scoresde
        >>> from scoresde.inverse import DPS, Observation
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.1)
        >>> samples = scoresde.sample(DPS(model, seen), (64, 2), "ddpm", 100, "t", progress=False)
        >>> samples.evaluations, samples.backward
        (100, 100)
    """

    def __init__(
        self,
        model: ScoreModel,
        observation: Observation,
        scale: float = 1.0,
        step: str = "normalised",
        steps: int = 100,
    ) -> None:
        super().__init__(model, observation)
        if step not in ("normalised", "likelihood"):
            raise ValueError(f"got step={step!r}; expected 'normalised' or 'likelihood'")
        if step == "normalised":
            check_scalar(model, "DPS with step='normalised'", "step='likelihood', TMPD, MMPS or PiGDM")
        if step == "likelihood" and observation.noise == "gaussian" and observation.sigma == 0:
            raise ValueError(
                "got sigma=0 for DPS with step='likelihood', where a measurement has no density; expected sigma > 0, or "
                "step='normalised'"
            )
        self.scale, self.step, self.steps = check_scale("scale", scale), step, whole("steps", steps, 1)

    @property
    def calls(self) -> Calls:
        """The calls of the inner model, and one backward."""
        return self._calls(1)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the guided data prediction, shape of ``x``."""
        at, seen = Linearization(self.model, x, t, conditions), self._observed(x, t)
        if self.step == "likelihood":
            return at.m + self.scale * at.covariance_times(likelihood_gradient(seen, at.m))
        return at.m + expand(self.scale / self._weight(t), x).to(x) * at.pull(_normalised(seen, at.m))

    def _weight(self, t: Time) -> Tensor:
        """Return the weight of the data prediction in a step of the ancestral sampler with ``steps`` steps."""
        sde = self.model.sde
        t = sde.check_time(t).to(torch.float64)
        s = (t - sde.span[1] / self.steps).clamp(min=0.0)
        weight = sde.alpha(s) * -torch.expm1(-2 * (sde.lam(s) - sde.lam(t)))
        return torch.where(s < t, weight, 1.0)


def _normalised(seen: Observation, m: Tensor) -> Tensor:
    """Return minus the gradient of the misfit at the data prediction ``m``; zero where the misfit is zero."""
    residual = seen.residual(m)
    weighted = residual
    if seen.noise == "poisson":
        variance = torch.as_tensor(seen.variance).to(residual)
        residual, weighted = residual / variance.sqrt(), residual / variance
    squares = expand(residual.flatten(1).square().sum(1), residual)  # its root has no derivative where it is zero
    return seen.operator.vjp(m, torch.where(squares > 0, weighted / squares.where(squares > 0, 1.0).sqrt(), 0.0))
