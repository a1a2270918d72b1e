"""Ctrl-C as a request to stop after the step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["interrupts"]


@contextlib.contextmanager
def interrupts(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag; the second does what it did before, or nothing more where one is ``patient``.

    A process that was launched gets one Ctrl-C twice, from the terminal and from its launcher. Signals reach the main
    thread alone, and where they are ignored or handled outside Python they stay so.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not patient:
            signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
