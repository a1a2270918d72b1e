"""Rows: the linear updates that a prediction and a stencil make of a path, and the moves that all solvers share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.solvers import scalar
from scoresde.solvers.coefficients import lagrange_integrals
from scoresde.solvers.path import Path, Point, points
from scoresde.solvers.prediction import Data, Prediction
from scoresde.solvers.stencil import Stage, Stencil, euler
from scoresde.solvers.updates import Row

__all__ = [
    "apart",
    "each_step",
    "each_step_of",
    "extrapolates",
    "first_move",
    "forward_move",
    "kernel_of_decay",
    "last_move",
    "newest_first",
    "one_step",
    "stencil_rows",
]


def one_step(
    u: Point, v: Point, a: float, w: float, s: float = 0.0, p: float = 0.0, q: float = 1.0, kernel: float = 0.0
) -> Row:
    """Return the row of a solver that evaluates once, at the start of the step u -> v, and keeps no history.

    Example:
        >>> from scoresde import EDM, solvers
        >>> u, v = solvers.make_path(EDM(), [4.0, 2.0], end="stop").points
        >>> row = one_step(u, v, a=0.5, w=0.5)  # x_v = (x_u + m) / 2
        >>> row.at.t, row.to.t, row.draws
        (4.0, 2.0, False)
    """
    return Row(to=v, at=u, a=a, w=(w,), s=(s,) if s else (), p=p, q=q, draw=(u, v) if s else None, kernel=kernel)


def kernel_of_decay(u: Point, v: Point, a: float) -> float:
    """Return the eta for which ``a`` is the factor of the state in ``Data(eta)``; it is the kernel of the step's noise."""
    carried, h = scalar.value(a) * scalar.value(u.sigma) / scalar.value(v.sigma), scalar.value(v.lam - u.lam)
    return -math.log(carried) / h if carried > 0 and math.isfinite(h) else 0.0


def last_move(path: Path) -> Row:
    """Return the move to sigma = 0, the same for every solver: to the newest data prediction, or to the end of the flow.

    Near sigma = 0 the flow is dx/dsigma = (x - D) / sigma, with alpha = 1. A smooth density has
    D(x, sigma) = x + sigma^2 s(x) + O(sigma^4), with s the score of the data. So the flow ends, to fourth order, at
    x + sigma^2 s / 2 = (x + D) / 2, while D itself is off by sigma^2 s / 2. Where the data lie on a manifold, the score
    across it has no limit. Then sigma^2 s does not vanish, and D is the better end.
    """
    u, v = path.points[-2:]
    if path.end == "extrapolate":
        raise ValueError(
            "got end='extrapolate' for a solver whose rule does not reach sigma = 0; expected end='denoise' or 'flow', or a "
            "multistep solver in the velocity or in rho: 'auto', 'abm-3', 'velocity-3', 'lms', 'ipndm'"
        )
    if path.end == "flow":
        return one_step(u, v, a=0.5 * v.alpha / u.alpha, w=0.5 * v.alpha)
    return one_step(u, v, a=0.0, w=v.alpha)


def extrapolates(prediction: Prediction, path: Path) -> bool:
    """Tell whether the move to sigma = 0 is a step of ``prediction``: if asked for, where its clock is finite."""
    if not (path.end == "extrapolate" and path.ends_clean):
        return False
    return scalar.isfinite(prediction.clock(path.points[-1]))


def forward_move(u: Point, v: Point) -> Row:
    """Return a move towards the noise: the exact forward kernel from u to v."""
    a = scalar.exp(v.log_alpha - u.log_alpha)
    return Row(to=v, at=None, a=a, s=(v.sigma * scalar.sqrt(-scalar.expm1(2 * (v.lam - u.lam))),), draw=(u, v))


