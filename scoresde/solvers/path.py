r"""Paths: the times that a sampler visits, with the marginals and rates of the SDE there, in float64 on the host.

A path of ``steps`` moves goes from the noise at ``t_max`` to the data. Its last move goes from ``t_min`` to
:math:`\sigma = 0`, unless the path stops at ``t_min``. Every solver makes this move alike, see
:func:`scoresde.solvers.rows.last_move`, unless the end is ``"extrapolate"``, with which it is a step of the solver like the
others. A move towards the noise is the exact forward kernel, also for every solver.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sde import GaussianSDE
from scoresde.solvers import scalar
from scoresde.solvers.spacings import PATHS, ChainSpacing, PublishedLevels, Spacing, last_start, straight

__all__ = ["Path", "Point", "make_path", "points"]


class Point(NamedTuple):
    """A point of a path: a time, the marginal there and its rates, as Python floats.

    On a path whose times require gradients, the fields are :class:`~scoresde.solvers.scalar.Coefficient` tensors instead.

    Example:
        >>> from scoresde import EDM
        >>> (point,) = points(EDM(), torch.tensor([2.0], dtype=torch.float64))
        >>> point.alpha, round(point.sigma, 12), round(point.lam + math.log(2), 12)
        (1.0, 2.0, 0.0)
    """

    t: float
    log_alpha: float
    log_sigma: float
    d_alpha: float
    d_log_sigma: float
    diffusion_squared: float

    @property
    def alpha(self) -> float:
        """The factor of the data in the mean of the marginal."""
        return scalar.exp(self.log_alpha)

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise in the marginal."""
        return scalar.exp(self.log_sigma)

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio."""
        return self.log_alpha - self.log_sigma


ENDS = ("denoise", "flow", "extrapolate", "stop")

CLOSEST = 1e-6
"""The least length in lam of a step towards the data; the rounding of the state is divided by the length."""

BEYOND = 1e-6
"""The part of the span by which a time may lie outside it, for the rounding of time grids made in float32."""

CLEAN = Point(0.0, 0.0, -math.inf, 0.0, math.inf, 0.0)
"""The point of the clean data: alpha = 1 and sigma = 0."""


def points(sde: GaussianSDE, t: Tensor) -> list[Point]:
    """Compute the points of ``sde`` at float64 times ``t``, shape ``(n,)``, in one call; gradients of ``t`` are kept.

    Example:
        >>> from scoresde import EDM
        >>> [point.diffusion_squared for point in points(EDM(), torch.tensor([2.0, 1.0], dtype=torch.float64))]
        [4.0, 2.0]
    """
    columns = (t, sde.log_alpha(t), sde.log_sigma(t), sde.d_alpha(t), sde.d_log_sigma(t), sde.diffusion_squared(t))
    if t.requires_grad:
        return [Point(*(cast(float, c[i].as_subclass(scalar.Coefficient)) for c in columns)) for i in range(len(t))]
    return [Point(*row) for row in zip(*(c.detach().tolist() for c in columns), strict=True)]


@dataclass(frozen=True)
class Path:
    """A path: the points of one SDE from noise to data. ``end`` says how the last move reaches sigma = 0, if it does.

    Raises:
        ValueError: for fewer than two points, two consecutive points that all but coincide, a start that is not the
            noisiest point, or sigma = 0 before the end.

    Example:
        >>> from scoresde import EDM
        >>> path = Path.from_times(EDM(), [80.0, 1.0, 0.0])
        >>> [round(p.sigma, 3) for p in path.points]
        [80.0, 1.0, 0.0]
    """

    sde: GaussianSDE
    points: tuple[Point, ...]
    end: str = "denoise"

    def __post_init__(self) -> None:
        if self.end not in ENDS:
            raise ValueError(f"got end={self.end!r}; expected one of {', '.join(ENDS)}")
        if len(self.points) < 2:
            raise ValueError(f"got a path of {len(self.points)} points; expected at least two, a start and an end")
        lams = [scalar.value(p.lam) for p in self.points]
        for i, (one, other) in enumerate(itertools.pairwise(lams)):
            if one == other or 0 < other - one < CLOSEST:
                u, v = (scalar.value(p.t) for p in self.points[i : i + 2])
                raise ValueError(
                    f"got two consecutive times that are equal or nearly so, t={u!r} and t={v!r} (points {i} and {i + 1} of "
                    f"the path); expected them at least {CLOSEST:g} apart in lam = log(alpha / sigma): leave one of them out"
                )
        if any(math.isnan(lam) for lam in lams):
            raise ValueError(
                f"got a path that leaves the SDE: {self.sde!r} has no marginal at "
                f"t={next(p.t for p, lam in zip(self.points, lams, strict=True) if math.isnan(lam))}"
            )
        if lams[0] != min(lams):
            raise ValueError(
                f"got a path that starts at t={scalar.value(self.points[0].t):.6g}, which is not its noisiest point; "
                "expected times from noise to data, that is, falling"
            )
        if any(p.log_sigma == -math.inf for p in self.points[:-1]):
            raise ValueError("got sigma = 0 before the end of the path; expected it at the last point only")

    @classmethod
    def from_times(cls, sde: GaussianSDE, times: Tensor | Sequence[float], end: str = "denoise") -> Path:
        """Return the path through ``times``, from noise to data; a last time of 0 is the clean data, sigma = 0.

        Where ``times`` is a tensor that requires gradients, all coefficients computed from the path carry gradients: see
        :class:`scoresde.solvers.Differentiable`.
        """
        t = torch.as_tensor(times, dtype=torch.float64, device="cpu")
        if t.ndim != 1 or not bool(torch.isfinite(t).all()):
            raise ValueError(f"got times of shape {tuple(t.shape)}; expected a vector of finite times")
        inside = t.clamp(0.0, sde.span[1])
        if bool((t - inside).abs().max() > BEYOND * sde.span[1]):
            raise ValueError(
                f"got times between {float(t.detach().min()):.6g} and {float(t.detach().max()):.6g}; {type(sde).__name__} "
                f"is defined for 0 <= t <= {sde.span[1]:.6g}"
            )
        t = torch.where(t == inside, t, inside)  # so that the gradient is lost at the ends alone
        clean = len(t) > 1 and bool(t[-1] == 0)
        return cls(sde, (*points(sde, t[:-1] if clean else t), *([CLEAN] if clean else [])), end)

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the points."""
        return tuple(p.t for p in self.points)

    @property
    def moves(self) -> list[tuple[Point, Point]]:
        """The moves from point to point."""
        return list(itertools.pairwise(self.points))

    @property
    def ends_clean(self) -> bool:
        """Whether the last point has sigma = 0."""
        return self.points[-1].log_sigma == -math.inf

    def __len__(self) -> int:
        return len(self.points) - 1


