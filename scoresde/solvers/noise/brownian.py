r"""One Brownian path for all solvers: a tree of cells that holds the exponential integrals of dW.

A step u -> v of an exponential integrator draws :math:`I_k(u, v) = \int_u^v e^{k s}\, dW_s`; the rate k is its kernel. On a
cell, which is an interval of lam, a few independent standard normal numbers describe dW: the coefficients of the cell (see
:mod:`scoresde.solvers.noise.multiwavelets`). An orthogonal matrix makes the coefficients of the two parts of a cell from
the coefficients of the cell and as many fresh numbers. So the tree grows downwards, to wherever a step ends.
"""

from __future__ import annotations

import bisect
import itertools
import math
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.solvers import scalar
from scoresde.solvers.noise.fresh import FreshNoise, counted_normal, single_or_double
from scoresde.solvers.noise.multiwavelets import Kernels, cell_weights, split_matrix
from scoresde.solvers.noise.region import Region, local
from scoresde.solvers.path import Path, Point

__all__ = ["BrownianNoise"]

_LONGEST = 4.0  # in units of the fastest kernel; Gauss's rule is exact to rounding up to this length
_SAME = 1e-9  # two values of lam that differ by less are the same up to rounding


class _Cell(NamedTuple):
    """A cell from ``low`` to ``high``, within the knots ``i`` and ``j``; without a cell above it, the root of a tree."""

    low: float
    high: float
    i: int
    j: int
    parent: _Cell | None = None
    right: bool = False
    level: int = 0

    @property
    def key(self) -> tuple[float, ...]:
        """The key of the cell's entry in the cache, which holds both parts of the cell above."""
        if self.parent is None:
            return self.low, self.high
        return self.parent.low, self.low if self.right else self.high, self.parent.high


