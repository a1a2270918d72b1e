"""The arguments of a training by name and type, for functions that hand them on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from scoresde.data import Augmentation
from scoresde.objectives import Objective
from scoresde.score import ScoreModel
from scoresde.training.files.retention import Keep
from scoresde.training.optimization.averages import Average
from scoresde.training.optimization.optimizers import MakeOptimizer
from scoresde.training.optimization.schedules import Schedule

__all__ = ["Monitor", "Options"]

Monitor = Callable[[int, ScoreModel], Mapping[str, float]]
"""What looks at a training: a function of the step and the averaged model, which returns numbers by name."""


class Options(TypedDict, total=False):
    """What :class:`Trainer` takes by keyword; it says there what each does."""

    objective: str | Objective
    batch_size: int
    optimizer: str | MakeOptimizer
    lr: float
    warmup: int
    schedule: str | Schedule
    clip: float
    averages: Sequence[float | str | Average]
    seed: int
    conditions: Mapping[str, Tensor] | None
    augmentation: Augmentation | None
    workers: int
    precision: str
    accumulate: int
    compile: bool
    channels_last: bool
    nonfinite: str
    out: str | os.PathLike[str] | None
    resume: bool
    save_every: int
    keep: Keep | None
    snapshot_every: int | None
    log: bool
    tensorboard: bool
    monitor: Monitor | None
    monitor_every: int
    device: torch.device | str | None
    progress: bool
