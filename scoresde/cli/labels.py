"""The labels that a command line asks for, by numbers or by the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from scoresde.base.names import near
from scoresde.score import ScoreModel

__all__ = ["Labels", "chosen_labels"]

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="Of a model with classes: names or numbers, with commas or repeated, which the samples take in turn; all for "
        "every class, none for no class.",
    ),
]


def chosen_labels(texts: Sequence[str] | None, model: ScoreModel, classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the labels that samples take in turn; ``None`` where none are asked for.

    A name comes before a number, so that of the classes 3 and 7 the text 7 is the second. ``all`` stands for every class,
    and ``none`` for the label that a network takes for no class.

    Args:
        texts: what the options say: names and numbers, with commas between them.
        model: the model, whose network tells how many classes there are.
        classes: their names; empty where they have none.

    Raises:
        ValueError: for a model without classes, a name that is none, a number past the last class, and no label where the
            network needs one.
    """
    config: dict[str, Any] = getattr(model.net, "config", {})
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


def _known(count: int, classes: Sequence[str], optional: bool) -> str:
    names = [*classes[:5], *([".."] if len(classes) > 5 else [])]
    named = f"one of {', '.join(names)}, or " if classes else ""
    return f"{named}a number from 0 to {count - 1}, or all{', or none' if optional else ''}"
