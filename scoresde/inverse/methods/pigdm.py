"""Pseudoinverse-guided diffusion (PiGDM): the data given the state are taken to be Gaussian with a known variance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoresde.base.shape import expand
from scoresde.inverse.conditioned import Conditioned, check_linear, check_scale, noise_variance
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.normal_equations import weighed
from scoresde.inverse.observation import Observation
from scoresde.score import Calls, ScoreModel
from scoresde.sde import Time

__all__ = ["PiGDM", "prior_variance"]


class PiGDM(Conditioned):
    r"""Pseudoinverse guidance, with the noise of the measurement.

    The data given the state are taken to be :math:`N(\hat x_0, r_t^2 I)`, which they are for data :math:`N(\mu, s^2 I)` with
    :math:`r_t^2 = s^2 \sigma_t^2 / (\sigma_t^2 + s^2 \alpha_t^2)`. Then y given the state is Gaussian, and

    .. math:: \hat x_0 + \frac{\sigma_t^2}{\alpha_t} \Big(\frac{\partial \hat x_0}{\partial x}\Big)^T A^T
              \big(r_t^2 A A^T + \sigma_y^2 I\big)^{-1} (y - A \hat x_0)

    is the data prediction of the posterior. Without noise the residual is weighed by the Moore-Penrose inverse of A. Where
    the data are correlated, or have another variance than s^2, samples are biased. ``variant="published"`` takes the weight
    of the paper's algorithm, :math:`\alpha_t r_t^2` in place of :math:`\sigma_t^2 / \alpha_t`, which is smaller by
    :math:`\alpha_t^2 / (\alpha_t^2 + \sigma_t^2)` for s = 1 and so lets the measurement in later.

    Linear operators; Gaussian noise of any level, zero too, and Poisson noise by its estimated variance. A prediction costs
    one backward call.

    Args:
        model: the model of the data.
        observation: the measurement.
        std: s, the standard deviation of the data in any direction.
        variant: ``"exact"`` or ``"published"``.

    Raises:
        ValueError: for a nonlinear operator, and for other values.

    Source: Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
    https://openreview.net/forum?id=9_gsMA8MRKQ, equations (7) and (8), algorithm 1.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import Observation, PiGDM
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.Gaussian([0.0, 0.0], 1.0).model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.5)
        >>> x = scoresde.sample(PiGDM(model, seen), (4096, 2), steps=50, progress=False).x
        >>> bool((x.mean(0) - torch.tensor([0.8, 0.0])).abs().max() < 0.05)  # y / (1 + sigma^2)
        True
    """

    def __init__(self, model: ScoreModel, observation: Observation, std: float = 1.0, variant: str = "exact") -> None:
        super().__init__(model, observation)
        check_linear(observation, "PiGDM")
        if variant not in ("exact", "published"):
            raise ValueError(f"got variant={variant!r}; expected 'exact' or 'published'")
        self.std, self.variant = check_scale("std", std), variant

    @property
    def calls(self) -> Calls:
        """The calls of the inner model, and one backward."""
        return self._calls(1)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the posterior, shape of ``x``."""
        at, seen = Linearization(self.model, x, t, conditions), self._observed(x, t)
        variance = prior_variance(at.alpha, at.sigma, self.std)
        weight = weighed(seen.operator, seen.residual(at.m), variance, noise_variance(seen))
        if self.variant == "exact":
            return at.m + at.covariance_times(weight)
        return at.m + expand(variance, at.m).to(at.m) * at.signal_times(weight)


def prior_variance(alpha: Tensor, sigma: Tensor, std: float) -> Tensor:
    """Return the variance of data N(mu, ``std``^2 I) given the noised state, s^2 sigma^2 / (sigma^2 + s^2 alpha^2).

    Example:
        >>> import torch
        >>> import torch
        >>> prior_variance(torch.tensor(0.6), torch.tensor(0.8), 1.0)
        tensor(0.6400)
    """
    return std**2 * sigma**2 / (sigma**2 + std**2 * alpha**2)
