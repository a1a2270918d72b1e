"""The end of a fit on Ctrl-C or SIGTERM: an error that says what is done and how to go on."""

from __future__ import annotations

import os
from collections.abc import Collection

__all__ = ["stopped"]


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
