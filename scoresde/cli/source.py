"""What the commands work on, as they open it: data, of which what is left out is said, and models with their classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from scoresde import data, weights
from scoresde.cli import options
from scoresde.score import ScoreModel
from scoresde.training.files import runs
from scoresde.training.files.checkpoint import CheckpointError, read

__all__ = ["Limit", "Opened", "open_data", "open_model"]

Limit = Annotated[
    int | None, typer.Option(help="Bytes that one compressed file or image may unpack to; by default 2**30 and 2**28.")
]


def open_data(name: str | Path, **how: Any) -> data.Dataset:
    """:func:`scoresde.data.open`, with a line for each file that is left out in place of its warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out")
        found = data.open(name, **how)
    for file in found.skipped:
        typer.echo(f"left out, cannot be read: {file!r}", err=True)
    return found


class Opened(NamedTuple):
    """A trained model: the shape of its samples, and the names of its classes, empty where they have none."""

    model: ScoreModel
    event: tuple[int, ...]
    classes: tuple[str, ...]


def open_model(where: Path, shape: str | None = None) -> Opened:
    """Open whatever :func:`scoresde.load` reads: a run folder, a checkpoint, published weights, a folder of diffusers.

    Raises:
        ValueError: for what holds no model, and where the shape of a sample is neither in there nor in ``shape``.
    """
    event = options.parse_shape(shape)
    if where.is_dir() and not (where / runs.CHECKPOINT).exists() and weights.recognizes(where):
        event = event or weights.event(where)
        if event is None:
            raise ValueError(f"{str(where)!r} does not tell the shape of a sample; give it: --shape 3,32,32")
        return Opened(weights.load(where), event, ())
    model, event = runs.open_run(where, event)
    return Opened(model, event, _class_names(where))


def _class_names(where: Path) -> tuple[str, ...]:
    """The names that a checkpoint gives the classes; none where it is of others."""
    try:
        described = read(where / runs.CHECKPOINT if where.is_dir() else where, ()).description
    except CheckpointError:
        return ()
    return tuple(map(str, described.get("classes", ())))
