"""Run folders: what a training leaves in one, and how sampling finds it again.

A folder holds ``model.safetensors``, the checkpoint, which has all that sampling needs: weights, the shape of a sample, and
the names of the classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from scoresde.score import ScoreModel
from scoresde.training.files.checkpoint import CheckpointError, read
from scoresde.training.files.models import CHECKPOINT, in_run, load

__all__ = ["CHECKPOINT", "class_names", "open_run", "steps_done"]


def open_run(where: str | os.PathLike[str], event: Sequence[int] | None = None) -> tuple[ScoreModel, tuple[int, ...]]:
    """Open the model of a run folder or of a checkpoint file; with the shape of a sample, ``event`` where that is given."""
    path = in_run(where)
    model = load(path)
    try:
        shape = tuple(read(path, ()).description.get("event", ())) if event is None else tuple(event)
    except CheckpointError:  # the weights of others
        shape = ()
    if not shape:
        raise ValueError(f"{path} does not tell the shape of a sample; give it: --shape 1,28,28")
    return model, shape


def class_names(where: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the classes that a run was trained on, by their labels; empty where they have none."""
    try:
        return tuple(read(in_run(where), ()).description.get("classes", ()))
    except CheckpointError:
        return ()


def steps_done(checkpoint: Path) -> int:
    """The steps of training that a checkpoint holds; 0 where there is none."""
    return int(read(checkpoint, ()).description.get("step", 0)) if checkpoint.exists() else 0
