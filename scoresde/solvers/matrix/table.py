"""The table of the solvers of SDEs with matrix coefficients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scoresde.base.names import Table
from scoresde.solvers.matrix.methods import em, exponential, gddim, sscs
from scoresde.solvers.matrix.rows import MatrixSolver

__all__ = ["MATRIX_SOLVERS"]

MATRIX_SOLVERS: Table[Callable[..., MatrixSolver]] = Table(
    "matrix solver",
    "scoresde.solvers.MATRIX_SOLVERS",
    {
        "gddim": gddim,
        "gddim-2": partial(gddim, 2),
        "gddim-3": partial(gddim, 3),
        "gddim-4": partial(gddim, 4),
        "gddim-sde": partial(gddim, 1, 1.0),
        **{f"{name}-{order}": partial(exponential, name, order) for name in ("data", "noise") for order in (1, 2, 3)},
        **{f"{name}-{order}": partial(exponential, name, order) for name in ("root", "score") for order in (1, 2)},
        "data-midpoint": partial(exponential, "data", stages="midpoint"),
        "noise-midpoint": partial(exponential, "noise", stages="midpoint"),
        "data-trapezoid": partial(exponential, "data", stages="trapezoid"),
        "data-radau": partial(exponential, "data", stages="radau"),
        "sde-data-2": partial(exponential, "data", 2, 1.0),
        "sde-data-midpoint": partial(exponential, "data", 2, 1.0, stages="midpoint"),
        "sde-noise-1": partial(exponential, "noise", 1, 1.0),
        "sde-noise-2": partial(exponential, "noise", 2, 1.0),
        "sscs": sscs,
        "em": em,
        "euler": partial(em, 0.0),
    },
    also="a MatrixSolver",
    check=lambda make: callable(make) and isinstance(make(), MatrixSolver),
    expects="a function that returns a MatrixSolver when it is called without arguments",
)
"""Every solver of SDEs with matrix coefficients by name. A new solver is added here; tests and docs then find it."""