def first_move(u: Point, v: Point, eta: float = 0.0) -> Row:
    """Return the move from alpha = 0 at ``u``: the data prediction held constant, with the noise of ``Data(eta)``."""
    prediction = Data(eta)
    s = prediction.noise(u, v)
    return one_step(u, v, a=prediction.carry(u, v), w=v.alpha, s=s, kernel=prediction.kernel if s else 0.0)


def each_step(rule: Callable[[Point, Point], Row], path: Path) -> list[Row]:
    """Apply a one-step rule along a path; moves towards the noise and to sigma = 0 are the same for all rules.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 2.0, 1.0, 0.0])
        >>> rows = each_step(lambda u, v: one_step(u, v, a=v.sigma / u.sigma, w=1 - v.sigma / u.sigma), path)
        >>> [(round(row.a, 6), round(row.w[0], 6)) for row in rows]  # Euler's method; the last move returns m
        [(0.5, 0.5), (0.5, 0.5), (0.0, 1.0)]
    """
    return each_step_of(lambda u, v: [rule(u, v)], path)


def each_step_of(rule: Callable[[Point, Point], list[Row]], path: Path) -> list[Row]:
    """Apply a rule of several rows a step along a path; moves towards the noise and to sigma = 0 are the same for all."""
    rows: list[Row] = []
    for u, v in path.moves:
        rows += [last_move(path)] if v.sigma == 0 else [forward_move(u, v)] if v.lam < u.lam else rule(u, v)
    return rows


def stencil_rows(prediction: Prediction, stencil: Stencil | list[Stencil], path: Path) -> list[Row]:
    """Return the rows that ``prediction`` and ``stencil`` make of ``path``.

    Missing history lowers the order at the start and after a move towards the noise. A list of stencils is taken step by
    step; its last stencil serves all further steps.

    Raises:
        ValueError: for a stencil with explicit weights in a prediction whose rate is not zero.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 1.0], end="stop")
        >>> (row,) = stencil_rows(solvers.Data(), solvers.multistep(1), path)  # DDIM
        >>> round(row.a, 6), round(row.w[0], 6)
        (0.25, 0.75)
    """
    stencils = stencil if isinstance(stencil, list) else [stencil]
    if prediction.rate != 0 and any(stage.weights is not None for shape in stencils for stage in shape):
        raise ValueError(
            f"got a stencil with explicit weights in {type(prediction).__name__} prediction; expected one whose rate is "
            "zero (Rho, Velocity, Drift), or a stencil without weights"
        )
    by_rule = extrapolates(prediction, path) and len(stencils[-1]) == 1
    moves = path.moves if by_rule or not path.ends_clean else path.moves[:-1]
    up = [(u, v) for u, v in moves if v.lam > u.lam]
    begun = [_begun(prediction, stencils[min(i, len(stencils) - 1)], u) for i, (u, _) in enumerate(up)]
    kinds, shapes = [step for step, _ in begun], [shape for _, shape in begun]
    inner = iter(_inner_points(kinds, shapes, path, up))
    steps = iter(begun)

    rows: list[Row] = []
    starts: list[tuple[int, float]] = []  # for each step so far: the number of its first evaluation, and its clock
    evaluated = 0
    for u, v in moves:
        if v.lam < u.lam:
            rows.append(forward_move(u, v))
            starts = []
            continue
        step, stages = next(steps)
        starts.append((evaluated, step.clock(u)))
        at, here, pieces = u, [starts[-1]], [u]
        for stage, target in zip(stages, [*next(inner), v], strict=True):
            evaluated += 1
            nodes = _nodes(stage.nodes, here, starts, step.clock(target))
            draw, s = _noise(step, pieces, target)
            p, q = step.mix(at)
            rows.append(
                Row(
                    to=target,
                    at=at,
                    a=step.carry(u, target),
                    w=newest_first(_weights(step, u, target, nodes, stage), [n for n, _ in nodes], evaluated),
                    s=s,
                    p=p,
                    q=q,
                    draw=draw,
                    kernel=step.kernel if draw else 0.0,
                    ends_step=len(here) == len(stages),
                )
            )
            here.append((evaluated, step.clock(target)))
            at = target
        if step is not prediction:
            starts = []  # it interpolated another quantity
    if path.ends_clean and not by_rule:
        rows.append(last_move(path))
    return rows


