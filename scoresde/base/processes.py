"""Processes that share work: workers that one process starts, and processes of a launcher that meet in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

from scoresde.base.lock import InUseError, Lock

__all__ = ["launch_rank", "share", "workers"]

PAUSE = 0.1
"""The seconds between two looks at work that other processes are doing."""


@contextlib.contextmanager
def workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start ``processes`` workers, and stop them at the end; they stop by themselves if this process is killed.

    They are spawned, since forked processes cannot use a GPU.

    Raises:
        RuntimeError: if a worker ended without a result, killed by the system or by hand.

    Example:
        >>> with workers(1) as pool:
        ...     pool.submit(sum, [1, 2]).result()
        3
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_end_with_parent)
    try:
        with pool:
            yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {processes} worker processes ended without a result: it was killed, most often for want of memory, or "
            "crashed; start again with fewer processes or smaller parts, which continues where it stopped"
        ) from error


def _end_with_parent() -> None:
    """Watch the process that started this one, and end when it does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # at once: nobody is left to read a result, and files are whole or not there


# Processes of a launcher ---------------------------------------------------------------------------------------------


def launch_rank() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many ``torchrun`` or ``accelerate launch`` started; (0, 1) alone.

    Example:
        >>> launch_rank()
        (0, 1)
    """
    return int(os.environ.get("RANK", "0")), max(int(os.environ.get("WORLD_SIZE", "1")), 1)


def share(
    pieces: Sequence[str],
    folder: Path | None,
    done: Callable[[str], bool],
    work: Callable[[str], object],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Do pieces of work together with all processes that call this for the same folder; return when all are done.

    A process locks a piece that nobody is at (:class:`~scoresde.base.lock.Lock`), does it, and goes on to the next. No
    process knows how many others there are, and none waits while there is work that nobody does. Processes come and go: one
    that is killed loses its locks, and another takes up its piece. The processes of a launcher begin at different pieces.

    ``work`` must keep its result where ``done`` of every process finds it.

    Args:
        pieces: the names of the pieces, in an order in which one process does them.
        folder: the folder that all processes see, in which the locks are; ``None`` for a process that works alone.
        done: tells whether a piece is done, by whomever.
        work: a function that does a piece.
        stop: a function that tells whether to return before all is done.

    Example:
        >>> import tempfile
        >>> found = []
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     share(["a", "b"], Path(folder), found.__contains__, found.append)
        >>> found
        ['a', 'b']
    """
    rank, count = launch_rank() if folder is not None else (0, 1)
    first = len(pieces) * rank // count
    left = [*pieces[first:], *pieces[:first]]
    while left and not stop():
        before = len(left)
        for piece in left:
            if stop():
                return
            _do_alone(piece, folder, done, work)
        left = [piece for piece in left if not done(piece)]
        if len(left) == before:  # others are at all of them
            time.sleep(PAUSE)


def _do_alone(piece: str, folder: Path | None, done: Callable[[str], bool], work: Callable[[str], object]) -> None:
    """Do a piece, unless it is done or another process is at it."""
    if done(piece):
        return
    if folder is None:
        work(piece)
        return
    lock = Lock(folder / hashlib.blake2b(piece.encode(), digest_size=8).hexdigest())
    try:
        lock.acquire()
    except InUseError:
        return
    try:
        if not done(piece):  # while this process took the lock
            work(piece)
    finally:
        lock.release()