PathLike = str | Path | Spacing | Tensor | Sequence[float]


def make_path(
    sde: GaussianSDE,
    path: PathLike = "lam",
    steps: int = 20,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    end: str = "denoise",
) -> Path:
    """Make a path from a name of :data:`~scoresde.solvers.PATHS`, a spacing function or times; return a path unchanged.

    Args:
        sde: the SDE, which gives the marginals.
        path: the name, the spacing, the times or the path.
        steps: the number of moves.
        t_max: the time of the start, by default ``sde.span[1]``.
        t_min: the smallest time above zero, by default ``sde.span[0]``.
        end: the end of the path. With ``"denoise"``, ``"flow"`` and ``"extrapolate"`` the last of the ``steps`` moves goes
            from ``t_min`` to sigma = 0, by returning the data prediction, by following the flow, or by the solver's
            rule. With ``"stop"`` the path ends at ``t_min``.

    Raises:
        ValueError: for an unknown name, fewer than one step, or times that are not 0 <= t_min < t_max within the span of the
            SDE.

    Example:
        >>> from scoresde import EDM
        >>> [round(p.sigma, 3) for p in make_path(EDM(), "karras", 3).points]
        [80.0, 2.515, 0.002, 0.0]
    """
    if isinstance(path, Path):
        return path
    if not isinstance(path, str) and not callable(path):
        return Path.from_times(sde, path)
    if isinstance(path, str):
        path = PATHS[path]
    steps = whole("steps", steps, 1)
    start, stop = sde.span[1] if t_max is None else t_max, sde.span[0] if t_min is None else t_min
    if sde.span[1] < start <= sde.span[1] * (1 + BEYOND):
        start = sde.span[1]
    if not 0 <= stop < start <= sde.span[1]:
        raise ValueError(
            f"got t_max={start} and t_min={stop}; expected 0 <= t_min < t_max <= {sde.span[1]} on {type(sde).__name__}"
        )
    n = steps + 1 if end == "stop" else steps
    if isinstance(path, PublishedLevels):  # published for a last step to sigma = 0, which may end at t_min instead
        return Path.from_times(sde, [*path(sde, steps, start, stop).tolist(), stop if end == "stop" else 0.0], end)
    if isinstance(path, ChainSpacing):  # a chain's spacing has its own first and last step
        times = path(sde, n, start, stop)
        return Path.from_times(sde, times if end == "stop" else torch.cat([times, torch.zeros_like(times[:1])]), end)
    if path is straight and end != "stop":
        stop = last_start(sde, n, start, stop)
    if n == 1:
        return Path.from_times(sde, [start, 0.0], end)
    times = path(sde, n, start, stop)
    times[0], times[-1] = start, stop  # exact, whatever a spacing's inverse rounds to
    clean = end != "stop" and float(sde.sigma(stop)) > 0
    return Path(sde, (*points(sde, times), *([CLEAN] if clean else [])), end)
