"""Run folders: the folders that trainings write and sampling reads.

A run folder holds the checkpoint ``model.safetensors``. It contains everything that sampling needs: weights, the shape of a
sample, and the names of the classes.
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
    """Load the score model of a run folder or of a checkpoint file; return it with the shape of a sample.

    Args:
        where: a run folder, or a checkpoint file.
        event: the shape of a sample, which replaces the shape in the file.

    Raises:
        CheckpointError: if the file is missing or no checkpoint.
        ValueError: if neither the file nor ``event`` gives a shape.
    """
    path = in_run(where)
    model = load(path)
    try:
        shape = tuple(read(path, ()).description.get("event", ())) if event is None else tuple(event)
    except CheckpointError:  # published weights, which have no description
        shape = ()
    if not shape:
        raise ValueError(f"{path} does not tell the shape of a sample; give it: --shape 1,28,28")
    return model, shape


def class_names(where: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the names of the classes that a run was trained on, in the order of their labels; empty if there are none.

    Example:
        >>> class_names("no-such-run")
        ()
    """
    try:
        return tuple(read(in_run(where), ()).description.get("classes", ()))
    except CheckpointError:
        return ()


def steps_done(checkpoint: Path) -> int:
    """Return the number of training steps of a checkpoint; 0 if the file does not exist.

    Example:
        >>> steps_done(Path("no-such-run/model.safetensors"))
        0
    """
    return int(read(checkpoint, ()).description.get("step", 0)) if checkpoint.exists() else 0
