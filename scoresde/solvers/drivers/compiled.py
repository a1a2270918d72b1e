"""The arithmetic of rows, compiled: one kernel a row in place of one per term."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from scoresde.solvers.drivers.base import Denoiser, Project, State, bind, depths, nonlinear, refuse_gradients
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.rows import Op, Row

__all__ = ["compiled"]

Tensors = tuple[Tensor, ...]


def _combine(x: Tensor, history: Tensors, draws: Tensors, c: Tensor) -> Tensor:
    """a x + sum w N + sum s xi; ``c`` holds a, p, q, then all w, then all s."""
    y = c[0] * x
    for i, value in enumerate((*history, *draws)):
        y = y + c[3 + i] * value
    return y


def _evaluated(x: Tensor, y: Tensor, m: Tensor, history: Tensors, draws: Tensors, c: Tensor) -> tuple[Tensor, Tensor]:
    """N = p y + q m, and the row with it as the newest entry of the history."""
    n = c[1] * y + c[2] * m
    return n, _combine(x, (n, *history), draws, c)


@cache
def _compile(depth: int, kept: int, backend: Any) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """Both functions, compiled, for histories and draws of these lengths.

    Each pair of lengths gets code objects of its own, since the compiler gives up on one after a few recompilations.
    """
    copies = (FunctionType(f.__code__.replace(), f.__globals__) for f in (_evaluated, _combine))
    evaluated, combine = (torch.compile(copy, backend=backend) for copy in copies)
    return evaluated, combine


def compiled(
    rows: Sequence[Op],
    model: Denoiser,
    x: Tensor,
    noise: NoiseSource,
    *,
    project: Project | None = None,
    backend: str | Callable[..., Any] = "inductor",
) -> Iterator[State]:
    """Run ``rows`` with their arithmetic compiled by ``torch.compile``, and yield the state at the end of every step.

    What is compiled is the update of a row, into one kernel that reads each tensor once: N, the state and its sum with the
    history and the draws. Coefficients enter as a tensor, so that one compilation serves every row, every step size and
    every solver that looks back on as many predictions and draws; there is another for rows without an evaluation. The
    network is called as it is: pass ``ScoreModel(torch.compile(net), sde)`` to have it compiled too. Noise is drawn, and
    updates that are not linear and the hooks are run, outside. Equal to :func:`readable` but for rounding.

    The first call compiles, which on a CPU needs a C++ compiler and takes some seconds.

    Args:
        project: as in :func:`readable`.
        backend: of ``torch.compile``.

    Raises:
        ValueError: for coefficients that carry gradients.

    Example:
        >>> from scoresde import VP, solvers
        >>> class Zero:
        ...     def at(self, times, *, device, dtype):
        ...         return [torch.zeros_like] * len(times)
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 4))
        >>> [round(s.x.item(), 3) for s in compiled(rows, Zero(), torch.ones(1, 1), None, backend="eager")]
        [0.994, 0.825, 0.01, 0.0]
    """
    refuse_gradients(rows, "compiled")
    return _states(rows, model, x, noise, project, backend)


def _states(
    rows: Sequence[Op], model: Denoiser, x: Tensor, noise: NoiseSource, project: Project | None, backend: Any
) -> Iterator[State]:
    depth, kept = depths(rows)
    evaluated, combine = _compile(depth, kept, backend)
    evaluate = bind(rows, model, x)
    coefficients = iter(_table(rows, depth, kept, x))
    # What a row looks back on but does not have yet is zero, with weight zero. A tensor object that entered twice would be
    # guarded as such, and compiled again where it does not: hence the views.
    zero = torch.zeros_like(x)
    history, draws = ([zero.view_as(zero) for _ in range(n)] for n in (depth, kept))
    y, step = x, 0
    for row in rows:
        if not isinstance(row, Row):
            x = y = nonlinear(row, next(evaluate), x, noise, project, torch.empty_like(x))
            step += row.ends_step
            yield State(step, row.to, x)
            continue
        c = next(coefficients)
        if row.draw is not None:
            draws = [noise(*row.draw, torch.empty_like(x), row.kernel), *draws[:-1]]
        if row.at is not None:
            m = next(evaluate)(y)
            n, y = evaluated(x, y.view_as(y), m.view_as(m), tuple(history[:-1]), tuple(draws), c)
            history = [n, *history[:-1]]
        else:
            y = combine(x, tuple(history), tuple(draws), c)
        if row.ends_step:
            x = y = y if project is None else project(y, row.to.t)
            step += 1
            yield State(step, row.to, x)


def _table(rows: Sequence[Op], depth: int, kept: int, x: Tensor) -> Tensor:
    """The coefficients of all linear rows, shape (rows, 3 + depth + kept), on the device and at least in float32."""
    lines = [
        [row.a, row.p, row.q, *row.w, *[0.0] * (depth - len(row.w)), *row.s, *[0.0] * (kept - len(row.s))]
        for row in rows
        if isinstance(row, Row)
    ]
    table = torch.tensor(lines, dtype=torch.float64).reshape(len(lines), 3 + depth + kept)
    return table.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
