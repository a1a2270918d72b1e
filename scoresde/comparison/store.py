"""Results kept as they come: one line of JSON for each run that is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Store", "StoreError"]

FILE = "records.jsonl"


class StoreError(OSError):
    """A result could not be written; ``comparison`` holds all that was computed, this result among it."""

    comparison: Any = None


class Store:
    """The runs of one comparison by their keys, in memory and, where there is a folder, in its ``records.jsonl``.

    The first line holds the arguments of the comparison; a later one a key and its result. Each is on the disk before the
    next run starts. A last line that was cut off is dropped.

    Args:
        folder: where to keep them; ``None`` keeps them in memory alone.
        arguments: plain values that decide the results.

    Raises:
        ValueError: if the folder holds a comparison with other arguments, with what differs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(folder, {"seed": 0}).add("a", {"value": 1.5})
        ...     Store(folder, {"seed": 0})["a"]
        {'value': 1.5}
    """

    def __init__(self, folder: str | os.PathLike[str] | None, arguments: Mapping[str, Any]) -> None:
        self.path = None if folder is None else Path(folder) / FILE
        self._found: dict[str, Any] = {}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(arguments))
        lines, whole = _lines(self.path)
        if not lines:
            whole = 0
        elif not isinstance(lines[0], dict) or "arguments" not in lines[0]:
            raise ValueError(f"{self.path} does not start with the arguments of a comparison; give another folder")
        elif differences := list(_differences(lines[0]["arguments"], wanted)):
            raise ValueError(
                f"{self.path.parent} holds a comparison with other arguments ({'; '.join(differences[:4])}); expected the "
                "same, to continue it: give another folder, or remove this one"
            )
        if self.path.exists():
            os.truncate(self.path, whole)
        if not lines:
            self._append({"arguments": wanted})
        self._found = {line["key"]: line["result"] for line in lines[1:]}

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: str, result: Any) -> None:
        """Keep ``result``, plain values, under ``key``.

        Raises:
            StoreError: if it cannot be written; it is kept in memory all the same.
        """
        self._found[key] = result
        if self.path is not None:
            self._append({"key": key, "result": result})

    def _append(self, line: Any) -> None:
        assert self.path is not None
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                error.errno,
                f"cannot write to {self.path}: {error.strerror or error}; make room or give another folder, and compare "
                "again: what is in the file is not computed again, and all of it is on this exception as .comparison",
            ) from error


def _lines(path: Path) -> tuple[list[Any], int]:
    """The whole lines of a file, and how many bytes they take: a line without its end was cut off."""
    if not path.exists():
        return [], 0
    lines, whole = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            if not raw.endswith(b"\n"):
                break
            lines.append(json.loads(raw))
        except ValueError:
            break
        whole += len(raw)
    return lines, whole


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What differs between two plain values, as "name: before, now"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield f"{where}: {_short(before)} there, {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
