"""Datasets: indexed samples, so that the order of a training is an order of indices."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.data.arrays import to_float
from scoresde.data.classes import check_labels

__all__ = ["Arrays", "Dataset", "Flipped"]

Indices = Tensor | Sequence[int]


class Dataset(abc.ABC):
    """A dataset: indexed samples with or without labels.

    A subclass implements ``__len__``, :meth:`samples` and :meth:`fingerprint`.

    Attributes:
        event: the shape of a sample: ``(c, h, w)`` for images in [-1, 1], ``(d,)`` for vectors.
        labels: the label of each sample, int64, shape ``(n,)``, or ``None``.
        classes: the names of the classes in the order of their labels, or ``None``.
        skipped: the names of files that could not be read and were left out.
    """

    event: tuple[int, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int:
        """The number of classes: the number of their names or, without names, the largest label plus 1; 0 without labels.

        Example:
            >>> Arrays(torch.zeros(2, 1), [0, 1], ("a", "b", "c")).num_classes, Arrays(torch.zeros(2, 1)).num_classes
            (3, 0)
        """
        if self.labels is None:
            return 0
        return len(self.classes) if self.classes else int(self.labels.max()) + 1

    @abc.abstractmethod
    def samples(self, indices: Indices) -> Tensor:
        """Return the samples at ``indices``, in this order, shape ``(batch, *event)``, float32."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that identifies the dataset; it costs much less than reading all samples."""

    def batch(self, indices: Indices) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the samples at ``indices`` and their conditions: ``{"label": ..}``, or ``{}`` without labels."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.samples(chosen), {} if self.labels is None else {"label": self.labels[chosen]}

    def tensor(self) -> Tensor:
        """Return all samples, shape ``(n, *event)``, of a dataset that fits into memory."""
        return self.samples(range(len(self)))

    def digest(self, at_once: int = 256) -> str:
        """Return a digest of all samples; it reads the whole dataset, ``at_once`` samples at a time.

        Example:
            >>> x = torch.zeros(5, 2)
            >>> Arrays(x).digest(at_once=2) == Arrays(x.clone()).digest(), Arrays(x).digest() == Arrays(x + 1).digest()
            (True, False)
        """
        digest = hashlib.blake2b(f"{len(self)} {self.event}".encode(), digest_size=16)
        for start in range(0, len(self), at_once):
            digest.update(self.samples(range(start, min(start + at_once, len(self)))).numpy().tobytes())
        return digest.hexdigest()


@dataclass(eq=False)
class Arrays(Dataset):
    """A dataset in memory.

    Args:
        x: samples of shape ``(n, *event)``. Bytes are stored as they are and scaled to [-1, 1] on access. Floats are not
            scaled.
        labels: whole numbers from 0, shape ``(n,)``, stored as int64, or ``None``.
        classes: the names of the classes in the order of their labels, or ``None``.

    Raises:
        ValueError: for no samples, samples without an event dimension, and labels that are not one class for each sample.

    Example:
        >>> data = Arrays(torch.tensor([[[[0]]], [[[255]]]], dtype=torch.uint8), labels=torch.tensor([7, 2]))
        >>> x, conditions = data.batch([1, 0])
        >>> x.flatten(), conditions["label"]
        (tensor([ 1., -1.]), tensor([2, 7]))
    """

    x: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or not len(self.x):
            raise ValueError(f"got data of shape {tuple(self.x.shape)}; expected (n, *event) with at least one sample")
        if self.labels is not None:
            self.labels = check_labels(self.labels, len(self.x), self.classes)
        self.event = tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def samples(self, indices: Indices) -> Tensor:
        """Return the samples at ``indices``, in this order, shape ``(batch, *event)``, float32."""
        return to_float(self.x[torch.as_tensor(indices, dtype=torch.int64)])

    def fingerprint(self) -> str:
        """Return the dtype, the shape and a digest of all values, which are in memory and quickly read."""
        digest = hashlib.blake2b(digest_size=8)
        for values in (self.x, self.labels):
            if values is not None:
                digest.update(values.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"{self.x.dtype} {tuple(self.x.shape)} {digest.hexdigest()}"


@dataclass(eq=False)
class Flipped(Dataset):
    """A dataset of n images followed by their mirror images: sample n + i is sample i mirrored left to right.

    Flips therefore need no random numbers, and an epoch contains each image once in both forms.

    Args:
        of: the dataset of images.

    Raises:
        ValueError: for samples that are not images.

    Example:
        >>> data = Flipped(Arrays(torch.tensor([[[[0.0, 1.0]]]])))
        >>> len(data), data.samples([1, 0]).flatten()
        (2, tensor([1., 0., 0., 1.]))
    """

    of: Dataset

    def __post_init__(self) -> None:
        if len(self.of.event) != 3:
            raise ValueError(f"got samples of shape {self.of.event} to flip; expected images (c, h, w)")
        self.event, self.classes, self.skipped = self.of.event, self.of.classes, self.of.skipped
        self.labels = None if self.of.labels is None else self.of.labels.repeat(2)

    def __len__(self) -> int:
        return 2 * len(self.of)

    def samples(self, indices: Indices) -> Tensor:
        """Return the samples at ``indices``, in this order, shape ``(batch, *event)``, float32."""
        chosen, n = torch.as_tensor(indices, dtype=torch.int64), len(self.of)
        x = self.of.samples(chosen % n)
        return torch.where((chosen >= n)[:, None, None, None], x.flip(-1), x)

    def fingerprint(self) -> str:
        """Return ``"flipped"`` and the fingerprint of the images."""
        return f"flipped {self.of.fingerprint()}"
