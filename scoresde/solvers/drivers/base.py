"""What all drivers share: what they know of a model, the states they yield, and the updates that rows ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.path import Point
from scoresde.solvers.rows import Langevin, LearnedNoise, Op, Row
from scoresde.solvers.scalar import plain

__all__ = ["Denoiser", "Project", "State", "VarianceDenoiser"]

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


@runtime_checkable
class VarianceDenoiser(Denoiser, Protocol):
    """A model that also predicts where the logarithm of the reverse variance lies between its two bounds."""

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """At each of ``times``, the data prediction and that fraction, shapes of ``x``, as functions of ``x`` alone."""
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
    if any(isinstance(row, LearnedNoise) for row in rows):
        return _bind_with_variance(rows, model, x, times)
    if any(isinstance(t, Tensor) for t in times):
        return iter([partial(_evaluate_at, model, torch.as_tensor(plain(t), dtype=torch.float64)) for t in times])
    return iter(model.at(torch.tensor(times, dtype=torch.float64), device=x.device, dtype=x.dtype))


def _bind_with_variance(rows: Sequence[Op], model: Denoiser, x: Tensor, times: list[float]) -> Iterator[Any]:
    """The same, where a step with learned noise gets both outputs of the model and every other row the first."""
    if not isinstance(model, VarianceDenoiser):
        raise ValueError(
            f"got a solver with a learned variance for a model ({type(model).__name__}) that predicts none; expected "
            "ScoreModel(net, sde, learned_variance=True), or the solver with variance='lower' or 'upper'"
        )
    if any(isinstance(t, Tensor) for t in times):
        raise ValueError(
            "got times that carry gradients for a solver with a learned variance, which has none with respect to them; "
            "take times.detach(), or variance='lower' or 'upper'"
        )
    both = model.at_with_variance(torch.tensor(times, dtype=torch.float64), device=x.device, dtype=x.dtype)
    evaluating = [row for row in rows if row.at is not None]
    return iter([f if isinstance(r, LearnedNoise) else partial(_first, f) for r, f in zip(evaluating, both, strict=True)])


def _first(evaluation: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    return evaluation(x)[0]


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


def nonlinear(
    row: Langevin | LearnedNoise,
    evaluation: Evaluation,
    x: Tensor,
    noise: NoiseSource,
    project: Project | None,
    room: Tensor,
) -> Tensor:
    """The state after an update that is not a linear row: evaluated, its noise drawn into ``room``, and projected."""
    prediction = evaluation(x)
    xi = noise(row.at, row.to, room, row.kernel)
    y = langevin(row, x, prediction, xi) if isinstance(row, Langevin) else learned_noise(row, x, prediction, xi)
    return y if project is None else project(y, row.to.t)


def learned_noise(row: LearnedNoise, x: Tensor, prediction: Any, xi: Tensor) -> Tensor:
    """The state after a step with learned noise, from both outputs of the model and the draw ``xi``."""
    m, fraction = prediction
    std = torch.exp(math.log(row.upper / row.lower) * fraction + math.log(row.lower))
    return torch.add(row.w * m, x, alpha=row.a) + std * xi


def langevin(row: Langevin, x: Tensor, m: Tensor, xi: Tensor) -> Tensor:
    """The state after a Langevin correction, from the data prediction ``m`` and the draw ``xi``."""
    score: Tensor = (scaled(m, row.at.alpha) - x) / plain(row.at.sigma) ** 2
    norm_score: Tensor = torch.linalg.vector_norm(score.flatten(1), dim=1)
    norm_xi: Tensor = torch.linalg.vector_norm(xi.flatten(1), dim=1)
    if row.norm == "batch":
        norm_score, norm_xi = norm_score.mean(), norm_xi.mean()
    # A vanishing score would ask for an infinite step.
    floor = torch.finfo(x.dtype).tiny ** 0.25
    step: Tensor = 2 * plain(row.scale) * (row.snr * norm_xi / norm_score.clamp(min=floor)) ** 2
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
