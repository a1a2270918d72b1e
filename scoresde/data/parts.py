"""Parts of a dataset, such as train and val: recognised by their names, and chosen by the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["choose_part", "is_part", "split_off"]

_PARTS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


def is_part(name: str) -> bool:
    """Return whether a name is the name of a part of a dataset, such as train, and not of a class.

    Example:
        >>> is_part("Train"), is_part("cats")
        (True, False)
    """
    return name.casefold() in _PARTS


def split_off(source: str) -> tuple[str, str | None]:
    """Split ``"FOLDER:train"`` into the source and the name of the part, which is ``None`` if no part is named.

    Example:
        >>> split_off("birds:train"), split_off("mnist:birds"), split_off("hf:me/birds:val")
        (('birds', 'train'), ('mnist:birds', None), ('hf:me/birds', 'val'))
    """
    head, colon, tail = source.rpartition(":")
    return (head, tail) if colon and head and is_part(tail) and not Path(source).exists() else (source, None)


def choose_part(parts: Iterable[str], split: str | None, where: str, others: Mapping[str, int] | None = None) -> str | None:
    """Return the part that ``split`` names, or the only part if ``split`` is ``None``; ``None`` for a source without parts.

    Args:
        parts: the names of the parts of the source.
        split: the name of the part to use, in upper or lower case, or ``None``.
        where: the source, for messages.
        others: counts of samples outside the parts, by name. If there are any, a single part is not chosen by itself.

    Raises:
        ValueError: for an unknown part, and for several parts without ``split``.

    Example:
        >>> choose_part(["test", "train"], "Train", "birds"), choose_part(["train"], None, "birds")
        ('train', 'train')
    """
    found = sorted(parts)
    by_name = {part.casefold(): part for part in found}
    if split is not None:
        if split.casefold() in by_name:
            return by_name[split.casefold()]
        has = f"whose parts are {', '.join(found)}" if found else "which has no parts"
        raise ValueError(
            f"got split={split!r} for {where!r}, {has}; expected one of them, or no split: parts are sub-folders or tables "
            "called train, val or test"
        )
    if len(found) > 1:
        raise ValueError(
            f"{where!r} has the parts {', '.join(found)}; expected the name of one: pass split={found[0]!r}, or "
            f"{where}:{found[0]} on the command line"
        )
    return found[0] if found and not others else None
