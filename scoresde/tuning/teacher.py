"""The teacher of a fit: a model in float64, starts of its flow, and the ends of the flow from there."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.processes import launch_rank
from scoresde.sampling.reference import flow_end, in_double
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.solvers.path import make_path

__all__ = ["Advance", "Metric", "Teacher", "bar", "event_of"]

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function ``metric(x, reference)`` of two batches that returns residuals, ``(batch, ..)``, to be small in mean square."""

Advance = Callable[[int, float], None]
"""A function of the iterations done and the error reached, which shows the progress of a fit."""


@dataclass(frozen=True)
class Teacher:
    """A model in float64, starts of its probability flow and the ends of the flow from there.

    Attributes:
        model: the model, or its copy in float64.
        x, reference: the starts and the ends, shape ``(n, *event)``.
        conditions: the values on which the model is conditioned; those of the samples have ``n`` entries.
        metric: the residuals of two batches.
        t_max, end: the time of the starts and the end of the flow.
        parts: the samples of each part, such as those of a fit and those held out.
    """

    model: ScoreModel
    x: Tensor
    reference: Tensor
    conditions: Mapping[str, Any]
    metric: Metric
    t_max: float
    end: str
    parts: tuple[slice, ...]

    @classmethod
    def of(
        cls,
        model: ScoreModel,
        event: tuple[int, ...],
        counts: Sequence[int],
        *,
        conditions: Mapping[str, Any] | None,
        metric: Metric | None,
        t_max: float,
        end: str,
        tolerance: float,
        seed: int,
        cache: str | os.PathLike[str] | None,
    ) -> Teacher:
        """Draw ``counts`` starts for each part and solve for the ends of the flow.

        Args:
            model: the score model; ``event``: the shape of a sample.
            counts: the number of starts of each part.
            end: "flow" or "denoise", the end of a path at the smallest time of the SDE, or "data", the end of the flow of
                the data: see :mod:`scoresde.sampling.reference`.
            conditions, metric, t_max, tolerance, seed, cache: as for :func:`scoresde.tuning.tune`.
        """
        bounds = list(itertools.accumulate(counts, initial=0))
        noise = FreshNoise(sample_seeds(seed, bounds[-1]), model.device)
        x = noise.normal(torch.empty(bounds[-1], *event, dtype=torch.float64, device=model.device))
        x = x.mul_(float(model.sde.sigma(t_max)))
        told = _in_turn(conditions or {}, bounds[-1])
        path = make_path(model.sde, "lam", 2, t_max=t_max, end="denoise" if end == "data" else end)
        to = "data" if end == "data" else "path"
        reference = flow_end(model, x, path, tolerance=tolerance, to=to, cache=cache, conditions=told).x
        precise = in_double(model, x, Conditions.of(told, len(x), device=x.device, dtype=torch.float64).values)
        parts = tuple(slice(a, b) for a, b in itertools.pairwise(bounds))
        return cls(precise, x, reference, told, metric or torch.sub, t_max, end, parts)

    def told(self, where: slice) -> Conditions:
        """Return the conditions of some of the samples."""
        given = {name: value[where] if _has_entries(value) else value for name, value in self.conditions.items()}
        return Conditions.of(given, where.stop - where.start, device=self.x.device, dtype=torch.float64)

    def error(self, x: Tensor, where: slice) -> float:
        """Return the root mean square residual of the ends ``x`` of some samples; infinite where it is not finite."""
        error = float(self.metric(x, self.reference[where]).square().mean().sqrt())
        return error if math.isfinite(error) else math.inf


def event_of(model: ScoreModel, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of a sample: as given, or that of the model's problem.

    Raises:
        ValueError: for a model without the shape of its samples.
    """
    event = getattr(getattr(model, "problem", None), "event", None) if shape is None else shape
    if event is None:
        raise ValueError("got a model without the shape of its samples; expected shape=(1, 28, 28), say")
    return tuple(whole("shape", n, 1) for n in event)


def _has_entries(value: Any) -> bool:
    """Tell whether a condition has an entry for each sample."""
    return isinstance(value, list | tuple | range) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def _in_turn(conditions: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the conditions of ``count`` samples, which take the given entries in turn."""
    told = {}
    for name, value in conditions.items():
        if _has_entries(value):
            index = [i % len(value) for i in range(count)]
            value = value[index] if isinstance(value, Tensor | np.ndarray) else [value[i] for i in index]
        told[name] = value
    return told


@contextlib.contextmanager
def bar(progress: bool, total: int, name: str, unit: str) -> Iterator[Advance]:
    """Show a progress bar if ``progress``, in the first process, and yield a function of units done and error reached."""
    if not progress or launch_rank()[0] != 0:
        yield lambda done, error: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=name, unit=unit, leave=False) as shown:

        def advance(done: int, error: float) -> None:
            shown.set_postfix_str(f"error {error:.3g}", refresh=False)
            shown.update(done)

        yield advance
