r"""Decomposition of the error in law: on Gaussian data, in closed form.

The four changes are those of :mod:`scoresde.comparison.attribution.decomposition`, applied to laws instead of samples. All
laws are Gaussian and known in closed form. The distance is the 2-Wasserstein distance, divided by the root of the dimension,
so that it too is per coordinate. No samples are needed, and solvers that draw noise are included. They follow the
reverse SDE in the place of the flow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from scoresde.analysis.moments import Moments, moments
from scoresde.comparison.attribution.decomposition import Decomposition, checked_solvers, collected
from scoresde.metrics import Estimate
from scoresde.problems import Gaussian
from scoresde.sde import VP, GaussianSDE
from scoresde.solvers.path import CLEAN, Path, Point, make_path
from scoresde.solvers.solver import RowSolver, Solver

__all__ = ["decompose_gaussian"]


def decompose_gaussian(
    problem: Gaussian,
    solvers: str | Solver | Iterable[str | Solver],
    steps: int = 20,
    path: str = "lam",
    *,
    believed: Gaussian | None = None,
    sde: GaussianSDE | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "denoise",
) -> dict[str, Decomposition]:
    r"""Return the error of the law of a solver's samples on Gaussian data, part by part: see the module.

    Let v be the variance of the noised data in a direction. The reverse process with :math:`\eta = 0` (the flow) or 1 (the
    SDE) multiplies a deviation from the mean by the factor

    .. math:: (v_s / v_t)^{(1 + \eta) / 2} \, (\alpha_t / \alpha_s)^\eta,

    from time t to time s, and adds the variance that keeps v the marginal.

    Args:
        problem: the law of the data.
        solvers: names or solvers with rows, one or several. Solvers that draw noise are compared with the reverse SDE. Where
            they follow another process, by restarts, corrections or a diffusion of their own (er-sde), the difference counts
            as discretization.
        steps, path, t_min, t_max, end: the path, as for :func:`scoresde.sample`.
        believed: the Gaussian whose score the solver is given; by default the law of the data.
        sde: the SDE, by default VP.

    Raises:
        ValueError: for a solver without rows or with corrections that are not linear, and a ``believed`` of another shape.

    Example:
        >>> from scoresde import problems
        >>> found = decompose_gaussian(problems.gaussian(), ["ddpm", "ddim"], 20)
        >>> bool(found["ddpm"].prior.value < found["ddim"].prior.value)  # noise lets a wrong start be forgotten
        True
    """
    believed = problem if believed is None else believed
    for law in (problem, believed):
        if not isinstance(law, Gaussian):
            raise TypeError(f"got a {type(law).__name__}; expected a Gaussian: decompose serves the other problems")
    if believed.event != problem.event:
        raise ValueError(
            f"got believed data of shape {tuple(believed.event)} for data of shape {tuple(problem.event)}; expected the same"
        )
    where = make_path(VP() if sde is None else sde, path, steps, t_min=t_min, t_max=t_max, end=end)
    data = Moments(problem.mean.flatten(), problem.covariance)
    found = {}
    for method in checked_solvers(solvers):
        eta = 1.0 if method.stochastic else 0.0
        runs = ((problem, "data"), (problem, "path"), (believed, "path"))
        laws = [data, *(_process(law, where, to, eta) for law, to in runs)]
        laws.append(moments(method, where, believed.mean, believed.covariance, start="prior"))
        parts = [Estimate.exact(_wasserstein(a, b)) for a, b in itertools.pairwise(laws)]
        grown = [Estimate.exact(_wasserstein(data, law)) for law in laws[1:]]
        assert isinstance(method, RowSolver)  # only solvers with rows have moments
        calls = sum(getattr(row, "at", None) is not None for row in method.rows(where))
        found[method.name] = collected(calls, parts, grown, "wasserstein")
    return found


def _process(law: Gaussian, path: Path, to: str, eta: float) -> Moments:
    """Return the law at the end of the reverse process with the score of ``law``, from the prior of ``path``."""
    variances, basis = torch.linalg.eigh(law.covariance)
    variances, centre = variances.clamp(min=0), basis.T @ law.mean.flatten()
    begin = path.points[0]
    stop = CLEAN if to == "data" else path.points[-2] if path.ends_clean else path.points[-1]

    def marginal(p: Point) -> Tensor:
        return cast(Tensor, p.alpha**2 * variances + p.sigma**2)

    gain = (marginal(stop) / marginal(begin)) ** ((1 + eta) / 2) * (begin.alpha / stop.alpha) ** eta
    mean = stop.alpha * centre - gain * begin.alpha * centre  # the prior's mean is zero
    variance = marginal(stop) + gain**2 * (begin.sigma**2 - marginal(begin))
    if to == "path" and path.ends_clean:
        slope = stop.alpha * variances / marginal(stop)  # the slope of the data prediction
        offset = centre * (1 - slope * stop.alpha)
        if path.end == "flow":
            slope, offset = 0.5 * (slope + 1 / stop.alpha), 0.5 * offset
        mean, variance = slope * mean + offset, slope**2 * variance
    return Moments(basis @ mean, (basis * variance) @ basis.T)


def _wasserstein(a: Moments, b: Moments) -> float:
    """Return the 2-Wasserstein distance of two Gaussians, divided by the root of the dimension.

    The nearest roots of both covariances are subtracted instead of their traces, so that small distances keep their digits.
    """
    of_a, of_b = (_root(m.covariance) for m in (a, b))
    u, _, v = torch.linalg.svd(of_b.mT @ of_a)
    squared = (a.mean - b.mean).square().sum() + (of_a - of_b @ (u @ v)).square().sum()
    return math.sqrt(float(squared) / len(a.mean))


def _root(covariance: Tensor) -> Tensor:
    """Return a matrix A with A A^T = C."""
    values, vectors = torch.linalg.eigh(covariance)
    return cast(Tensor, vectors * values.clamp(min=0).sqrt())
