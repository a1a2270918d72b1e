"""The region of a sharded tensor that one process holds, so that it draws the numbers of that region."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Region", "is_sharded", "local"]


@dataclass(frozen=True)
class Region:
    """A box of a tensor of shape ``(batch, *event)``: all of a plain tensor, or what this process has of a sharded one.

    A tensor sharded over a mesh (``torch.distributed.tensor.DTensor``) is split along a dimension as ``torch.chunk`` splits
    it, mesh dimension after mesh dimension.

    Attributes:
        shape: the shape of the whole tensor.
        spans: the indices of the box along each dimension.

    Example:
        >>> Region.of(torch.zeros(3, 2)).spans
        (slice(0, 3, None), slice(0, 2, None))
    """

    shape: tuple[int, ...]
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, x: Tensor) -> Region:
        """Return the region of ``x`` that this process holds.

        Raises:
            ValueError: for a sharded tensor whose shards are parts of a sum, or interleaved.
        """
        spans = [range(n) for n in x.shape]
        sharded: Any = x
        if is_sharded(x):
            mesh = sharded.device_mesh
            for count, here, placement in zip(mesh.shape, mesh.get_coordinate(), sharded.placements, strict=True):
                if placement.is_replicate():
                    continue
                if not placement.is_shard():
                    raise ValueError(f"got a state placed as {placement}; expected Shard(dim) or Replicate()")
                whole = spans[placement.dim]
                size = math.ceil(len(whole) / count)
                spans[placement.dim] = whole[here * size : (here + 1) * size]
        return cls(tuple(x.shape), tuple(slice(s.start, s.stop) for s in spans))

    @property
    def batch(self) -> slice:
        """The samples in the region."""
        return self.spans[0]

    @property
    def event(self) -> tuple[slice, ...]:
        """The part of each sample that is in the region."""
        return self.spans[1:]

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the region."""
        return tuple(s.stop - s.start for s in self.spans)


def is_sharded(x: Tensor) -> bool:
    """Return whether ``x`` is a tensor over a mesh of devices; asked by its attribute, whose module is slow to import."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """Return the memory that this process holds of ``x``: ``x`` itself, if it is not sharded."""
    sharded: Any = x
    if not is_sharded(x):
        return x
    with torch.no_grad():
        held: Tensor = sharded.to_local()
    return held
