"""DiffPIR: a proximal step of the likelihood after each data prediction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.inverse.conditioned import Conditioned, check_linear, check_scale, noise_variance
from scoresde.inverse.normal_equations import weighed
from scoresde.inverse.observation import Observation
from scoresde.score import ScoreModel
from scoresde.sde import Time
from scoresde.solvers import Description, Point, Row, RowSolver, each_step
from scoresde.solvers.rows import one_step

__all__ = ["DiffPIR", "renoised"]


class DiffPIR(Conditioned):
    r"""Plug-and-play restoration: the data prediction is moved to the maximum of the likelihood and a Gaussian around it.

    .. math:: \operatorname*{arg\,min}_{x_0} \frac{\| y - A x_0 \|^2}{2 \sigma_y^2} + \frac{\| x_0 - \hat x_0 \|^2}{2 r_t^2}
              = \hat x_0 + r_t^2 A^T \big(r_t^2 A A^T + \sigma_y^2 I\big)^{-1} (y - A \hat x_0), \qquad
              r_t^2 = \frac{\sigma_t^2}{\zeta\, \alpha_t^2}

    with zeta = ``scale`` (the paper's lambda). It is :class:`PiGDM` with the Jacobian taken to be that of data without any
    structure, and becomes :class:`DDNM` as the noise of the measurement goes to zero. The paper's sampler is
    :func:`renoised` on this model. Nothing passes from what is measured to the rest except by the network, so samples are
    biased.

    Linear operators; Gaussian noise of any level, zero too, and Poisson noise by its estimated variance. A prediction costs
    no backward call.

    Args:
        model: the model of the data.
        observation: the measurement.
        scale: zeta, positive; a larger one trusts the network more. The paper takes 1 to 25.

    Raises:
        ValueError: for a nonlinear operator, and a scale that is not positive.

    Source: Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration", 2023,
    https://arxiv.org/abs/2305.08995, algorithm 1.

    Example:
        >>> import scoresde
        >>> from scoresde.inverse import DiffPIR, Observation, renoised
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.1)
        >>> scoresde.sample(DiffPIR(model, seen), (64, 2), renoised(0.3), 20, progress=False).x.shape
        torch.Size([64, 2])
    """

    def __init__(self, model: ScoreModel, observation: Observation, scale: float = 1.0) -> None:
        super().__init__(model, observation)
        check_linear(observation, "DiffPIR")
        self.scale = check_scale("scale", scale)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction after the proximal step, shape of ``x``."""
        m, seen = self.model.x0(x, t, **conditions), self._observed(x, t)
        sde, t = self.model.sde, self.model.sde.check_time(t).to(torch.float64)
        # Divided by r^2, which is infinite where alpha = 0 and zero where sigma = 0.
        residual = seen.residual(m)
        noise = noise_variance(seen).to(residual.device)
        precision = (self.scale * (2 * sde.lam(t)).exp()).to(residual.device)
        if noise.ndim > 1:
            precision = expand(precision, residual)
        product = torch.where(noise > 0, noise * precision, 0.0)
        return m + weighed(seen.operator, residual, torch.ones((), dtype=torch.float64), product)


def renoised(share: float = 0.3) -> RowSolver:
    r"""DDIM with the share zeta of the noise at each point drawn anew, as a solver.

    .. math:: x_v = \alpha_v m + \sigma_v \big( \sqrt{1 - \zeta}\, \epsilon + \sqrt{\zeta}\, \xi \big)

    where :math:`\epsilon = (x_u - \alpha_u m) / \sigma_u`. zeta = 0 is DDIM; with zeta = 1 only the data prediction is kept.
    The share is the same for long and short steps, so with more steps more noise is drawn in all, and the variance that m
    leaves out is lost: without a measurement the samples of many steps have too small a variance.

    Args:
        share: zeta, from 0 to 1.

    Source: Zhu et al., 2023, algorithm 1.

    Raises:
        ValueError: if ``share`` is not between 0 and 1.

    Example:
        >>> renoised(0.3)
        <solver renoised>
    """
    if not 0 <= share <= 1:
        raise ValueError(f"got share={share!r}; expected a number between 0 (DDIM) and 1 (all noise drawn anew)")

    def rule(u: Point, v: Point) -> Row:
        a = math.sqrt(1 - share) * v.sigma / u.sigma
        return one_step(u, v, a=a, w=v.alpha - a * u.alpha, s=math.sqrt(share) * v.sigma)

    paper = "Zhu et al. 2023, arXiv:2305.08995"
    description = Description("renoised", "ancestral", paper, weak_order=None, stochastic=share > 0)
    return RowSolver(description, lambda path: each_step(rule, path))
