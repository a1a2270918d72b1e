"""The processes of a training: each takes its share of every batch, and they add up their gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Processes", "launched"]


@dataclass(frozen=True)
class Processes:
    """One of ``count`` processes, which is number ``rank`` and works on ``device``."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """The part of ``n`` samples that is this one's."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in one exchange for each of their types."""
        if self.count == 1:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            dist.all_reduce(flat)
            for tensor, part in zip(group, torch.split(flat, [t.numel() for t in group]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def whole(self, share: Tensor, n: int) -> Tensor:
        """What the processes have of ``n`` samples, put together."""
        total = share.new_zeros(n, *share.shape[1:])
        total[self.share(n)] = share
        self.add([total])
        return total


def launched(device: torch.device | str | None, default: torch.device) -> Processes:
    """This process among those that ``accelerate launch`` or ``torchrun`` started, or the only one.

    Raises:
        ImportError: if there are several and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(torch.device(default if device is None else device))
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "got a training in several processes, which takes accelerate; install it: pip install 'scoresde[train]'"
        ) from error
    on_cpu = torch.device(device).type == "cpu" if device is not None else not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    return Processes(state.device, state.process_index, state.num_processes)
