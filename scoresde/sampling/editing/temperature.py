r"""The score model of data at another temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.score import ScoreModel, Wrapper
from scoresde.sde import GaussianSDE, Time

__all__ = ["Tempered"]


class Tempered(Wrapper):
    r"""A score model of data at the temperature tau: below 1 closer to the modes, above 1 more spread.

    Data with the density p are to be sampled with a density proportional to :math:`p^{1 / \tau}`. With
    :math:`y = x / \alpha`, :math:`\rho = \sigma / \alpha` and :math:`D(y, \rho)` the data prediction, its own is taken to be

    .. math:: D_\tau(y, \rho) = D(y, \rho / \sqrt\tau),

    the same state seen as if it had another level of noise. Under any solver, deterministic or stochastic, this samples
    N(mu, tau C) for Gaussian data N(mu, C), exactly. For a mixture it is not exact: the weights of its modes come out
    between those of p and those of :math:`p^{1 / \tau}`, and the flow makes the modes wider than they should be, which a
    stochastic solver hardly does. Levels of noise beyond the span of the SDE are replaced by its ends.

    A scaled prior, :func:`scoresde.sampling.latents` with a temperature, has the same law for Gaussian data, but only
    along the flow.

    Args:
        model: any score model on a :class:`~scoresde.GaussianSDE`.
        temperature: tau, above 0.

    Raises:
        ValueError: for a temperature that is not positive, and an SDE without Gaussian marginals.

    Source of the idea: Ingraham et al., "Illuminating protein design with a programmable generative model", 2023,
    https://doi.org/10.1038/s41586-023-06728-8, supplementary section on low-temperature sampling, where the same is derived
    for isotropic Gaussians.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.Gaussian([1.0], [[4.0]]).model(scoresde.EDM())
        >>> x = scoresde.sample(Tempered(model, 0.25), (4000, 1), "dpmpp-2m", steps=40, progress=False).x
        >>> round(x.mean().item(), 1), round(x.std().item(), 1)
        (1.0, 1.0)
    """

    def __init__(self, model: ScoreModel, temperature: float) -> None:
        super().__init__(model)
        if not 0 < temperature < math.inf:
            raise ValueError(f"got temperature={temperature}; expected a positive number, and 1 for the data as they are")
        if not isinstance(self.sde, GaussianSDE):
            raise ValueError(
                f"got a model on {type(self.sde).__name__}, which has no level of noise to shift; expected a model on a "
                "GaussianSDE, such as VP()"
            )
        self.temperature = temperature

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction at the other level of noise, shape of ``x``."""
        t = self.sde.check_time(t).to(torch.float64)
        if self.temperature == 1:
            return self.model.x0(x, t, **conditions)
        low, high = (self.sde.lam(end) for end in reversed(self.sde.span))
        lam = (self.sde.lam(t) + 0.5 * math.log(self.temperature)).clamp(low.to(t.device), high.to(t.device))
        other = self.sde.time(lam)
        scale = torch.where(torch.isinf(lam), 0.0, (self.sde.log_alpha(other) - self.sde.log_alpha(t)).exp())
        return self.model.x0(expand(scale, x).to(x) * x, other, **conditions)
