"""The interface of models for drivers: the data prediction, bound to the points of the rows before the loop begins."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.solvers.scalar import plain
from scoresde.solvers.updates import Row, Update

__all__ = ["Denoiser", "Evaluation", "JumpDenoiser", "Project", "VarianceDenoiser", "bind"]

Evaluation = Callable[[Tensor], Any]
"""A model bound to one time: a function of the state."""

Project = Callable[[Tensor, float], Tensor]
"""A projection of the state, ``project(x, t) -> x``, applied at the end of every step."""


class Denoiser(Protocol):
    """Interface of models for solvers: the data prediction E[x_0 | x_t = x]."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the data at time ``t``, shape ``()``, or at one time per sample, shape ``(batch,)``."""
        ...

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the data prediction at each of ``times``, as functions of ``x`` alone.

        A function may declare how its prediction is made of a network's output n: m = ``of_x`` x + ``of_output`` n. Then it
        has two attributes of these names, Python floats, and a third, ``output``, a function of ``x`` that returns n.
        Drivers compute N from n in that case, so that a row in eps costs no conversion on a network that predicts eps.
        """
        ...


@runtime_checkable
class VarianceDenoiser(Denoiser, Protocol):
    """Interface of models that also predict where the logarithm of the reverse variance lies between its two bounds."""

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return, for each of ``times``, a function from ``x`` to the data prediction and the fraction, both like ``x``."""
        ...


@runtime_checkable
class JumpDenoiser(Denoiser, Protocol):
    """Interface of models that may predict whole jumps, from one time to another."""

    jumps: bool
    """Whether this model does."""

    def at_jumps(
        self, times: Tensor, ends: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return, for each of ``times``, the data prediction that makes the step of DDIM to the time in ``ends`` exact."""
        ...


def jumping(rows: Sequence[Update], model: Denoiser) -> bool:
    """Return whether some of ``rows`` jump, by a model that predicts jumps."""
    return any(row.jumps for row in rows) and isinstance(model, JumpDenoiser) and model.jumps


def bind(rows: Sequence[Update], model: Denoiser, x: Tensor) -> tuple[Sequence[Update], list[Evaluation]]:
    """Bind the model to the times of all evaluations of ``rows``.

    Returns:
        The rows, with p and q for the values that the evaluations return; and the evaluations in their order. Each returns
        the data prediction m, or the network's own output n where the model declares how m is made of it.
    """
    evaluating = [(i, row) for i, row in enumerate(rows) if row.at is not None]
    bound = _at(rows, [row.at.t for _, row in evaluating if row.at is not None], model, x)
    if not any(hasattr(evaluation, "output") for evaluation in bound):
        return rows, bound
    out = list(rows)
    for k, ((i, row), evaluation) in enumerate(zip(evaluating, bound, strict=True)):
        if isinstance(row, Row) and hasattr(evaluation, "output") and math.isfinite(evaluation.of_x):
            out[i] = _mixed(row, evaluation.of_x, evaluation.of_output)
            bound[k] = evaluation.output
    return out, bound


ULP = sys.float_info.epsilon


def _mixed(row: Row, of_x: float, of_output: float) -> Row:
    """Return the row with p and q of N = p y + q (of_x y + of_output n) = (p + q of_x) y + q of_output n.

    Where the network predicts N itself, p and q are (0, 1) up to rounding, and are rounded to that.
    """
    if of_x == 0 and of_output == 1:
        return row
    p, q = row.p + row.q * of_x, row.q * of_output
    if not isinstance(p, Tensor) and abs(p) <= 4 * ULP * abs(row.p):
        p = 0.0
    if not isinstance(q, Tensor) and abs(q - 1) <= 4 * ULP:
        q = 1.0
    unchanged = not isinstance(p, Tensor) and not isinstance(q, Tensor) and (p, q) == (row.p, row.q)
    return row if unchanged else replace(row, p=p, q=q)


def _at(rows: Sequence[Update], times: list[float], model: Denoiser, x: Tensor) -> list[Any]:
    if any(row.learned for row in rows):
        return _at_with_variance(rows, times, model, x)
    if jumping(rows, model):
        return _at_jumps(rows, model, x)
    if any(isinstance(t, Tensor) for t in times):
        return [partial(_evaluate_at, model, torch.as_tensor(plain(t), dtype=torch.float64)) for t in times]
    return list(model.at(torch.tensor(times, dtype=torch.float64), device=x.device, dtype=x.dtype))


def _at_jumps(rows: Sequence[Update], model: Denoiser, x: Tensor) -> list[Any]:
    """Bind a model that predicts jumps: a row that is no jump gets the prediction of a jump of no length."""
    assert isinstance(model, JumpDenoiser)
    pairs = [(row.at.t, row.to.t if row.jumps else row.at.t) for row in rows if row.at is not None]
    if any(isinstance(t, Tensor) for pair in pairs for t in pair):
        raise ValueError(
            "got times that carry gradients for a model of jumps, which has none with respect to them; take times.detach()"
        )
    times, ends = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T
    return list(model.at_jumps(times, ends, device=x.device, dtype=x.dtype))


def _at_with_variance(rows: Sequence[Update], times: list[float], model: Denoiser, x: Tensor) -> list[Any]:
    """Bind a model with a learned variance: a step with learned noise gets both outputs, every other row the first."""
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
    return [f if row.learned else partial(_first, f) for row, f in zip(evaluating, both, strict=True)]


def _first(evaluation: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    return evaluation(x)[0]


def _evaluate_at(model: Denoiser, t: Tensor, x: Tensor) -> Tensor:
    return model(x, t)
