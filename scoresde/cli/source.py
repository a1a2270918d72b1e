"""The sources of the commands: data, models, and the labels for their samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from scoresde import data, weights
from scoresde.base.names import near
from scoresde.cli import options
from scoresde.guidance import ClassifierFree
from scoresde.score import LatentModel, ScoreModel
from scoresde.systems import LatentDiffusion, nulls_of
from scoresde.systems.system import SYSTEM, kind_of
from scoresde.training.files import runs
from scoresde.weights.diffusers.prompts import Prompted

__all__ = [
    "Guidance",
    "Labels",
    "Limit",
    "Opened",
    "Prompts",
    "Told",
    "chosen_labels",
    "chosen_prompts",
    "guided",
    "open_data",
    "open_model",
]

Limit = Annotated[
    int | None, typer.Option(help="Bytes that one compressed file or image may unpack to; by default 2**30 and 2**28.")
]
"""The option that sets how many bytes an archive or image may unpack to."""


def open_data(name: str | Path, **how: Any) -> data.Dataset:
    """Open data as :func:`scoresde.data.open` does, and print a line instead of a warning for each file left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out")
        found = data.open(name, **how)
    for file in found.skipped:
        typer.echo(f"left out, cannot be read: {file!r}", err=True)
    return found


class Opened(NamedTuple):
    """A trained model, the shape of its samples, and the names of its classes, empty where they have none."""

    model: ScoreModel
    event: tuple[int, ...]
    classes: tuple[str, ...]


def open_model(where: Path, shape: str | None = None) -> Opened:
    """Open anything that :func:`scoresde.load` reads: a run folder, a checkpoint, published weights, a diffusers folder.

    Raises:
        ValueError: for a file or folder without a model, and for a sample shape that neither it nor ``shape`` gives.
    """
    event = options.parse_shape(shape)
    if (kind := kind_of(where)) not in (None, "LatentDiffusion"):
        raise ValueError(
            f"{str(where)!r} holds a {kind}, a system of several models, and this command takes one model or a "
            f"LatentDiffusion; in Python: scoresde.systems.System.open({str(where)!r}).draw(..)"
        )
    if where.is_dir() and not (where / runs.CHECKPOINT).exists() and weights.recognizes(where):
        event = event or weights.event(where)
        if event is None:
            raise ValueError(f"{str(where)!r} does not tell the shape of a sample; give it: --shape 3,32,32")
        return Opened(weights.load_published(where), event, ())
    model, event = runs.open_run(where, event)
    return Opened(model, event, runs.class_names(where))


# Labels -----------------------------------------------------------------------------------------------------------------

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Classes for a conditional model: names or numbers, with commas or repeated, which the samples take in turn; "
        "all for every class, none for no class.",
    ),
]
"""The option that chooses the classes of samples."""


def chosen_labels(texts: Sequence[str] | None, model: ScoreModel, classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the labels that samples take in turn; ``None`` where none are asked for.

    A name comes before a number: of the classes 3 and 7, the text 7 is the second. ``all`` stands for every class, and
    ``none`` for the label that a network takes for no class.

    Args:
        texts: the values of the options: names and numbers, with commas between them.
        model: the model, whose network has the number of classes.
        classes: the names of the classes; empty where they have none.

    Raises:
        ValueError: for a model without classes, an unknown name, a number past the last class, and no label where the
            network needs one.
    """
    config: dict[str, Any] = getattr(model.network, "config", {})
    count = config.get("num_classes")
    optional = bool(config.get("unconditional"))
    if not texts:
        if count and not optional:
            raise ValueError(f"this model needs a class for every sample; give --label, {_known(count, classes, optional)}")
        return None
    if not count:
        raise ValueError(f"got --label {','.join(texts)} for a model without classes; leave --label out")
    number = {name: k for k, name in enumerate(classes[:count])}
    labels: list[int] = []
    for text in texts:
        for part in [text] if text in number else [part.strip() for part in text.split(",")]:
            if part in number:
                labels.append(number[part])
            elif part == "all":
                labels += range(count)
            elif part == "none" and optional:
                labels.append(count)
            elif part.isascii() and part.isdigit() and len(part) < 10 and int(part) < count:
                labels.append(int(part))
            else:
                raise ValueError(f"got --label {part!r}; expected {_known(count, classes, optional)}{near(part, number)}")
    return tuple(labels)


Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance towards labels or prompts; 1 is the conditional model, 4 strong."),
]
"""The option that sets the scale of guidance."""


def guided(
    model: ScoreModel, scale: float | None, labels: Sequence[int] | None, null: Mapping[str, Any] | None = None
) -> ScoreModel:
    """Return the model under classifier-free guidance towards labels and prompts, or the model itself without a scale.

    Args:
        model: the model.
        scale: the scale of guidance.
        labels: the labels, where there are any.
        null: what stands for the absence of prompts, where there are any.

    Raises:
        ValueError: for no labels, and for a network that always needs a label.
    """
    if scale is None:
        return model
    config: dict[str, Any] = getattr(model.network, "config", {})
    if labels is None and null:
        return ClassifierFree(model, scale, null)
    if labels is None:
        wants = ", as in --label 3" if config.get("num_classes") else "; this model has no classes, so leave --guidance out"
        raise ValueError(f"got --guidance {scale:g} without --label, towards which to guide; expected both{wants}")
    if not config.get("unconditional"):
        raise ValueError(
            f"got --guidance {scale:g} for a network that cannot do without a label; expected one trained with label "
            "dropout: scoresde train .. --label-dropout 0.1"
        )
    return ClassifierFree(model, scale, {"label": config["num_classes"], **(null or {})})


Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Text for a model that takes texts; may be repeated, and the samples take them in turn."),
]
"""The option that gives texts to samples."""


class Told(NamedTuple):
    """What samples are told of prompts: one entry for each of these by name, and what stands for their absence."""

    conditions: dict[str, Any]
    null: dict[str, Any]

    def at(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the conditions of the prompts of these numbers."""
        return {name: [value[i] for i in numbers] for name, value in self.conditions.items()}


def chosen_prompts(texts: Sequence[str] | None, model: ScoreModel, run: Path) -> Told:
    """Return what a model is told of prompts; nothing where there are none.

    Args:
        texts: the values of the options.
        model: the model, a pipeline of diffusers with text encoders or a latent model of a run folder.
        run: the run folder, which names the text encoder.

    Raises:
        ValueError: for a model that takes no texts.
    """
    if not texts:
        return Told({}, {})
    if isinstance(model, Prompted):
        return Told({"prompt": list(texts)}, {"prompt": ""})
    folder = run if run.is_dir() else run.parent
    system = LatentDiffusion.open(folder) if isinstance(model, LatentModel) and (folder / SYSTEM).is_file() else None
    if system is None or system.encoder is None:
        raise ValueError(f"got --prompt {texts[0]!r} for a model that takes no texts; leave --prompt out")
    told = system.conditions(list(texts))
    return Told(told, {name: null for name, null in nulls_of(model.network).items() if name in told})


def _known(count: int, classes: Sequence[str], optional: bool) -> str:
    names = [*classes[:5], *([".."] if len(classes) > 5 else [])]
    named = f"one of {', '.join(names)}, or " if classes else ""
    return f"{named}a number from 0 to {count - 1}, or all{', or none' if optional else ''}"
