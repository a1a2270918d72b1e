r"""Rows that look back: published multistep rules, the steps that open them, and predictor-corrector pairs.

The exact interpolation needs nothing from here but :func:`openings`: a stencil says it all. A published rule that is not
the exact interpolation is a :data:`Rule`, a function from the nodes that exist to their factors. All nodes are points of
the path, newest first; those before a move towards the noise, and one at alpha = 0, are never among them, so that a rule
sees fewer nodes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from scoresde.solvers import scalar, stencil
from scoresde.solvers.coefficients import lagrange_integrals, moments
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.rows import Op, Row, _newest_first, forward_move, last_move, stencil_rows
from scoresde.solvers.stencil import Stencil

__all__ = ["Opening", "Rule", "constant_weight", "exact_rule", "high_order", "multistep_rows", "openings", "pec_rows"]

Rule = Callable[[Prediction, Point, Point, Sequence[Point]], list[float]]
"""``rule(prediction, u, v, nodes)``: the factor of N at each node in x_v of the step u -> v."""

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
            shape = opening[since] if since < len(opening) else running
            out.append(shape(u, v) if callable(shape) else shape)
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


def multistep_rows(prediction: Prediction, path: Path, depth: int, rule: Rule, opening: Sequence[Opening] = ()) -> list[Op]:
    """The rows of a rule over at most ``depth`` nodes: the start of the step and those of the steps before.

    The steps of ``opening`` come first, as they are; a first-order one there is left to the rule.
    """
    rows = stencil_rows(prediction, openings(path, opening, stencil.euler), path)
    known: list[tuple[int, Point]] = []  # the evaluations at starts of steps, newest first: their numbers and points
    evaluated, starts_step = 0, True
    for i, row in enumerate(rows):
        if not isinstance(row, Row) or row.to.sigma == 0:
            continue
        if row.at is None:
            known = []
            continue
        evaluated += 1
        if starts_step:
            known = [(evaluated - 1, row.at), *known[: depth - 1]]
            if row.ends_step:
                nodes = _usable(known)
                w = rule(prediction, row.at, row.to, [point for _, point in nodes])
                rows[i] = replace(row, w=_newest_first(w, [number for number, _ in nodes], evaluated))
        starts_step = row.ends_step
    return rows


def pec_rows(
    prediction: Prediction,
    path: Path,
    predictor: tuple[int, Rule],
    corrector: tuple[int, Rule],
    opening: Sequence[Stencil] = (),
) -> list[Op]:
    """Predict, evaluate, correct: one evaluation a step, at the predicted state, which the next step uses as well.

    ``predictor`` is a number of nodes and a rule; so is ``corrector``, whose first node is the end of the step. The last
    step before a move towards the noise or to sigma = 0 is predicted only, since its correction would cost an evaluation
    of its own; so is a first step from alpha = 0, over which nothing can be interpolated.
    """
    rows: list[Op] = []
    known: list[tuple[int, Point]] = []
    evaluated, since, fresh = 0, 0, False  # fresh: the newest evaluation is already that of the step's start
    depth = max(predictor[0], corrector[0])
    moves = path.moves
    for i, (u, v) in enumerate(moves):
        if v.sigma == 0:
            rows.append(last_move(path))
            continue
        if v.lam < u.lam:
            rows.append(forward_move(u, v))
            known, since, fresh = [], 0, False
            continue
        prediction.check(u)
        since += 1
        if since <= len(opening) and len(opening[since - 1]) > 1:
            # A singlestep method looks back on its own step only, so that its rows are the same anywhere.
            rows += stencil_rows(prediction, opening[since - 1], Path(path.sde, (u, v), "stop"))
            known = [(evaluated, u), *known[: depth - 1]]
            evaluated += len(opening[since - 1])
            continue
        if not fresh:
            known = [(evaluated, u), *known[: depth - 1]]
            evaluated += 1
        last = i + 1 == len(moves) or moves[i + 1][1].sigma == 0 or moves[i + 1][1].lam < v.lam
        last = last or u.lam == -math.inf
        nodes = _usable(known)[: predictor[0]]
        rows.append(_pec_row(prediction, u, v, None if fresh else u, predictor[1], nodes, evaluated, ends_step=last))
        fresh = not last
        if fresh:
            known = [(evaluated, v), *known[: depth - 1]]
            evaluated += 1
            rows.append(_pec_row(prediction, u, v, v, corrector[1], _usable(known)[: corrector[0]], evaluated, True))
    return rows


def _pec_row(
    prediction: Prediction,
    u: Point,
    v: Point,
    at: Point | None,
    rule: Rule,
    nodes: Sequence[tuple[int, Point]],
    evaluated: int,
    ends_step: bool,
) -> Row:
    p, q = prediction.mix(at) if at is not None else (0.0, 1.0)
    w = rule(prediction, u, v, [point for _, point in nodes])
    w_slots = _newest_first(w, [number for number, _ in nodes], evaluated)
    return Row(to=v, at=at, a=prediction.carry(u, v), w=w_slots, p=p, q=q, ends_step=ends_step)


def _usable(known: Sequence[tuple[int, Point]]) -> list[tuple[int, Point]]:
    """The newest node, and those before it which a polynomial can pass through: not one at infinite lam."""
    return [node for i, node in enumerate(known) if i == 0 or scalar.isfinite(node[1].lam)]