def _begun(prediction: Prediction, shape: Stencil, u: Point) -> tuple[Prediction, Stencil]:
    """Return the prediction and the stencil of a step from ``u``: the given ones, unless alpha = 0 there."""
    step = prediction.starting_at(u, inner=len(shape) > 1)
    kept = scalar.isfinite(step.clock(u)) or (step is prediction and len(shape) == 1)
    return step, shape if kept else euler


def _inner_points(
    kinds: Sequence[Prediction], shapes: Sequence[Stencil], path: Path, steps: list[tuple[Point, Point]]
) -> list[list[Point]]:
    """Compute the points of all stages but the last, with one call of the SDE's functions for each kind of prediction."""
    times: list[Tensor] = []
    for kind, group in itertools.groupby(zip(kinds, shapes, steps, strict=True), key=lambda step: step[0]):
        clocks: list[float] = []
        for _, shape, (u, v) in group:
            start, end = kind.clock(u), kind.clock(v)
            clocks += [start + stage.c * (end - start) for stage in shape[:-1]]
        if clocks:
            times.append(kind.time(path.sde, scalar.vector(clocks)))
    if not times:
        return [[] for _ in steps]
    flat = iter(points(path.sde, torch.cat(times).clamp(0.0, path.sde.span[1])))
    # A stage at c = 0 or 1 is an end of the step itself, not its round trip through the clock.
    return [
        [{0.0: u, 1.0: v}.get(stage.c, point) for stage, point in zip(shape[:-1], flat, strict=False)]
        for shape, (u, v) in zip(shapes, steps, strict=True)
    ]


def _nodes(
    wanted: Sequence[int], here: list[tuple[int, float]], starts: list[tuple[int, float]], end: float
) -> list[tuple[int, float]]:
    """Return the nodes that exist, as (number of the evaluation, clock); a past node at an infinite clock is left out."""
    found = [here[n] if n >= 0 else starts[n - 1] for n in wanted if n >= 0 or len(starts) >= 1 - n]
    found = [n for i, n in enumerate(found) if i == 0 or scalar.isfinite(n[1])]
    if all(n >= 0 for n in wanted):
        return found
    return [found[i] for i in apart([clock for _, clock in found], end - here[0][1])]


NEAREST = 1e-3
"""The least distance between two nodes, in units of the step; the difference of their predictions is divided by it."""


def apart(nodes: Sequence[float], step: float) -> list[int]:
    """Return the numbers of the nodes, newest first, that are far enough apart for a step of this length.

    The newer of two nodes that all but coincide is kept. The difference of the predictions at both may be no more than
    rounding, and it would be multiplied by the ratio of the step to their distance.

    Example:
        >>> apart([0.0, -1e-9, -1.0], 1.0)
        [0, 2]
    """
    kept = [0]
    for i in range(1, len(nodes)):
        if abs(scalar.value(nodes[i] - nodes[kept[-1]])) >= NEAREST * abs(scalar.value(step)):
            kept.append(i)
    return kept


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
    """Return the interval to draw over, and the factors of all draws of this step so far, newest first.

    The stages of a step share its noise. Each interval between successive stages is drawn once. Its noise has the
    standard deviation ``prediction.noise`` at the end of the interval, and the linear flow carries it on from there.
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


def newest_first(w: Sequence[float], numbers: list[int], evaluated: int) -> tuple[float, ...]:
    """Place the factors of the evaluations with these numbers in a row that is made after ``evaluated`` evaluations."""
    slots = [0.0] * (evaluated - min(numbers))
    for weight, number in zip(w, numbers, strict=True):
        slots[evaluated - 1 - number] = weight
    return tuple(slots)
