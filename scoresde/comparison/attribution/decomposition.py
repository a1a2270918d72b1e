r"""Decomposition of the error of samples into four parts: the prior, stopping early, the score and the solver's steps.

Four changes lead from exact samples of the data to the samples of a solver. They are made here one after the other. Each
part of the error is the distance between the samples before a change and after it:

==================  =================  =============  ================================  ====================================
samples             starts from        score          follows                           part
==================  =================  =============  ================================  ====================================
the data            infinite noise     exact          the flow, to sigma = 0
                    the prior          exact          the flow, to sigma = 0            ``prior``
                    the prior          exact          the flow, to the end of the path  ``stopping``
                    the prior          the model's    the flow, to the end of the path  ``score``
the solver's        the prior          the model's    the solver, along the path        ``discretization``
==================  =================  =============  ================================  ====================================

:func:`decompose` follows samples, each from one draw of noise through all rows of the table. The distance is the root mean
square over samples and coordinates. The flow from infinite noise depends on sigma / alpha alone. It is therefore followed
on rectified flow, which begins at alpha = 0, to where the path starts. There its samples have exactly the law of the noised
data. They differ from samples of the prior, N(0, sigma^2 I), only as far as the two laws do.

On Gaussian data the laws themselves can be followed. This needs no samples and applies to solvers that draw noise too:
:func:`~scoresde.comparison.attribution.gaussian.decompose_gaussian`.

A distance obeys the triangle inequality, so the total is at most the sum of the parts. It is less where the parts are
independent of one another or cancel.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.comparison.attribution.figures import decomposition
from scoresde.comparison.report.tables import number
from scoresde.metrics import Estimate, rms_error
from scoresde.problems import Problem
from scoresde.sampling import sample
from scoresde.sampling.reference import flow_end, in_double
from scoresde.sampling.start import start as draw_start
from scoresde.score import ScoreModel
from scoresde.sde import VP, GaussianSDE, RectifiedFlow
from scoresde.solvers.path import Path, Point, make_path, points
from scoresde.solvers.solver import Solver
from scoresde.solvers.table import get

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PARTS", "Decomposition", "checked_solvers", "collected", "decompose", "figure", "table"]

PARTS = ("prior", "stopping", "score", "discretization")
"""The four sources of error, in the order of the changes."""


@dataclass(frozen=True)
class Decomposition:
    """The parts of the error of one solver, each a distance with its confidence interval.

    Attributes:
        evaluations: the counted evaluations of the model; for a law, the evaluations that the rows of the solver need.
        prior: the part from the start, which does not have exactly the law of the noised data.
        stopping: the part from a path that ends before sigma = 0, or by a move that is not the flow.
        score: the part from the model's score, which is not the score of the data.
        discretization: the part from the finite number of the solver's steps.
        total: the distance of the solver's samples from the data.
        added: the growth of the distance from the data with each part, in the order of :data:`PARTS`; negative where a part
            cancels earlier ones. Their sum is exactly the total.
        distance: the kind of distance, "rms" or "wasserstein".

    Example:
        >>> none, steps = Estimate(0.0, 0.0, 0.0), Estimate(0.25, 0.2, 0.3)
        >>> found = Decomposition(20, none, none, none, steps, steps, (0.0, 0.0, 0.0, 0.25), "rms")
        >>> max(found.parts, key=lambda name: found.parts[name].value)
        'discretization'
    """

    evaluations: int
    prior: Estimate
    stopping: Estimate
    score: Estimate
    discretization: Estimate
    total: Estimate
    added: tuple[float, float, float, float]
    distance: str

    @property
    def parts(self) -> dict[str, Estimate]:
        """The four parts by name."""
        return {name: getattr(self, name) for name in PARTS}


def decompose(
    problem: Problem[Any],
    solvers: str | Solver | Iterable[str | Solver],
    steps: int = 20,
    path: str = "lam",
    *,
    model: ScoreModel | None = None,
    sde: GaussianSDE | None = None,
    n: int = 64,
    seed: int = 0,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "denoise",
    tolerance: float = 1e-9,
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Decomposition]:
    """Return the error of the end points of deterministic solvers, part by part: see the module.

    The cost is four or five solves of the flow for all solvers together.

    Args:
        problem: the distribution of the data, whose score is exact.
        solvers: names or solvers, one or several, that draw no noise.
        steps, path, t_min, t_max, end: the path, as for :func:`scoresde.sample`.
        model: the model to sample: a network, or a result of :func:`~scoresde.comparison.inject`; by default the exact one.
        sde: the SDE of the exact model, by default VP; with ``model``, its SDE.
        n: the number of starts, at least two.
        seed: the seed of the starts.
        tolerance, cache: the arguments of :func:`scoresde.sampling.reference.flow_end`.

    Returns:
        A :class:`Decomposition` for each solver by name.

    Raises:
        ValueError: for a solver that draws noise, or an ``sde`` that is not the model's.

    Example:
        >>> from scoresde import problems
        >>> found = decompose(problems.gaussian(), ["ddim", "dpm-2"], 20, n=8)
        >>> bool(found["ddim"].prior == found["dpm-2"].prior), found["ddim"].score.value
        (True, 0.0)
        >>> bool(found["ddim"].discretization.value > 5 * found["dpm-2"].discretization.value)
        True
    """
    methods = checked_solvers(solvers)
    for method in methods:
        if method.stochastic:
            raise ValueError(
                f"got solver {method.name!r}, which draws noise and follows no flow; expected deterministic ones: on "
                "Gaussian data decompose_gaussian serves it too"
            )
    exact = problem.model(_sde(sde, model))
    where = make_path(exact.sde, path, steps, t_min=t_min, t_max=t_max, end=end)
    begin = where.points[0]
    noise, _ = draw_start((n, *problem.event), None, seed, 1.0, None, torch.float64)
    prior = begin.sigma * noise

    def flow(which: ScoreModel, x: Tensor, to: str) -> Tensor:
        return flow_end(which, x, where, tolerance=tolerance, to=to, cache=cache).x

    data = flow(exact, _exact_start(problem, noise, begin, tolerance, cache), "data")
    ends = [data, flow(exact, prior, "data"), flow(exact, prior, "path")]
    given = exact if model is None else in_double(model, prior)
    ends.append(ends[-1] if model is None else flow(given, prior, "path"))
    found = {}
    for method in methods:
        run = sample(given, prior, method, path=where, progress=False)
        whole = [*ends, run.x]
        parts = [rms_error(b, a) for a, b in itertools.pairwise(whole)]
        found[method.name] = collected(run.evaluations, parts, [rms_error(x, data) for x in whole[1:]], "rms")
    return found


def table(found: Mapping[str, Decomposition]) -> str:
    """Return the parts as a table in Markdown: a row for each solver, the smallest total first.

    Example:
        >>> from scoresde import problems
        >>> from scoresde.comparison import decompose_gaussian
        >>> text = table(decompose_gaussian(problems.gaussian(), ["ddim", "dpm-2"]))
        >>> print(text.splitlines()[0])
        | solver | evaluations | prior | stopping | score | discretization | total |
    """
    rows = [f"| solver | evaluations | {' | '.join(PARTS)} | total |", "|---|---:" + "|---:" * (len(PARTS) + 1) + "|"]
    for name, d in sorted(found.items(), key=lambda item: item[1].total.value):
        cells = [number(e.value, e.low, e.high) for e in (*d.parts.values(), d.total)]
        rows.append(f"| {name} | {d.evaluations} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def figure(found: Mapping[str, Decomposition]) -> Figure:
    """Draw one bar for each solver, with one section for each part and a line across the bar at the total.

    The total is at most the sum of the sections.

    Raises:
        ValueError: for nothing to draw, or different distances in one figure.
    """
    distances = {d.distance for d in found.values()}
    if len(distances) != 1:
        raise ValueError(f"got {len(found)} solvers by {sorted(distances)}; expected at least one, all by one distance")
    name = {"rms": "root mean square", "wasserstein": "2-Wasserstein distance per coordinate"}[distances.pop()]
    bars = {solver: {part: e.value for part, e in d.parts.items()} for solver, d in found.items()}
    totals = {solver: d.total.value for solver, d in found.items()}
    return decomposition(bars, totals=totals, xlabel=f"{name}: parts, and the total (line, number)")


# Parts ---------------------------------------------------------------------------------------------------------------


def checked_solvers(solvers: str | Solver | Iterable[str | Solver]) -> list[Solver]:
    """Return the solvers as objects, at least one, each name once."""
    listed = [solvers] if isinstance(solvers, str | Solver) else list(solvers)
    methods = [get(s) if isinstance(s, str) else s for s in listed]
    if not methods or len({m.name for m in methods}) < len(methods):
        raise ValueError(f"got solvers {[m.name for m in methods]}; expected at least one, each name once")
    return methods


def _sde(sde: GaussianSDE | None, model: ScoreModel | None) -> GaussianSDE:
    if model is None:
        return VP() if sde is None else sde
    if sde is not None and sde != model.sde:
        raise ValueError(f"got sde={sde!r} and a model on {model.sde!r}; expected the same, or no sde")
    return model.sde


def collected(calls: int, parts: list[Estimate], grown: list[Estimate], distance: str) -> Decomposition:
    """Make the decomposition from the parts and the distances from the data after each change."""
    sizes = [0.0, *(e.value for e in grown)]
    a, b, c, d = (after - before for before, after in itertools.pairwise(sizes))
    prior, stopping, score, discretization = parts
    return Decomposition(calls, prior, stopping, score, discretization, grown[-1], (a, b, c, d), distance)


def _exact_start(
    problem: Problem[Any], noise: Tensor, begin: Point, tolerance: float, cache: str | os.PathLike[str] | None
) -> Tensor:
    """Return the state at the point ``begin`` of the flow from infinite noise, ``noise`` in units of it."""
    if begin.log_alpha == -math.inf:
        return begin.sigma * noise
    sde = RectifiedFlow()
    there, here = points(sde, torch.stack([torch.tensor(1.0).double(), sde.time(torch.tensor(begin.lam).double())]))
    found = flow_end(problem.model(sde), noise, Path(sde, (there, here), "stop"), tolerance=tolerance, cache=cache)
    return found.x * (begin.sigma / here.sigma)
