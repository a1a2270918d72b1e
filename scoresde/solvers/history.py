r"""Rows that look back: published multistep rules, the steps that open them, and predictor-corrector pairs.

The exact interpolation needs nothing from here but :func:`openings`: a stencil says it all. A published rule that is not
the exact interpolation is a :data:`Rule`, a function from the nodes that exist to their factors. All nodes are points of
the path, newest first; those before a move towards the noise, and one at alpha = 0, are never among them, so that a rule
sees fewer nodes there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from scoresde.solvers import scalar, stencil
from scoresde.solvers.coefficients import lagrange_integrals, moments
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.rows import apart, forward_move, last_move, newest_first, stencil_rows
from scoresde.solvers.stencil import Stencil
from scoresde.solvers.updates import Row

__all__ = ["Choice", "Opening", "Rule", "constant_weight", "exact_rule", "high_order", "multistep_rows", "openings"]

Rule = Callable[[Prediction, Point, Point, Sequence[Point]], list[float]]
"""``rule(prediction, u, v, nodes)``: the factor of N at each node in x_v of the step u -> v."""

Choice = Callable[[Point, Point], Prediction]
"""``choice(u, v)``: the prediction of the step u -> v."""

Opening = Stencil | Callable[[Point, Point], Stencil]
"""A step that opens a method: a stencil, or one that depends on the step."""


def high_order(order: int, start: str) -> list[Stencil]:
    """The steps that open a method of ``order`` so that it keeps its order: singlestep ones, one order below it.

    They are a fixed number, so that their local error of order ``order`` is all that remains of them. For
    ``start="published"`` there are none, and the order grows with the history: its first step leaves a local error of
    order two, and the method, whatever its name, an error of order two at the end.
    """
    if start not in ("published", "high-order"):
        raise ValueError(f"got start={start!r}; expected 'published' or 'high-order'")
    one_below = {1: stencil.euler, 2: stencil.euler, 3: stencil.midpoint, 4: stencil.radau}
    if order not in one_below:
        raise ValueError(f"got order={order!r}; expected 1, 2, 3 or 4")
    return [one_below[order]] * (order - 1) if start == "high-order" else []


def openings(path: Path, opening: Sequence[Opening], running: Stencil) -> list[Stencil]:
    """The stencil of every step towards the data: those of ``opening`` first, and again after a move towards the noise."""
    out: list[Stencil] = []
    since = 0
    for u, v in path.moves:
        if v.lam < u.lam:
            since = 0
        elif v.sigma > 0:
            out.append(_opened(opening, since, u, v, running))
            since += 1
    return out


def constant_weight(prediction: Prediction, u: Point, v: Point) -> float:
    """The factor of N in x_v if N is constant over the step: the first-order rule."""
    length = prediction.clock(v) - prediction.clock(u)
    if abs(length) == math.inf:  # from alpha = 0, in the only prediction that carries it in this clock
        return prediction.gain(v) / prediction.rate
    return prediction.gain(v) * length * moments(prediction.rate * length, 1)[0]


def exact_rule(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """The polynomial in the prediction's clock through all nodes, integrated exactly."""
    start = prediction.clock(u)
    length = prediction.clock(v) - start
    if len(nodes) == 1:
        return [constant_weight(prediction, u, v)]
    theta = [(prediction.clock(node) - start) / length for node in nodes]
    return [prediction.gain(v) * length * w for w in lagrange_integrals(theta, prediction.rate * length)]


