"""Loading of batches by worker processes ahead of their use, in an order that the caller chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from scoresde.data.dataset import Dataset, Indices

__all__ = ["batches"]


class _ByIndices(torch.utils.data.Dataset[Any]):
    """A dataset whose items are batches, indexed by lists of indices."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, indices: Indices) -> tuple[Tensor, dict[str, Tensor]] | ValueError:
        try:
            return self.data.batch(indices)
        except ValueError as error:  # returned, not raised: the loader would wrap it in the traceback of a worker
            return error


def batches(
    data: Dataset, indices: Iterable[Indices], workers: int = 0, ahead: int = 2
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield ``data.batch(i)`` for each ``i`` of ``indices``, in their order, read ahead by worker processes.

    The result does not depend on the number of workers, and the global generator is not used. A resumed training passes the
    indices from its step on.

    Args:
        data: the dataset.
        indices: the indices of the samples of each batch; it may be infinite.
        workers: number of worker processes; 0 reads in this process.
        ahead: number of batches that each worker reads ahead.

    Raises:
        ValueError: for a negative ``workers``, an ``ahead`` of less than 1, and a sample that cannot be read.

    Example:
        >>> from scoresde.data import open
        >>> [conditions["label"].tolist() for _, conditions in batches(open("digits"), [[0, 5], [3]])]
        [[0, 5], [3]]
    """
    if workers < 0 or ahead < 1:
        raise ValueError(f"got workers={workers} and ahead={ahead}; expected workers of at least 0 and ahead of at least 1")
    if workers == 0:
        yield from (data.batch(chosen) for chosen in indices)
        return
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _ByIndices(data),
        batch_size=None,
        sampler=indices,  # with batch_size=None its items are passed to the dataset unchanged
        num_workers=workers,
        prefetch_factor=ahead,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch
