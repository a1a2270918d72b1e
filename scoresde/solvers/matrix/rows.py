r"""Rows with matrix coefficients: the linear updates that a prediction and a stencil make of a path.

A row is :math:`y = a\,z + \sum_j w_j N_j + \sum_k s_k\,\xi_k` with :math:`N = p\,y + q\,m(y)`, like the rows of scalar SDEs,
where a, w, s, p and q are linear maps. The one loop of all updates runs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from scoresde.sde.matrix import MatrixSDE
from scoresde.sde.modes import ModalMap
from scoresde.solvers.matrix.flow import root_of
from scoresde.solvers.matrix.path import MatrixPath, MatrixPoint
from scoresde.solvers.matrix.prediction import MatrixPrediction, Prepared
from scoresde.solvers.rows import apart, newest_first
from scoresde.solvers.solver import RowSolver
from scoresde.solvers.stencil import Stage, Stencil
from scoresde.solvers.updates import States, Update

__all__ = ["Factor", "MatrixRow", "MatrixSolver", "denoising", "matrix_rows", "noising"]

Factor = ModalMap | float
"""A coefficient of a row: a linear map, or a number."""


@dataclass(frozen=True)
class MatrixRow(Update):
    """A linear update whose coefficients are linear maps: see the module.

    Attributes:
        to: the point of y after the update.
        at: the point at which the model is evaluated first, or ``None``.
        a, w, s: the factors of the state, of the history and of the draws of noise, both newest first.
        p, q: the factors in N = p y + q m.
        draw: the interval over which noise is drawn first, or ``None``.
        ends_step: whether y becomes the state from which the next rows start.

    Example:
        >>> from scoresde import solvers
        >>> from scoresde.sde import CLD
        >>> path = solvers.make_matrix_path(CLD(), "lam", 3)
        >>> [len(row.w) for row in solvers.MATRIX_SOLVERS["gddim-2"]().rows(path)]  # the predictions that each step takes
        [1, 2, 1]
    """

    to: MatrixPoint  # type: ignore[assignment]  # a point has a time, which is all that a loop needs of it
    at: MatrixPoint | None  # type: ignore[assignment]
    a: Factor
    w: tuple[Factor, ...] = ()
    s: tuple[Factor, ...] = ()
    p: Factor = 0.0
    q: Factor = 1.0
    draw: tuple[MatrixPoint, MatrixPoint] | None = None
    ends_step: bool = True
    in_place: ClassVar[bool] = False

    def apply(self, on: States) -> None:
        m = on.predict() if self.at is not None else None
        if self.draw is not None:
            start, to = cast(Any, self.draw)
            on.draw(start, to, 0.0)
        on.combine(cast(Any, self), m)

    @property
    def lookback(self) -> tuple[int, int]:
        return len(self.w), len(self.s)

    @property
    def draws(self) -> bool:
        return self.draw is not None

    @property
    def shown(self) -> bool:
        return self.ends_step

    @property
    def goes_back(self) -> bool:
        return self.draw is not None and self.draw[1].lam < self.draw[0].lam

    def __str__(self) -> str:
        at = f"{self.at.t:9.5f}" if self.at is not None else " " * 9
        terms = f"{len(self.w)} predictions" + f", {len(self.s)} draws" * bool(self.s)
        return f"{'*' if self.ends_step else ' '} {at} {self.to.t:9.5f} matrices of {terms}"


@dataclass(frozen=True, repr=False)
class MatrixSolver(RowSolver):
    """A solver of SDEs with matrix coefficients: its ``rows`` take a :class:`MatrixPath`.

    Example:
        >>> from scoresde import solvers
        >>> isinstance(solvers.MATRIX_SOLVERS["gddim-2"](), MatrixSolver)
        True
    """

    rows: Callable[[MatrixPath], Sequence[MatrixRow]]  # type: ignore[assignment]  # of other paths than a scalar solver's


def denoising(sde: MatrixSDE, u: MatrixPoint, v: MatrixPoint) -> MatrixRow:
    """Return the move to the clean data, the same for every solver: to the newest data prediction, all velocities zero."""
    first = torch.eye(sde.variables, dtype=torch.float64)[:, :1]
    return MatrixRow(to=v, at=u, a=0.0, w=(sde.map(first, of_state=False),))


def noising(sde: MatrixSDE, u: MatrixPoint, v: MatrixPoint) -> MatrixRow:
    """Return a move towards the noise: the exact forward kernel from u to v."""
    carry = sde.transition(v.t, u.t)
    added = sde.covariance(v.t) - carry @ sde.covariance(u.t) @ carry.mT
    return MatrixRow(to=v, at=None, a=sde.map(carry), s=(sde.map(root_of(added)),), draw=(u, v))


def matrix_rows(prediction: MatrixPrediction, stencil: Stencil | list[Stencil], path: MatrixPath) -> list[MatrixRow]:
    """Return the rows that ``prediction`` and ``stencil`` make of ``path``.

    Missing history lowers the order at the start and after a move towards the noise. A list of stencils is taken step by
    step; its last stencil serves all further steps.

    Raises:
        ValueError: for a stencil with explicit weights, or with stages that go back where there is noise.

    Example:
        >>> from scoresde.sde import CLD
        >>> from scoresde.solvers import multistep
        >>> from scoresde.solvers.matrix import MatrixData, make_matrix_path
        >>> [len(row.w) for row in matrix_rows(MatrixData(), multistep(2), make_matrix_path(CLD(), steps=4))]
        [1, 2, 2, 1]
    """
    stencils = stencil if isinstance(stencil, list) else [stencil]
    if any(stage.weights is not None for shape in stencils for stage in shape):
        raise ValueError("got a stencil with explicit weights; expected one that is interpolated, such as multistep(2)")
    sde, up = path.sde, [(u, v) for u, v in path.moves if v != path.points[-1] or not path.ends_clean]
    up = [(u, v) for u, v in up if not path.noises(u, v)]
    shapes = [stencils[min(i, len(stencils) - 1)] for i in range(len(up))]
    visits = [[u, *inner, v] for (u, v), inner in zip(up, _inner(prediction, sde, shapes, up), strict=True)]
    pairs = dict.fromkeys(pair for points in visits for pair in _pairs(points, prediction.eta > 0))
    visited = [p for p in path.points if p.t > 0]
    made = prediction.prepared(sde, list(pairs), visited)
    steps = iter(zip(shapes, visits, strict=True))

    rows: list[MatrixRow] = []
    starts: list[tuple[int, float]] = []  # for each step so far: the number of its first evaluation, and its clock
    evaluated = 0
    for u, v in path.moves:
        if v.t == 0:
            rows.append(denoising(sde, u, v))
        elif path.noises(u, v):
            rows.append(noising(sde, u, v))
            starts = []
        else:
            shape, points = next(steps)
            starts.append((evaluated, prediction.clock_of(u)))
            rows += _step(prediction, sde, shape, points, made, starts, evaluated)
            evaluated += len(shape)
    return rows


def _inner(
    prediction: MatrixPrediction, sde: MatrixSDE, shapes: Sequence[Stencil], steps: Sequence[tuple[MatrixPoint, MatrixPoint]]
) -> list[list[MatrixPoint]]:
    """Return the points of all stages but the last of each step."""
    clocks = []
    for shape, (u, v) in zip(shapes, steps, strict=True):
        start, end = prediction.clock_of(u), prediction.clock_of(v)
        clocks += [start + stage.c * (end - start) for stage in shape[:-1]]
    if not clocks:
        return [[] for _ in steps]
    values = torch.tensor(clocks, dtype=torch.float64)
    times = values if prediction.clock == "t" else sde.time(values)
    points = map(MatrixPoint, times.tolist(), sde.lam(times).tolist())
    # A stage at c = 0 or 1 is an end of the step itself, not its round trip through the clock.
    return [
        [{0.0: u, 1.0: v}.get(stage.c, point) for stage, point in zip(shape[:-1], points, strict=False)]
        for shape, (u, v) in zip(shapes, steps, strict=True)
    ]


def _pairs(points: list[MatrixPoint], noisy: bool) -> list[tuple[MatrixPoint, MatrixPoint]]:
    """Return the intervals of a step: from its start to each stage and, with noise, from each stage to the later ones."""
    found = [(points[0], p) for p in points[1:] if p != points[0]]
    if noisy:
        found += [(a, b) for a, b in itertools.combinations(points[1:], 2) if a != b]
    return found


def _step(
    prediction: MatrixPrediction,
    sde: MatrixSDE,
    shape: Stencil,
    points: list[MatrixPoint],
    made: Prepared,
    starts: list[tuple[int, float]],
    evaluated: int,
) -> list[MatrixRow]:
    """Return the rows of one step, whose start and stages are ``points``."""
    rows = []
    here, pieces = [starts[-1]], [points[0]]
    for stage, at, target in zip(shape, points, points[1:], strict=False):
        evaluated += 1
        over = made.intervals[points[0], target]
        nodes = _nodes(stage, here, starts, prediction.clock_of(target))
        weights = prediction.weights(sde, over, [clock for _, clock in nodes])
        of_data = weights[0].shape[-1] == 1 and sde.variables > 1
        w = [cast(float, sde.map(each, of_state=not of_data)) for each in weights]
        p, q = prediction.mix(sde, made.at[at], made.turns.get(at))
        draw, s = _noise(prediction, sde, made, pieces, target)
        rows.append(
            MatrixRow(
                to=target,
                at=at,
                a=sde.map(prediction.carry(sde, over)),
                w=newest_first(w, [n for n, _ in nodes], evaluated),
                s=s,
                p=0.0 if p is None else sde.map(p),
                q=1.0 if q is None else sde.map(q, of_state=False),
                draw=draw,
                ends_step=len(here) == len(shape),
            )
        )
        here.append((evaluated, prediction.clock_of(target)))
    return rows


def _nodes(
    stage: Stage, here: list[tuple[int, float]], starts: list[tuple[int, float]], end: float
) -> list[tuple[int, float]]:
    """Return the nodes of a stage that exist, as (number of the evaluation, clock), those of earlier steps if far enough."""
    found = [here[n] if n >= 0 else starts[n - 1] for n in stage.nodes if n >= 0 or len(starts) >= 1 - n]
    if all(n >= 0 for n in stage.nodes):
        return found
    return [found[i] for i in apart([clock for _, clock in found], end - here[0][1])]


def _noise(
    prediction: MatrixPrediction, sde: MatrixSDE, made: Prepared, pieces: list[MatrixPoint], target: MatrixPoint
) -> tuple[tuple[MatrixPoint, MatrixPoint] | None, tuple[ModalMap, ...]]:
    """Return the interval to draw over, and the factors of all draws of this step so far, newest first."""
    if not prediction.eta:
        return None, ()
    draw = None
    if target.lam > pieces[-1].lam:
        draw = (pieces[-1], target)
        pieces.append(target)
    elif target.lam < pieces[-1].lam:
        raise ValueError("got a stencil whose stages go back; a solver with noise needs stages in the order of their c")
    factors = []
    for a, b in itertools.pairwise(pieces):
        root = prediction.noise(sde, made.intervals[a, b])
        factors.append(sde.map(root if b == target else prediction.carry(sde, made.intervals[b, target]) @ root))
    return draw, tuple(reversed(factors))
