"""Stencils: the nodes in a step at which the interpolated quantity is evaluated.

A stencil is a tuple of stages ``Stage(c, nodes)``. Stage i computes the state at the fraction ``c`` of the step from the
values at ``nodes``. Node 0 is the start of the step; nodes 1, 2, .. are the earlier stages of this step; nodes -1, -2, ..
are the starts of earlier steps. The last stage has c = 1 and ends the step. Without ``weights`` a polynomial through the
nodes is integrated exactly. Explicit ``weights`` (a row of a Butcher tableau, in units of the step) are for predictions
whose rate is zero.
"""

from __future__ import annotations

from typing import NamedTuple

from scoresde.base.numbers import whole

__all__ = ["Stage", "euler", "midpoint", "multistep", "radau", "rk3", "rk4", "trapezoid"]


class Stage(NamedTuple):
    """A stage: the fraction of the step at which it ends, its nodes, and their weights unless they are interpolated.

    Example:
        >>> middle, end = Stage(0.5, (0,)), Stage(1.0, (1,))  # half a step, then the whole step with the value at its middle
        >>> end.c, end.nodes, end.weights
        (1.0, (1,), None)
    """

    c: float
    nodes: tuple[int, ...]
    weights: tuple[float, ...] | None = None


Stencil = tuple[Stage, ...]


def multistep(order: int) -> Stencil:
    """Return the multistep stencil of the step's start and the ``order - 1`` starts before it (Adams-Bashforth).

    Example:
        >>> multistep(3)[0].nodes  # here, and the two starts of steps before
        (0, -1, -2)
    """
    order = whole("order", order, 1)
    return (Stage(1.0, tuple(range(0, -order, -1))),)


euler: Stencil = multistep(1)
"""Euler's method, one evaluation at the start; order 1."""

midpoint: Stencil = (Stage(0.5, (0,)), Stage(1.0, (1,)))
"""The midpoint rule, with the value halfway for the whole step; order 2."""

trapezoid: Stencil = (Stage(1.0, (0,)), Stage(1.0, (0, 1)))
"""Heun's second-order method: predict to the end, evaluate, average."""

radau: Stencil = (Stage(1 / 3, (0,)), Stage(2 / 3, (0, 1)), Stage(1.0, (0, 2)))
"""Heun's third-order abscissae (0, 1/3, 2/3), linear in the first and the last: DPM-Solver-3."""

rk3: Stencil = (
    Stage(0.5, (0,), (0.5,)),
    Stage(1.0, (0, 1), (-1.0, 2.0)),
    Stage(1.0, (0, 1, 2), (1 / 6, 2 / 3, 1 / 6)),
)
"""Kutta's third-order method, Simpson's rule; order 3."""

rk4: Stencil = (
    Stage(0.5, (0,), (0.5,)),
    Stage(0.5, (1,), (0.5,)),
    Stage(1.0, (2,), (1.0,)),
    Stage(1.0, (0, 1, 2, 3), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
)
"""The classical Runge-Kutta method; order 4."""
