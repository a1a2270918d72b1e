"""Filling: samples of the data given a part of them, by a method for inverse problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scoresde.inverse import METHODS, SAMPLERS, Observation
from scoresde.sampling import Samples, sample
from scoresde.score import ScoreModel
from scoresde.solvers import Solver

__all__ = ["fill"]


def fill(
    model: ScoreModel,
    observation: Observation,
    n: int | None = None,
    *,
    by: str | Callable[[ScoreModel, Observation], ScoreModel] = "reconstruction",
    solver: str | Solver | None = None,
    steps: int = 50,
    seed: int | Sequence[int] | None = 0,
    conditions: Mapping[str, Any] | None = None,
    **options: Any,
) -> Samples:
    """Draw samples of the data given a measurement.

    Args:
        model: the score model of the data.
        observation: what is known of them.
        n: the number of samples; ``None`` for one of each measurement.
        by: a name in :data:`scoresde.inverse.METHODS` or :data:`scoresde.inverse.SAMPLERS`, or a function of the model and
            the observation that returns a score model. ``"tmpd"`` is exact for Gaussian data, ``"reconstruction"`` costs a
            backward call, ``"replacement"`` none.
        solver: the solver, by default ``"dpmpp-2m"``; an entry of ``SAMPLERS`` is a solver itself.
        steps: the number of steps.
        seed: see :func:`scoresde.sample`. A sample depends on its own seed.
        conditions: the conditions of the model.
        options: further arguments of :func:`scoresde.sample`.

    Raises:
        ValueError: for an unknown method, another number of samples than measurements, and a solver beside a method that is
            one.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import Mask, Observation
        >>> process = scoresde.problems.gaussian_process((1, 4), (0, 3.0))
        >>> seen = Observation(Mask([[True, False, False, True]]), torch.tensor([1.0, 1.0]), 0.0)
        >>> fill(process.model(scoresde.VP()), seen, 3, progress=False).x[:, 0, [0, 3]].unique()
        tensor([1.])
    """
    if n is None:
        n = len(observation.y) if observation.batched else 1
    observation.for_batch(n)  # refuses another number of measurements
    how: dict[str, Any] = {"seed": seed, "conditions": conditions, **options}
    shape = (n, *observation.operator.event)
    if isinstance(by, str) and by in SAMPLERS:
        if solver is not None:
            raise ValueError(
                f"got a solver beside by={by!r}, which is a solver; expected none, or scoresde.sample(model, shape, "
                f"scoresde.inverse.{SAMPLERS.name(by)}(observation, ..)) for its settings"
            )
        return sample(model, shape, SAMPLERS[by](observation), steps, **how)
    made = METHODS[by](model, observation) if isinstance(by, str) else by(model, observation)
    return sample(made, shape, solver or "dpmpp-2m", steps, **how)
