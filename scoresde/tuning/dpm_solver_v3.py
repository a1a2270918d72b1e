"""DPM-Solver-v3: the statistics of a model, from which the linear part of its solver is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sampling import sample
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.reference import in_double
from scoresde.sampling.start import check_model, start
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.drivers import State
from scoresde.solvers.fitted import GeneralLinear, Statistics, model_identity
from scoresde.solvers.path import Path, points

__all__ = ["dpm_solver_v3", "linear_statistics"]

FLAT = 1e-10
"""The variance of f, relative to its mean square, below which s is zero: f then has no spread by which it could grow."""


def dpm_solver_v3(
    model: ScoreModel,
    shape_or_start: Tensor | Sequence[int],
    *,
    nodes: int = 3,
    pseudo: bool = False,
    corrector: bool = True,
    corrector_pseudo: bool = False,
    lower_order_final: bool = True,
    **options: Any,
) -> GeneralLinear:
    """Measure the statistics of a model, and return the solver DPM-Solver-v3 with them.

    It makes one evaluation a step, at the times of any path, moved to the nearest of the grid of the statistics. It is a
    solver for this model alone. On Gaussian data with a diagonal covariance a single step is exact, up to the grid.

    Args:
        model: the score model.
        shape_or_start: the shape ``(batch, *event)`` of the starts, or the starts; the statistics are averages over them.
        nodes, pseudo, corrector, corrector_pseudo, lower_order_final: the settings of the method,
            :class:`~scoresde.solvers.fitted.GeneralLinear`.
        options: those of :func:`linear_statistics`.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, and for wrong settings.

    Source: Zheng et al., "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics", 2023,
    https://arxiv.org/abs/2310.13268.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> solver = dpm_solver_v3(model, (32, 2), grid=40)
        >>> scoresde.sample(model, (4, 2), solver, 8, progress=False).evaluations
        8
    """
    known = linear_statistics(model, shape_or_start, **options)
    settings = (nodes, pseudo, corrector, corrector_pseudo, lower_order_final)
    return GeneralLinear(known, *settings, model=model_identity(model))


def linear_statistics(
    model: ScoreModel,
    shape_or_start: Tensor | Sequence[int],
    *,
    grid: int = 120,
    probes: int = 1,
    t_max: float | None = None,
    t_min: float | None = None,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> Statistics:
    r"""Measure the statistics of DPM-Solver-v3 along trajectories of the model's own flow.

    .. math:: l = E \operatorname{diag}(\sigma \nabla \epsilon), \qquad
              s = \frac{\operatorname{Cov}(f, \dot f)}{\operatorname{Var} f}, \qquad b = E \dot f - s\, E f,

    for each coordinate, with :math:`f = (\sigma \epsilon - l x) / \alpha` and its slope in :math:`\lambda` along a
    trajectory, by differences over the grid. The diagonal of the Jacobian is estimated by random signs.

    Args:
        model: the score model. A network is copied to float64.
        shape_or_start: the shape ``(batch, *event)`` of the starts, or the starts; the statistics are averages over them.
        grid: the number of intervals, even in lam. Each of its points costs two evaluations, one with a backward pass.
        probes: the number of random signs for each sample and point, each with a backward pass.
        t_max, t_min: the first and the last time, by default those of the SDE or, where alpha = 0, the time with lam = -5.
        seed, conditions: as for :func:`scoresde.sample`.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, and for wrong numbers.

    Example:
        >>> from scoresde import VP, problems
        >>> found = linear_statistics(problems.Gaussian([0.0], [[1.0]]).model(VP()), (4, 1), grid=20)
        >>> bool(torch.allclose(found.linear[:, 0], 1 / (1 + (2 * found.lam).exp()), atol=1e-6))  # as for Gaussian data
        True
    """
    check_model(model)
    sde = model.sde
    first = sde.span[1] if t_max is None else t_max
    last = sde.span[0] if t_min is None else t_min
    low = max(float(sde.lam(first)), -5.0) if sde.lam(first) == -torch.inf else float(sde.lam(first))
    lam = torch.linspace(low, float(sde.lam(last)), whole("grid", grid, 2) + 1, dtype=torch.float64)
    times = sde.time(lam)
    times[0], times[-1] = min(float(times[0]), sde.span[1]), last
    path = Path(sde, tuple(points(sde, times)), "stop")  # a last time of 0 is no clean end
    x, _ = start(shape_or_start, model, seed, path.points[0].sigma, None, torch.float64)
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    model = in_double(model, x, told)  # in f, which is divided by alpha, the rounding of single precision is large
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    averages = _Averages(model, told, whole("probes", probes, 1), generator, lam)
    with evaluation_mode(model):
        averages.add(path.points[0], x)
        given: dict[str, Any] = {"seed": seed, "conditions": conditions, "progress": False}
        sample(model, x, "abm-3", path=path, callback=lambda state: averages.see(state), **given)
    return averages.statistics()


class _Averages:
    """The averages over a batch of trajectories, point by point of the grid."""

    def __init__(
        self, model: ScoreModel, told: Mapping[str, Any], probes: int, generator: torch.Generator, lam: Tensor
    ) -> None:
        self.model, self.told, self.probes, self.generator, self.lam = model, told, probes, generator, lam
        self.linear: list[Tensor] = []
        self.growth: list[Tensor] = []
        self.constant: list[Tensor] = []
        self.values: list[Tensor] = []  # f at the last three points

    def see(self, state: State) -> None:
        self.add(state.point, state.x)

    def add(self, point: Any, x: Tensor) -> None:
        """Add the next point of the trajectories."""
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            eps = self.model.eps(y, point.t, **self.told)
            diagonal = torch.zeros_like(x, dtype=torch.float64)
            for i in range(self.probes):
                signs = torch.randint(0, 2, x.shape, generator=self.generator).to(x) * 2 - 1
                (product,) = torch.autograd.grad(eps, y, signs, retain_graph=i + 1 < self.probes)
                diagonal += (signs * product).double() / self.probes
        linear = point.sigma * diagonal.mean(0)
        self.linear.append(linear)
        f = (point.sigma * eps.detach().double() - linear * x.double()) / point.alpha
        self.values = [*self.values[-2:], f]
        if len(self.values) == 3:
            if len(self.growth) == 0:
                self._fit(self.values[0], self.values[0], self.values[1], 1)
            self._fit(self.values[1], self.values[0], self.values[2], 2)

    def _fit(self, f: Tensor, before: Tensor, after: Tensor, intervals: int) -> None:
        """Fit the slope of f to a line in f, for each coordinate."""
        slope = (after - before) / (intervals * float(self.lam.diff().mean()))
        mean, mean_slope = f.mean(0), slope.mean(0)
        variance = f.var(0, correction=0)
        spread = variance > FLAT * f.square().mean(0)
        covariance = ((f - mean) * (slope - mean_slope)).mean(0)
        growth = torch.where(spread, covariance / variance.where(spread, torch.ones_like(variance)), 0.0)
        self.growth.append(growth)
        self.constant.append(mean_slope - growth * mean)

    def statistics(self) -> Statistics:
        self._fit(self.values[-1], self.values[-2], self.values[-1], 1)
        columns = (torch.stack(each).cpu() for each in (self.linear, self.growth, self.constant))
        return Statistics(self.lam, *columns)
