"""Fits for several numbers of evaluations: kept in a file as they end, and shared by the processes that make one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from scoresde.base.lock import Lock
from scoresde.base.processes import share

__all__ = ["fitted", "stopped"]

T = TypeVar("T")


def fitted(
    numbers: Sequence[int],
    out: str | os.PathLike[str] | None,
    read: Callable[[], Mapping[int, T]],
    fit: Callable[[int], T | None],
    write: Callable[[Sequence[T]], object],
    stop: Callable[[], bool],
) -> list[T]:
    """Return the fits for all numbers of evaluations, and those that the file ``out`` holds for others.

    Each number is fitted by one process: by this one, or by another that makes the same call with the same ``out``.

    Raises:
        KeyboardInterrupt: if ``stop`` says so before all numbers are done; it says which are, and where they are kept.

    Args:
        numbers: the numbers of evaluations.
        out: the file; ``None`` keeps nothing.
        read: a function that reads the fits of the file by their numbers; no file is no fits.
        fit: a function that makes one fit, or ``None`` if it was interrupted.
        write: a function that writes fits to the file.
        stop: a function that tells whether to return before all numbers are done.

    Example:
        >>> fitted([2, 3], None, dict, lambda n: n * n, print, lambda: False)
        [4, 9]
    """
    kept = dict(read())
    seen: list[object] = []
    file = None if out is None else Path(out)

    def done(name: str) -> bool:
        if file is not None and file.exists():
            now = file.stat()
            version = [now.st_ino, now.st_mtime_ns, now.st_size]
            if version != seen:
                kept.update(read())
                seen[:] = version
        return int(name.rpartition(" ")[2]) in kept

    def work(name: str) -> None:
        n = int(name.rpartition(" ")[2])
        if (one := fit(n)) is None:
            return
        kept[n] = one
        if file is not None:
            with Lock(file):  # which another process may be adding to
                kept.update({m: other for m, other in read().items() if m != n})
                write(list(kept.values()))

    folder = None if file is None else file.parent
    if folder is not None and not all(done(str(n)) for n in numbers):
        folder.mkdir(parents=True, exist_ok=True)
    share([f"{'' if file is None else file.name} {n}" for n in numbers], folder, done, work, stop)
    if stop() and not kept.keys() >= set(numbers):
        raise stopped(kept.keys() & set(numbers), numbers, out)
    return list(kept.values())


def stopped(done: Collection[int], wanted: Collection[int], out: str | os.PathLike[str] | None) -> KeyboardInterrupt:
    """Return the error of a fit that was interrupted, for the caller to raise.

    Args:
        done: the numbers of evaluations that are finished.
        wanted: all numbers of evaluations.
        out: the file in which the finished ones are, if there is one.

    Example:
        >>> str(stopped([5], [5, 8], "mine.json"))
        'stopped with 5 of 5, 8 evaluations done; they are in mine.json: the same call goes on from there'
    """
    finished, every = (", ".join(map(str, sorted(numbers))) for numbers in (done, wanted))
    if not done:
        kept = "nothing is saved"
    elif out is None:
        kept = "nothing is saved: pass out='mine.json', and the same call goes on from there"
    else:
        kept = f"they are in {out}: the same call goes on from there"
    return KeyboardInterrupt(f"stopped with {finished or 'none'} of {every} evaluations done; {kept}")
