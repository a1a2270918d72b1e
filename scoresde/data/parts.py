"""Parts of a dataset, such as train and val: told from classes by their names, and chosen by the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["choose_part", "is_part", "split_off"]

_PARTS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


def is_part(name: str) -> bool:
    """Return whether a folder or file of this name is a part of a dataset, and not a class.

    Example:
        >>> is_part("Train"), is_part("cats")
        (True, False)
    """
    return name.casefold() in _PARTS


def split_off(source: str) -> tuple[str, str | None]:
    """Return a source and the part named after it, ``"FOLDER:train"``; ``None`` where there is none.

    Example:
        >>> split_off("birds:train"), split_off("mnist:birds"), split_off("hf:me/birds:val")
        (('birds', 'train'), ('mnist:birds', None), ('hf:me/birds', 'val'))
    """
    head, colon, tail = source.rpartition(":")
    return (head, tail) if colon and head and is_part(tail) and not Path(source).exists() else (source, None)


def choose_part(parts: Iterable[str], split: str | None, where: str, others: Mapping[str, int] | None = None) -> str | None:
    """Return the one of ``parts`` that ``split`` names; the only one where it names none; ``None`` without parts.

    Args:
        parts: the names of the parts that were found.
        split: the part asked for, upper case or lower, or ``None``.
        where: the source, for messages.
        others: what there is beside the parts, by name: with it, a single part is not taken unasked.

    Raises:
        ValueError: for a part that is not there, and where there are several and none is asked for.
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
            f"{where!r} has the parts {', '.join(found)}; expected to be told which: split={found[0]!r}, or "
            f"{where}:{found[0]} on the command line"
        )
    return found[0] if found and not others else None
