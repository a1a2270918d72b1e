"""What all drivers share: what they know of a model, the states they yield, and the updates that rows ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from scoresde.solvers.path import Point
from scoresde.solvers.rows import Langevin, Op, Row
from scoresde.solvers.scalar import plain

__all__ = ["Denoiser", "Project", "State"]

Evaluation = Callable[[Tensor], Tensor]
Project = Callable[[Tensor, float], Tensor]
"""A projection of the state, ``project(x, t) -> x``, applied at the end of every step."""


class Denoiser(Protocol):
    """The only thing that a solver knows of a model: its data prediction E[x_0 | x_t = x]."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """At any time ``t``, shape ``()``, or at one time per sample, shape ``(batch,)``."""
        ...

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Evaluation]:
        """At each of ``times``, as functions of ``x`` alone."""
        ...


class State(NamedTuple):
    """The state ``x`` at a point of the path, after ``step`` steps; ``info`` is what a driver or a solver reports."""

    step: int
    point: Point
    x: Tensor
    info: Mapping[str, Any] | None = None


def bind(rows: Sequence[Op], model: Denoiser, x: Tensor) -> Iterator[Evaluation]:
    """The model at the times of all evaluations of ``rows``, in their order."""
    times = [row.at.t for row in rows if row.at is not None]
    if any(isinstance(t, Tensor) for t in times):
        return iter([partial(_evaluate_at, model, torch.as_tensor(plain(t), dtype=torch.float64)) for t in times])
    return iter(model.at(torch.tensor(times, dtype=torch.float64), device=x.device, dtype=x.dtype))


def _evaluate_at(model: Denoiser, t: Tensor, x: Tensor) -> Tensor:
    return model(x, t)


def depths(rows: Sequence[Op]) -> tuple[int, int]:
    """How many predictions and how many draws of noise the rows look back on."""
    linear = [row for row in rows if isinstance(row, Row)]
    return max([len(row.w) for row in linear], default=0), max([len(row.s) for row in linear], default=0)


def scaled(x: Tensor, a: float) -> Tensor:
    """a x, for a number or a coefficient that carries gradients."""
    return cast(Tensor, plain(a) * x)


def plus(y: Tensor, n: Tensor, w: float) -> Tensor:
    """y + w n, likewise."""
    return y + plain(w) * n if isinstance(w, Tensor) else torch.add(y, n, alpha=w)


def interpolated(row: Row, y: Tensor, m: Tensor) -> Tensor:
    """N = p y + q m."""
    return m if (row.p, row.q) == (0, 1) else plus(scaled(y, row.p), m, row.q)


def langevin(row: Langevin, x: Tensor, m: Tensor, xi: Tensor) -> Tensor:
    """The state after a Langevin correction, from the data prediction ``m`` and the draw ``xi``."""
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


def refuse_gradients(rows: Sequence[Op], driver: str) -> None:
    """Refuse coefficients that carry gradients, for the drivers that need numbers."""
    if any(isinstance(c, Tensor) for r in rows if isinstance(r, Row) for c in (r.a, r.p, r.q, *r.w, *r.s)):
        raise ValueError(
            f"got rows whose coefficients are tensors, which driver {driver!r} does not differentiate through; take "
            "driver='differentiable', or a path made of times.detach()"
        )