def multistep_rows(
    prediction: Prediction | Choice,
    path: Path,
    predictor: tuple[int, Rule],
    corrector: tuple[int, Rule] | None = None,
    opening: Sequence[Opening] = (),
    *,
    corrects_end: bool = False,
) -> list[Row]:
    """The rows of a rule over past evaluations; with a corrector: predict, evaluate, correct, at one evaluation a step.

    Args:
        prediction: of all steps, or chosen for each, all of one kind, that is, of one clock and one interpolated quantity.
        predictor: how many nodes, as far as there are so many, and the rule over them: the start of the step and those of
            the steps before.
        corrector: the same, its first node being the end of the step. It takes the evaluation at the predicted state, which
            the next step starts with, and the noise of the step once more. Where no evaluation follows, before a move
            towards the noise and at the end, the step is predicted only; so is one from alpha = 0, over which nothing can be
            interpolated.
        opening: the steps that come first, as they are, and again after a move towards the noise; a first-order one is left
            to the rule.
        corrects_end: whether to correct the state before the move to sigma = 0 too, which then takes the prediction that the
            correction was made with.
    """
    rows: list[Row] = []
    known: list[tuple[int, Point]] = []  # the evaluations at starts of steps, newest first: their numbers and points
    evaluated, since, fresh = 0, 0, False  # fresh: the newest evaluation is already that of the step's start
    depth = max(predictor[0], corrector[0] if corrector else 0)
    for (u, v), then in itertools.zip_longest(path.moves, path.moves[1:]):
        if v.sigma == 0 or v.lam < u.lam:
            row = last_move(path) if v.sigma == 0 else forward_move(u, v)
            rows.append(replace(row, at=None) if fresh else row)
            known, since, fresh = [], 0, False
            continue
        step = prediction if isinstance(prediction, Prediction) else prediction(u, v)
        if not fresh:
            known, evaluated = [(evaluated, u), *known[: depth - 1]], evaluated + 1
        shape = _opened(opening, since, u, v)
        since += 1
        if len(shape) == 1:
            step = step.starting_at(u)
        else:
            # A singlestep method looks back on its own step only, so that its rows are the same anywhere.
            rows += stencil_rows(step, shape, Path(path.sde, (u, v), "stop"))
            evaluated += len(shape) - 1
            continue
        row = _predicted(step, u, v, None if fresh else u, predictor, known, evaluated)
        # An evaluation at v is handed on to a step of the method, not to one of the opening.
        fresh = corrector is not None and since >= len(opening) and _goes_on(u, v, then, corrects_end)
        rows.append(replace(row, ends_step=not fresh))
        if corrector is not None and fresh:
            known, evaluated = [(evaluated, v), *known[: depth - 1]], evaluated + 1
            rows.append(replace(_predicted(step, u, v, v, corrector, known, evaluated), draw=None))
    return rows


def _opened(opening: Sequence[Opening], since: int, u: Point, v: Point, running: Stencil = stencil.euler) -> Stencil:
    shape = opening[since] if since < len(opening) else running
    return shape(u, v) if callable(shape) else shape


def _goes_on(u: Point, v: Point, then: tuple[Point, Point] | None, corrects_end: bool) -> bool:
    """Whether the step u -> v can be corrected, and what follows it evaluates at v."""
    if then is None or not scalar.isfinite(u.lam) or then[1].lam < v.lam:
        return False
    return then[1].sigma > 0 or corrects_end


def _predicted(
    step: Prediction,
    u: Point,
    v: Point,
    at: Point | None,
    method: tuple[int, Rule],
    known: Sequence[tuple[int, Point]],
    evaluated: int,
) -> Row:
    count, rule = method
    # The newest node, and those before it which a polynomial can pass through: not one at infinite lam.
    nodes = [node for i, node in enumerate(known) if i == 0 or scalar.isfinite(node[1].lam)]
    nodes = [nodes[i] for i in apart([point.lam for _, point in nodes], v.lam - u.lam)][:count]
    w = rule(step, u, v, [point for _, point in nodes])
    p, q = step.mix(at) if at is not None else (0.0, 1.0)
    s = step.noise(u, v)
    return Row(
        to=v,
        at=at,
        a=step.carry(u, v),
        w=newest_first(w, [number for number, _ in nodes], evaluated),
        s=(s,) if s else (),
        p=p,
        q=q,
        draw=(u, v) if s else None,
        kernel=step.kernel if s else 0.0,
    )
