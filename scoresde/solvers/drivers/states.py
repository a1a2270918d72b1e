"""States of tensors: allocated anew for every update, as in ``readable``, or overwritten in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.solvers.drivers.model import Evaluation, Project
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.noise.region import local
from scoresde.solvers.path import Point
from scoresde.solvers.updates import Row, States, Update, plus, scaled

__all__ = ["Allocating", "InPlace", "lookback"]


def lookback(rows: Sequence[Update]) -> tuple[int, int]:
    """Return the largest numbers of evaluations and of draws of noise that a row uses."""
    each = [row.lookback for row in rows]
    return max((n for n, _ in each), default=0), max((n for _, n in each), default=0)


class Allocating(States):
    """States that are tensors, allocated anew for every update.

    Args:
        rows: the updates that will be made, which decide how much of the history is kept.
        evaluate: the model at the points of their evaluations, in order.
        x: the start.
        noise: the source of all draws; ``None`` suffices where no row draws.
        project: the projection ``project(x, t) -> x`` of the state at the end of every step.
        history, draws: the history and the draws before the first update, newest first.
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
        # A model may return the same memory at each call: where rows use older predictions, each is copied.
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
        """Return N = p y + q m."""
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
        # A vanishing score would make the step infinite.
        found: Tensor = norms[0] / norms[1].clamp(min=torch.finfo(self.x.dtype).tiny ** 0.25)
        return found if norm == "batch" else found.reshape(-1, *([1] * (self.x.ndim - 1)))


class InPlace(Allocating):
    """States overwritten in place, in the memory of one state, one stage if there are any, the history and the draws.

    They equal :class:`Allocating` bit for bit. The start is copied, and nothing is copied between host and device.
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
        self.room: list[Tensor] = []  # the memory of the history, its oldest entry first
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
        y = self.x.mul_(row.a) if row.ends_step else torch.mul(self.x, row.a, out=self.stage)
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
        """Return memory for the next entry of the history: the memory of the entry that is forgotten."""
        self.room.append(self.room.pop(0) if len(self.room) == self.depth else torch.empty_like(self.x))
        return self.room[-1]

    def replace(self, y: Tensor, to: Point, ends_step: bool) -> None:
        self.y = self.x.copy_(y if self.project is None else self.project(y, to.t))
        self.step += ends_step


class _Memory:
    """A check for predictions in memory that is about to change: of the states, or reused by the model.

    Where rows use older predictions, the first ones are copied. If by then no two of them shared memory, the later ones are
    kept without a copy, and each is compared with those kept.
    """

    def __init__(self, states: Sequence[Tensor], depth: int, linear: bool) -> None:
        self.states = [_extent(x) for x in states]
        self.depth = depth
        self.first = max(1, depth - 1) if depth > 1 else 0  # the number of predictions to copy before the model is trusted
        self.reused = not linear  # an update that is not linear evaluates too, out of sight of this check
        self.count = 0
        self.recent: tuple[tuple[int, int, bool, Tensor], ...] = ()  # extent, whether copied, and the prediction

    def changes(self, m: Tensor) -> bool:
        """Return whether ``m`` must be copied, since its memory may be overwritten while it is needed."""
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
    """Return the addresses at which the memory of ``x``, or of this process's part of it, starts and ends."""
    x = local(x)
    start = x.data_ptr()
    if x.is_contiguous():
        return start, start + x.nbytes
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return start, start + (last + 1) * x.element_size()
