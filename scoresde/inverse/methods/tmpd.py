"""Tweedie moment projection (TMPD): the data given the state have the covariance that the network's Jacobian gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.conditioned import Conditioned, check_linear, noise_variance
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.observation import Observation
from scoresde.score import Calls, ScoreModel
from scoresde.sde import Time

__all__ = ["TMPD"]


class TMPD(Conditioned):
    r"""Tweedie moment projected diffusion, which samples the posterior of Gaussian data exactly.

    The data given the state are taken to be Gaussian with their own mean and covariance,

    .. math:: N(\hat x_0, V), \qquad V = \frac{\sigma_t^2}{\alpha_t} \frac{\partial \hat x_0}{\partial x},

    so y given the state is :math:`N(A \hat x_0, A V A^T + \sigma_y^2 I)` and the data prediction of the posterior is

    .. math:: \hat x_0 + V^T A^T \big(A V A^T + \sigma_y^2 I\big)^{-1} (y - A \hat x_0) .

    For Gaussian data this is exact, at any noise. The dependence of V on the state is left out, which is the bias on other
    data. ``covariance="full"`` solves the system as it is; each number of a measurement costs one backward call, so it is
    meant for few. ``covariance="diagonal"`` is the paper's choice for images: in place of :math:`A V A^T` a diagonal matrix
    with its row sums, :math:`A V A^T 1`, for two backward calls. It is exact where A V A^T is diagonal already.
    :class:`MMPS` solves the full system by conjugate gradients.

    Linear operators; Gaussian noise of any level, zero too, and Poisson noise by its estimated variance.

    Args:
        model: the model of the data.
        observation: the measurement.
        covariance: ``"full"`` or ``"diagonal"``.

    Raises:
        ValueError: for a nonlinear operator, and for other values.

    Source: Boys et al., "Tweedie Moment Projected Diffusions For Inverse Problems", 2023, https://arxiv.org/abs/2310.06721.

    Example:
        >>> import scoresde
        >>> from scoresde.inverse import TMPD, Observation
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]).model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.0)
        >>> x = scoresde.sample(TMPD(model, seen), (4096, 2), steps=50, progress=False).x
        >>> bool((x.mean(0) - torch.tensor([1.0, 0.9])).abs().max() < 0.05)
        True
    """

    def __init__(self, model: ScoreModel, observation: Observation, covariance: str = "full") -> None:
        super().__init__(model, observation)
        check_linear(observation, "TMPD")
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"got covariance={covariance!r}; expected 'full' or 'diagonal'")
        self.covariance = covariance

    @property
    def calls(self) -> Calls:
        """The calls of the inner model, and one backward for each number of a measurement, or two."""
        return self._calls(self.observation.operator.measured.numel() if self.covariance == "full" else 2)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the posterior, shape of ``x``."""
        at, seen = Linearization(self.model, x, t, conditions), self._observed(x, t)
        residual = seen.residual(at.m)
        noise = noise_variance(seen).to(residual)
        if self.covariance == "full":
            return at.m + _projected(at, seen, residual, noise)
        ones = seen.operator.adjoint(torch.ones_like(residual))
        variance = seen.operator(at.covariance_times(ones)).clamp(min=0.0) + noise
        weight = torch.where(variance > 0, residual / variance.where(variance > 0, 1.0), 0.0)
        return at.m + at.covariance_times(seen.operator.adjoint(weight))


def _projected(at: Linearization, seen: Observation, residual: Tensor, noise: Tensor) -> Tensor:
    """Return V^T A^T (A V A^T + C)^+ r by one column of V^T A^T for each number of a measurement."""
    measured = seen.operator.measured
    dtype = torch.promote_types(residual.dtype, torch.float32)  # bfloat16 has no linear algebra
    units = torch.eye(measured.numel(), dtype=residual.dtype, device=residual.device).reshape(-1, 1, *measured)
    columns = [at.covariance_times(seen.operator.adjoint(unit.expand_as(residual))) for unit in units]
    system = torch.stack([seen.operator(column).flatten(1) for column in columns], dim=2).to(dtype)  # (batch, m, m)
    system = (system + system.mT) / 2 + torch.diag_embed(noise.expand_as(residual).flatten(1).to(dtype))
    weight = (torch.linalg.pinv(system, hermitian=True) @ residual.flatten(1).to(dtype)[..., None])[..., 0]
    stacked = torch.stack([column.flatten(1) for column in columns], dim=2)  # (batch, d, m)
    found: Tensor = (stacked.to(dtype) @ weight[..., None])[..., 0].reshape(at.m.shape)
    return found.to(at.m.dtype)
