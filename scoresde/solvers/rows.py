"""Rows: the linear updates that a prediction and a stencil make of a path, and those that all solvers share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from scoresde.solvers import scalar
from scoresde.solvers.coefficients import lagrange_integrals
from scoresde.solvers.path import Path, Point, points
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.stencil import Stage, Stencil
from scoresde.solvers.updates import Row

__all__ = ["each_step", "forward_move", "kernel_of_decay", "last_move", "newest_first", "one_step", "stencil_rows"]


def one_step(
    u: Point, v: Point, a: float, w: float, s: float = 0.0, p: float = 0.0, q: float = 1.0, kernel: float = 0.0
) -> Row:
    """The row of a solver that evaluates once, at the start of the step u -> v, and keeps no history."""
    return Row(to=v, at=u, a=a, w=(w,), s=(s,) if s else (), p=p, q=q, draw=(u, v) if s else None, kernel=kernel)


def kernel_of_decay(u: Point, v: Point, a: float) -> float:
    """The eta with which ``Data(eta)`` takes the state with the factor ``a`` from u to v, and so the kernel of its noise."""
    carried, h = scalar.value(a) * scalar.value(u.sigma) / scalar.value(v.sigma), scalar.value(v.lam - u.lam)
    return -math.log(carried) / h if carried > 0 and math.isfinite(h) else 0.0


def last_move(path: Path) -> Row:
    """The move to sigma = 0, the same for every solver: the newest data prediction, or the flow's end.

    Near sigma = 0 the flow is dx/dsigma = (x - D) / sigma, with alpha = 1. A smooth density has
    D(x, sigma) = x + sigma^2 s(x) + O(sigma^4), s the score of the data, so that the flow ends, to fourth order, at
    x + sigma^2 s / 2 = (x + D) / 2, while D itself is off by sigma^2 s / 2. Where the data lie on a manifold the score
    across it has no limit, sigma^2 s does not vanish, and D is the better end.
    """
    u, v = path.points[-2:]
    if path.end == "flow":
        return one_step(u, v, a=0.5 * v.alpha / u.alpha, w=0.5 * v.alpha)
    return one_step(u, v, a=0.0, w=v.alpha)


def forward_move(u: Point, v: Point) -> Row:
    """A move towards the noise: the exact forward kernel from u to v."""
    a = scalar.exp(v.log_alpha - u.log_alpha)
    return Row(to=v, at=None, a=a, s=(v.sigma * scalar.sqrt(-scalar.expm1(2 * (v.lam - u.lam))),), draw=(u, v))


def each_step(rule: Callable[[Point, Point], Row], path: Path) -> list[Row]:
    """A one-step rule along a path; moves towards the noise and the last move to sigma = 0 are the same for all."""
    return [last_move(path) if v.sigma == 0 else forward_move(u, v) if v.lam < u.lam else rule(u, v) for u, v in path.moves]


def stencil_rows(prediction: Prediction, stencil: Stencil | list[Stencil], path: Path) -> list[Row]:
    """The rows of ``prediction`` x ``stencil`` on ``path``.

    Missing history, at the start and after a move towards the noise, lowers the order there. A list of stencils is taken
    step by step, its last one for all further steps.
    """
    stencils = stencil if isinstance(stencil, list) else [stencil]
    if prediction.rate != 0 and any(stage.weights is not None for shape in stencils for stage in shape):
        raise ValueError(
            f"got a stencil with explicit weights in {type(prediction).__name__} prediction; expected one whose rate is "
            "zero (Rho, Velocity, Time), or a stencil without weights"
        )
    moves = path.moves[:-1] if path.ends_clean else path.moves
    up = [(u, v) for u, v in moves if v.lam > u.lam]
    shapes = [stencils[min(i, len(stencils) - 1)] for i in range(len(up))]
    for u, _ in up:
        prediction.check(u)
    inner = iter(_inner_points(prediction, shapes, path, up))
    shape = iter(shapes)

    rows: list[Row] = []
    starts: list[tuple[int, float]] = []  # of each step so far: the number of its first evaluation, and its clock
    evaluated = 0
    for u, v in moves:
        if v.lam < u.lam:
            rows.append(forward_move(u, v))
            starts = []
            continue
        starts.append((evaluated, prediction.clock(u)))
        at, here, pieces = u, [starts[-1]], [u]
        stages = next(shape)
        for stage, target in zip(stages, [*next(inner), v], strict=True):
            evaluated += 1
            nodes = _nodes(stage.nodes, here, starts)
            draw, s = _noise(prediction, pieces, target)
            p, q = prediction.mix(at)
            rows.append(
                Row(
                    to=target,
                    at=at,
                    a=prediction.carry(u, target),
                    w=newest_first(_weights(prediction, u, target, nodes, stage), [n for n, _ in nodes], evaluated),
                    s=s,
                    p=p,
                    q=q,
                    draw=draw,
                    kernel=prediction.kernel if draw else 0.0,
                    ends_step=len(here) == len(stages),
                )
            )
            here.append((evaluated, prediction.clock(target)))
            at = target
    if path.ends_clean:
        rows.append(last_move(path))
    return rows


def _inner_points(
    prediction: Prediction, shapes: list[Stencil], path: Path, steps: list[tuple[Point, Point]]
) -> list[list[Point]]:
    """The points of all stages but the last, for all steps: one call of the SDE's functions."""
    clocks: list[float] = []
    for shape, (u, v) in zip(shapes, steps, strict=True):
        start, end = prediction.clock(u), prediction.clock(v)
        if len(shape) > 1 and not scalar.isfinite(start):
            raise ValueError(
                f"a solver with inner stages in {type(prediction).__name__} prediction cannot start at alpha = 0, where lam "
                "is infinite and has no middle; take a multistep solver (dpmpp-2m, ddim), or a smaller t_max"
            )
        clocks += [start + stage.c * (end - start) for stage in shape[:-1]]
    if not clocks:
        return [[] for _ in steps]
    times = prediction.time(path.sde, scalar.vector(clocks)).clamp(0.0, path.sde.span[1])
    flat = iter(points(path.sde, times))
    # A stage at c = 0 or 1 is an end of the step itself, not its round trip through the clock.
    return [
        [{0.0: u, 1.0: v}.get(stage.c, point) for stage, point in zip(shape[:-1], flat, strict=False)]
        for shape, (u, v) in zip(shapes, steps, strict=True)
    ]


