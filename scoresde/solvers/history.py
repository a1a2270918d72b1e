r"""Multistep rows: published rules, their starting procedures and finishes, and predictor-corrector pairs.

The exact interpolation is a stencil, and needs nothing from here but :func:`step_stencils`. A published rule that is not the
exact interpolation is a :data:`Rule`, a function from the nodes that exist to their factors. All nodes are points of the
path, newest first. A rule never sees nodes before a move towards the noise, or a node at alpha = 0; it gets fewer nodes
there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scoresde.solvers import scalar, stencil
from scoresde.solvers.coefficients import exponential_moments, lagrange_integrals
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.rows import apart, extrapolates, forward_move, last_move, newest_first, stencil_rows
from scoresde.solvers.stencil import Stencil
from scoresde.solvers.updates import Row

__all__ = [
    "SAME",
    "Choice",
    "Finish",
    "Opening",
    "Rule",
    "constant_weight",
    "exact_rule",
    "finishing",
    "high_order",
    "most_nodes",
    "multistep_rows",
    "reached_order",
    "step_stencils",
]

Rule = Callable[[Prediction, Point, Point, Sequence[Point]], list[float]]
"""A function ``rule(prediction, u, v, nodes)`` that returns the factor of N at each node in x_v of the step u -> v."""

Choice = Callable[[Point, Point], Prediction]
"""A function ``choice(u, v)`` that returns the prediction of the step u -> v."""

Opening = Stencil | Callable[[Point, Point], Stencil]
"""A step of a starting procedure: a stencil, or a function of the step that returns one."""


def high_order(order: int, start: str) -> list[Stencil]:
    """Return the starting procedure with which a method keeps its ``order``: singlestep steps, one order below it.

    Their number is fixed, so that they add an error of order ``order`` to the end point. For ``start="published"`` there
    are none, and the order grows with the history. The first step then leaves a local error of order two, so that the
    error of the end point is of order two for every such method.
    """
    if start not in ("published", "high-order"):
        raise ValueError(f"got start={start!r}; expected 'published' or 'high-order'")
    one_below = {1: stencil.euler, 2: stencil.euler, 3: stencil.midpoint, 4: stencil.radau}
    if order not in one_below:
        raise ValueError(f"got order={order!r}; expected 1, 2, 3 or 4")
    return [one_below[order]] * (order - 1) if start == "high-order" else []


FINISHES = ("published", "lower-order", "same", "high-order")


@dataclass(frozen=True)
class Finish:
    """The finish of a multistep method, by which its last steps differ from the steps before: see :func:`finishing`.

    Attributes:
        kind: the name of the finish, "lower-order", "same" or "high-order".
        below: the number of steps from which on a "lower-order" finish has no effect.

    Example:
        >>> Finish("lower-order").most_nodes(3, step=9, steps=10), Finish("same").most_nodes(3, step=9, steps=10)
        (1, inf)
    """

    kind: str
    below: float = math.inf

    def most_nodes(self, order: int, step: int, steps: float) -> float:
        """Return how many nodes the predictor of the step number ``step``, from 0 on, of ``steps`` may have at most.

        Steps at the start, whose history still grows, are left unchanged, unless one of them is the last.
        """
        if self.kind != "lower-order" or not steps < self.below or step + 1 < min(order, steps):
            return math.inf
        return steps - step

    def singlestep(self, order: int, step: int, steps: float) -> Stencil | None:
        """Return the singlestep stencil that the step takes in place of the method, or ``None``."""
        return _SINGLESTEP[order] if self.kind == "high-order" and step + 1 == steps else None


SAME = Finish("same")
"""The finish that keeps the order to the end."""

_SINGLESTEP: dict[int, Stencil] = {1: stencil.euler, 2: stencil.midpoint, 3: stencil.radau, 4: stencil.radau}
"""The singlestep stencil for the last step, by the order of the method; its order may be one below, for one step."""


def finishing(finish: str, published: Finish = SAME) -> Finish:
    r"""Return the finish of a multistep method from the argument ``finish`` of a solver.

    On a path that is not even in lam, the last steps are the longest in lam. An extrapolation from the steps before may do
    harm there.

    Args:
        finish: the name of the finish. ``"lower-order"``: the last step takes one node, the step before it two, and so on;
            a corrector takes one more. ``"same"``: the number of nodes does not change. ``"high-order"``: the last step is
            a singlestep step of the method's order (order 3 for order 4), which uses no history and costs one or two
            evaluations more. ``"published"``: the default of the authors' code, which is one of the others.
        published: the finish of the authors' code.

    The last step ends at the last point before sigma = 0; the move to sigma = 0 is the same for all solvers. A method does
    not finish before a move towards the noise.

    Raises:
        ValueError: for any other finish.

    Example:
        >>> finishing("lower-order").most_nodes(3, step=8, steps=10)
        2
        >>> finishing("published").kind
        'same'
    """
    if finish not in FINISHES:
        raise ValueError(f"got finish={finish!r}; expected one of {', '.join(map(repr, FINISHES))}")
    return published if finish == "published" else Finish(finish)


def reached_order(order: int, start: str, finish: Finish = SAME) -> int:
    """Return the order of a method of ``order`` with this start and finish; a first-order step limits it to two."""
    lowered = finish.kind == "lower-order" and finish.below == math.inf
    return order if start == "high-order" and not lowered else min(order, 2)


def step_stencils(
    path: Path, opening: Sequence[Opening], order: int, running: Callable[[int], Stencil], finish: Finish = SAME
) -> list[Stencil]:
    """Return the stencil of every step towards the data: ``running(order)``, but at the start and at the end.

    The stencils of ``opening`` come first, and again after a move towards the noise. ``running(k)`` is the stencil with k
    nodes.
    """
    return [
        shape or running(int(min(most, order))) for shape, most in _plan(path, opening, order, finish, opens_with_rule=False)
    ]


def most_nodes(path: Path, order: int, finish: Finish) -> list[int]:
    """Return the largest number of nodes of each step towards the data: ``order``, and fewer where the finish lowers it."""
    return [int(min(most, order)) for _, most in _plan(path, (), order, finish, opens_with_rule=True)]


def _plan(
    path: Path, opening: Sequence[Opening], order: int, finish: Finish, *, opens_with_rule: bool
) -> list[tuple[Stencil | None, float]]:
    """Plan each step towards the data: return its singlestep stencil, or ``None`` for the method, and its most nodes."""
    runs: list[list[tuple[Point, Point]]] = [[]]
    for u, v in path.moves:
        if v.lam < u.lam:
            runs.append([])
        elif v.sigma > 0:
            runs[-1].append((u, v))
    out: list[tuple[Stencil | None, float]] = []
    for run in runs:
        steps = len(run) if run is runs[-1] else math.inf
        for i, (u, v) in enumerate(run):
            shape = finish.singlestep(order, i, steps)
            if i < len(opening):
                first = opening[i]
                shape = first(u, v) if callable(first) else first
                if opens_with_rule and len(shape) == 1:
                    shape = None
            out.append((shape, finish.most_nodes(order, i, steps)))
    return out


def constant_weight(prediction: Prediction, u: Point, v: Point) -> float:
    """Return the factor of N in x_v if N is constant over the step: the first-order rule."""
    length = prediction.clock(v) - prediction.clock(u)
    if abs(length) == math.inf:  # from alpha = 0, in the only prediction that can start there with this clock
        return prediction.gain(v) / prediction.rate
    return prediction.gain(v) * length * exponential_moments(prediction.rate * length, 1)[0]


def exact_rule(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """Integrate the polynomial through all nodes, in the prediction's clock, exactly."""
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
    finish: Finish = SAME,
    corrects_end: bool = False,
) -> list[Row]:
    """Return the rows of a multistep rule; with a corrector: predict, evaluate, correct, at one evaluation a step.

    Args:
        prediction: the prediction of all steps, or a choice for each step. All have one clock and one interpolated quantity.
        path: the path.
        predictor: the number of nodes, and the rule over them. The nodes are the starts of this step and of the steps
            before; a rule gets fewer where the history is short.
        corrector: the number of nodes, and the rule over them. The first node is the end of the step. The corrector takes
            the evaluation at the predicted state, with which the next step starts, and the noise of the step once more. A
            step is predicted only where no evaluation follows: before a move towards the noise, and at the end. A step from
            alpha = 0, over which nothing can be interpolated, is predicted only, too.
        opening: the starting procedure, whose steps come first and again after a move towards the noise. Its first-order
            steps are left to the rule.
        finish: the finish of the method.
        corrects_end: whether to correct the state before the move to sigma = 0 too. That move then takes the prediction with
            which the correction was made. Where the path's end is "extrapolate", the move to sigma = 0 is a step of the
            predictor, and the state before it is corrected.
    """
    rows: list[Row] = []
    known: list[tuple[int, Point]] = []  # the evaluations at the starts of steps, newest first: their numbers and points
    evaluated, since, fresh = 0, 0, False  # fresh: the newest evaluation was made at the start of this step
    order = max(predictor[0], corrector[0] - 1 if corrector else 0)
    depth = max(predictor[0], corrector[0] if corrector else 0)
    steps = _plan(path, opening, order, finish, opens_with_rule=True)
    to_the_end = isinstance(prediction, Prediction) and extrapolates(prediction, path)
    if to_the_end:
        steps.append((None, steps[-1][1] if steps else math.inf))
    number = 0
    for (u, v), then in itertools.zip_longest(path.moves, path.moves[1:]):
        if (v.sigma == 0 and not to_the_end) or v.lam < u.lam:
            row = last_move(path) if v.sigma == 0 else forward_move(u, v)
            rows.append(replace(row, at=None) if fresh else row)
            known, since, fresh = [], 0, False
            continue
        step = prediction if isinstance(prediction, Prediction) else prediction(u, v)
        if not fresh:
            known, evaluated = [(evaluated, u), *known[: depth - 1]], evaluated + 1
        shape, most = steps[number]
        since, number = since + 1, number + 1
        if shape is not None:
            # A singlestep method uses its own step only, so that its rows are the same anywhere.
            rows += stencil_rows(step, shape, Path(path.sde, (u, v), "stop"))
            evaluated += len(shape) - 1
            continue
        step = step.starting_at(u)
        row = _predicted(step, u, v, None if fresh else u, _limited(predictor, most), known, evaluated)
        # An evaluation at v is handed on to a step of the method, not to a starting step or a singlestep end.
        by_rule = since >= len(opening) and not any(shape for shape, _ in steps[number : number + 1])
        fresh = corrector is not None and by_rule and _goes_on(u, v, then, corrects_end or to_the_end)
        rows.append(replace(row, ends_step=not fresh))
        if corrector is not None and fresh:
            known, evaluated = [(evaluated, v), *known[: depth - 1]], evaluated + 1
            rows.append(replace(_predicted(step, u, v, v, _limited(corrector, most + 1), known, evaluated), draw=None))
    return rows


def _limited(method: tuple[int, Rule], most: float) -> tuple[int, Rule]:
    count, rule = method
    return int(min(count, most)), rule


def _goes_on(u: Point, v: Point, then: tuple[Point, Point] | None, corrects_end: bool) -> bool:
    """Return whether the step u -> v can be corrected, and the next row evaluates at v."""
    if then is None or not scalar.isfinite(u.lam) or then[1].lam < v.lam:
        return False
    return then[1].sigma > 0 or corrects_end


def _lam(point: Point) -> float:
    return point.lam


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
    # The newest node, and the nodes before it that a polynomial can pass through, which excludes infinite lam.
    nodes = [node for i, node in enumerate(known) if i == 0 or scalar.isfinite(node[1].lam)]
    clock = step.clock if v.sigma == 0 else _lam  # lam is infinite at the end of a step to sigma = 0
    nodes = [nodes[i] for i in apart([clock(point) for _, point in nodes], clock(v) - clock(u))][:count]
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
