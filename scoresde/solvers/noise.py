"""Noise: standard normal draws that a sample owns, whatever batch it is in."""

from __future__ import annotations

import bisect
import math
import secrets
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.solvers import scalar
from scoresde.solvers.path import Path, Point

__all__ = ["BrownianNoise", "FreshNoise", "NoiseSource", "sample_seeds"]


class NoiseSource(Protocol):
    """Asked for a normalised (standard normal) draw over the interval from one point to another."""

    def __call__(self, start: Point, to: Point, out: Tensor) -> Tensor: ...


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

    def __call__(self, start: Point, to: Point, out: Tensor) -> Tensor:
        return self.normal(out)


class BrownianNoise(FreshNoise):
    r"""One Brownian path W per sample in the time lam, seen by every solver and every step size alike.

    The draw over an interval from u to v, towards the data, is
    :math:`(W(\lambda_v) - W(\lambda_u)) / \sqrt{\lambda_v - \lambda_u}`. Two solvers, or one with two step sizes, thus
    solve the same SDE on the same path, and their difference is a strong error. To leading order in the step this is the
    draw that the noise of any solver of the SDE asks for, so that a strong order of 1, the highest that one draw per step
    allows, is kept.

    W is a virtual Brownian tree: its value at a knot is a bridge between the two knots that enclose it on the level above,
    with a normal number that is a function of the sample's seed and of lam alone. Therefore W is a function of the seed and
    the knots, whatever is asked for, in whatever order and batch; what is kept is only a cache. The knots are ``knots``,
    halved as a list, then lam itself, halved down to 2^-20. A path that visits the knots one after the other costs one or
    two draws of fresh noise a step; one that visits every k-th of them log2(k) more, and a point between the knots some
    twenty: to compare solvers on several paths, give the finest of them as ``knots``.

    Moves towards the noise, Langevin corrections and steps from alpha = 0 are not steps of the reverse SDE in lam: they take
    fresh noise.

    Args:
        seeds: one per sample.
        device: where the samples live.
        knots: a path, or values of lam, at which W is cheap, and which span it; by default -32 and 32.
        cache: how many tensors of the size of the batch are kept.

    Raises:
        ValueError: for fewer than two finite knots, or a query outside them.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import make_path
        >>> u, v, w = make_path(VP(), "lam", 2, end="stop").points
        >>> noise = BrownianNoise([1, 2], torch.device("cpu"))
        >>> whole, first, second = (noise(*span, torch.empty(2, 3)) for span in ((u, w), (u, v), (v, w)))
        >>> bool(torch.allclose(whole, (first + second) / 2**0.5, atol=1e-5))
        True
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device, knots: Path | Sequence[float] = (-32.0, 32.0), *, cache: int = 64
    ) -> None:
        super().__init__(seeds, device)
        lams = [scalar.value(p.lam) for p in knots.points] if isinstance(knots, Path) else knots
        self.knots = sorted({float(lam) for lam in lams if math.isfinite(lam)})
        if len(self.knots) < 2:
            raise ValueError(f"got knots {self.knots}; expected at least two finite values of lam, which span W")
        self._generator = torch.Generator(device)
        self._limit = cache
        self._cache: OrderedDict[float, Tensor] = OrderedDict()

    def __call__(self, start: Point, to: Point, out: Tensor) -> Tensor:
        u, v = scalar.value(start.lam), scalar.value(to.lam)
        if math.isnan(u) or math.isnan(v):
            raise ValueError("an SDE without marginals has no lam to draw a Brownian path in; take fresh noise")
        if v <= u or u == -math.inf:
            return self.normal(out)
        a, b = self._snapped(u), self._snapped(v)
        ends = self.value(b, out), self.value(a, out)
        return torch.sub(*ends, out=out).mul_(1 / math.sqrt(b - a))

    def value(self, lam: float, like: Tensor) -> Tensor:
        """W at ``lam``, shape and dtype of ``like``, zero at the first knot; not to be written to."""
        lam = self._snapped(lam)
        if not self.knots[0] <= lam <= self.knots[-1]:
            raise ValueError(
                f"got lam={lam:.6g}, where the Brownian path is not defined; expected a value between its first knot, "
                f"{self.knots[0]:.6g}, and its last, {self.knots[-1]:.6g}: give it more knots"
            )
        if like.shape[0] != len(self.seeds):
            raise ValueError(f"got a batch of {like.shape[0]} for {len(self.seeds)} seeds; expected one seed per sample")
        if self._cache and next(iter(self._cache.values())).shape != like.shape:
            self._cache.clear()
        i, j = 0, len(self.knots) - 1
        low, high = self.knots[0], self.knots[-1]
        w_low = self._cached(low) if low in self._cache else self._keep(low, torch.zeros_like(like))
        w_high = self._cached(high) if high in self._cache else self._knot(high, like).mul_(math.sqrt(high - low))
        while low < lam < high:
            if j - i > 1:
                middle = self.knots[(i + j) // 2]
            elif high - low > 2**-20:
                middle = 0.5 * (low + high)
            else:
                return torch.lerp(w_low, w_high, (lam - low) / (high - low))
            t = (middle - low) / (high - low)
            if middle in self._cache:
                w = self._cached(middle)
            else:
                w = self._knot(middle, like).mul_(math.sqrt(t * (high - middle)))
                w.add_(w_low, alpha=1 - t).add_(w_high, alpha=t)
            k = (i + j) // 2 if j - i > 1 else (i if lam >= middle else j)
            if lam >= middle:
                i, low, w_low = k, middle, w
            else:
                j, high, w_high = k, middle, w
        return w_low if lam == low else w_high

    def _snapped(self, lam: float) -> float:
        """The knot that ``lam`` is but for rounding, as where two paths meet, or ``lam``."""
        i = bisect.bisect_left(self.knots, lam)
        near = min(self.knots[max(i - 1, 0) : i + 1], key=lambda knot: abs(knot - lam))
        return near if abs(near - lam) < 1e-9 else lam

    def _cached(self, lam: float) -> Tensor:
        self._cache.move_to_end(lam)
        return self._cache[lam]

    def _keep(self, lam: float, w: Tensor) -> Tensor:
        self._cache[lam] = w
        while len(self._cache) > self._limit:
            self._cache.popitem(last=False)
        return w

    def _knot(self, lam: float, like: Tensor) -> Tensor:
        """A standard normal number that depends on the seeds and on ``lam`` alone, kept to be made into W there."""
        w = torch.empty_like(like)
        key = _mix(struct.unpack("<Q", struct.pack("<d", lam + 0.0))[0])
        for row, seed in zip(w, self.seeds, strict=True):
            row.normal_(generator=self._generator.manual_seed(_mix(seed + key)))
        return self._keep(lam, w)


_MASK = 2**64 - 1


def _mix(x: int) -> int:
    """A bijection of 64-bit numbers that looks random (Steele et al., "Fast splittable pseudorandom generators", 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
