r"""Rows: what a solver turns a path into, and all that a driver knows of it.

A :class:`Row` evaluates the model at the current state y, if ``at`` is a point, which appends
:math:`N = p\,y + q\,m(y)` to the history, and then sets

.. math:: y = a\,x + \sum_j w_j N_j + s\,\xi

with x the state at the start of the step, ``w[0]`` belonging to the newest N. The row that ends a step makes y the new x.
A :class:`Langevin` correction is the one update that is not linear: its step size depends on the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from scoresde.solvers.coefficients import lagrange_integrals
from scoresde.solvers.path import Path, Point, points
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.stencil import Stencil

__all__ = ["Langevin", "Row", "each_step", "freeze", "from_json", "one_step", "stencil_rows", "to_json"]


@dataclass(frozen=True)
class Row:
    """One linear update: see the module.

    Attributes:
        to: the point at which y then lives.
        at: the point at which the model is evaluated first, or ``None``.
        a, w, s: factors of the state, of the history (newest first) and of the noise.
        p, q: N = p y + q m.
        start: the point from which the step, and its noise, leads to ``to``.
        ends_step: whether y becomes the state from which the next rows start.
    """

    to: Point
    at: Point | None
    start: Point
    a: float
    w: tuple[float, ...] = ()
    s: float = 0.0
    p: float = 0.0
    q: float = 1.0
    ends_step: bool = True


@dataclass(frozen=True)
class Langevin:
    r"""A Langevin correction at one point, :math:`x \leftarrow x + \epsilon\, s(x) + \sqrt{2 \epsilon}\, \xi` with the step

    .. math:: \epsilon = 2\, \mathrm{scale}\, (\mathrm{snr}\, \|\xi\| / \|s(x)\|)^2.

    ``norm="sample"`` takes the norms of each sample, ``norm="batch"`` their averages over the batch, as published.
    Source: Song et al., 2021, algorithms 4 and 5.
    """

    at: Point
    snr: float
    scale: float = 1.0
    norm: str = "sample"


Op = Row | Langevin


def one_step(u: Point, v: Point, a: float, w: float, s: float = 0.0, p: float = 0.0, q: float = 1.0) -> Row:
    """The row of a solver that evaluates once, at the start of the step u -> v, and keeps no history."""
    return Row(to=v, at=u, start=u, a=a, w=(w,), s=s, p=p, q=q)


def freeze(u: Point, v: Point) -> Row:
    """The last move, to sigma = 0, of every solver: the newest data prediction."""
    return one_step(u, v, a=0.0, w=v.alpha)


def each_step(rule: Callable[[Point, Point], Row], path: Path) -> list[Op]:
    """A one-step rule along a path, its last move to sigma = 0 excepted, which is the same for all."""
    pairs = zip(path.points[:-1], path.points[1:], strict=True)
    return [freeze(u, v) if v.log_sigma == -math.inf else rule(u, v) for u, v in pairs]


def stencil_rows(prediction: Prediction, stencil: Stencil, path: Path) -> list[Op]:
    """The rows of ``prediction`` x ``stencil`` on ``path``; missing history at the start lowers the order there."""
    if prediction.rate != 0 and any(stage.weights is not None for stage in stencil):
        raise ValueError(
            f"got a stencil with explicit weights in {type(prediction).__name__} prediction; expected one whose rate is "
            "zero (Rho, Velocity, Time), or a stencil without weights"
        )
    steps = list(zip(path.points[:-1], path.points[1:], strict=True))
    if path.ends_clean:
        steps = steps[:-1]
    for u, _ in steps:
        prediction.check(u)
    inner = _inner_points(prediction, stencil, path, steps)

    rows: list[Op] = []
    starts: list[tuple[int, float]] = []  # of each step so far: the number of its first evaluation, and its clock
    evaluated = 0
    for (u, v), stage_points in zip(steps, inner, strict=True):
        starts.append((evaluated, prediction.clock(u)))
        at, here = u, [starts[-1]]
        for stage, target in zip(stencil, [*stage_points, v], strict=True):
            evaluated += 1
            nodes, weights = _nodes(stage.nodes, stage.weights, here, starts)
            length = prediction.clock(target) - prediction.clock(u)
            w = _weights(prediction, target, prediction.clock(u), length, nodes, weights, stage.c)
            p, q = prediction.mix(at)
            last = target is v and len(here) == len(stencil)
            rows.append(
                Row(
                    to=target,
                    at=at,
                    start=u,
                    a=prediction.carry(u, target),
                    w=_newest_first(w, [n for n, _ in nodes], evaluated),
                    s=prediction.noise(u, target) if last else 0.0,
                    p=p,
                    q=q,
                    ends_step=last,
                )
            )
            here.append((evaluated, prediction.clock(target)))
            at = target
    if path.ends_clean:
        rows.append(freeze(path.points[-2], path.points[-1]))
    return rows


def _inner_points(
    prediction: Prediction, stencil: Stencil, path: Path, steps: Sequence[tuple[Point, Point]]
) -> list[list[Point]]:
    """The points of all stages but the last, for all steps: one call of the SDE's functions."""
    fractions = [stage.c for stage in stencil[:-1]]
    if not fractions or not steps:
        return [[] for _ in steps]
    ends = torch.tensor([[prediction.clock(u), prediction.clock(v)] for u, v in steps], dtype=torch.float64)
    if not bool(torch.isfinite(ends).all()):
        raise ValueError(
            f"a solver with inner stages in {type(prediction).__name__} prediction cannot start at alpha = 0, where lam "
            "is infinite and has no middle; take a multistep solver (dpmpp-2m, ddim), or a smaller t_max"
        )
    clocks = ends[:, :1] + torch.tensor(fractions, dtype=torch.float64) * (ends[:, 1:] - ends[:, :1])
    flat = points(path.sde, prediction.time(path.sde, clocks.flatten()).clamp(0.0, path.sde.span[1]))
    k = len(fractions)
    # A stage at c = 1 is the end of the step itself, not its round trip through the clock.
    return [[v if f == 1 else flat[i * k + j] for j, f in enumerate(fractions)] for i, (_, v) in enumerate(steps)]


