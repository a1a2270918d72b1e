"""The times of GITS, geometry-inspired time scheduling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sampling import sample
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_model, start
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.path import PathLike, make_path
from scoresde.tuning.chains import cheapest_chain

__all__ = ["gits", "gits_costs"]


def gits(
    model: ScoreModel,
    shape_or_start: Tensor | Sequence[int],
    evaluations: int = 10,
    *,
    grid: int = 60,
    path: PathLike = "karras",
    teacher: str = "ipndm",
    cost: str = "deviation",
    coefficient: float = 1.15,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> list[float]:
    r"""Return the times of GITS: the times of a grid between which Euler steps are cheapest, by dynamic programming.

    The teacher follows the flow through a grid. From each of its points :math:`x_i`, Euler steps in sigma / alpha are made
    to all later ones,

    .. math:: \hat x_j = x_i + (\rho_j - \rho_i)\, \epsilon(x_i), \qquad \rho = \sigma / \alpha, \quad x := x / \alpha,

    and the chain of least cost through the grid is chosen. The times suit any solver: ``sample(.., path=times)``.

    Args:
        model: the score model.
        shape_or_start: the shape ``(batch, *event)`` of the starts, or the starts; the costs are averages over them.
        evaluations: the number of times, so many as evaluations of a solver that makes one a step.
        grid: the number of steps of the teacher; the last of them, to sigma = 0, is none of the grid.
        path: the times of the teacher, as for :func:`scoresde.sample`.
        teacher: the solver of the teacher.
        cost: ``"deviation"``, how much farther :math:`\hat x_j` is from the line between the ends of the teacher's
            trajectory than :math:`x_j` is; or ``"l2"`` or ``"l1"``, the distance of :math:`\hat x_j` from
            :math:`x_j`.
        coefficient: the factor gamma of the costs of later steps, see :func:`scoresde.tuning.cheapest_chain`.
        seed, conditions: as for :func:`scoresde.sample`.

    Returns:
        The times, from noise to data, and 0 for the last move, to sigma = 0.

    Raises:
        ValueError: for more evaluations than the grid has times, another cost, or a start at alpha = 0.

    Source: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", 2024,
    https://arxiv.org/abs/2405.11326, and their code, whose defaults these are.

    Example:
        >>> from scoresde import VP, problems, sample
        >>> model = problems.ring().model(VP())
        >>> times = gits(model, (16, 2), 5)
        >>> len(times), times[0], times[-1]
        (6, 1.0, 0.0)
    """
    check_model(model)
    n = whole("grid", grid, 2)
    if whole("evaluations", evaluations, 2) > n:
        raise ValueError(f"got evaluations={evaluations} with grid={grid}; expected no more evaluations than grid times")
    costs, times = gits_costs(
        model, shape_or_start, grid=n, path=path, teacher=teacher, cost=cost, seed=seed, conditions=conditions
    )
    return [*(times[i] for i in cheapest_chain(costs, evaluations - 1, coefficient)), 0.0]


def gits_costs(
    model: ScoreModel,
    shape_or_start: Tensor | Sequence[int],
    *,
    grid: int = 60,
    path: PathLike = "karras",
    teacher: str = "ipndm",
    cost: str = "deviation",
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> tuple[Tensor, list[float]]:
    """Return the costs of all Euler steps of :func:`gits`, shape ``(grid, grid)`` in float64, and the times of the grid.

    The entry (i, j) belongs to the step from the time i to the time j > i; the others are zero.

    Raises:
        ValueError: for another cost, and a path that starts at alpha = 0.

    Example:
        >>> from scoresde import VP, problems
        >>> costs, times = gits_costs(problems.ring().model(VP()), (4, 2), grid=6)
        >>> costs.shape, len(times), bool((costs.tril() == 0).all())
        (torch.Size([6, 6]), 6, True)
    """
    if cost not in ("deviation", "l2", "l1"):
        raise ValueError(f"got cost={cost!r}; expected 'deviation', 'l2' or 'l1'")
    where = make_path(model.sde, path, grid)
    points = where.points[:-1] if where.ends_clean else where.points
    if points[0].log_alpha == -math.inf:
        raise ValueError(
            "got a path that starts at alpha = 0, where x / alpha does not exist; expected a smaller t_max on the SDE"
        )
    x, _ = start(shape_or_start, model, seed, points[0].sigma, None, None)
    states = [x]
    given: dict[str, Any] = {"seed": seed, "conditions": conditions, "progress": False}
    sample(model, x, teacher, path=where, callback=lambda state: states.append(state.x), **given)
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    scaled = torch.stack([state.double() / p.alpha for state, p in zip(states, points, strict=False)]).flatten(2)
    costs = torch.zeros(len(points), len(points), dtype=torch.float64)
    away = _distance(scaled, scaled, cost)
    with torch.no_grad(), evaluation_mode(model):
        for i, p in enumerate(points[:-1]):
            eps = model.eps(states[i], p.t, **told).double().flatten(1)
            lengths = scaled.new_tensor([v.sigma / v.alpha - p.sigma / p.alpha for v in points[i + 1 :]])
            reached = scaled[i] + lengths[:, None, None] * eps
            costs[i, i + 1 :] = (_distance(reached, scaled, cost, i + 1) - away[i + 1 :]).mean(1).cpu()
    return costs, [p.t for p in points]


def _distance(x: Tensor, trajectory: Tensor, cost: str, first: int = 0) -> Tensor:
    """Return the distances of ``x``, ``(points, batch, d)``, from the trajectory from ``first`` on, or from its line."""
    if cost != "deviation":
        found: Tensor = torch.linalg.vector_norm(x - trajectory[first:], ord=1 if cost == "l1" else 2, dim=2)
        return found
    line = trajectory[-1] - trajectory[0]
    along = line / torch.linalg.vector_norm(line, dim=1, keepdim=True)
    from_end = trajectory[-1] - x
    found = torch.linalg.vector_norm(from_end - (from_end * along).sum(2, keepdim=True) * along, dim=2)
    return found
