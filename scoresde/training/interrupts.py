"""Ctrl-C and SIGTERM as requests to stop after the step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["interrupts"]


@contextlib.contextmanager
def interrupts(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, and yield a function that reads the flag.

    A second signal has its former effect, or none if ``patient``. Pass ``patient=True`` in a process that a launcher
    started, which receives one Ctrl-C twice, from the terminal and from the launcher. The scheduler of a cluster sends
    SIGTERM before it kills. Only the main thread receives signals. A signal that is ignored, or handled outside Python,
    stays so.

    Example:
        >>> with interrupts() as interrupted:
        ...     interrupted()
        False
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {n: handler for n, handler in previous.items() if callable(handler) or (n, handler) == _USUAL_END}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not patient:
            signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_USUAL_END = (signal.SIGTERM, signal.SIG_DFL)
