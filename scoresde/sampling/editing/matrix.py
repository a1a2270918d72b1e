"""Encoding and decoding on an SDE with matrix coefficients, whose flow moves all variables of the state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoresde.sampling.editing.invertible import Invertible
from scoresde.sampling.kept import Times
from scoresde.sampling.matrix import matrix_solver
from scoresde.sampling.samples import Samples, sample
from scoresde.sampling.start import check_values
from scoresde.score import ScoreModel
from scoresde.sde import MatrixSDE
from scoresde.solvers.drivers import Driver
from scoresde.solvers.matrix.path import make_matrix_path
from scoresde.solvers.path import PathLike
from scoresde.solvers.solver import Solver

__all__ = ["matrix_flow"]


def matrix_flow(
    model: ScoreModel,
    z: Tensor,
    solver: str | Solver | Invertible,
    steps: int,
    path: PathLike,
    *,
    up: bool,
    partner: Tensor | None,
    t_min: float | None,
    t_max: float | None,
    end: str,
    keep: Times | None,
    progress: bool,
    driver: str | Driver,
    conditions: Mapping[str, Any] | None,
) -> Samples:
    """Follow the flow from states at one end of a path to the other, by the rows of the solver in either direction.

    On the way up ``"auto"`` interpolates the noise, and on the way down the data: each carries the state by a factor that
    does not grow.

    Args:
        model: a score model on an SDE with matrix coefficients.
        z: states with all variables, ``(batch, b, *event)``.
        up: whether to go from data to noise.
        solver, steps, path, partner, t_min, t_max, end, keep, progress, driver, conditions: as in
            :func:`scoresde.sampling.encode`.

    Raises:
        ValueError: for an invertible method, a stochastic solver, a path that goes back and forth, and states of a wrong
            shape.
    """
    sde: Any = model.sde
    assert isinstance(sde, MatrixSDE)
    check_values(z)
    if isinstance(solver, Invertible) or partner is not None:
        raise ValueError(
            f"got an invertible method on {type(sde).__name__}, whose coefficients are matrices, while its steps are "
            "those of DDIM; expected a deterministic solver of scoresde.solvers.MATRIX_SOLVERS, such as 'data-radau'"
        )
    if solver == "auto":
        from scoresde.solvers.matrix.methods import exponential

        solver = exponential("noise" if up else "data", stages="radau")
    method = matrix_solver(solver, sde)
    if method.stochastic:
        raise ValueError(
            f"got solver {method.name!r}, which draws noise, so that no latent leads back to the data; expected a "
            "deterministic one of scoresde.solvers.MATRIX_SOLVERS, such as 'noise-2' to encode and 'data-2' to decode"
        )
    where = make_matrix_path(sde, path, steps, t_min=t_min, t_max=t_max, end=end)
    if any(v.lam < u.lam for u, v in where.moves):
        raise ValueError("got a path that goes back towards the noise; expected times that fall from noise to data")
    visited: Any = where.reversed() if up else where
    return sample(model, z, method, path=visited, keep=keep, progress=progress, driver=driver, conditions=conditions)
