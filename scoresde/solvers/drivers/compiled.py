"""The driver that compiles the arithmetic of rows: one kernel a row instead of one per term."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.solvers.drivers.base import Driver
from scoresde.solvers.drivers.model import Denoiser, Evaluation, Project, bind
from scoresde.solvers.drivers.states import Allocating
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.updates import Row, State, Update, run

__all__ = ["Compiled"]

Tensors = tuple[Tensor, ...]


def _combine(x: Tensor, history: Tensors, draws: Tensors, c: Tensor) -> Tensor:
    """Return a x + sum w N + sum s xi; ``c`` holds a, p, q, then all w, then all s."""
    y = c[0] * x
    for i, value in enumerate((*history, *draws)):
        y = y + c[3 + i] * value
    return y


def _evaluated(x: Tensor, y: Tensor, m: Tensor, history: Tensors, draws: Tensors, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return N = p y + q m, and the sum of the row with N as the newest entry of the history."""
    n = c[1] * y + c[2] * m
    return n, _combine(x, (n, *history), draws, c)


@cache
def _compile(depth: int, kept: int, backend: Any) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """Compile both functions for histories and draws of these lengths.

    Each pair of lengths gets its own code objects, since the compiler gives up on a code object after a few recompilations.
    """
    copies = (FunctionType(f.__code__.replace(), f.__globals__) for f in (_evaluated, _combine))
    evaluated, combine = (torch.compile(copy, backend=backend) for copy in copies)
    return evaluated, combine


@dataclass(frozen=True)
class Compiled(Driver):
    """A driver that compiles the arithmetic of rows by ``torch.compile`` and yields the state at the end of every step.

    The update of a row becomes one kernel that reads each tensor once: N, the state and its sum with the history and the
    draws. Coefficients enter as a tensor. So one compilation serves every row, every step size and every solver that uses
    as many past predictions and draws; rows without an evaluation need a second one. The network is not compiled: pass
    ``ScoreModel(torch.compile(net), sde)`` to compile it too. Draws of noise, updates that are not linear and hooks run
    outside the kernel. The result equals :class:`~scoresde.solvers.Readable` to rounding.

    The first call compiles, which on a CPU needs a C++ compiler and takes some seconds.

    Args:
        backend: the backend of ``torch.compile``.

    Raises:
        ValueError: for coefficients that carry gradients.

    Example:
        >>> from scoresde import VP, solvers
        >>> class Zero:
        ...     def at(self, times, *, device, dtype):
        ...         return [torch.zeros_like] * len(times)
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 4))
        >>> [round(s.x.item(), 3) for s in Compiled("eager")(rows, Zero(), torch.ones(1, 1), None)]
        [0.994, 0.825, 0.01, 0.0]
    """

    backend: str | Callable[..., Any] = "inductor"
    name: ClassVar[str] = "compiled"
    takes_matrices: ClassVar[bool] = False

    def __call__(
        self, rows: Sequence[Update], model: Denoiser, x: Tensor, noise: NoiseSource, *, project: Project | None = None
    ) -> Iterator[State]:
        self.check(rows)
        rows, evaluations = bind(rows, model, x)
        return run(rows, _Compiled(rows, iter(evaluations), x, noise, project, self.backend))


class _Compiled(Allocating):
    """States whose linear updates are compiled."""

    def __init__(
        self,
        rows: Sequence[Update],
        evaluate: Iterator[Evaluation],
        x: Tensor,
        noise: NoiseSource,
        project: Project | None,
        backend: Any,
    ) -> None:
        super().__init__(rows, evaluate, x, noise, project)
        self.depth = max(self.depth, 1)  # the newest N is always there
        self.evaluated, self.combined = _compile(self.depth, self.kept, backend)
        self.coefficients = iter(_table(rows, self.depth, self.kept, x))
        # Missing entries of the history are zero, with weight zero. The compiler would specialise on a tensor object that
        # enters twice, and compile again where it does not: hence the views.
        zero = torch.zeros_like(x)
        self.history, self.draws = (tuple(zero.view_as(zero) for _ in range(n)) for n in (self.depth, self.kept))

    def combine(self, row: Row, m: Tensor | None) -> None:
        c = next(self.coefficients)
        if m is not None:
            y = self.y
            n, y = self.evaluated(self.x, y.view_as(y), m.view_as(m), self.history[:-1], self.draws, c)
            self.history = (n, *self.history[:-1])
        else:
            y = self.combined(self.x, self.history, self.draws, c)
        if row.ends_step:
            self.replace(y, row.to, True)
        else:
            self.y = y


def _table(rows: Sequence[Update], depth: int, kept: int, x: Tensor) -> Tensor:
    """Return the coefficients of all linear rows, shape (rows, 3 + depth + kept), on the device, at least in float32."""
    lines = [
        [row.a, row.p, row.q, *row.w, *[0.0] * (depth - len(row.w)), *row.s, *[0.0] * (kept - len(row.s))]
        for row in rows
        if isinstance(row, Row)
    ]
    table = torch.tensor(lines, dtype=torch.float64).reshape(len(lines), 3 + depth + kept)
    return table.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
