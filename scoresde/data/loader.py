"""Batches read ahead by worker processes, in an order that the caller chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from scoresde.data.dataset import Dataset, Indices

__all__ = ["batches"]


class _ByIndices(torch.utils.data.Dataset[Any]):
    """A set whose items are batches, and their keys lists of numbers."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, indices: Indices) -> tuple[Tensor, dict[str, Tensor]] | ValueError:
        try:
            return self.data.batch(indices)
        except ValueError as error:  # handed over as it is: the loader would wrap it in the traceback of a worker
            return error


def batches(
    data: Dataset, indices: Iterable[Indices], workers: int = 0, ahead: int = 2
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """``data.batch(i)`` for each ``i`` of ``indices``, in their order, read ahead by worker processes.

    What comes does not depend on the number of workers, and nothing is drawn from the global generator: a training that
    resumes at a step gives the indices from there on.

    Args:
        data: the set.
        indices: the numbers of the samples of each batch; it may be endless.
        workers: processes that read; 0 for none.
        ahead: batches that each of them reads in advance.

    Raises:
        ValueError: for a negative number of workers; and what reading raises, in the same words.

    Example:
        >>> from scoresde.data import open
        >>> [conditions["label"].tolist() for _, conditions in batches(open("digits"), [[0, 5], [3]])]
        [[0, 5], [3]]
    """
    if workers < 0 or ahead < 1:
        raise ValueError(f"got workers={workers} and ahead={ahead}; expected at least 0 and at least 1")
    if workers == 0:
        yield from (data.batch(chosen) for chosen in indices)
        return
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _ByIndices(data),
        batch_size=None,
        sampler=indices,  # without batch_size its items are handed on as they are
        num_workers=workers,
        prefetch_factor=ahead,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch
