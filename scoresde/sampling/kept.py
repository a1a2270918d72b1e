r"""The states that :func:`scoresde.sample` keeps on the way, at any time of the path of a deterministic solver.

A time at a point of the path keeps the state there. Between two points u and v the state is interpolated, in the variables
:math:`w = x / (\alpha + \sigma)` and :math:`\tau = \sigma / (\alpha + \sigma)`, in which the flow has the slope
:math:`dw / d\tau = \epsilon - m` at both ends of time: by the cubic with the states and slopes of both points. A solver that
chooses its own steps has an interpolation of its own, for which the time is made a point of the path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.sampling.counted import Counted
from scoresde.solvers.drivers import State
from scoresde.solvers.path import CLOSEST, Path, Point, points
from scoresde.solvers.scalar import value

__all__ = ["Keeper", "Times", "kept_points", "same", "with_kept"]

Times = Sequence[float] | Tensor
"""Times whose states are kept, in any order."""


def kept_points(keep: Times, path: Path) -> dict[float, Point]:
    """Return the points of the SDE at the times to keep, by these times.

    Raises:
        ValueError: if there are none, and for a time outside the path.
    """
    times = torch.as_tensor(keep, dtype=torch.float64, device="cpu").detach()
    if times.ndim != 1 or not len(times):
        raise ValueError(f"got keep of shape {tuple(times.shape)}; expected a list of times, such as keep=[0.5, 0.1]")
    noisy = [value(p.t) for p in path.points if p.log_sigma > -math.inf]
    low, high = min(noisy), max(noisy)
    found = {}
    for t, point in zip(times.tolist(), points(path.sde, times.clamp(low, high)), strict=True):
        if path.ends_clean and t == value(path.points[-1].t):
            found[t] = path.points[-1]
        elif low * (1 - 1e-9) <= t <= high * (1 + 1e-9):
            found[t] = point
        else:
            end = f", or {value(path.points[-1].t):.6g} for the end" if path.ends_clean else ""
            raise ValueError(
                f"got keep={t:.6g}, outside the path; expected times from {low:.6g} to {high:.6g}{end}: a smaller t_min or "
                "another path leads there"
            )
    return found


def same(point: Point, other: Point) -> bool:
    """Return whether two points are the same, as far as a path can tell."""
    return value(point.lam) == value(other.lam) or abs(value(point.lam) - value(other.lam)) < CLOSEST


def with_kept(path: Path, kept: dict[float, Point], name: str, *, dense: bool, determined: bool) -> Path:
    """Return the path for a run that keeps the states at the points ``kept``.

    Args:
        path: the path of the run without them.
        kept: the points by their times.
        name: the name of the solver.
        dense: whether the solver has a state at any point of a path, on whose points its steps do not depend. The points are
            then added to the path.
        determined: whether the states at two points determine the one between them.

    Raises:
        ValueError: for a point that is neither one of the path nor reached otherwise.
    """
    missing = {t: p for t, p in kept.items() if not any(same(p, other) for other in path.points)}
    if dense:
        return replace(path, points=tuple(sorted({*path.points, *missing.values()}, key=lambda p: p.lam)))
    if missing and not determined:
        raise ValueError(
            f"got keep={next(iter(missing)):.6g}, between two points of the path, where solver {name!r} has no state; "
            "expected times of the path (Samples.times), or path=[..] with this time in it"
        )
    return path


class _Here(NamedTuple):
    """A point of the path, the state there, and the slope, once it is known."""

    point: Point
    x: Tensor
    slope: Tensor | None = None


class Keeper:
    """The callback that collects the states: see the module.

    Args:
        kept: the points to keep, by their times.
        path: the path of the run, from whose first point it starts.
        x: the start.
        model: the model for the slopes at points between which a state is interpolated.
        before: the states that are known, at times before the first point of the path.
    """

    def __init__(
        self, kept: dict[float, Point], path: Path, x: Tensor, model: Counted, before: Mapping[float, Tensor] | None = None
    ) -> None:
        self.kept, self.model = kept, model
        self.states: dict[float, Tensor] = dict(before or {})
        self.here = _Here(path.points[0], x.clone())
        self._match(self.here)

    def __call__(self, state: State) -> None:
        """Take the state at a point of the path, and interpolate between it and the one before."""
        there = _Here(state.point, state.x)
        self._match(there)
        waiting = {t: p for t, p in self.kept.items() if t not in self.states}
        between = {t: p for t, p in waiting.items() if self.here.point.lam < p.lam < there.point.lam}
        if between:
            start, there = self._sloped(self.here), self._sloped(there)
            for t, p in between.items():
                self.states[t] = _hermite(p, start, there)
        self.here = there._replace(x=there.x.clone()) if waiting else there

    def found(self, name: str, *, whole: bool) -> dict[float, Tensor]:
        """Return the states by their times, in the order of the times to keep.

        Args:
            name: the name of the solver.
            whole: whether the run went to the end of the path; if not, later states are left out.

        Raises:
            ValueError: if the solver never came to a point of the path.
        """
        if whole and (missing := [t for t in self.kept if t not in self.states]):
            raise ValueError(
                f"got keep={missing[0]:.6g}, where solver {name!r} has no state, since it chooses its own steps; expected "
                "the ends of the path, or another solver"
            )
        return {t: self.states[t] for t in self.kept if t in self.states}

    def _match(self, here: _Here) -> None:
        for t, p in self.kept.items():
            if same(p, here.point):
                self.states[t] = here.x.clone()

    def _sloped(self, here: _Here) -> _Here:
        if here.slope is not None:
            return here
        p = here.point
        m = self.model(here.x, torch.tensor(value(p.t), dtype=torch.float64))
        return here._replace(slope=(here.x - (p.alpha + p.sigma) * m) / p.sigma)  # eps - m


def _hermite(p: Point, u: _Here, v: _Here) -> Tensor:
    """The state at ``p`` by the cubic between u and v, whose slopes are known."""
    scale = [q.alpha + q.sigma for q in (p, u.point, v.point)]
    clock = [1 / (1 + math.exp(q.lam)) for q in (p, u.point, v.point)]
    length = clock[2] - clock[1]
    theta = (clock[0] - clock[1]) / length
    assert u.slope is not None and v.slope is not None
    return scale[0] * (
        (1 + 2 * theta) * (1 - theta) ** 2 / scale[1] * u.x
        + theta**2 * (3 - 2 * theta) / scale[2] * v.x
        + theta * (1 - theta) ** 2 * length * u.slope
        + theta**2 * (theta - 1) * length * v.slope
    )
