"""Drivers: the loops that run rows. Each is written once and serves every solver that makes rows.

``readable`` is a generator of states, differentiable, allocating as it goes. ``fast`` works in place and does nothing on
the host between two evaluations but launch the arithmetic of the row. Both do the same floating point operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scoresde.solvers.noise import NoiseSource
from scoresde.solvers.path import Point
from scoresde.solvers.rows import Langevin, Op, Row

__all__ = ["Denoiser", "State", "fast", "readable"]


class Denoiser(Protocol):
    """The only thing that a solver knows of a model: its data prediction E[x_0 | x_t = x]."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """At any time ``t``, shape ``()``."""
        ...

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        """At each of ``times``, as functions of ``x`` alone."""
        ...


class State(NamedTuple):
    """The state ``x`` at a point of the path, after ``step`` steps."""

    step: int
    point: Point
    x: Tensor


def _bind(rows: Sequence[Op], model: Denoiser, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    times = torch.tensor([row.at.t for row in rows if row.at is not None], dtype=torch.float64)
    return iter(model.at(times, device=x.device, dtype=x.dtype))


def _depths(rows: Sequence[Op]) -> tuple[int, int]:
    """How many predictions and how many draws of noise the rows look back on."""
    linear = [row for row in rows if isinstance(row, Row)]
    return max([len(row.w) for row in linear], default=0), max([len(row.s) for row in linear], default=0)


def _langevin(row: Langevin, x: Tensor, m: Tensor, xi: Tensor) -> Tensor:
    score = (row.at.alpha * m - x) / row.at.sigma**2
    norm_score: Tensor = torch.linalg.vector_norm(score.flatten(1), dim=1)
    norm_xi: Tensor = torch.linalg.vector_norm(xi.flatten(1), dim=1)
    if row.norm == "batch":
        norm_score, norm_xi = norm_score.mean(), norm_xi.mean()
    # A vanishing score would ask for an infinite step.
    floor = torch.finfo(x.dtype).tiny ** 0.25
    step = 2 * row.scale * (row.snr * norm_xi / norm_score.clamp(min=floor)) ** 2
    if row.norm != "batch":
        step = step.reshape(-1, *([1] * (x.ndim - 1)))
    return x + step * score + torch.sqrt(2 * step) * xi


def readable(rows: Sequence[Op], model: Denoiser, x: Tensor, noise: NoiseSource) -> Iterator[State]:
    """Run ``rows`` from ``x``, shape ``(batch, *event)``, and yield the state at the end of every step.

    Example:
        >>> from scoresde import VP, solvers
        >>> class Zero:  # the data are one point, the origin
        ...     def at(self, times, *, device, dtype):
        ...         return [torch.zeros_like] * len(times)
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 4))
        >>> [round(state.x.item(), 3) for state in readable(rows, Zero(), torch.ones(1, 1), None)]
        [0.994, 0.825, 0.01, 0.0]
    """
    evaluate = _bind(rows, model, x)
    history, draws = (deque[Tensor](maxlen=depth) for depth in _depths(rows))
    y, step = x, 0
    for row in rows:
        if isinstance(row, Langevin):
            x = y = _langevin(row, x, next(evaluate)(x), noise(row.at, row.at, torch.empty_like(x)))
            yield State(step, row.at, x)
            continue
        if row.at is not None:
            m = next(evaluate)(y)
            history.appendleft(m if (row.p, row.q) == (0, 1) else torch.add(row.p * y, m, alpha=row.q))
        y = row.a * x
        for w, n in zip(row.w, history, strict=False):
            if w:
                y = torch.add(y, n, alpha=w)
        if row.draw is not None:
            draws.appendleft(noise(*row.draw, torch.empty_like(x)))
        for s, xi in zip(row.s, draws, strict=False):
            y = torch.add(y, xi, alpha=s)
        if row.ends_step:
            x, step = y, step + 1
            yield State(step, row.to, x)


def fast(
    rows: Sequence[Op],
    model: Denoiser,
    x: Tensor,
    noise: NoiseSource,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Run ``rows`` from ``x``, which is left as it is, and return the last state. Not differentiable.

    Memory beside the model's: the state, one stage where the solver has stages, the history, the draws of one step.

    Args:
        on_step: called with the number of steps done, on the host, without waiting for the device.
    """
    evaluate = _bind(rows, model, x)
    depth, kept = _depths(rows)
    history = deque[Tensor](maxlen=depth)
    x = x.clone(memory_format=torch.contiguous_format)
    stages = any(isinstance(row, Row) and not row.ends_step for row in rows)
    stage = torch.empty_like(x) if stages else x
    kept = max(kept, any(isinstance(row, Langevin) for row in rows))
    draws = deque([torch.empty_like(x) for _ in range(kept)])
    y, step = x, 0
    for row in rows:
        if isinstance(row, Langevin):
            x.copy_(_langevin(row, x, next(evaluate)(x), noise(row.at, row.at, draws[0])))
            continue
        if row.at is not None:
            m = next(evaluate)(y)
            if (row.p, row.q) != (0, 1):
                m = torch.mul(y, row.p).add_(m, alpha=row.q)
            elif m.untyped_storage().data_ptr() in (x.untyped_storage().data_ptr(), stage.untyped_storage().data_ptr()):
                m = m.clone()  # the model returned its own input, which is about to change
            history.appendleft(m)
        y = x if row.ends_step else stage
        torch.mul(x, row.a, out=y)
        for w, n in zip(row.w, history, strict=False):
            if w:
                y.add_(n, alpha=w)
        if row.draw is not None:
            draws.rotate(1)
            noise(*row.draw, draws[0])
        for s, xi in zip(row.s, draws, strict=False):
            y.add_(xi, alpha=s)
        if row.ends_step:
            step += 1
            if on_step is not None:
                on_step(step)
    return x
