"""Run folders: what a training leaves in one, and how sampling finds it again.

A folder holds ``model.safetensors``, the checkpoint, and ``run.json``, which has what the weights do not tell: the shape
of a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from scoresde.base.files import replacing
from scoresde.score import ScoreModel
from scoresde.training.files.checkpoint import FILE, load, read

__all__ = ["CHECKPOINT", "open_run", "steps_done", "write_shape"]

CHECKPOINT = FILE
"""The file name of the checkpoint in a run folder."""

_SHAPE = "run.json"


def write_shape(folder: Path, event: Sequence[int]) -> None:
    """Note the shape of a sample in the run folder."""
    with replacing(folder / _SHAPE) as temporary:
        temporary.write_text(json.dumps({"event": list(event)}) + "\n")


def _shape(folder: Path) -> tuple[int, ...]:
    path = folder / _SHAPE
    try:
        event = tuple(json.loads(path.read_text())["event"])
    except FileNotFoundError:
        raise ValueError(f"found no {path}, which would tell the shape of a sample; give it: --shape 1,28,28") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the shape of a sample in {path}: {error!r}; give it: --shape 1,28,28") from error
    return event


def open_run(where: str | os.PathLike[str], event: Sequence[int] | None = None) -> tuple[ScoreModel, tuple[int, ...]]:
    """The model of a run folder or of a checkpoint file, and the shape of a sample, ``event`` where that is given."""
    path = Path(where)
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    model = load(checkpoint)
    return model, _shape(checkpoint.parent) if event is None else tuple(event)


def steps_done(checkpoint: Path) -> int:
    """The steps of training that a checkpoint holds; 0 where there is none."""
    return int(read(checkpoint, ()).description.get("step", 0)) if checkpoint.exists() else 0
