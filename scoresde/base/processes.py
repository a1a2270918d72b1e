"""Worker processes that report what went wrong with them and do not outlive the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

__all__ = ["workers"]


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
