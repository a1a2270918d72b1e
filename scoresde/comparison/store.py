"""The store of results: one line of JSON for each finished run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scoresde.base.lock import Lock
from scoresde.base.reading import open_regular
from scoresde.comparison.file import checked, parsed, plain

__all__ = ["Result", "Store", "StoreError"]

FILE = "records.jsonl"


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of one run in the form in which they are kept.

    Attributes:
        steps, evaluations: the counted steps and evaluations of the run.
        error: the reason why the run failed, or empty.
        values: for each metric the value and its interval, or the reason why there is none.
        times, states: the trajectories of a few samples, ``(points, samples, 2)``, where they are kept for a picture.
    """

    steps: int
    evaluations: int
    error: str = ""
    values: dict[str, tuple[float, float, float] | str] = dataclasses.field(default_factory=dict)
    times: list[float] = dataclasses.field(default_factory=list)
    states: list[list[tuple[float, float]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Line:
    key: str
    result: Result


class StoreError(OSError):
    """A failure to write a result; ``comparison`` holds all results so far, this one among them."""

    comparison: Any = None


class Store:
    """The runs of one comparison by key, in memory and, where a folder is given, in its ``records.jsonl``.

    The first line of the file holds the arguments of the comparison. Each further line holds a key and its result, and is
    on disk before the next run starts. A last line that was cut off is dropped. Several processes may write to one file:
    each writes whole lines under a lock, and reads those of the others by :meth:`refresh`.

    Args:
        folder: the folder of the file; ``None`` keeps the runs in memory alone.
        arguments: a function that returns plain values which decide the results; only a store with a folder calls it.

    Raises:
        ValueError: if the folder holds a comparison with other arguments (the message lists the differences), or a file of
            another kind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(folder, lambda: {"seed": 0}).add("a", Result(5, 10, values={"rms": (0.3, 0.2, 0.4)}))
        ...     Store(folder, lambda: {"seed": 0})["a"].values
        {'rms': (0.3, 0.2, 0.4)}
    """

    def __init__(self, folder: str | os.PathLike[str] | None, arguments: Callable[[], Mapping[str, Any]]) -> None:
        self.path = None if folder is None else Path(folder) / FILE
        self._found: dict[str, Result] = {}
        self._read = 0  # the bytes of the file that are read
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        wanted = parsed(json.dumps(plain(arguments())).encode(), "the arguments")
        with Lock(self.path, what="comparison"):
            lines, self._read = _lines(self.path)
            if lines:
                first = lines[0]
                if not isinstance(first, dict) or not isinstance(first.get("arguments"), dict):
                    raise ValueError(f"{self.path} does not start with the arguments of a comparison; give another folder")
                if differences := list(_differences(first["arguments"], wanted)):
                    raise ValueError(
                        f"{self.path.parent} holds a comparison with other arguments ({'; '.join(differences[:4])}); "
                        "expected the same, to continue it: give another folder, or remove this one"
                    )
                self._take(lines[1:])
            if self.path.exists():
                os.truncate(self.path, self._read)
            if not lines:
                try:
                    self._append({"arguments": wanted})
                except OSError as error:
                    raise self._refused(error) from error

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Result:
        return self._found[key]

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: str, result: Result) -> None:
        """Keep ``result`` under ``key``.

        Raises:
            StoreError: if the result cannot be written; memory keeps it all the same.
        """
        self._found[key] = result
        if self.path is None:
            return
        try:
            with Lock(self.path, what="comparison"):
                self.refresh()
                self._append({"key": key, "result": dataclasses.asdict(result)})
        except OSError as error:
            raise self._refused(error) from error

    def refresh(self) -> None:
        """Read the results that other processes have added."""
        if self.path is not None:
            lines, self._read = _lines(self.path, self._read)
            self._take(lines)

    def _take(self, lines: list[Any]) -> None:
        for line in checked(lines, list[_Line], f"the results in {self.path}"):
            self._found[line.key] = line.result

    def _append(self, line: Any) -> None:
        """Write a line after those read, over what a process that was killed left of its own; the lock must be held."""
        assert self.path is not None
        content = json.dumps(plain(line)).encode() + b"\n"
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.truncate(self._read)
            file.seek(self._read)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._read += len(content)

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            error.errno,
            f"cannot write to {self.path}: {error.strerror or error}; make room or give another folder, and compare again: "
            "what is in the file is not computed again, and all of it is on this exception as .comparison",
        )


def _lines(path: Path, start: int = 0) -> tuple[list[Any], int]:
    """Read the whole lines of a file from byte ``start`` on; return them and where they end.

    A last line that cannot be read was cut off, or is being written.
    """
    if not path.exists() or path.stat().st_size == start > 0:
        return [], start
    found: list[Any] = []
    with open_regular(path) as file:
        file.seek(start)
        raw = file.read().splitlines(keepends=True)
    for i, line in enumerate(raw):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(parsed(line, f"line {i + 1} {'' if start == 0 else f'after byte {start} '}of {path}"))
        except ValueError as error:
            if i == len(raw) - 1:
                break
            raise ValueError(f"{error}; remove the file, or give another folder") from None
    return found, start + sum(map(len, raw[: len(found)]))


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield the differences between two plain values, as "name: before, now"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield f"{where}: {_short(before)} there, {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
