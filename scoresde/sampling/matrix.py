"""What sampling does differently on an SDE with matrix coefficients: its solver, its plan and its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import check_shape
from scoresde.sampling.kept import Times
from scoresde.sampling.start import start
from scoresde.score import ScoreModel
from scoresde.sde import MatrixSDE
from scoresde.solvers.matrix.path import MatrixPath, MatrixPoint, make_matrix_path
from scoresde.solvers.matrix.rows import MatrixSolver
from scoresde.solvers.matrix.table import MATRIX_SOLVERS
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.solver import Solver
from scoresde.solvers.updates import Update

__all__ = ["kept_on_path", "matrix_plan", "matrix_solver", "matrix_start"]


def matrix_solver(solver: str | Solver, sde: MatrixSDE) -> MatrixSolver:
    """Return the solver for an SDE with matrix coefficients, by its name or as it is; ``"auto"`` is gDDIM of two nodes.

    Raises:
        ValueError: for a solver whose coefficients are numbers.
    """
    made = MATRIX_SOLVERS.make("gddim-2" if solver == "auto" else solver) if isinstance(solver, str) else solver
    if not isinstance(made, MatrixSolver):
        raise ValueError(
            f"got solver {solver!r} on {type(sde).__name__}, whose coefficients are matrices; expected a solver of "
            "scoresde.solvers.MATRIX_SOLVERS, such as 'gddim-2', or solvers.exponential('data', 2)"
        )
    return made


def matrix_plan(
    method: MatrixSolver, sde: MatrixSDE, path: Any, steps: int, t_max: float | None, t_min: float | None, end: str | None
) -> tuple[MatrixPath, tuple[Update, ...]]:
    """Return the path, by default even in lam and down to the data, and the rows of a solver on it."""
    path, end = "lam" if path is None else path, end or "denoise"
    where = make_matrix_path(sde, path, steps, t_max=t_max, t_min=t_min, end=end)
    return where, tuple(method.rows(where))


def matrix_start(
    shape_or_start: Tensor | Sequence[int],
    model: ScoreModel,
    sde: MatrixSDE,
    first: MatrixPoint,
    seed: int | Sequence[int] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    grads: bool,
) -> tuple[Tensor, FreshNoise]:
    """Return the start, the given states or states drawn from the prior, and the source of the noise after it.

    Raises:
        ValueError: for states of a wrong shape.
    """
    if not isinstance(shape_or_start, Tensor):
        shape = sde.state_shape(check_shape(shape_or_start))
        x, noise = start(shape, model, seed, 1.0, device, dtype)
        return sde.map(sde.factors(first.t).root) * x, noise
    x, noise = start(shape_or_start, model, seed, 1.0, device, dtype, grads)
    if sde.variables > 1 and (x.ndim < 3 or x.shape[1] != sde.variables):
        raise ValueError(
            f"got a start of shape {tuple(x.shape)} on {type(sde).__name__}; expected states "
            f"(batch, {sde.variables}, *event), such as sde.perturb(x0, t, eps)"
        )
    return x, noise


def kept_on_path(keep: Times, path: MatrixPath) -> dict[float, MatrixPoint]:
    """Return the points of the path at the times to keep, by these times.

    Raises:
        ValueError: if there are none, and for a time that is not on the path.
    """
    times = torch.as_tensor(keep, dtype=torch.float64, device="cpu").detach()
    if times.ndim != 1 or not len(times):
        raise ValueError(f"got keep of shape {tuple(times.shape)}; expected a list of times, such as keep=[0.5, 0.1]")
    found = {}
    for t in times.tolist():
        nearest = min(path.points, key=lambda p: abs(p.t - t))
        if abs(nearest.t - t) > 1e-9 * path.points[0].t:
            raise ValueError(
                f"got keep={t:.6g}, where an SDE with matrix coefficients has no state; expected times of the path "
                "(Samples.times), or path=[..] with this time in it"
            )
        found[t] = nearest
    return found
