r"""Analytic-DPM: the ancestral sampler with the optimal variance, from the measured error of the noise prediction.

For the exact model, the mean square of the noise prediction follows from its error, since that is orthogonal to it:
:math:`E \| \hat\epsilon \|^2 / d = 1 - E \| \epsilon - \hat\epsilon \|^2 / d`. The right side is measured. It is never above
one, its relative error is the same at all levels of noise, where the left side drowns in the spread of the noise, and it
gives the optimal variance of a model that is not exact, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sampling.start import check_model
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers.methods.ancestral import analytic_dpm
from scoresde.solvers.solver import RowSolver
from scoresde.tuning.ays import denoising_errors

__all__ = ["SquaredScore", "optimal_variance", "squared_score"]


@dataclass(frozen=True)
class SquaredScore:
    r"""The average :math:`\Gamma(t) = E \| s(x_t, t) \|^2 / d` of a model, interpolated between measurements.

    Between two measurements the logarithm of :math:`\rho^2 (1 - \sigma^2 \Gamma)`, the variance of the data given the state,
    is linear in lam; beyond them it is constant.

    Attributes:
        sde: the SDE.
        lam: the levels of the measurements, rising.
        variances: the variance of the data given the state, for a coordinate on average, at these levels.

    Example:
        >>> from scoresde import EDM
        >>> found = SquaredScore(EDM(), (-2.0, 0.0), (1.0, 0.5))
        >>> round(found(1.0), 6)  # sigma = 1, where lam = 0
        0.5
    """

    sde: GaussianSDE
    lam: tuple[float, ...]
    variances: tuple[float, ...]

    def __call__(self, t: float) -> float:
        """Return Gamma at a time."""
        lam = float(self.sde.lam(t))
        logs = np.log(np.maximum(self.variances, np.finfo(np.float64).tiny))
        return (1 - math.exp(float(np.interp(lam, self.lam, logs)) + 2 * lam)) / float(self.sde.sigma(t)) ** 2


def optimal_variance(
    model: ScoreModel,
    *,
    eta: float = 1.0,
    **options: Any,
) -> RowSolver:
    r"""Measure the mean square of a model's score, and return the ancestral sampler with the optimal variance.

    The step of DDIM with noise ``eta`` takes the data prediction for the data. Their variance given the state, on average
    :math:`\rho^2 (1 - E \| \epsilon \|^2 / d)`, is added to the noise of the step, see
    :func:`scoresde.solvers.analytic_dpm`. On isotropic Gaussian data every step then has the exact law, however long.

    Args:
        model: the score model.
        eta: the share of noise, between 0 and 1; 1 is the ancestral sampler of DDPM, 0 is Analytic-DDIM.
        options: those of :func:`squared_score`.

    Returns:
        A stochastic solver with one evaluation a step, for ``sample(.., solver)`` on any path.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, a model without data, and another eta.

    Source: Bao et al., "Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion Probabilistic
    Models", 2022, https://arxiv.org/abs/2201.06503.

    Example:
        >>> from scoresde import VP, problems, sample
        >>> model = problems.ring().model(VP())
        >>> solver = optimal_variance(model, n=64, grid=20)
        >>> sample(model, (4, 2), solver, 10, progress=False).evaluations
        10
    """
    return analytic_dpm(squared_score(model, **options), eta)


def _size(model: ScoreModel, data: Tensor | None) -> int:
    """Return the number of coordinates of a sample."""
    problem: Any = getattr(model, "problem", None)
    return math.prod(problem.event if data is None else data.shape[1:])


def squared_score(
    model: ScoreModel,
    *,
    data: Tensor | None = None,
    grid: int = 100,
    n: int = 256,
    t_max: float | None = None,
    t_min: float | None = None,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> SquaredScore:
    """Measure the mean square of a model's score on noised data, at levels even in lam.

    Args:
        model: the score model.
        data: samples of the data, shape ``(m, *event)``; by default they are drawn from the model's problem.
        grid: the number of levels, each of which costs an evaluation of all samples.
        n: the number of samples drawn where ``data`` is not given.
        t_max, t_min: the first and the last time, by default those of the SDE or, where alpha = 0, the time with lam = -5.
        seed: the seed of the data and of the noise.
        conditions: the values on which the model is conditioned, one for each sample of ``data``.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, and a model without data.

    Example:
        >>> from scoresde import VP, problems
        >>> found = squared_score(problems.Gaussian([0.0, 0.0], 1.0).model(VP()), n=20_000, grid=5)
        >>> abs(found(0.5) - 1) < 0.02  # the score of N(0, I) is -x at all times
        True
    """
    check_model(model)
    sde = model.sde
    low = float(sde.lam(sde.span[1] if t_max is None else t_max))
    low, high = low if math.isfinite(low) else -5.0, float(sde.lam(sde.span[0] if t_min is None else t_min))
    lam = torch.linspace(low, high, whole("grid", grid, 2), dtype=torch.float64)
    times = sde.time(lam).clamp(*sde.span)
    errors, size = denoising_errors(model, times, data=data, n=n, seed=seed, conditions=conditions), _size(model, data)
    return SquaredScore(sde, tuple(lam.tolist()), tuple((errors / size).tolist()))
