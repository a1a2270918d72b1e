"""Noise: standard normal draws that depend on the seed of a sample, and not on its batch."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.solvers.noise.region import Region, is_sharded, local
from scoresde.solvers.path import Point

__all__ = ["SMALL", "FreshNoise", "NoiseSource", "counted_normal", "counted_uniform", "sample_seeds", "single_or_double"]

Words = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.floating[Any]]]


class NoiseSource(Protocol):
    r"""A source of standard normal draws over the interval from one point to another.

    A draw stands for the integral :math:`\int e^{k s} dW_s` over the interval in lam, with k = ``kernel``, divided by its
    standard deviation. Only a source that shares a Brownian path between solvers needs the kernel.
    """

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor: ...


def sample_seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """Return one seed per sample: the given seeds, or ``n`` derived from one integer (``None``: from the system's entropy).

    Different integers give unrelated lists: seed 1 is not seed 0 shifted by one sample. The seeds of one list differ in
    their low 32 bits, since torch's generators on the CPU use no others.

    Raises:
        ValueError: for a negative seed, or another number of seeds than of samples.

    Example:
        >>> sample_seeds(0, 2) == sample_seeds(0, 3)[:2]
        True
        >>> sample_seeds([5, 7], 2)
        [5, 7]
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little") >> 1
    if isinstance(seed, int | np.integer):
        if seed < 0:
            raise ValueError(f"got seed={seed}; expected a whole number of at least 0, or one per sample")
        return list(_recent(int(seed), n) if n <= _FEW else _derived(int(seed), n))
    seeds = [operator.index(s) for s in seed]
    if len(seeds) != n:
        raise ValueError(f"got {len(seeds)} seeds for {n} samples; expected one per sample, or one integer for all")
    return seeds


_FEW = 4096
"""The largest batch whose seeds are remembered: those of a million samples would take tens of megabytes."""


def _derived(seed: int, n: int) -> tuple[int, ...]:
    shift, flip, high = (int(word) for word in np.random.SeedSequence(seed).generate_state(3))
    words = _scramble(np.arange(shift, shift + n, dtype=np.uint64) & _LOW) ^ np.uint64(flip)
    return tuple((np.uint64(high >> 1 << 32) | words).tolist())


_recent = functools.lru_cache(maxsize=8)(_derived)  # calls in a loop often share seed and batch


_LOW = np.uint64(2**32 - 1)


def _scramble(words: Words) -> Words:
    """Scramble 32-bit words one-to-one (the finalizer of MurmurHash3; Appleby, 2011)."""
    words = (words ^ words >> np.uint64(16)) * np.uint64(0x85EBCA6B) & _LOW
    words = (words ^ words >> np.uint64(13)) * np.uint64(0xC2B2AE35) & _LOW
    return words ^ words >> np.uint64(16)


class FreshNoise:
    """Noise drawn independently for every interval, on the device of the samples.

    The numbers of a sample are a function of its seed and of how many were drawn before. Small events on the CPU get their
    numbers from a counter, for all samples at once (:func:`counted_normal`). Others use one generator for each sample.

    Args:
        seeds: the seeds, one per sample.
        device: the device of the samples.

    Example:
        >>> noise = FreshNoise([1, 2], torch.device("cpu"))
        >>> both = noise.normal(torch.empty(2, 3))
        >>> alone = FreshNoise([2], torch.device("cpu")).normal(torch.empty(1, 3))
        >>> bool((both[1] == alone[0]).all())
        True
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        self.seeds = list(seeds)
        self.device = torch.device(device)
        self._drawn = 0  # the number of blocks of counted numbers so far

    @functools.cached_property
    def generators(self) -> list[torch.Generator]:
        """The generators, one for each sample, made when they are first needed."""
        # Generators on the CPU read the low 32 bits alone. The high bits are folded in, so that all bits count.
        folded = [s ^ s >> 32 for s in self.seeds] if self.device.type == "cpu" else self.seeds
        return [torch.Generator(self.device).manual_seed(s) for s in folded]

    @functools.cached_property
    def _keys(self) -> Words:
        return _mixed(_mixed(np.array([s % 2**64 for s in self.seeds], dtype=np.uint64)) + _GOLDEN)

    def counts(self, event: Sequence[int]) -> bool:
        """Return whether the numbers for events of this shape come from a counter."""
        return self.device.type == "cpu" and math.prod(event) <= SMALL

    def keys_of(self, stream: np.uint64) -> Words:
        """Return the keys of the samples for a separate stream of numbers, shape ``(batch,)``."""
        return _mixed(self._keys + stream)

    def normal(self, out: Tensor) -> Tensor:
        """Fill ``out``, shape ``(batch, *event)``, with standard normal numbers and return it.

        Each process fills its own region of a sharded ``out``. Together they hold the numbers of an unsharded one.
        """
        if out.shape[0] != len(self.seeds):
            raise ValueError(f"got a batch of {out.shape[0]} for {len(self.seeds)} seeds; expected one seed per sample")
        if self.counts(out.shape[1:]):
            region, d = Region.of(out), math.prod(out.shape[1:])
            drawn = counted_normal(self._keys[region.batch], self._drawn, d, single_or_double(out.dtype))
            self._drawn += (d + 1) // 2
            local(out).copy_(torch.from_numpy(drawn).reshape(-1, *out.shape[1:])[:, *region.event])
        elif is_sharded(out):
            fill_region(out, self.generators)
        else:
            for row, generator in zip(out, self.generators, strict=True):
                row.normal_(generator=generator)
        return out

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Return numbers uniform in [0, 1), shape ``(batch, *event)``, float64, on the host: the same on every device."""
        if shape[0] != len(self.seeds):
            raise ValueError(f"got a batch of {shape[0]} for {len(self.seeds)} seeds; expected one seed per sample")
        d = math.prod(shape[1:])
        drawn = counted_uniform(self._keys, self._drawn, d)
        self._drawn += d
        return torch.from_numpy(drawn).reshape(shape)

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        return self.normal(out)


def fill_region(out: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Fill a sharded tensor from a generator for each sample; one whole sample at a time is in memory.

    The generators of the samples that other processes hold are advanced as well, whatever the shards of the next draw.
    """
    region, held = Region.of(out), local(out)
    sample = torch.empty(out.shape[1:], dtype=out.dtype, device=held.device)
    for i, generator in enumerate(generators):
        sample.normal_(generator=generator)
        if region.batch.start <= i < region.batch.stop:
            held[i - region.batch.start] = sample[region.event]


# Counted numbers -----------------------------------------------------------------------------------------------------

SMALL = 1024
"""The largest size of an event for which a counter is faster than a generator for each sample."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(words: Words) -> Words:
    """Scramble 64-bit words one-to-one and in place, by SplitMix64's finalizer."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


def single_or_double(dtype: torch.dtype) -> type[np.floating[Any]]:
    """Return the precision in which numbers for tensors of ``dtype`` are made: single for every type that fits in it."""
    return np.float32 if torch.promote_types(dtype, torch.float32) == torch.float32 else np.float64


def _counted(keys: Words, start: int, n: int) -> Words:
    """Return the words of ``n`` blocks from block number ``start``, shape ``(batch, n)``."""
    words = np.arange(start, start + n, dtype=np.uint64) * _GOLDEN + keys[:, None]
    words = _mixed(words)
    words += keys[:, None]
    return _mixed(words)


def counted_uniform(keys: Words, start: int, d: int) -> Numbers:
    """Return ``d`` numbers uniform in [0, 1) for each key, multiples of 2^-53, one from each block from number ``start``.

    Args:
        keys: the keys, uint64, shape ``(batch,)``, unrelated to each other.
        start: the number of blocks drawn before.
        d: the number of uniform numbers for each key.

    Returns:
        An array of shape ``(batch, d)``, float64.

    Example:
        >>> keys = np.array([3, 5], dtype=np.uint64)
        >>> both = counted_uniform(keys, 0, 4)
        >>> bool((counted_uniform(keys[1:], 2, 1) == both[1:, 2:3]).all())
        True
    """
    found: Numbers = (_counted(keys, start, d) >> np.uint64(11)).astype(np.float64)
    found *= 2.0**-53
    return found


def counted_normal(keys: Words, start: int, d: int, dtype: type[np.floating[Any]]) -> Numbers:
    r"""Return ``d`` standard normal numbers for each key, in blocks of two that start with block number ``start``.

    Block c of key k is one 64-bit word, :math:`h(h(k + c\, \gamma) + k)` with SplitMix64's finalizer h and increment
    :math:`\gamma`. Its halves are two uniform numbers, which the transform of Box and Muller (1958) makes normal. The
    numbers in single and in double precision are the same up to rounding.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014; counters in place of a state:
    Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.

    Args:
        keys: the keys, uint64, shape ``(batch,)``, unrelated to each other.
        start: the number of blocks drawn before.
        d: the number of normal numbers for each key.
        dtype: the precision, ``np.float32`` or ``np.float64``.

    Returns:
        An array of shape ``(batch, d)``.

    Example:
        >>> keys = np.array([3, 5], dtype=np.uint64)
        >>> both = counted_normal(keys, 0, 4, np.float64)
        >>> bool((counted_normal(keys[1:], 1, 1, np.float64) == both[1:, 1:2]).all())  # the second block begins with that
        True
    """
    m = (d + 1) // 2
    words = _counted(keys, start, m)
    radius: Numbers = (words & _LOW).astype(np.uint32).astype(dtype)
    radius += 0.5
    radius *= 2.0**-32
    radius = np.sqrt(-2 * np.log(radius))
    angle: Numbers = (words >> np.uint64(32)).astype(dtype)
    angle *= 2 * math.pi * 2.0**-32
    out: Numbers = np.empty((len(keys), 2 * m), dtype)
    np.multiply(radius, np.cos(angle), out=out[:, :m])
    np.multiply(radius, np.sin(angle), out=out[:, m:])
    return out[:, :d]
