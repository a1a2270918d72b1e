"""Noise: standard normal draws that a sample owns, whatever batch it is in."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.solvers.path import Point

__all__ = ["FreshNoise", "NoiseSource", "sample_seeds"]


class NoiseSource(Protocol):
    r"""Asked for a standard normal draw over the interval from one point to another.

    It stands for the integral :math:`\int e^{k s} dW_s` over the interval in lam, with k = ``kernel``, divided by its
    standard deviation. Only a source that shares a path between solvers needs to know.
    """

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor: ...


def sample_seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """One seed per sample: those given, or ``n`` derived from one integer (or, for ``None``, from the system's entropy).

    Different integers give unrelated lists: seed 1 is not seed 0 shifted by one sample. The seeds of one list differ in
    their low 32 bits, which are all that torch's generators on the CPU use.

    Example:
        >>> sample_seeds(0, 2) == sample_seeds(0, 3)[:2]
        True
        >>> sample_seeds([5, 7], 2)
        [5, 7]
    """
    if seed is None:
        seed = secrets.randbits(63)
    if isinstance(seed, int):
        if seed < 0:
            raise ValueError(f"got seed={seed}; expected a whole number of at least 0, or one per sample")
        shift, flip, high = (int(word) for word in np.random.SeedSequence(seed).generate_state(3))
        return [(high >> 1) << 32 | (_scramble((shift + i) % 2**32) ^ flip) for i in range(n)]
    seeds = [int(s) for s in seed]
    if len(seeds) != n:
        raise ValueError(f"got {len(seeds)} seeds for {n} samples; expected one per sample, or one integer for all")
    return seeds


def _scramble(word: int) -> int:
    """A one-to-one map of the 32-bit words, without visible pattern (the finalizer of MurmurHash3; Appleby, 2011)."""
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


class FreshNoise:
    """Independent noise for every interval, from one generator per sample on the samples' own device.

    Args:
        seeds: one per sample.
        device: where the samples live.

    Example:
        >>> noise = FreshNoise([1, 2], torch.device("cpu"))
        >>> both = noise.normal(torch.empty(2, 3))
        >>> alone = FreshNoise([2], torch.device("cpu")).normal(torch.empty(1, 3))
        >>> bool((both[1] == alone[0]).all())
        True
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds = list(seeds)
        self.generators = [torch.Generator(device).manual_seed(s) for s in self.seeds]

    def normal(self, out: Tensor) -> Tensor:
        """Fill ``out``, shape ``(batch, *event)``, with standard normal numbers and return it."""
        if out.shape[0] != len(self.generators):
            raise ValueError(f"got a batch of {out.shape[0]} for {len(self.generators)} seeds; expected one seed per sample")
        for row, generator in zip(out, self.generators, strict=True):
            row.normal_(generator=generator)
        return out

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        return self.normal(out)
