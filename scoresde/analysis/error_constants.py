r"""The error constants of the steps of a multistep method: what its order alone cannot show.

A step of length h integrates a quantity N over it by a sum over nodes, :math:`h \sum_j w_j N(\theta_j)` with theta = 0 at
its start and 1 at its end. On equal short steps it misses

.. math:: C_k\, h^{k+1} N^{(k)}, \qquad
          C_k = \frac{1}{k!} \left( \int_0^1 \theta^k\, d\theta - \sum_j w_j \theta_j^k \right),

with k the lowest degree for which that is not zero. Interpolation through q nodes has k = q and

.. math:: C_q = \frac{1}{q!} \int_0^1 \prod_j (\theta - \theta_j)\, d\theta,

1/2, 5/12, 3/8 and 251/720 for Adams and Bashforth's methods, -1/12, -1/24 and -19/720 for Adams and Moulton's. A method of
three nodes that starts with one step of order one is of order two, whatever its third coefficient is: there the constant
tells a right coefficient from a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scoresde.sde import VP
from scoresde.solvers.path import Path
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get
from scoresde.solvers.updates import Row

__all__ = ["ErrorConstant", "error_constants"]

STEPS, LENGTH = 16, 4e-3
"""Of the path on which the weights are read: long enough for any start and any finish, short enough to be at its limit."""

CLOSE = 1e-3
"""How near two constants are that are the same: twice the length squared is left of the limit, times a moderate number."""


@dataclass(frozen=True)
class ErrorConstant:
    """The error constant of one update of a step: see the module.

    Attributes:
        nodes: where it samples N, in units of the step, newest first.
        degree: k, the lowest degree that it does not integrate exactly.
        value: C_k.
        expected: k and C_k that the solver declares, or, where it declares none, those of interpolation through the nodes.

    Example:
        >>> found = ErrorConstant((0.0, -1.0), 2, 5 / 12, (2, 5 / 12))  # Adams-Bashforth of two nodes
        >>> print(found)
        2 nodes 0.4167 h^3 (as expected)
    """

    nodes: tuple[float, ...]
    degree: int
    value: float
    expected: tuple[int, float]

    @property
    def agrees(self) -> bool:
        """Whether it is the expected one."""
        return self.degree == self.expected[0] and abs(self.value - self.expected[1]) < CLOSE

    def __str__(self) -> str:
        wanted = "as expected" if self.agrees else f"expected {self.expected[1]:.4g} h^{self.expected[0] + 1}"
        return f"{len(self.nodes)} nodes {self.value:.4g} h^{self.degree + 1} ({wanted})"


def error_constants(solver: str | Solver) -> tuple[ErrorConstant, ...]:
    """Return the error constants of the updates of a step that looks back on earlier ones, in their order.

    They are read off the rows, in the middle of a path of equal short steps in lam, with the noise left out. There are none
    for a solver that makes no rows, whose steps look back on none, or are not the moves of its path.

    Args:
        solver: a name of the table or a solver.

    Example:
        >>> [(c.degree, round(c.value, 4)) for c in error_constants("expam-3")]  # 3/8 and -1/24
        [(3, 0.375), (3, -0.0417)]
        >>> print(error_constants("dpmpp-3m")[0])  # 1/12: its second difference lacks a factor of two
        3 nodes 0.08333 h^3 (as expected)
    """
    method = get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, RowSolver) or method.description.constants == ():
        return ()
    declared = iter(method.description.constants or ())
    found = []
    for longer, shorter in zip(*(_weights(method, length) for length in (LENGTH, LENGTH / 2)), strict=True):
        nodes = tuple(float(round(theta)) for theta in longer[0])
        # The limit of no length, from two lengths of which the second is half of the first.
        limit = [2 * b - a for a, b in zip(_defects(*longer), _defects(*shorter), strict=True)]
        degree = next((k for k, c in enumerate(limit) if abs(c) > CLOSE), len(limit) - 1)
        found.append(ErrorConstant(nodes, degree, limit[degree], next(declared, _interpolation(nodes))))
    return tuple(found)


def _weights(method: RowSolver, length: float) -> list[tuple[list[float], list[float]]]:
    """Nodes and weights, which add up to 1, of all updates of a step in the middle, if one looks back on earlier steps."""
    sde = VP()
    lams = torch.arange(STEPS + 1, dtype=torch.float64) * length
    path = Path.from_times(sde, sde.time(lams), "stop")
    u, v = path.points[STEPS // 2 : STEPS // 2 + 2]
    evaluated: list[float] = []
    here = path.points[0]  # where the step of a row starts
    out = []
    for row in method.rows(path):
        if row.at is not None:
            evaluated.append((row.at.lam - u.lam) / (v.lam - u.lam))
        if here == u and row.to == v and isinstance(row, Row):
            kept = [(x, w) for x, w in zip(reversed(evaluated), row.w, strict=False) if w != 0]
            total = math.fsum(w for _, w in kept)
            out.append(([x for x, _ in kept], [w / total for _, w in kept]))
        if row.ends_step:
            here = row.to
    looks_back = any(x < -0.5 for nodes, _ in out for x in nodes)
    at_points = all(abs(x - round(x)) < 1e-6 for nodes, _ in out for x in nodes)
    return out if looks_back and at_points else []


def _defects(nodes: Sequence[float], weights: Sequence[float]) -> list[float]:
    """C_k for k = 1, 2, .., one more than there are nodes; the entry of k = 0 is zero, since the weights add up to 1."""
    return [
        (1 / (k + 1) - math.fsum(w * x**k for x, w in zip(nodes, weights, strict=True))) / math.factorial(k)
        for k in range(len(nodes) + 2)
    ]


def _interpolation(nodes: Sequence[float]) -> tuple[int, float]:
    from numpy.polynomial import Polynomial

    integral = Polynomial.fromroots(list(nodes)).integ()
    return len(nodes), float(integral(1.0) - integral(0.0)) / math.factorial(len(nodes))
