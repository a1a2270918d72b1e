"""One run of a solver on a path from a start, and the search for the step at which a state stops being finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.sampling.counted import Counted
from scoresde.solvers.drivers import Driver, Project, State, readable
from scoresde.solvers.noise.brownian import BrownianNoise
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path
from scoresde.solvers.solver import Solver
from scoresde.solvers.updates import Update

__all__ = ["Last", "NonFiniteError", "Run", "bar", "checked", "finite"]


class NonFiniteError(FloatingPointError):
    """The error for a state that became infinite or NaN.

    Attributes:
        solver: its name.
        last_finite: the last state that was finite.
        step, t: the step in which it became non-finite, and the time at which that step ends.
    """

    def __init__(self, solver: str, step: int, t: float, last_finite: Tensor) -> None:
        super().__init__(
            f"the state became non-finite in step {step} of solver {solver!r}, on the way to t={t:.6g}; the last finite "
            "state is on this exception as .last_finite. Check the network there, take more steps, or another solver"
        )
        self.solver, self.last_finite, self.step, self.t = solver, last_finite, step, t

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, int, float, Tensor]]:
        return type(self), (self.solver, self.step, self.t, self.last_finite)  # an exception keeps its sentence alone


class Last(NamedTuple):
    """The last state of a run, the info reported with it, and the number of points of the path reached (None: all)."""

    x: Tensor
    info: Mapping[str, Any] | None = None
    reached: int | None = None


@dataclass(frozen=True)
class Run:
    """A solver on a path from ``x``, run by the driver ``loop`` or, if that is ``None``, by the solver's own loop."""

    method: Solver
    loop: Driver | None
    path: Path
    rows: Sequence[Update] | None
    model: Counted
    x: Tensor
    noise: FreshNoise
    project: Project | None

    def steps(self) -> int | None:
        """Return the number of steps, or ``None`` if the solver chooses its own."""
        return None if self.rows is None else sum(row.ends_step for row in self.rows)

    def states(self) -> Iterator[State]:
        """Yield the states, one after another."""
        if self.loop is None or self.rows is None:
            return self.method.states(self.path, self.model, self.x, self.noise)
        return cast(Iterator[State], self.loop(self.rows, self.model, self.x, self.noise, project=self.project))

    def last(self, callback: Callable[[State], object] | None, on_step: Callable[[int], None]) -> Last:
        """Return the last state, after calls of ``on_step`` at every step and of ``callback`` at every state.

        The run stops where ``callback`` returns something true.
        """
        if self.rows is not None and self.loop is not None and not self.loop.shows_states:
            overwrite = cast(Callable[..., Tensor], self.loop)
            return Last(overwrite(self.rows, self.model, self.x, self.noise, on_step, project=self.project))
        last, done = Last(self.x), 0
        states = self.states()
        for state in states if callback is None else checked(states, self.x, self.method.name):
            last = Last(state.x, state.info)
            if state.step > done:  # several states may belong to one step
                done = state.step
                on_step(done)
            if callback is not None and callback(state):
                return last._replace(reached=state.step + 1)
        return last

    def last_checked(self) -> Last:
        """Run again with every state checked, to find the step of a failure; runs that succeed do not pay for this."""
        last = Last(self.x)
        for state in checked(self.states(), self.x, self.method.name):
            last = Last(state.x, state.info)
        return last

    def again(self, drawn: bool) -> Run:
        """Return the same run from the beginning, with the same noise.

        Args:
            drawn: whether the start was drawn, in which case it took the first random numbers.
        """
        noise = self.noise if isinstance(self.noise, BrownianNoise) else FreshNoise(self.noise.seeds, self.x.device)
        if drawn:
            noise.normal(torch.empty_like(self.x))
        return replace(self, loop=readable, noise=noise)


def checked(states: Iterator[State], x: Tensor, solver: str) -> Iterator[State]:
    """Yield the states, and raise NonFiniteError at the first one that is not finite."""
    for state in states:
        if not finite(state.x):
            raise NonFiniteError(solver, state.step, state.point.t, x)
        x = state.x
        yield state


@contextlib.contextmanager
def bar(progress: bool, name: str, total: Callable[[], int | None]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if ``progress``, and yield a function that sets the number of steps done."""
    if not progress:
        yield lambda step: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total(), desc=name, unit="step", leave=False) as bar:
        yield lambda step: cast(None, bar.update(step - bar.n))


def finite(x: Tensor) -> bool:
    """Return whether all numbers of ``x`` are finite; the sum decides, and each number only if the sum is not finite."""
    return bool(torch.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))) or bool(torch.isfinite(x).all())
