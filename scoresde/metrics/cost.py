"""What a computation costs: its time for each evaluation, and the memory that it holds at most."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde.metrics.intervals import Estimate, quantile_estimate

__all__ = ["PeakMemory", "peak_memory", "seconds_per_evaluation"]


def seconds_per_evaluation(seconds: Sequence[float], evaluations: int, confidence: float = 0.95) -> Estimate:
    """The median time of several runs, for each of their evaluations, with an interval of order statistics.

    Times are never shorter than the work and at times much longer, so that their mean tells of the machine. Fewer than six
    runs are too few for an interval of 95 %, which then spans all of them.

    Example:
        >>> seconds_per_evaluation([1.0, 1.2, 5.0], 10)
        Estimate(value=0.12, low=0.1, high=0.5)
    """
    if not seconds or evaluations < 1:
        raise ValueError(f"got {len(seconds)} times of {evaluations} evaluations; expected at least one of each")
    each = torch.tensor(seconds, dtype=torch.float64) / evaluations
    if len(each) == 1:
        return Estimate.exact(float(each))
    found = quantile_estimate(each, 0.5, confidence)
    return Estimate(found.value, max(found.low, float(each.min())), min(found.high, float(each.max())))


class PeakMemory:
    """What :func:`peak_memory` measures: ``bytes``, the most held at once beyond what was there before."""

    bytes: int = 0


@contextlib.contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[PeakMemory]:
    """Measure the memory of the tensors that the block makes, and holds at the same time.

    On a GPU it is what the allocator counts. On the CPU, where nothing counts, every operation is watched, which costs time:
    measure memory and time in different runs. Memory that an operation takes and gives back within itself is not seen there.

    Example:
        >>> with peak_memory() as peak:
        ...     for _ in range(3):
        ...         x = torch.zeros(1000)
        >>> peak.bytes  # the third is made while the second is held, and the first is gone
        8000
    """
    device, found = torch.device(device), PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            yield found
        finally:
            found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with _Watch() as watch:
        try:
            yield found
        finally:
            found.bytes = watch.peak


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Counts the bytes of all storages that operations return, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(s) for s in map(_storage, torch.utils._pytree.tree_leaves((args, kwargs))) if s is not None}
        result = func(*args, **(kwargs or {}))
        for storage in map(_storage, torch.utils._pytree.tree_leaves(result)):
            # A view, or an operation in place, returns the storage of an argument.
            if storage is not None and id(storage) not in given and id(storage) not in self.held:
                self.held[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, id(storage))
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


def _storage(value: Any) -> Any:
    return value.untyped_storage() if isinstance(value, torch.Tensor) else None