def _nodes(
    nodes: tuple[int, ...],
    weights: tuple[float, ...] | None,
    here: list[tuple[int, float]],
    starts: list[tuple[int, float]],
) -> tuple[list[tuple[int, float]], tuple[float, ...] | None]:
    """The nodes that exist: (number of the evaluation, clock). A node at an infinite clock carries no information."""
    found = [here[n] if n >= 0 else starts[n - 1] for n in nodes if n >= 0 or len(starts) >= 1 - n]
    if len(found) > 1:
        found = [n for i, n in enumerate(found) if i == 0 or math.isfinite(n[1])]
    return found, weights


def _weights(
    prediction: Prediction,
    target: Point,
    start: float,
    length: float,
    nodes: list[tuple[int, float]],
    weights: tuple[float, ...] | None,
    c: float,
) -> list[float]:
    gain = prediction.gain(target)
    if weights is not None:
        return [gain * length / c * w for w in weights]
    if math.isinf(length):  # from alpha = 0: the integral of e^{rate (s - v)} over all of the past
        return [gain / prediction.rate] + [0.0] * (len(nodes) - 1)
    theta = [(clock - start) / length for _, clock in nodes]
    return [gain * length * i for i in lagrange_integrals(theta, prediction.rate * length)]


def _newest_first(w: list[float], numbers: list[int], evaluated: int) -> tuple[float, ...]:
    slots = [0.0] * (evaluated - min(numbers))
    for weight, number in zip(w, numbers, strict=True):
        slots[evaluated - 1 - number] = weight
    return tuple(slots)


def to_json(rows: Sequence[Op]) -> list[dict[str, Any]]:
    """The rows as plain values for ``json.dumps``."""
    return [{"op": type(row).__name__, **asdict(row)} for row in rows]


def from_json(values: Sequence[dict[str, Any]]) -> list[Op]:
    """The inverse of :func:`to_json`.

    Example:
        >>> import json
        >>> from scoresde import VP, solvers
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 3))
        >>> from_json(json.loads(json.dumps(to_json(rows)))) == rows
        True
    """
    rows: list[Op] = []
    for value in values:
        fields = {k: v for k, v in value.items() if k != "op"}
        for name in ("to", "at", "start"):
            if fields.get(name) is not None:
                fields[name] = Point(*fields[name])
        if value["op"] == "Langevin":
            rows.append(Langevin(**fields))
        else:
            rows.append(Row(**{**fields, "w": tuple(fields["w"])}))
    return rows
