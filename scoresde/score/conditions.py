"""Conditions: the named inputs of a model other than the state and the time, such as labels."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Conditions", "Shared"]


Entries = TypeVar("Entries", Tensor, list[Any])


@dataclass(frozen=True)
class Shared:
    """A condition that belongs to no single sample and is passed to the network unchanged, whatever its shape.

    It stays wrapped up to the call of the network, so that a score model around others can tell it from a condition with an
    entry for each sample.

    Example:
        >>> import torch, scoresde
        >>> seen = []
        >>> model = scoresde.ScoreModel(lambda x, t, mixing: seen.append(mixing.shape) or x, scoresde.VP())
        >>> _ = model.x0(torch.ones(4, 2), 0.5, mixing=Shared(torch.eye(4)))
        >>> seen
        [torch.Size([4, 4])]
    """

    value: Any


@dataclass(frozen=True)
class Conditions:
    """The checked conditions of a batch.

    A tensor, an array or a list has one entry for each sample. A number is the same for all samples. Any other value, and
    any value in :class:`Shared`, belongs to the batch as a whole and is passed on unchanged.

    Attributes:
        values: the values passed to the model, by name; a :class:`Shared` one is still wrapped.
        per_sample: the names of the conditions with one entry for each sample.
        batch: the number of samples.

    Example:
        >>> told = Conditions.of({"label": [3, 1], "prompt": "a cat"}, 2)
        >>> told.values["label"], sorted(told.per_sample), told.batch
        (tensor([3, 1]), ['label'], 2)
    """

    values: Mapping[str, Any]
    per_sample: frozenset[str]
    batch: int

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any] | None,
        batch: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Conditions:
        """Check the conditions ``given`` for ``batch`` samples, and move them to ``device``.

        Integers of any kind become int64; Python and NumPy floats become ``dtype``.

        Raises:
            TypeError: if ``given`` is not a mapping from names to values.
            ValueError: for a condition whose number of entries differs from the number of samples.

        Example:
            >>> found = Conditions.of({"label": [3, 1], "scale": 2.0, "prompt": "a cat"}, 2)
            >>> found.values["label"], found.values["scale"], sorted(found.per_sample)
            (tensor([3, 1]), tensor([2., 2.]), ['label', 'scale'])
        """
        if given is None:
            given = {}
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise TypeError(
                f"got conditions of type {type(given).__name__}; expected a mapping from names to values: "
                "conditions={'label': labels}"
            )
        if taken := sorted({"x", "t"} & given.keys()):
            raise ValueError(
                f"got a condition called {taken[0]!r}, the name of the state or the time in net(x, t, ..); expected another"
            )
        dtype = dtype or torch.get_default_dtype()
        values: dict[str, Any] = {}
        per_sample = set()
        for name, value in given.items():
            found = _entries(name, value, batch, dtype)
            if found is None:
                values[name] = Shared(_moved(value.value, device)) if isinstance(value, Shared) else _moved(value, device)
            else:
                per_sample.add(name)
                values[name] = _moved(found, device)
        return cls(values, frozenset(per_sample), batch)

    def repeated(self, copies: int) -> Mapping[str, Any]:
        """Return the values for ``copies`` of the batch, one copy after another."""
        if copies == 1:
            return self.values
        return {name: _repeat(v, copies) if name in self.per_sample else v for name, v in self.values.items()}


def _moved(value: Any, device: torch.device | str | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _entries(name: str, value: Any, batch: int, dtype: torch.dtype) -> Tensor | list[Any] | None:
    """Return a tensor with one entry for each sample, or ``None`` for a value that belongs to the batch as a whole."""
    if isinstance(value, Shared | str | bytes | Mapping) or value is None:
        return None
    if isinstance(value, numbers.Number | np.generic):
        found = torch.as_tensor(value)
    elif isinstance(value, Tensor):
        found = value
    elif isinstance(value, np.ndarray | list | tuple | range):
        items: list[Any] = [*value]
        try:
            found = torch.stack(items) if _of_tensors(value) else torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError):
            return _checked(name, items, len(items), batch)  # prompts, say
    else:
        return None
    if not isinstance(value, Tensor) and found.is_floating_point():
        found = found.to(dtype)
    if not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        found = found.to(torch.int64)
    if found.ndim == 0:
        return found.expand(batch)
    return _checked(name, found, found.shape[0], batch)


def _of_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, Tensor) for v in value)


def _checked(name: str, value: Entries, entries: int, batch: int) -> Entries:
    if entries != batch:
        raise ValueError(
            f"got a condition {name!r} with {entries} entries for {batch} samples; expected one for each sample, a number "
            f"for all of them, or scoresde.Shared(..) for a value that belongs to no single sample"
        )
    return value


def _repeat(value: Any, copies: int) -> Any:
    return value * copies if isinstance(value, list) else value.repeat(copies, *[1] * (value.ndim - 1))
