"""The cost of a computation: its time for each evaluation, and its peak memory."""

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
    """Return the median time for one evaluation over several runs, with an interval of order statistics.

    Times are never shorter than the work and sometimes much longer, so the mean depends on what else the machine does. With
    fewer than six runs there is no interval at 95 % confidence, and the range of all runs is returned.

    Raises:
        ValueError: without a run or an evaluation.

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
    """The result of :func:`peak_memory`: ``bytes``, the largest memory held at once beyond what was held before.

    Example:
        >>> with peak_memory() as peak:
        ...     x = torch.zeros(1000)
        >>> type(peak).__name__, peak.bytes
        ('PeakMemory', 4000)
    """

    bytes: int = 0


@contextlib.contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[PeakMemory]:
    """Measure the peak memory of the tensors that are made in a ``with`` block.

    On a GPU this is what the allocator counts. On the CPU every operation is traced, which costs time: measure memory and
    time in different runs. Temporary memory inside an operation is not counted on the CPU.

    Example:
        >>> with peak_memory() as peak:
        ...     for _ in range(3):
        ...         x = torch.zeros(1000)
        >>> peak.bytes  # the third tensor is made while the second is held, and the first is freed
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
    """A dispatch mode that counts the bytes of all storages that operations return, until they are freed."""

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
