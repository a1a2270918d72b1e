r"""The linear map of a sampler, its *fingerprint*, read off by running the sampler on impulses.

For any model, a sampler with fixed steps is linear in its start, in the predictions of the model and in its noise. Let the
start, each prediction and each draw of noise have a coordinate of its own: in place of a prediction, the model returns the
next unit vector. Every state of the sampler then *is* its row of coefficients,

.. math:: y = a\, x_T + \sum_k w_k m_k + \sum_k s_k \xi_k.

Two samplers that evaluate the model at the same times and on the same rows, and end on the same row, return the same sample
for every model, start and noise. The code of the sampler is not looked at, so it may come from any package.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.sde import GaussianSDE
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import CLEAN, Path, Point, points
from scoresde.solvers.solver import Solver
from scoresde.solvers.table import get
from scoresde.solvers.updates import Row

__all__ = ["Call", "Difference", "Fingerprint", "Form", "fingerprint", "to_rows"]

SIZES = (64, 512, 4096)
"""The numbers of coordinates, tried in turn."""

Denoise = Callable[..., Tensor]
Sampler = Callable[[Denoise, Tensor, Callable[..., Tensor]], Tensor]


@dataclass(frozen=True)
class Form:
    """A state as a linear form.

    Args:
        x: the coefficient of the start.
        m: the coefficients of the predictions before the state.
        xi: the coefficients of the draws of noise before the state.

    Example:
        >>> print(Form(0.5, (0.25,), (1.0,)))
        +0.5 x +0.25 m1 +1 xi1
    """

    x: float
    m: tuple[float, ...]
    xi: tuple[float, ...]

    def terms(self) -> dict[str, float]:
        """Return the coefficients by name: "x", "m1", "m2", .., "xi1", .."""
        named = {"x": self.x, **{f"m{i + 1}": c for i, c in enumerate(self.m)}}
        return {**named, **{f"xi{i + 1}": c for i, c in enumerate(self.xi)}}

    def __str__(self) -> str:
        return " ".join(f"{c:+.6g} {name}" for name, c in self.terms().items() if abs(c) > 1e-14) or "0"


@dataclass(frozen=True)
class Call:
    """An evaluation of the model: the time and the state.

    Example:
        >>> call = Call(0.5, Form(0.5, (0.25,), ()))  # the second evaluation of a sampler
        >>> print(call.state)
        +0.5 x +0.25 m1
    """

    t: float
    state: Form


@dataclass(frozen=True)
class Difference:
    """A coefficient in which two fingerprints differ.

    Args:
        place: "evaluation k", "end", or "sampler" for another number of evaluations.
        term: "t" for the time, "x", "m1", .., "xi1", .. for a coefficient, or "evaluations".
        one: the value of the first fingerprint.
        other: the value of the second fingerprint.

    Example:
        >>> print(Difference("evaluation 2", "m1", 0.5, 0.25))
        evaluation 2, m1: 0.5 against 0.25
    """

    place: str
    term: str
    one: float
    other: float

    def __str__(self) -> str:
        return f"{self.place}, {self.term}: {self.one:.12g} against {self.other:.12g}"


@dataclass(frozen=True)
class Fingerprint:
    """The linear map of a sampler: its evaluations of the model in order, and its last state.

    Args:
        calls: the evaluations, with the times and states.
        end: the last state.

    Example:
        >>> from scoresde import EDM
        >>> from scoresde.solvers import make_path
        >>> print(fingerprint("ddim", make_path(EDM(), [4.0, 2.0, 1.0], end="stop")))
        m1 at t=4          +1 x
        m2 at t=2          +0.5 x +0.5 m1
        end               +0.25 x +0.25 m1 +0.5 m2
    """

    calls: tuple[Call, ...]
    end: Form

    def differences(self, other: Fingerprint, tolerance: float = 1e-10) -> list[Difference]:
        """Return the coefficients in which two samplers differ by more than a relative ``tolerance``.

        They are in the order of the evaluations. The first entry locates the error: the update after evaluation k - 1 made
        the state at "evaluation k". Later entries may be consequences of it. If the list is empty, the two samplers are the
        same up to the tolerance.
        """
        if len(self.calls) != len(other.calls):
            return [Difference("sampler", "evaluations", len(self.calls), len(other.calls))]
        found: list[Difference] = []
        places = [f"evaluation {k + 1}" for k in range(len(self.calls))] + ["end"]
        for place, (one, t), (two, s) in zip(places, self._states(), other._states(), strict=True):
            pairs = {"t": (t, s)}
            mine, theirs = one.terms(), two.terms()
            pairs |= {name: (mine.get(name, 0.0), theirs.get(name, 0.0)) for name in {**mine, **theirs}}
            found += [
                Difference(place, name, a, b)
                for name, (a, b) in pairs.items()
                if not abs(a - b) <= tolerance * max(abs(a), abs(b)) + 1e-13
            ]
        return found

    def _states(self) -> Iterator[tuple[Form, float]]:
        yield from ((call.state, call.t) for call in self.calls)
        yield self.end, 0.0

    def __str__(self) -> str:
        lines = [f"m{k + 1} at t={call.t:<10.6g} {call.state}" for k, call in enumerate(self.calls)]
        return "\n".join([*lines, f"end{'':<14} {self.end}"])


def fingerprint(
    sampler: str | Solver | Sampler,
    path: Path | None = None,
    *,
    time: Callable[[float], float] | None = None,
) -> Fingerprint:
    """Compute the exact linear map of a sampler with fixed steps, of this package or any other.

    Args:
        sampler: a name in :data:`scoresde.solvers.SOLVERS` or a solver, with a ``path``; or a function
            ``sampler(denoise, x, noise) -> x``. The function calls ``denoise(x, t)`` for the data prediction, with a state
            of shape ``(1, n)`` in float64 and ``t`` a number or tensor in any unit, and ``noise(...)`` with any arguments
            for a standard normal draw.
        path: the path of times of a solver.
        time: a function that converts the ``t`` of a function ``sampler`` to the time of the SDE; by default the identity.

    Raises:
        ValueError: for a solver without a path; for a sampler that is not linear (adaptive steps, Langevin norms, clipping)
            or draws noise by other means than ``noise``; for a sampler with too many evaluations and draws.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import euler, make_path
        >>> path = make_path(VP(), "lam", 4)
        >>> fingerprint("ddim", path).differences(fingerprint(euler("rho"), path))
        []
        >>> fingerprint("ddim", path).differences(fingerprint("dpmpp-2m", path))[0].place
        'evaluation 3'
    """
    run = _solver_as_function(sampler, path) if isinstance(sampler, str | Solver) else sampler
    one = _record(run, lambda column: 1.0)
    # Unequal factors of both signs: a linear sampler gives the same coefficients again, and hardly any other sampler does.
    other = _record(run, lambda column: (-1) ** column * (0.6 + 0.37 * ((7 * column) % 5)))
    if one.differences(other, 1e-8):
        raise ValueError(
            f"got a sampler that is not a fixed linear map ({one.differences(other, 1e-8)[0]} for scaled impulses); "
            "expected fixed steps, no clipping and no norms of the state, and all noise from the function that is passed in"
        )
    return Fingerprint(tuple(Call(time(c.t), c.state) for c in one.calls), one.end) if time else one


class _Full(Exception):
    """The error for a sampler that needs more coordinates."""


@dataclass
class _Recorder:
    """A model and a source of noise that return scaled unit vectors, and read linear forms off states."""

    size: int
    scale: Callable[[int], float]
    kinds: list[str] = field(default_factory=lambda: ["x"])
    calls: list[Call] = field(default_factory=list)

    def impulse(self, kind: str) -> Tensor:
        column = len(self.kinds) - (kind == "x")
        if column >= self.size:
            raise _Full
        if kind != "x":
            self.kinds.append(kind)
        out = torch.zeros(1, self.size, dtype=torch.float64)
        out[0, column] = self.scale(column)
        return out

    def read(self, x: Tensor) -> Form:
        if tuple(x.shape) != (1, self.size):
            raise ValueError(
                f"got a state of shape {tuple(x.shape)} from the sampler; expected the shape of its start, {(1, self.size)}"
            )
        values = [c / self.scale(i) for i, c in enumerate(x.detach()[0].tolist())]
        if any(values[len(self.kinds) :]):
            raise ValueError("got a state that depends on more than start, predictions and noise; expected a linear sampler")
        of = {kind: tuple(c for c, k in zip(values, self.kinds, strict=False) if k == kind) for kind in ("m", "xi")}
        return Form(values[0], of["m"], of["xi"])

    def denoise(self, x: Tensor, t: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        t = float(torch.as_tensor(t, dtype=torch.float64).flatten()[0])
        self.calls.append(Call(t, self.read(x)))
        return self.impulse("m")

    def noise(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.impulse("xi")


def _record(run: Sampler, scale: Callable[[int], float]) -> Fingerprint:
    for size in SIZES:
        recorder = _Recorder(size, scale)
        try:
            end = run(recorder.denoise, recorder.impulse("x"), recorder.noise)
        except _Full:
            continue
        return Fingerprint(tuple(recorder.calls), recorder.read(end))
    raise ValueError(
        f"got a sampler with more than {SIZES[-1] - 1} evaluations and draws; expected fewer: take a shorter path, and "
        "fixed steps (an adaptive sampler is not a linear map)"
    )


def _solver_as_function(solver: str | Solver, path: Path | None) -> Sampler:
    method = get(solver) if isinstance(solver, str) else solver
    if path is None:
        raise ValueError(f"got solver {method.name!r} without a path; pass path=make_path(sde, 'lam', 10)")
    where = path

    def run(denoise: Denoise, x: Tensor, noise: Callable[..., Tensor]) -> Tensor:
        class Door:
            def __call__(self, x: Tensor, t: Tensor) -> Tensor:
                return denoise(x, t)

            def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
                return [functools.partial(denoise, t=t) for t in times]

        class Impulses(FreshNoise):
            def normal(self, out: Tensor) -> Tensor:
                return out.copy_(noise())

        for state in method.states(where, Door(), x, Impulses([0], x.device)):
            x = state.x
        return x

    return cast(Sampler, run)


def to_rows(found: Fingerprint, sde: GaussianSDE, t_end: float = 0.0) -> list[Row]:
    """Convert the fingerprint of a sampler to rows, which run on every driver.

    Each row evaluates the model once, in data prediction (p = 0, q = 1), and ends a step, so that each stage becomes a step.
    The factor of the state is chosen to cancel the coefficient of the start, which gives the shortest history.

    Args:
        found: the result of :func:`fingerprint`.
        sde: the SDE to whose times the evaluations refer.
        t_end: the time at which the sampler ends; 0 is the clean data.

    Example:
        >>> from scoresde import EDM
        >>> from scoresde.solvers import make_path
        >>> rows = to_rows(fingerprint("heun", make_path(EDM(), "karras", 5)), EDM())
        >>> [len(row.w) for row in rows]
        [1, 2, 1, 2, 1, 2, 1, 2, 1]
    """
    where = points(sde, torch.tensor([call.t for call in found.calls], dtype=torch.float64))
    last = CLEAN if t_end == 0 else points(sde, torch.tensor([t_end], dtype=torch.float64))[0]
    start = Form(1.0, (), ())
    states = [start, *(call.state for call in found.calls), found.end]
    rows: list[Row] = []
    for k, (base, target) in enumerate(itertools.pairwise(states)):
        at = where[k - 1] if k else None
        to = where[k] if k < len(where) else last
        rows += _update(base, target, at, to)
    return rows


def _update(base: Form, target: Form, at: Point | None, to: Point) -> list[Row]:
    """Return the rows from one state to the next: one with the evaluation, and one for every further draw of noise."""
    a = target.x / base.x if abs(base.x) > 1e-13 else 0.0
    w = _rest(a, base.m, target.m)
    s = _rest(a, base.xi, target.xi)
    new = len(target.xi) - len(base.xi)
    if at is None and not new and a == 1:
        return []  # the start itself
    here = at or to
    late = s[len(base.xi) + 1 :]
    early = s[: len(s) - len(late)]
    rows = [Row(to, at, a, _newest_first(w), _newest_first(early), draw=(here, to) if new else None)]
    return [*rows, *(Row(to, None, 1.0, (), (c,), draw=(here, to)) for c in late)]


def _rest(a: float, base: tuple[float, ...], target: tuple[float, ...]) -> list[float]:
    """Return target - a base, with values that are no larger than rounding set to zero."""
    floor = 1e-13 * max(map(abs, target), default=0.0)
    pairs = itertools.zip_longest(base, target, fillvalue=0.0)
    return [c if abs(c := t - a * b) > 1e-12 * abs(t) + floor else 0.0 for b, t in pairs]


def _newest_first(coefficients: Sequence[float]) -> tuple[float, ...]:
    """Return the coefficients in reverse order, without the zeros of the oldest evaluations."""
    used = itertools.dropwhile(lambda c: c == 0, coefficients)
    return tuple(reversed(list(used)))