class BrownianNoise(FreshNoise):
    r"""One Brownian path W per sample in the time lam, seen by every solver and every step size alike.

    The draw over an interval from u to v, towards the data, is the integral with the solver's kernel k,

    .. math:: I_k(u, v) = \int_u^v e^{k s}\, dW_s, \qquad \mathrm{Cov}(I_k, I_l) = \int_u^v e^{(k + l) s}\, ds,

    divided by its standard deviation. The kernel is eta in ``Data(eta)`` prediction and -1 in ``Noise`` and ``Rho``. It is
    0, an increment of W, for a method written in t, which is correct to leading order. Two solvers, or one solver with two
    step sizes, thus solve the same SDE on the same path, and their difference is a strong error. The difference vanishes
    where the model satisfies the assumption of an exponential integrator exactly.

    W and its integrals are a function of the sample's seed, the knots and the kernels, whatever the queries, their order
    and the batch. A path that visits the knots one after the other costs one draw of fresh noise a step and kernel. So
    does a path that visits every 2nd, 4th, 8th .. of them. A point between the knots costs as much for each halving of lam
    down to ``resolution``: to compare solvers on several paths, give all paths as ``knots``. The memory holds two draws
    for each kernel and level of the tree in use.

    Moves towards the noise, Langevin corrections and steps from alpha = 0 are not steps of the reverse SDE in lam. They
    take fresh noise.

    Args:
        seeds: the seeds, one per sample.
        device: the device of the samples.
        knots: the values of lam at which W is cheap to compute, and which span it: a path, several paths, or values of lam.
            By default they are the points of the first path that :func:`scoresde.sample` follows with this noise, or -32 and
            32 where a point is asked for before that.
        kernels: the rates whose integrals are jointly exact, by default 0 for increments and 1 for ``Data(eta=1)``. The
            integral of any other rate is replaced by its projection on these, with a relative error of the order h^n in the
            step, n the number of kernels. Name all rates in use, ``(0.0, 1.0, -1.0)`` with ``Noise``. ``(0.0,)`` is W alone,
            at half the cost, and suffices for the strong order of 1 that one draw per step allows.
        resolution: the shortest step between the knots. Points of several paths that lie nearer to each other than that have
            exact marginal laws, but not the exact joint law.

    Raises:
        ValueError: for fewer than two finite knots, kernels that are not distinct numbers, or a query outside the knots.

    Source: Li et al., "Scalable Gradients for Stochastic Differential Equations", 2020, https://arxiv.org/abs/2001.01328,
    for the tree whose seeds are a function of the position.

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
        self,
        seeds: Sequence[int],
        device: torch.device,
        knots: Path | Sequence[Path] | Sequence[float] | None = None,
        *,
        kernels: Sequence[float] = (0.0, 1.0),
        resolution: float = 2.0**-20,
    ) -> None:
        super().__init__(seeds, device)
        self._knots = None if knots is None else _knots(knots)
        self.kernels: Kernels = tuple(float(k) for k in kernels)
        if not self.kernels or len(set(self.kernels)) < len(self.kernels) or not all(map(math.isfinite, self.kernels)):
            raise ValueError(f"got kernels {list(kernels)}; expected distinct finite rates, as (0.0, 1.0, -1.0)")
        if not resolution > 0:
            raise ValueError(f"got resolution={resolution}; expected a positive length in lam")
        self._longest = _LONGEST / max(1.0, *map(abs, self.kernels))
        self.resolution = min(resolution, self._longest)
        self._generator = torch.Generator(device)
        self._cache: OrderedDict[tuple[float, ...], Tensor] = OrderedDict()
        self._deepest = 0  # the deepest level of the tree so far
        self._fresh = torch.empty(0, device=device)
        self._rows: list[list[Tensor]] = []  # views of its rows, by sample
        self._region = Region((), ())  # the region of the samples that is drawn
        self._sample: Tensor | None = None  # memory for a whole sample, where the region has a part of it

    @property
    def knots(self) -> list[float]:
        """The values of lam at which W is cheap, rising."""
        return [-32.0, 32.0] if self._knots is None else self._knots

    def adopt(self, path: Path) -> None:
        """Take the points of ``path`` as knots, if none were given and nothing was drawn yet."""
        if self._knots is None and sum(math.isfinite(scalar.value(p.lam)) for p in path.points) > 1:
            within = _knots(path)
            # The ends lie far apart, so that W is defined on other paths too.
            self._knots = [*([-32.0] if within[0] > -32 else []), *within, *([32.0] if within[-1] < 32 else [])]

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        u, v = scalar.value(start.lam), scalar.value(to.lam)
        if math.isnan(u) or math.isnan(v):
            raise ValueError("an SDE without marginals has no lam to draw a Brownian path in; take fresh noise")
        if v <= u or u == -math.inf:
            return self.normal(out)
        cells, weights = self._terms(u, v, kernel)
        return self._sum(cells, weights, 1 / math.hypot(*itertools.chain(*weights)), out)

    def integral(self, u: float, v: float, out: Tensor, kernel: float = 0.0) -> Tensor:
        """Compute I_k(u, v) itself, between two values ``u < v`` of lam, in ``out``, shape ``(batch, *event)``."""
        if not u < v:
            raise ValueError(f"got the interval from {u} to {v}; expected the first below the second")
        return self._sum(*self._terms(u, v, kernel), math.exp(kernel * v), out)

    def _terms(self, u: float, v: float, kernel: float) -> tuple[list[_Cell], list[list[float]]]:
        """Return the cells that make up u -> v, and the weights of their coefficients in e^{-kernel v} I."""
        self._knots = self.knots  # the knots stay from the first draw on
        u, v = self._snapped(u), self._snapped(v)
        for lam in (u, v):
            if not self.knots[0] <= lam <= self.knots[-1]:
                raise ValueError(
                    f"got lam={lam:.6g}, where the Brownian path is not defined; expected a value between its first knot, "
                    f"{self.knots[0]:.6g}, and its last, {self.knots[-1]:.6g}: give it more knots"
                )
        cells = self._cover(u, v)
        weights = []
        for cell in cells:
            scale = math.exp(kernel * (0.5 * (cell.low + cell.high) - v))
            weights.append([scale * c for c in cell_weights(self.kernels, kernel, cell.high - cell.low)])
        return cells, weights

    def _cover(self, u: float, v: float) -> list[_Cell]:
        """Return the fewest cells that make up u -> v, in their order."""
        found, stack = [], [_Cell(self.knots[0], self.knots[-1], 0, len(self.knots) - 1)]
        while stack:
            cell = stack.pop()
            low, high, i, j = cell[:4]
            if high <= u or v <= low:
                continue
            short = high - low <= self._longest
            if short and u <= low and high <= v:
                found.append(cell)
                continue
            if j - i > 1:
                k = _middle(i, j)
                middle, left, right = self.knots[k], (i, k), (k, j)
            else:
                middle, left, right = self._split_point(low, high, u, v), (i, j), (i, j)
            above, level = (cell, cell.level + 1) if short else (None, 0)
            stack += [_Cell(middle, high, *right, above, short, level), _Cell(low, middle, *left, above, False, level)]
        self._deepest = max(self._deepest, *(cell.level for cell in found))
        return found

    def _split_point(self, low: float, high: float, u: float, v: float) -> float:
        """Return where to split a cell without knots: halfway, or, below the resolution, where u -> v ends."""
        if high - low > self.resolution:
            return 0.5 * (low + high)
        if low < u and v < high:
            raise ValueError(
                f"got a step of {v - u:.3g} in lam, below the resolution {self.resolution:.3g} of the Brownian path; give "
                "its points as knots, or a finer resolution"
            )
        return u if low < u else v

    def _sum(self, cells: list[_Cell], weights: list[list[float]], scale: float, out: Tensor) -> Tensor:
        if out.shape[0] != len(self.seeds):
            raise ValueError(f"got a batch of {out.shape[0]} for {len(self.seeds)} seeds; expected one seed per sample")
        region, held = Region.of(out), local(out)
        if self._region != region or self._fresh.dtype != out.dtype:
            self._cache.clear()
            self._region = region
            self._fresh = torch.empty(len(self.kernels), *held.shape, dtype=out.dtype, device=held.device)
            self._rows = [[part[sample] for part in self._fresh] for sample in range(len(held))]
            whole = region.size == region.shape
            self._sample = None if whole else torch.empty(out.shape[1:], dtype=out.dtype, device=held.device)
        floor = torch.finfo(out.dtype).eps / 64 * max(abs(w) for of_cell in weights for w in of_cell)
        held.zero_()
        for cell, of_cell in zip(cells, weights, strict=True):
            for xi, w in zip(self._coefficients(cell), of_cell, strict=True):
                if abs(w) > floor:  # all weights of a short cell but one vanish
                    held.add_(xi, alpha=scale * w)
        return out

    def _coefficients(self, cell: _Cell) -> Tensor:
        """Return the coefficients of dW on a cell, ``(kernels, batch, *event)``; read-only, valid until the next call."""
        branch = [cell]
        while branch[-1].parent is not None:
            branch.append(branch[-1].parent)
        known = next((level for level, part in enumerate(branch) if part.key in self._cache), len(branch))
        for part in reversed(branch[known:]):  # the steps that follow need the cells above again
            if part.key in self._cache:
                self._cache.move_to_end(part.key)
        for part in reversed(branch[:known]):
            self._make(part)
        return self._part(cell)

    def _part(self, cell: _Cell) -> Tensor:
        n = len(self.kernels)
        return self._cache[cell.key][n:] if cell.right else self._cache[cell.key][:n]

    def _make(self, cell: _Cell) -> None:
        """Put the coefficients of a cell, and of the other part of the cell above, into the cache."""
        if cell.parent is None:
            fresh = self._normal(cell.key)
            self._room(cell.key)[: len(fresh)].copy_(fresh)
            return
        low, middle, high = cell.key
        terms = (*self._normal((low, high, 0.0)), *self._part(cell.parent))
        # The cell above is the newest entry, so that its memory is not reused here.
        for out, line in zip(self._room(cell.key), split_matrix(self.kernels, middle - low, high - middle), strict=True):
            torch.mul(terms[0], line[0], out=out)
            for xi, c in zip(terms[1:], line[1:], strict=True):
                if c:
                    out.add_(xi, alpha=c)

    def _normal(self, key: tuple[float, ...]) -> Tensor:
        """Return standard normal numbers that depend on the seeds and ``key`` alone; they are valid until the next call."""
        mixed = 0
        for number in key:
            mixed = _mix(mixed + struct.unpack("<Q", struct.pack("<d", number + 0.0))[0])
        region, event = self._region, self._region.shape[1:]
        if self.counts(event):
            n = len(self._fresh)
            keys = self.keys_of(np.uint64(mixed))[region.batch]
            drawn = counted_normal(keys, 0, n * math.prod(event), single_or_double(self._fresh.dtype))
            numbers = torch.from_numpy(drawn).reshape(-1, n, *event)[:, :, *region.event]
            return self._fresh.copy_(numbers.transpose(0, 1))
        for seed, rows in zip(self.seeds[region.batch], self._rows, strict=True):
            self._generator.manual_seed(_mix(seed + mixed))
            for row in rows:
                if self._sample is None:
                    row.normal_(generator=self._generator)
                else:
                    row.copy_(self._sample.normal_(generator=self._generator)[region.event])
        return self._fresh

    def _room(self, key: tuple[float, ...]) -> Tensor:
        """Return memory for the coefficients of two cells: the oldest entry's, once the cache holds one branch."""
        full = len(self._cache) > self._deepest + 2
        room = self._cache.popitem(last=False)[1] if full else torch.cat((self._fresh, self._fresh))
        self._cache[key] = room
        return room

    def _snapped(self, lam: float) -> float:
        """Return the knot that equals ``lam`` up to rounding, as where two paths meet, or else ``lam``."""
        i = bisect.bisect_left(self.knots, lam)
        near = min(self.knots[max(i - 1, 0) : i + 1], key=lambda knot: abs(knot - lam))
        return near if abs(near - lam) < _SAME else lam


def _knots(knots: Path | Sequence[Path] | Sequence[float]) -> list[float]:
    given = [knots] if isinstance(knots, Path) else knots
    lams = itertools.chain(*([scalar.value(p.lam) for p in k.points] if isinstance(k, Path) else [float(k)] for k in given))
    out: list[float] = []
    for lam in sorted({lam for lam in lams if math.isfinite(lam)}):
        if not out or lam - out[-1] > _SAME:
            out.append(lam)
    if len(out) < 2:
        raise ValueError(f"got knots {out}; expected at least two finite values of lam, which span W")
    return out


def _middle(i: int, j: int) -> int:
    """Return the number between ``i`` and ``j`` that 2 divides most often, to put every 2^n-th knot high in the tree."""
    shift = (i ^ (j - 1)).bit_length() - 1
    return (j - 1) >> shift << shift


_MASK = 2**64 - 1


def _mix(x: int) -> int:
    """Scramble a 64-bit number one-to-one (Steele et al., "Fast splittable pseudorandom generators", 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
