r"""Linear stability: the largest step at which errors do not grow.

Linearised about a trajectory, the data prediction is :math:`m = \mu\, x / \alpha` along each eigenvector of its Jacobian.
With :math:`z = x / \alpha` and the half log-SNR :math:`\lambda`, the probability flow becomes

.. math:: \frac{dz}{d\lambda} = (\mu - 1)\, z .

On Gaussian data of variance c^2, :math:`\mu = \alpha^2 c^2 / (\alpha^2 c^2 + \sigma^2)` lies between 0 and 1. Guidance,
and several modes, can move :math:`\mu` out of this range. For :math:`\mu < 0` the equation is stiff: the flow shrinks
errors, but a solver with too large a step makes them grow.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.sde import EDM
from scoresde.solvers.drivers.states import Allocating, lookback
from scoresde.solvers.path import Path, points
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get
from scoresde.solvers.updates import Row, run

__all__ = ["growth", "stability"]

MOVES = 24
"""The number of steps of the analysed path. Its middle step is far from the starting procedure and from lower-order ends."""


def growth(solver: str | Solver, h: float, mu: Tensor) -> Tensor:
    """Compute the growth factor of x / alpha per step of length ``h`` in lam; the exact flow's factor is e^{(mu - 1) h}.

    The growth factor is the spectral radius of the map from the state and the states of past evaluations to the same states
    one step later. On a path uniform in lam this map is the same for every step of a solver in lam, in rho = sigma / alpha,
    or on EDM in t. For a solver in another clock (velocity) it is the map of a step about lam = 0.

    Args:
        solver: a name in :data:`scoresde.solvers.SOLVERS` or a deterministic solver that makes rows.
        h: the length of a step in lam, more than 0 and at most 10.
        mu: the eigenvalues of the Jacobian of the data prediction, real or complex, shape ``(n,)``.

    Returns:
        The absolute growth factors, shape ``(n,)``, float64.

    Raises:
        ValueError: for a stochastic solver, one without rows or whose steps are not the moves of its path, and for a step
            out of range.

    Example:
        >>> mu = torch.tensor([0.0, 0.5], dtype=torch.float64)
        >>> [round(g, 3) for g in growth("ddim", 1.0, mu).tolist()]  # ddim: mu + (1 - mu) e^{-h}
        [0.368, 0.684]
    """
    method = get(solver) if isinstance(solver, str) else solver
    rows = _rows(method, h)
    mu = mu.to(torch.complex128)
    ends = [i + 1 for i, row in enumerate(rows) if row.ends_step]
    if len(ends) != MOVES:
        raise ValueError(
            f"got solver {method.name!r}, whose steps are not the moves of its path; expected a solver with one step for "
            "each move, such as 'dpmpp-2m'"
        )
    first, last = ends[MOVES // 2 - 1], ends[MOVES // 2]
    depth = lookback(rows)[0]
    past = [row for row in rows[:first] if row.at is not None][::-1][:depth]
    # Each state is a row of coefficients of the states before the step: the current one, and those of past evaluations.
    unit = torch.eye(1 + depth, dtype=torch.complex128).expand(len(mu), -1, -1)
    states = deque([unit[:, 1 + j] for j in range(len(past))], maxlen=depth)

    def predict(y: Tensor) -> Tensor:
        states.appendleft(y)
        return mu[:, None] * y

    history = [(row.p + row.q * mu)[:, None] * s for row, s in zip(past, states, strict=True)]
    on = Allocating(rows, itertools.repeat(predict), unit[:, 0], None, history=history)
    for _ in run(rows[first:last], on):
        pass
    step = torch.stack([on.x, *states, *[torch.zeros_like(on.x)] * (depth - len(states))], 1)
    radius: Tensor = torch.linalg.eigvals(step).abs().amax(1)
    return radius


def _rows(method: Solver, h: float) -> Sequence[Row]:
    if not isinstance(method, RowSolver) or method.stochastic:
        raise ValueError(f"got solver {method.name!r}; expected a deterministic solver that makes rows, such as 'ddim'")
    if not 0 < h <= 10:
        raise ValueError(f"got a step of h={h}; expected a length in lam between 0 and 10")
    reach = 0.5 * MOVES * h
    sde = EDM(sigma_min=math.exp(-reach), sigma_max=math.exp(reach))
    times = torch.exp(torch.linspace(reach, -reach, MOVES + 1, dtype=torch.float64)).clamp(*sde.span)
    rows = method.rows(Path(sde, tuple(points(sde, times)), "stop"))
    return [row for row in rows if isinstance(row, Row)]


def stability(solver: str | Solver, h: float, lowest: float = -1000.0) -> float:
    """Compute the lower end of the stability interval: the least real mu down to which no error grows.

    Args:
        solver: a name in :data:`scoresde.solvers.SOLVERS` or a deterministic solver that makes rows.
        h: the length of a step in lam, more than 0 and at most 10.
        lowest: the bound of the search, which is returned if the solver is stable down to it.

    Raises:
        ValueError: for the reasons of :func:`growth`.

    Example:
        >>> round(stability("ddim", 1.0), 6)  # -(1 + e^{-h}) / (1 - e^{-h})
        -2.163953
    """
    low, high = lowest, 0.0
    for _ in range(6):  # each pass finds the first unstable interval of the grid and refines it
        grid = torch.linspace(high, low, 257, dtype=torch.float64)
        unstable = (growth(solver, h, grid) > 1 + 1e-9).nonzero()
        if len(unstable) == 0:
            return lowest
        first = max(int(unstable[0]), 1)
        high, low = float(grid[first - 1]), float(grid[first])
    return high
