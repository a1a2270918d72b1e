"""A dataset in a lower resolution, on which a stage of a cascade is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scoresde.base.identity import digest
from scoresde.data import Arrays
from scoresde.objectives.super_resolution import along_axes, check_factor, downsampled

__all__ = ["Resized"]


@dataclass(frozen=True, eq=False)
class Resized:
    """A dataset in a lower resolution.

    Args:
        of: samples of shape ``(n, *event)``, or a :class:`scoresde.data.Dataset`.
        factor: the ratio of the resolutions, or one for each axis.
        conditions: further conditions, an entry for each sample.

    Raises:
        ValueError: for axes that the factor does not divide, and conditions of another length than the data.

    Example:
        >>> import torch
        >>> Resized(torch.rand(10, 1, 8, 8), 2).batch(torch.tensor([7, 3]))[0].shape
        torch.Size([2, 1, 4, 4])
    """

    of: Any
    factor: int | Sequence[int]
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_factor("factor", self.factor, 1)
        if isinstance(self.of, Tensor):
            object.__setattr__(self, "of", Arrays(self.of))
        if bad := [(n, k) for n, k in zip(self.of.event[1:], self._factors, strict=True) if n % k]:
            raise ValueError(
                f"got samples of shape {tuple(self.of.event)} to reduce by {self.factor}; expected axes that are multiples "
                f"of {bad[0][1]}, not {bad[0][0]}"
            )
        if wrong := [name for name, values in self.conditions.items() if len(values) != len(self)]:
            raise ValueError(
                f"got condition {wrong[0]!r} with {len(self.conditions[wrong[0]])} entries for {len(self)} samples; "
                "expected one entry for each sample"
            )

    def __len__(self) -> int:
        return len(self.of)

    @property
    def _factors(self) -> tuple[int, ...]:
        """The factor along each axis."""
        return along_axes(self.factor, len(self.of.event) - 1)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a sample."""
        channels, *axes = self.of.event
        return (channels, *(n // k for n, k in zip(axes, self._factors, strict=True)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the data, empty where they have none."""
        return tuple(getattr(self.of, "classes", None) or ())

    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the samples at ``indices``, and their conditions."""
        x, told = self.of.batch(indices)
        own = {name: values[indices.to(values.device)] for name, values in self.conditions.items()}
        return x if max(self._factors) == 1 else downsampled(x, self.factor), {**told, **own}

    def fingerprint(self) -> str:
        """Return a text that identifies the data and the factor."""
        told = f" with {digest(dict(self.conditions))[:16]}" if self.conditions else ""
        return f"1/{self.factor} of {self.of.fingerprint()}{told}"
