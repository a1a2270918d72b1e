"""The batch of a training step, as a function of the seed and the number of the step alone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from scoresde import data as sets
from scoresde.base import identity
from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch

__all__ = ["Batches", "Indexed", "Samplable", "seeded"]

_ALL = slice(None)


@runtime_checkable
class Samplable(Protocol):
    """A distribution: anything with ``sample(n, generator) -> (n, *event)``."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` samples, shape ``(n, *event)``."""
        ...


@runtime_checkable
class Indexed(Protocol):
    """Indexed samples with their conditions, such as a :class:`scoresde.data.Dataset`."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the samples at ``indices`` and their conditions."""
        ...

    def fingerprint(self) -> str:
        """Return a short text that identifies the data."""
        ...


def _derive(seed: int, stream: str, index: int) -> int:
    """Return a seed of 63 bits for one purpose at one step, independent of the seeds of other steps and purposes."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded(seed: int, stream: str, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator for one purpose, ``stream``, at step number ``index``.

    Example:
        >>> torch.rand(1, generator=seeded(0, "noise", 7)) == torch.rand(1, generator=seeded(0, "noise", 7))
        tensor([True])
    """
    return torch.Generator(device).manual_seed(_derive(seed, stream, index))


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=seeded(seed, "epoch", epoch))


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a tensor, a dataset or a distribution.

    A tensor or dataset is shuffled anew for each epoch, and each sample occurs once per epoch.

    Args:
        data: samples of shape ``(n, *event)``, a :class:`scoresde.data.Dataset`, or a distribution with
            ``sample(n, generator)``.
        batch_size: samples per batch; a batch may contain the end of one epoch and the start of the next.
        seed: seed of the shuffling or of the distribution's samples.
        conditions: an entry for each sample of a tensor, ``{"label": labels}``, each of length ``n``.
        workers: number of processes that read batches ahead, for a :class:`scoresde.data.Dataset`.
        check: a function that refuses samples of a wrong shape or dtype; the check of real ones by default.

    Raises:
        ValueError: for data of another type, empty or with nan or inf; for conditions of another length or of data that are
            not a tensor; for ``workers`` of data that are not a dataset.

    Example:
        >>> batches = Batches(torch.arange(6.0)[:, None], batch_size=4, seed=0)
        >>> first_epoch = torch.cat([batches.at(0)[0], batches.at(1)[0][:2]])
        >>> first_epoch.flatten().sort().values
        tensor([0., 1., 2., 3., 4., 5.])
    """

    data: Tensor | Samplable | Indexed
    batch_size: int
    seed: int
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    workers: int = 0
    check: Callable[[Tensor], Tensor] = check_batch

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size, 1)
        whole("workers", self.workers, 0)
        if self.workers and not isinstance(self.data, sets.Dataset):
            raise ValueError(
                f"got workers={self.workers} for data of type {type(self.data).__name__}, which is not read from files; "
                "expected a dataset of scoresde.data: pass workers=0"
            )
        if not isinstance(self.data, Tensor):
            if not isinstance(self.data, Samplable | Indexed):
                raise ValueError(
                    f"got data of type {type(self.data).__name__}; expected a tensor of shape (n, *event), a "
                    "dataset of scoresde.data or anything with sample(n, generator)"
                )
            if self.conditions:
                raise ValueError(
                    f"got conditions for data of type {type(self.data).__name__}; expected conditions only with a tensor: "
                    "let the data give their conditions themselves"
                )
            if isinstance(self.data, Indexed) and not len(self.data):
                raise ValueError("got data of no samples; expected at least one sample")
            return
        if not len(self.data):
            raise ValueError("got data of no samples; expected a tensor of shape (n, *event) with n of at least 1")
        self.check(self.data)
        if not bool(torch.isfinite(self.data).all()):
            raise ValueError("got data that are not all finite; expected finite numbers: remove the samples with nan or inf")
        for name, values in self.conditions.items():
            if values.ndim == 0 or len(values) != len(self.data):
                raise ValueError(
                    f"got condition {name!r} of shape {tuple(values.shape)} for {len(self.data)} samples; "
                    "expected one entry per sample"
                )

    def indices(self, index: int, part: slice = _ALL) -> Tensor | None:
        """Return the indices of the samples in batch number ``index``, or in a part of it; ``None`` for a distribution."""
        if not isinstance(self.data, Tensor | Indexed):
            return None
        n, start = len(self.data), index * self.batch_size
        position = torch.arange(start, start + self.batch_size)[part]
        epochs = range(start // n, (start + self.batch_size - 1) // n + 1)
        orders = torch.cat([_permutation(n, self.seed, epoch) for epoch in epochs])
        return orders[position - epochs[0] * n]

    def at(
        self, index: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, part: slice = _ALL
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return batch number ``index``, of shape ``(batch_size, *event)``, or a part of it, and its conditions."""
        chosen = self.indices(index, part)
        if chosen is None or not isinstance(self.data, Tensor | Indexed):
            drawn = cast(Samplable, self.data).sample(self.batch_size, generator=seeded(self.seed, "data", index))
            return _moved(self.check(drawn)[part], device, dtype), {}
        if isinstance(self.data, Tensor):
            x = self.data[chosen.to(self.data.device)]
            conditions = {name: values[chosen.to(values.device)] for name, values in self.conditions.items()}
        else:
            x, conditions = self.data.batch(chosen)
        return _moved(x, device, dtype), {name: values.to(device) for name, values in conditions.items()}

    def ahead(
        self, numbers: range, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, part: slice = _ALL
    ) -> Generator[tuple[Tensor, dict[str, Tensor]], None, None]:
        """Yield the batches whose numbers are in ``numbers``, with their conditions, each equal to the result of :meth:`at`.

        The worker processes read batches ahead. They end when the generator is closed.
        """
        if not isinstance(self.data, sets.Dataset) or not self.workers:
            yield from (self.at(number, device, dtype, part) for number in numbers)
            return
        chosen = (cast(Tensor, self.indices(number, part)).tolist() for number in numbers)
        for x, conditions in sets.batches(self.data, chosen, self.workers):
            yield _moved(x, device, dtype), {name: values.to(device) for name, values in conditions.items()}

    def event(self) -> tuple[int, ...]:
        """Return the shape of a sample, from the data's attribute ``event`` or from one sample."""
        told = getattr(self.data, "event", None)
        if isinstance(told, tuple):
            return told
        x, _ = replace(self, batch_size=1, workers=0).at(0)
        return tuple(x.shape[1:])

    def fingerprint(self) -> str:
        """Return a short text that identifies the data: shapes, dtypes and a digest of the values."""
        if isinstance(self.data, Indexed):
            return self.data.fingerprint()
        if not isinstance(self.data, Tensor):
            return _told(self.data)
        digest = hashlib.blake2b(digest_size=8)
        for values in (self.data, *self.conditions.values()):
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        names = "".join(f" {name}" for name in self.conditions)
        return f"{self.data.dtype} {tuple(self.data.shape)}{names} {digest.hexdigest()}"


def _moved(x: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """Return samples on a device and, unless they are whole numbers, in a dtype."""
    return x.to(device=device, dtype=dtype) if x.is_floating_point() else x.to(device)


def _told(data: Samplable) -> str:
    """Return a text that identifies a distribution: its class, and its ``fingerprint()`` or a digest of its content.

    Where neither can be had, the text is the name of the class alone.
    """
    own = getattr(data, "fingerprint", None)
    try:
        return f"{type(data).__name__} {own() if callable(own) else identity.digest(data, libraries=False)}"
    except ValueError:
        return type(data).__name__
