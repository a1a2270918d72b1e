r"""Exact score models of analytic problems under SDEs with matrix coefficients.

If all modes have the same matrices, the state tells as much of the data as one noised observation,

.. math:: y = \frac{c^T L^{-1} z}{|c|^2} \sim N(x_0, |c|^{-2} I), \qquad c = L^{-1} \psi,

so the data prediction is the problem's own at the signal-to-noise ratio :math:`|c|^2`, for every problem. If each mode has a
schedule of its own, the noise of the data is a Gaussian that is diagonal in the basis of the SDE. Mixtures of Gaussians are
known under it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import check_batch, expand
from scoresde.score import ScoreModel
from scoresde.sde import MatrixSDE, Time

__all__ = ["ExactMatrixModel"]


class ExactMatrixModel(ScoreModel):
    """The exact score model of a problem on an SDE with matrix coefficients, which has no network.

    Args:
        problem: the distribution of the data. If the modes of the SDE differ, a mixture of Gaussians.
        sde: the SDE.

    Example:
        >>> from scoresde import problems
        >>> from scoresde.sde import CLD
        >>> model = problems.ring().model(CLD())
        >>> z = torch.zeros(1, 2, 2, dtype=torch.float64, requires_grad=True)
        >>> (gradient,) = torch.autograd.grad(model.log_prob(z, 0.5).sum(), z)
        >>> bool(torch.allclose(gradient, model.score(z, 0.5)))
        True
    """

    def __init__(self, problem: Any, sde: MatrixSDE) -> None:
        super().__init__(None, sde, "score")
        self.problem = problem

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction E[x_0 | z_t = x], shape of the data."""
        return self._posterior(x, t)[1]

    def log_prob(self, z: Tensor, t: Time) -> Tensor:
        """Return the log-density of the states ``z`` at the time ``t``, in nats, shape ``(batch,)``."""
        return self._posterior(z, t)[0].to(z.dtype)

    def _posterior(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Return the log-density of the states and the data prediction."""
        sde: Any = self.sde
        at_time: Tensor = sde.check_time(t)
        shape = sde.data_shape(check_batch(z).shape)
        if sde.state_shape(shape) != z.shape or shape[1:] != self.problem.event:
            raise ValueError(
                f"got a state of shape {tuple(z.shape)}; expected "
                f"(batch, {', '.join(map(str, sde.state_shape((1, *self.problem.event))[1:]))}), "
                f"a state of {self.problem!r} on {type(sde).__name__}"
            )
        expand(at_time, z)
        if sde.modes:
            return self._of_modes(sde, z, at_time)
        f = sde.factors(at_time)
        snr = f.signal.square().sum(-2, keepdim=True)  # (*times, 1, 1)
        pooled = f.signal.mT @ sde.whitening(f.root) / snr
        alpha, sigma = (snr / (1 + snr)).sqrt(), (1 + snr).rsqrt()
        y = sde.map(alpha * pooled, to_state=False) * z
        at = self.problem.posterior_at(y, alpha.reshape(-1, 1).to(z.device), sigma.reshape(-1, 1).to(z.device))
        # The rest of the state is Gaussian noise, whatever the data are: |L^-1 z|^2 - |c|^2 y^2.
        left = (y / expand((alpha / snr.sqrt()).reshape(at_time.shape), y).to(y)).flatten(1).square().sum(1)
        volume = 0.5 * y[0].numel() * (math.log(2 * math.pi) - snr.log1p()).reshape(-1).to(z)
        log_prob = at.log_prob + sde.log_normal(z, f.root).to(z.dtype) + 0.5 * left + volume
        return log_prob, at.x0.reshape(shape).to(z.dtype)

    def _of_modes(self, sde: MatrixSDE, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        u = sde.basis.forward(z.unsqueeze(1).to(torch.float64)).squeeze(1)  # (batch, *coordinates)
        lead = (-1,) if t.ndim else (1,)
        alpha, variance = (
            m[..., 0, 0].reshape(*lead, *[1] * (u.ndim - 1 - sde.modes), *m.shape[t.ndim : -2]).expand(-1, *u.shape[1:])
            for m in (sde.mean_factor(t), sde.covariance(t))
        )
        found, m = self.problem.posterior_of_modes(
            sde.basis, u.flatten(1), alpha.flatten(1).to(z.device), variance.flatten(1).to(z.device)
        )
        data = sde.basis.inverse(m.reshape(len(m), 1, *u.shape[1:]), z.shape[1:]).squeeze(1)
        return found, data.to(z.dtype)

    def __repr__(self) -> str:
        return f"{self.problem!r}.model({self.sde!r})"
