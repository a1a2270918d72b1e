"""Paths of SDEs with matrix coefficients: the times that a sampler visits, with their lam."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sde.matrix import MatrixSDE
from scoresde.solvers.path import BEYOND, CLOSEST
from scoresde.solvers.spacings import PATHS

__all__ = ["MatrixPath", "MatrixPoint", "make_matrix_path"]


class MatrixPoint(NamedTuple):
    """A point of a path: a time and half the log signal-to-noise ratio there, as Python floats.

    Example:
        >>> MatrixPoint(t=0.5, lam=0.0)
        MatrixPoint(t=0.5, lam=0.0)
    """

    t: float
    lam: float


CLEAN = MatrixPoint(0.0, math.inf)
"""The point of the clean data."""


@dataclass(frozen=True)
class MatrixPath:
    """A path: the points of one SDE from noise to data.

    A move up in lam is a step of the solver, a move down is the exact forward kernel. A last time of 0 is the clean data, to
    which every solver moves alike: it returns the data prediction. A path that is ``rising`` leads from data to noise along
    the flow: all of its moves are down in lam, and are steps of the solver.

    Raises:
        ValueError: for fewer than two points, two consecutive points that all but coincide, or a start that is not the
            noisiest point; for a rising path whose times do not rise.

    Example:
        >>> from scoresde.sde import CLD
        >>> path = MatrixPath.from_times(CLD(), [1.0, 0.5, 0.0])
        >>> [round(p.lam, 2) for p in path.points]
        [-5.51, -2.13, inf]
    """

    sde: MatrixSDE
    points: tuple[MatrixPoint, ...]
    rising: bool = False

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"got a path of {len(self.points)} points; expected at least two, a start and an end")
        for one, other in itertools.pairwise(self.points):
            gap = one.lam - other.lam if self.rising else other.lam - one.lam
            if self.rising and gap < 0:
                raise ValueError(
                    f"got times from t={one.t:.6g} to t={other.t:.6g} on a rising path; expected times that rise, from data "
                    "to noise, the first of them above 0"
                )
            if 0 <= gap < CLOSEST:
                raise ValueError(
                    f"got two consecutive times that are equal or nearly so, t={one.t!r} and t={other.t!r}; expected them "
                    f"at least {CLOSEST:g} apart in lam: leave one of them out"
                )
        if not self.rising and self.points[0].lam != min(p.lam for p in self.points):
            raise ValueError(
                f"got a path that starts at t={self.points[0].t:.6g}, which is not its noisiest point; expected times from "
                "noise to data, that is, falling"
            )

    @classmethod
    def from_times(cls, sde: MatrixSDE, times: Tensor | Sequence[float]) -> MatrixPath:
        """Return the path through ``times``, from noise to data; a last time of 0 is the clean data.

        Raises:
            ValueError: for times that are not finite or outside the SDE, and a time of 0 before the end.
        """
        t = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
        if t.ndim != 1 or not bool(torch.isfinite(t).all()):
            raise ValueError(f"got times of shape {tuple(t.shape)}; expected a vector of finite times")
        clean = len(t) > 1 and bool(t[-1] == 0)
        noisy = t[:-1] if clean else t
        inside = noisy.clamp(max=sde.span[1])
        if bool((noisy <= 0).any()) or bool((noisy - inside > BEYOND * sde.span[1]).any()):
            raise ValueError(
                f"got times between {float(t.min()):.6g} and {float(t.max()):.6g}; expected 0 < t <= {sde.span[1]:.6g} on "
                f"{type(sde).__name__}, and at most a last time of 0"
            )
        points = map(MatrixPoint, inside.tolist(), sde.lam(inside).tolist())
        return cls(sde, (*points, *([CLEAN] if clean else [])))

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the points."""
        return tuple(p.t for p in self.points)

    @property
    def moves(self) -> list[tuple[MatrixPoint, MatrixPoint]]:
        """The moves from point to point."""
        return list(itertools.pairwise(self.points))

    def noises(self, u: MatrixPoint, v: MatrixPoint) -> bool:
        """Return whether the move from u to v adds noise by the forward kernel."""
        return v.lam < u.lam and not self.rising

    def reversed(self) -> MatrixPath:
        """Return the path from data to noise along the flow.

        Raises:
            ValueError: for a path that ends at the clean data, where the flow has no slope, or that goes back and forth.

        Example:
            >>> from scoresde.sde import CLD
            >>> make_matrix_path(CLD(), "t", 2, end="stop").reversed().times
            (0.001, 0.5005, 1.0)
        """
        if self.ends_clean:
            raise ValueError(
                "got a path that ends at the clean data, where the flow has no slope; expected a last time with some noise, "
                f"such as t_min={self.sde.span[0]:g}"
            )
        return MatrixPath(self.sde, self.points[::-1], rising=True)

    @property
    def ends_clean(self) -> bool:
        """Whether the last point is the clean data."""
        return self.points[-1].lam == math.inf

    def __len__(self) -> int:
        return len(self.points) - 1


def make_matrix_path(
    sde: MatrixSDE,
    path: Any = "lam",
    steps: int = 20,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    end: str = "denoise",
) -> MatrixPath:
    """Make a path from a name of :data:`~scoresde.solvers.PATHS`, a spacing function or times; return a path unchanged.

    Args:
        sde: the SDE.
        path: the name, the spacing, the times or the path.
        steps: the number of moves.
        t_max: the time of the start, by default ``sde.span[1]``.
        t_min: the smallest time above zero, by default ``sde.span[0]``.
        end: with ``"denoise"`` the last move returns the data prediction. With ``"stop"`` the path ends at ``t_min``.

    Raises:
        ValueError: for another end, and for times outside the SDE.

    Example:
        >>> from scoresde.sde import CLD
        >>> make_matrix_path(CLD(), "t", 3).times
        (1.0, 0.5005, 0.001, 0.0)
    """
    if end not in ("denoise", "stop"):
        raise ValueError(
            f"got end={end!r} on {type(sde).__name__}; expected 'denoise', which returns the data prediction, or 'stop', "
            "which returns the state at t_min"
        )
    if isinstance(path, MatrixPath):
        return path
    if not isinstance(path, str) and not callable(path):
        return MatrixPath.from_times(sde, path)
    spacing = PATHS[path] if isinstance(path, str) else path
    steps = whole("steps", steps, 1)
    start, stop = sde.span[1] if t_max is None else t_max, sde.span[0] if t_min is None else t_min
    if not 0 < stop < start <= sde.span[1] * (1 + BEYOND):
        raise ValueError(
            f"got t_max={start} and t_min={stop}; expected 0 < t_min < t_max <= {sde.span[1]} on {type(sde).__name__}"
        )
    start = min(start, sde.span[1])
    n = steps + 1 if end == "stop" else steps
    times = torch.tensor([start], dtype=torch.float64) if n == 1 else spacing(cast(Any, sde), n, start, stop).clone()
    times[0] = start
    if n > 1:
        times[-1] = stop  # exact, whatever a spacing's inverse rounds to
    return MatrixPath.from_times(sde, times if end == "stop" else torch.cat([times, torch.zeros(1, dtype=torch.float64)]))