def _nodes(wanted: Sequence[int], here: list[tuple[int, float]], starts: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The nodes that exist: (number of the evaluation, clock). A past node at an infinite clock carries no information."""
    found = [here[n] if n >= 0 else starts[n - 1] for n in wanted if n >= 0 or len(starts) >= 1 - n]
    return [n for i, n in enumerate(found) if i == 0 or scalar.isfinite(n[1])]


def _weights(prediction: Prediction, u: Point, target: Point, nodes: list[tuple[int, float]], stage: Stage) -> list[float]:
    gain, start = prediction.gain(target), prediction.clock(u)
    length = prediction.clock(target) - start
    if stage.weights is not None:
        return [gain * length / stage.c * w for w in stage.weights]
    if abs(length) == math.inf:  # from alpha = 0: the integral of e^{rate (s - v)} over all of the past
        return [gain / prediction.rate] + [0.0] * (len(nodes) - 1)
    theta = [(clock - start) / length for _, clock in nodes]
    return [gain * length * i for i in lagrange_integrals(theta, prediction.rate * length)]


def _noise(
    prediction: Prediction, pieces: list[Point], target: Point
) -> tuple[tuple[Point, Point] | None, tuple[float, ...]]:
    """The interval to draw over, and the factors of all draws of this step so far, newest first.

    The stages of a step share its noise: each interval between successive stages is drawn once, reaches the end of its
    interval with the deviation ``noise`` and is carried on from there by the linear flow.
    """
    if prediction.noise(pieces[0], target) == 0:
        return None, ()
    draw = None
    if target.lam > pieces[-1].lam:
        draw = (pieces[-1], target)
        pieces.append(target)
    elif target.lam < pieces[-1].lam:
        raise ValueError("got a stencil whose stages go back; a solver with noise needs stages in the order of their c")
    pairs = list(itertools.pairwise(pieces))
    return draw, tuple(prediction.noise(a, b) * prediction.carry(b, target) for a, b in reversed(pairs))


def newest_first(w: list[float], numbers: list[int], evaluated: int) -> tuple[float, ...]:
    """Place the factors of evaluations, given by their numbers, in a row made after ``evaluated`` of them."""
    slots = [0.0] * (evaluated - min(numbers))
    for weight, number in zip(w, numbers, strict=True):
        slots[evaluated - 1 - number] = weight
    return tuple(slots)
