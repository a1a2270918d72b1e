r"""The exact law of the samples of an affine sampler, from runs on the zero and unit vectors, without Monte Carlo.

If the model is affine in the state, the end of a run is an affine function of the start and of every draw of noise,

.. math:: x_{end} = b + M x_{start} + \sum_k G_k \xi_k ,

for every solver with fixed steps. A run from the mean of the start without noise gives the mean of the output. A run for
each principal direction of the start, and for each number of each draw of noise, gives a column of a root of the covariance.
Runs with random starts and random noise check the map: their ends must be the sums of these columns, or the sampler is not
affine and is refused.

Data that are Gaussian have affine models, and so do most models conditioned on a linear measurement of such data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.analysis.moments import Moments, root
from scoresde.sampling import sample
from scoresde.score import ScoreModel
from scoresde.solvers.drivers import Project
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import PathLike, Point, make_path
from scoresde.solvers.scalar import value
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get

__all__ = ["law"]

CHECKS = 4
"""The number of random runs that check the affine map."""

ROWS = 2048
"""The largest number of runs in a batch."""


def law(
    model: ScoreModel,
    event: Sequence[int],
    solver: str | Solver = "auto",
    steps: int = 20,
    path: PathLike | None = None,
    *,
    start: Moments | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str | None = None,
    project: Project | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Moments:
    r"""Compute the exact mean and covariance of the samples that :func:`scoresde.sample` draws with an affine model.

    The output is Gaussian. Its distance from a Gaussian truth is ``law(..).wasserstein(Moments.of(truth))``.

    Args:
        model: a score model whose data prediction is affine in the state, such as the exact model of a Gaussian or a method
            for inverse problems around one.
        event: the shape of one sample, of d numbers. With K draws of noise there are 1 + d + d K runs.
        solver: a name in :data:`scoresde.solvers.SOLVERS` or a solver that makes rows.
        steps: the number of steps.
        path: the spacing of times, or a path; by default the solver's own.
        start: the mean and covariance of the start; by default the prior, N(0, sigma^2 I).
        t_min, t_max, end: the ends of the path; see :func:`scoresde.sample`, also for ``project`` and ``conditions``.
        project: a function ``project(x, t)`` applied to the state at the end of each step.
        conditions: the conditions of the model.

    Raises:
        ValueError: for a solver that chooses its own steps, or a sampler that is not affine in the start and the noise.

    Example:
        >>> from scoresde import VP, problems
        >>> data = problems.Gaussian([1.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
        >>> found = law(data.model(VP()), data.event, "ddpm", 200)
        >>> 0 < found.wasserstein(Moments.of(data)) < 0.05
        True
    """
    method = get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, RowSolver):
        raise ValueError(
            f"got solver {method.name!r}, which chooses its steps by the state, so that its samples are no affine function "
            "of the noise; expected a solver with fixed steps, or draw samples instead"
        )
    span: dict[str, Any] = {"t_max": t_max, "t_min": t_min}
    if path is None:
        where = method.own_path(model.sde, steps, end=end, **span)
    else:
        where = make_path(model.sde, path, steps, end=end or method.own_end, **span)
    event = torch.Size(event)
    d = event.numel()
    if start is None:
        sigma = math.exp(value(where.points[0].log_sigma))
        start = Moments(torch.zeros(d, dtype=torch.float64), sigma**2 * torch.eye(d, dtype=torch.float64))
    spread = root(start.covariance)

    def run(x: Tensor, noise: _Units) -> Tensor:
        states = (start.mean + x).reshape(len(x), *event)
        options: dict[str, Any] = {"project": project, "conditions": conditions}
        return sample(model, states, method, path=where, noise=noise, progress=False, **options).x.flatten(1)

    def moved(rows: Tensor) -> Tensor:
        """Return the ends of runs whose starts and draws are rows of standard deviations."""
        return run(rows[:, :d] @ spread.T, _Units(rows[:, d:].reshape(len(rows), draws, d)))

    counting = _Units(torch.zeros(1, 0, d, dtype=torch.float64))
    mean = run(torch.zeros(1, d, dtype=torch.float64), counting)[0]
    draws = counting.draws
    inputs = torch.eye(d * (1 + draws), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    checks = torch.randn(CHECKS, d * (1 + draws), generator=generator, dtype=torch.float64)
    columns, ends = (
        torch.cat([moved(rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]) - mean for rows in (inputs, checks)
    )
    expected, size = checks @ columns, (checks.abs() @ columns.abs() + mean.abs()).norm()
    error = float((ends - expected).norm() / size) if size > 0 else 0.0
    if not error <= 1e-9:
        raise ValueError(
            f"got a sampler that is not affine in its start and its noise: random runs end {error:.1e} of their size away "
            "from the superposition of unit runs; expected the exact model of Gaussian data, or a method around it that is "
            "affine (DPS with a normalised step is not), and a solver without corrections whose step depends on the state"
        )
    return Moments(mean, columns.T @ columns)


class _Units(FreshNoise):
    """A source of noise that returns given draws, shape ``(batch, draws, d)``, and zeros after the last of them."""

    def __init__(self, given: Tensor) -> None:
        super().__init__(range(len(given)), given.device)
        self.given, self.draws = given, 0

    def normal(self, out: Tensor) -> Tensor:
        known = self.draws < self.given.shape[1]
        self.draws += 1
        return out.copy_(self.given[:, self.draws - 1].reshape(out.shape)) if known else out.zero_()

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        return self.normal(out)
