"""Budgets: the largest number of steps that a solver can take within a number of evaluations."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse import Steered
from scoresde.solvers import FreshNoise, Path, RowSolver, Solver, evaluations

__all__ = ["adaptive", "count", "ladder", "largest"]

MakePath = Callable[[int], Path]
"""A function from a number of steps to a path."""


def adaptive(solver: Solver) -> bool:
    """Tell whether ``solver`` chooses its own steps, so that a budget fixes its tolerance instead of its number of steps.

    Example:
        >>> from scoresde import solvers
        >>> adaptive(solvers.rk45()), adaptive(solvers.heun())
        (True, False)
    """
    inner = solver.solver if isinstance(solver, Steered) else solver
    return not isinstance(inner, RowSolver) and getattr(inner, "rtol", None) is not None


def count(solver: Solver, path: Path) -> int:
    """Count the evaluations of ``solver`` along ``path``: from its rows or, without rows, by a trial run in one dimension.

    Example:
        >>> from scoresde import VP, solvers
        >>> count(solvers.heun(), solvers.make_path(VP(), "lam", 10))  # the last move, to sigma = 0, costs one
        19
    """
    if isinstance(solver, RowSolver):
        return evaluations(solver.rows(path))
    trial = _Trial()
    solver.final(path, trial, torch.ones(1, 1, dtype=torch.float64), FreshNoise([0], torch.device("cpu")))
    return trial.evaluations


class _Trial:
    """A model that counts its evaluations: the data prediction of standard normal data where alpha = sigma."""

    def __init__(self) -> None:
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.evaluations += 1
        return 0.5 * x

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        return [functools.partial(self._at, t) for t in times]

    def _at(self, t: Tensor, x: Tensor) -> Tensor:
        return self(x, t)


def largest(solver: Solver, wanted: Sequence[int], path: MakePath, calls: int = 1) -> dict[int, tuple[int, int]]:
    """Return, for each budget, the largest number of steps within it and the evaluations of these steps.

    Where even one step exceeds the budget, the number is 0, with the evaluations of one step. An evaluation is a call of
    the network. A prediction of the model makes ``calls`` of them.

    Example:
        >>> from scoresde import VP, solvers
        >>> largest(solvers.heun(), [10, 20], lambda steps: solvers.make_path(VP(), "lam", steps))
        {10: (5, 9), 20: (10, 19)}
        >>> largest(solvers.heun(), [20], lambda steps: solvers.make_path(VP(), "lam", steps), calls=2)
        {20: (5, 18)}
    """

    @functools.cache
    def counted(steps: int) -> int:
        return calls * count(solver, path(steps))

    def cost(steps: int) -> int:
        if isinstance(solver, RowSolver) or steps < 5:
            return counted(steps)
        return counted(4) + (steps - 4) * (counted(4) - counted(3))  # the run itself tells whether all steps cost the same

    found = {}
    if solver.step_counts is not None:
        for budget in wanted:
            steps = max((n for n in solver.step_counts if counted(n) <= budget), default=0)
            found[budget] = steps, counted(steps or min(solver.step_counts))
        return found
    for budget in wanted:
        each = calls * (solver.description.evaluations or 1)
        steps = (budget - 1) // each + 1  # right where the last move costs one evaluation, as it mostly does
        if not cost(steps) <= budget < cost(steps + 1):
            steps = bisect.bisect_right(range(1, budget + 1), budget, key=cost)
        found[budget] = steps, cost(max(steps, 1))
    return found


def ladder(solver: Any, ratio: float = 10**0.25) -> Iterator[Any]:
    """Yield ``solver`` with tolerances from 10 down to 1e-12, each smaller than the one before by the factor ``ratio``."""
    for i in range(int(13 / math.log10(ratio)) + 1):
        tolerance = 10 / ratio**i
        inner: Any = solver.solver if isinstance(solver, Steered) else solver
        tight = dataclasses.replace(inner, rtol=tolerance, atol=tolerance)
        yield dataclasses.replace(solver, solver=tight) if isinstance(solver, Steered) else tight
