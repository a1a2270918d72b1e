"""States of tensors: allocating, as ``readable`` defines them, and overwritten in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.solvers.drivers.model import Evaluation, Project
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.path import Point
from scoresde.solvers.updates import Row, States, Update, plus, scaled

__all__ = ["Allocating", "InPlace", "lookback"]


def lookback(rows: Sequence[Update]) -> tuple[int, int]:
    """Return how many evaluations and how many draws of noise the rows look back on at most."""
    each = [row.lookback for row in rows]
    return max((n for n, _ in each), default=0), max((n for _, n in each), default=0)


class Allocating(States):
    """States that are tensors, a new one for every update.

    Args:
        rows: the updates that will be made, which tell how much is looked back on.
        evaluate: the model at the points of their evaluations, in order.
        x: the start.
        noise: the source of all draws; not asked where no row draws.
        project: applied to the state at the end of every step, ``project(x, t) -> x``.
        history, draws: what the first updates look back on, newest first.
    """

    def __init__(
        self,
        rows: Sequence[Update],
        evaluate: Iterator[Evaluation],
        x: Tensor,
        noise: NoiseSource | None,
        project: Project | None = None,
        history: Sequence[Tensor] = (),
        draws: Sequence[Tensor] = (),
    ) -> None:
        self.evaluate, self.noise, self.project = evaluate, noise, project
        self.depth, self.kept = lookback(rows)
        # A model may return the same memory at each call: where an older prediction is looked back on, it is copied.
        self.copies = self.depth > 1 or not all(row.linear for row in rows)
        self.x = self.y = x
        self.step = 0
        self.history, self.draws = tuple(history)[: self.depth], tuple(draws)[: self.kept]

    def predict(self) -> Any:
        return next(self.evaluate)(self.y)

    def draw(self, start: Point, to: Point, kernel: float) -> None:
        self.draws = (self.draw_apart(start, to, kernel), *self.draws)[: self.kept]

    def draw_apart(self, start: Point, to: Point, kernel: float) -> Tensor:
        assert self.noise is not None
        return self.noise(start, to, torch.empty_like(self.x), kernel)

    def combine(self, row: Row, m: Tensor | None) -> None:
        if m is not None:
            self.history = (self.interpolated(row, m), *self.history)[: self.depth]
        y = scaled(self.x, row.a)
        for factors, values in ((row.w, self.history), (row.s, self.draws)):
            for factor, value in zip(factors, values, strict=False):
                if isinstance(factor, Tensor) or factor:
                    y = plus(y, value, factor)
        if row.ends_step:
            self.replace(y, row.to, True)
        else:
            self.y = y

    def interpolated(self, row: Row, m: Tensor) -> Tensor:
        """N = p y + q m."""
        if isinstance(row.p, Tensor) or row.p:
            return plus(scaled(self.y, row.p), m, row.q)
        if isinstance(row.q, Tensor) or row.q != 1:
            return scaled(m, row.q)
        return m.clone() if self.copies else m

    def replace(self, y: Tensor, to: Point, ends_step: bool) -> None:
        self.x = self.y = y if self.project is None else self.project(y, to.t)
        self.step += ends_step

    def ratio(self, xi: Tensor, score: Tensor, norm: str) -> Tensor:
        norms = [torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (xi, score)]
        if norm == "batch":
            norms = [n.mean() for n in norms]
        # A vanishing score would ask for an infinite step.
        found: Tensor = norms[0] / norms[1].clamp(min=torch.finfo(self.x.dtype).tiny ** 0.25)
        return found if norm == "batch" else found.reshape(-1, *([1] * (self.x.ndim - 1)))


class InPlace(Allocating):
    """The same in the memory of one state, one stage where there are stages, the history and the draws, written over.

    Equal to :class:`Allocating` bit for bit. The start is copied, and nothing goes between host and device.
    """

    def __init__(
        self,
        rows: Sequence[Update],
        evaluate: Iterator[Evaluation],
        x: Tensor,
        noise: NoiseSource | None,
        project: Project | None = None,
    ) -> None:
        super().__init__(rows, evaluate, x.clone(memory_format=torch.contiguous_format), noise, project)
        linear = all(row.linear for row in rows)
        self.stage = self.x if all(row.shown for row in rows) else torch.empty_like(self.x)
        self.draws = tuple(torch.empty_like(self.x) for _ in range(self.kept))
        self.apart = None if linear else torch.empty_like(self.x)
        self.room: list[Tensor] = []  # of the history, its oldest entry first
        self.memory = _Memory((self.x, self.stage), self.depth, linear)

    def draw(self, start: Point, to: Point, kernel: float) -> None:
        assert self.noise is not None
        self.draws = (self.draws[-1], *self.draws[:-1])
        self.noise(start, to, self.draws[0], kernel)

    def draw_apart(self, start: Point, to: Point, kernel: float) -> Tensor:
        assert self.noise is not None and self.apart is not None
        return self.noise(start, to, self.apart, kernel)

    def combine(self, row: Row, m: Tensor | None) -> None:
        if m is not None and self.depth:
            self.history = (self.interpolated(row, m), *self.history)[: self.depth]
        y = torch.mul(self.x, row.a, out=self.x if row.ends_step else self.stage)
        for factor, value in zip(row.w, self.history):  # noqa: B905  # either may be the longer
            if factor:
                y.add_(value, alpha=factor)
        for factor, value in zip(row.s, self.draws):  # noqa: B905
            if factor:
                y.add_(value, alpha=factor)
        if row.ends_step:
            if self.project is not None:
                y.copy_(self.project(y, row.to.t))
            self.step += 1
        self.y = y

    def interpolated(self, row: Row, m: Tensor) -> Tensor:
        if row.p:
            return torch.mul(self.y, row.p, out=self._oldest()).add_(m, alpha=row.q)
        if row.q != 1:
            return torch.mul(m, row.q, out=self._oldest())
        return self._oldest().copy_(m) if self.memory.changes(m) else m

    def _oldest(self) -> Tensor:
        """Memory for the next entry of the history: that of the one which is forgotten."""
        self.room.append(self.room.pop(0) if len(self.room) == self.depth else torch.empty_like(self.x))
        return self.room[-1]

    def replace(self, y: Tensor, to: Point, ends_step: bool) -> None:
        self.y = self.x.copy_(y if self.project is None else self.project(y, to.t))
        self.step += ends_step


class _Memory:
    """Whether a prediction lies in memory that is about to change: that of the states, or one that the model reuses.

    Where predictions are looked back on, the first ones are copied. If by then none has come in the memory of one before
    it, the later ones are kept as they are, each held against those kept.
    """

    def __init__(self, states: Sequence[Tensor], depth: int, linear: bool) -> None:
        self.states = [_extent(x) for x in states]
        self.depth = depth
        self.first = max(1, depth - 1) if depth > 1 else 0  # how many are copied until one has been seen twice
        self.reused = not linear  # an update that is not linear evaluates too, and is not seen here
        self.count = 0
        self.recent: tuple[tuple[int, int, bool, Tensor], ...] = ()  # extent, whether copied, and the prediction

    def changes(self, m: Tensor) -> bool:
        """Whether ``m`` must be copied, since it may be written over while it is needed."""
        if self.reused:
            return True
        start, end = _extent(m)
        for low, high in self.states:
            if start < high and low < end:
                return True  # the model returned its own input
        if self.depth == 1:
            return False
        for low, high, copied, _ in self.recent:
            if start < high and low < end:
                self.reused = True
                if not copied:
                    raise RuntimeError(
                        "the model returned a prediction in the memory of an earlier one that was still needed, after "
                        "several in memory of their own; expected new memory at each call, or the same at each: take "
                        "driver='readable', which copies them all"
                    )
        self.count += 1
        copied = self.reused or self.count <= self.first
        self.recent = ((start, end, copied, m), *self.recent[: self.depth - 2])  # held, so that its memory stays taken
        return copied


def _extent(x: Tensor) -> tuple[int, int]:
    """Where the memory of ``x`` starts, and where it ends."""
    start = x.data_ptr()
    if x.is_contiguous():
        return start, start + x.nbytes
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return start, start + (last + 1) * x.element_size()
