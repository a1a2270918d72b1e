"""The processes of a training: each works on its share of every batch, and their gradients are added."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from scoresde.base.devices import as_device

__all__ = ["Processes", "launched"]


@dataclass(frozen=True)
class Processes:
    """A process of a training: number ``rank``, from 0, of ``count`` processes, which works on ``device``.

    Example:
        >>> Processes(torch.device("cpu"), rank=1, count=2).share(5)
        slice(2, 5, None)
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """True for the first process, which writes files and shows progress."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return the slice of ``n`` samples that this process works on."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, with one exchange for each dtype."""
        if self.count == 1:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            for tensor, part in zip(group, torch.split(flat, [t.numel() for t in group]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its value in the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def whole(self, share: Tensor, n: int) -> Tensor:
        """Return the rows of all ``n`` samples, given the rows of each process's share."""
        total = share.new_zeros(n, *share.shape[1:])
        total[self.share(n)] = share
        self.add([total])
        return total


def launched(device: torch.device | str | None, default: torch.device) -> Processes:
    """Return this process, one of those that ``accelerate launch`` or ``torchrun`` started, or the only one.

    Args:
        device: the device to work on, or ``None`` for the default.
        default: the device of a single process for which ``device`` is ``None``.

    Raises:
        ImportError: if there are several processes and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(as_device(default if device is None else device))
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "got a training in several processes, which needs accelerate; install it: pip install 'scoresde[train]'"
        ) from error
    on_cpu = torch.device(device).type == "cpu" if device is not None else not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    return Processes(state.device, state.process_index, state.num_processes)
