r"""The singlestep DPM-Solvers: exponential Runge-Kutta methods, with stages equidistant in lam or at points of the path.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and eps
the noise prediction; s is the point of a stage. A step of order 2 with a stage at the fraction
:math:`r = (\lambda_s - \lambda_u) / h` takes :math:`N_u + (N_s - N_u) / 2r` to be constant over the step; for r = 1/2 that
is N_s. A step of order 3 takes the line through N_u and N at its second stage. Stages equidistant in t become equidistant
in lam as the steps get shorter, so that the orders are the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.sde import GaussianSDE
from scoresde.solvers import scalar, stencil
from scoresde.solvers.history import exact_rule
from scoresde.solvers.methods.exponential import _two_nodes
from scoresde.solvers.path import Path, Point, points
from scoresde.solvers.prediction import Data, Noise, Prediction
from scoresde.solvers.rows import each_step_of, newest_first, stencil_rows
from scoresde.solvers.solver import Description, RowSolver, compose, maker
from scoresde.solvers.stencil import Stencil
from scoresde.solvers.updates import Row

__all__ = ["dpm_fast", "dpm_solver", "dpmpp_2s", "dpmpp_3s"]

DPM = "Lu et al. 2022, arXiv:2206.00927"
DPMPP = "Lu et al. 2022, arXiv:2211.01095"

SINGLESTEP: dict[int, Stencil] = {1: stencil.multistep(1), 2: stencil.midpoint, 3: stencil.radau}
"""The stencils of the singlestep DPM-Solvers by order, with stages equidistant in lam."""

_MEASURES: dict[str, tuple[Callable[[float], float], Callable[[Tensor], Tensor]]] = {
    "t": (lambda t: t, lambda t: t),
    "quadratic": (scalar.sqrt, lambda root: root**2),
}
"""The variables besides lam in which stages are equidistant: each as a function of t, and its inverse."""


def _singlestep(description: Description, prediction: Prediction, inner: str) -> RowSolver:
    order = description.evaluations
    assert order is not None
    if inner == "lam" or order == 1:
        return compose(description, prediction, SINGLESTEP[order])
    if inner not in _MEASURES:
        raise ValueError(f"got inner={inner!r}; expected 'lam', {', '.join(map(repr, _MEASURES))}")

    def rows(path: Path) -> list[Row]:
        up = [(u, v) for u, v in path.moves if v.sigma > 0 and v.lam > u.lam]
        stages = _between(path.sde, up, order, inner)
        steps = {move: _step(prediction, *move, between) for move, between in zip(up, stages, strict=True)}
        return each_step_of(lambda u, v: steps[u, v], path)

    return RowSolver(description, rows)


def _between(sde: GaussianSDE, moves: Sequence[tuple[Point, Point]], order: int, inner: str) -> list[list[Point]]:
    """Compute the order - 1 points between the ends of each move, in one call of the SDE's functions."""
    to, back = _MEASURES[inner]
    ends = [(to(u.t), to(v.t)) for u, v in moves]
    inside = [a + k / order * (b - a) for a, b in ends for k in range(1, order)]
    found = iter(points(sde, back(scalar.vector(inside)))) if inside else iter(())
    return [list(itertools.islice(found, order - 1)) for _ in moves]


def _step(prediction: Prediction, u: Point, v: Point, between: Sequence[Point]) -> list[Row]:
    """Return the rows of a step with its stages at the points ``between``, none, one or two: see the module."""
    step = prediction.starting_at(u, inner=bool(between))
    last = _two_nodes if len(between) == 1 and scalar.isfinite(u.lam) else exact_rule
    rows, at = list[Row](), u
    for i, target in enumerate((*between, v)):
        nodes = [u, at] if i else [u]
        rule = last if target is v else exact_rule
        w = newest_first(rule(step, u, target, nodes), [0, i][: len(nodes)], i + 1)
        p, q = step.mix(at)
        rows.append(Row(to=target, at=at, a=step.carry(u, target), w=w, p=p, q=q, ends_step=target is v))
        at = target
    return rows


@maker
def dpm_solver(order: int = 2, inner: str = "lam") -> RowSolver:
    r"""Return the singlestep DPM-Solver-1, -2 or -3: exponential Runge-Kutta methods in the noise prediction.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u - \sigma_v \int_{\lambda_u}^{\lambda_v}
              e^{\lambda_v - s}\, \epsilon(s)\, ds

    DPM-Solver-1 holds eps constant with its value at the start, DPM-Solver-2 with its value at the middle of the step in
    lam. DPM-Solver-3 takes eps linear through the start and two thirds of the step.

    Args:
        order: the order, 1, 2 or 3, which is also the number of evaluations a step.
        inner: the variable in which the stages are equidistant: ``"lam"``, as in the paper, or ``"t"`` or ``"quadratic"``
            (the root of t), as in the authors' code on the spacing of that name. There the code places the stages at points
            of the grid (``method="singlestep_fixed"``).

    Source: Lu et al., "DPM-Solver", 2022, https://arxiv.org/abs/2206.00927, algorithms 1 and 2, and their code.

    Raises:
        ValueError: if ``order`` is not 1, 2 or 3, or ``inner`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "t", 2, t_min=0.2, end="stop")
        >>> [round(row.at.t, 3) for row in dpm_solver(2, "t").rows(path)]
        [1.0, 0.8, 0.6, 0.4]
    """
    if order not in SINGLESTEP:
        raise ValueError(f"got order={order}; expected 1, 2 or 3")
    return _singlestep(Description(f"dpm-{order}", "exponential", DPM, order=order, evaluations=order), Noise(), inner)


@maker
def dpmpp_2s(inner: str = "lam") -> RowSolver:
    r"""Return DPM-Solver++(2S), the singlestep method of order 2 in the data prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v (1 - e^{-h})\, m(x_s, s)

    with s the middle of the step in lam and x_s reached by DDIM. ``inner`` places s as in :func:`dpm_solver`.
    Source: Lu et al., "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095, algorithm 1 with r = 1/2.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = dpmpp_2s().rows(solvers.make_path(EDM(), [4.0, 1.0], end="stop"))
        >>> [round(row.at.sigma, 6) for row in rows]  # the middle of the step in lam is the geometric mean
        [4.0, 2.0]
    """
    return _singlestep(Description("dpmpp-2s", "exponential", DPMPP, order=2, evaluations=2), Data(), inner)


@maker
def dpmpp_3s(inner: str = "lam") -> RowSolver:
    r"""Return DPM-Solver++(3S), the singlestep method of order 3 in the data prediction: DPM-Solver-3 with m for eps.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v (1 - e^{-h})\, m_u
              + \tfrac32 \alpha_v \left( \frac{e^{-h} - 1}{h} + 1 \right) (m(x_s, s) - m_u)

    with s at two thirds of the step in lam. ``inner`` places the stages as in :func:`dpm_solver`.
    Source: Lu et al., 2022, https://arxiv.org/abs/2211.01095, their code.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = dpmpp_3s().rows(solvers.make_path(EDM(), [8.0, 1.0], end="stop"))
        >>> [round(row.at.sigma, 6) for row in rows]  # equidistant in lam
        [8.0, 4.0, 2.0]
    """
    return _singlestep(Description("dpmpp-3s", "exponential", DPMPP, order=3, evaluations=3), Data(), inner)


@maker
def dpm_fast(
    evaluations: int | None = None,
    finish: str = "published",
    *,
    spacing: str = "path",
    inner: str = "path",
    prediction: Prediction | None = None,
) -> RowSolver:
    r"""Return DPM-Solver-fast: as many steps of DPM-Solver-3 as a budget of evaluations allows, the rest of lower order.

    By default the path has one move for each evaluation. Steps then end at every third point; the last steps may pass over
    one point or none. The points between are the stages. This is the authors' code on the spacings "t" and "quadratic"
    (``method="singlestep"``, ``order=3``). On the spacing "lam" they take n // 3 + 1 steps of equal length instead, which is
    ``spacing="even"``.

    Args:
        evaluations: the number n of evaluations. If it is given, the moves of the path are the steps themselves, n // 3 + 1
            of them as published.
        finish: the orders of the last steps. ``"published"``: the orders are 3, .., 3, 2, 1 if 3 divides n, else 3, .., 3
            and the remainder. ``"high-order"``: the orders are 3, .., 3 if 3 divides n, else the last one or two steps have
            order 2, so that the number of steps is the smallest, n / 3 rounded up.
        spacing: the ends of the steps. ``"path"``: at points of the path. ``"even"``: at equal distances in lam from one end
            of the path to the other, or to the next move towards the noise, whatever the points between; k-diffusion's
            choice, with one move for each evaluation.
        inner: the stages of a step that passes over points of the path: ``"path"``, at these points, as in the authors'
            code, or ``"lam"``, equidistant in lam, as in a step that passes over none.
        prediction: the prediction whose quantity is interpolated, by default ``Noise()``, as published; ``Data()`` makes
            it DPM-Solver++.

    The move to sigma = 0 counts apart. The published solver is third order only if the remainder of n / 3 is 2. Else its
    last step is of order 1, with a local error of order 2, which is small where the data are smooth at the noise of that
    step. The high-order finish makes it third order for any n from 3 on.
    Source: Lu et al., "DPM-Solver", 2022, https://arxiv.org/abs/2206.00927, section 3.4, and their code.

    Raises:
        ValueError: if ``evaluations`` is below 1, or ``finish``, ``spacing`` or ``inner`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> rows = dpm_fast().rows(solvers.make_path(VP(), "t", 8, end="stop"))
        >>> solvers.evaluations(rows), sum(row.ends_step for row in rows)  # 3 + 3 + 2 evaluations in three steps
        (8, 3)
    """
    if evaluations is not None and evaluations < 1:
        raise ValueError(f"got evaluations={evaluations}; expected at least 1")
    if finish not in ("published", "high-order"):
        raise ValueError(f"got finish={finish!r}; expected 'published' or 'high-order'")
    if spacing not in ("path", "even"):
        raise ValueError(f"got spacing={spacing!r}; expected 'path' or 'even'")

    if inner not in ("path", "lam"):
        raise ValueError(f"got inner={inner!r}; expected 'path' or 'lam'")
    kind, at_points = prediction or Noise(), inner == "path" and spacing == "path" and evaluations is None

    def rows(path: Path) -> list[Row]:
        kept, orders, run = [path.points[0]], list[int](), list[Point]()
        stages: dict[tuple[Point, Point], list[Point]] = {}
        for u, v in path.moves:
            if v.lam > u.lam and v.sigma > 0:
                run.append(v)
            if run and (v is path.points[-1] or v.lam < u.lam or v.sigma == 0):
                budget = _fast_orders(evaluations or len(run), finish)
                if evaluations is not None and len(budget) != len(run):
                    raise ValueError(
                        f"got a path of {len(run)} steps for {evaluations} evaluations of 'dpm-fast'; expected "
                        f"{len(budget)} steps, or no number of evaluations, which then is that of the path's moves"
                    )
                if spacing == "even":
                    kept += _even(path, kept[-1], run[-1], len(budget))
                else:
                    ends = list(itertools.accumulate(budget if evaluations is None else [1] * len(budget)))
                    for begin, end in itertools.pairwise([0, *ends]):
                        stages[kept[-1], run[end - 1]] = run[begin : end - 1]
                        kept.append(run[end - 1])
                orders += budget
                run = []
            if v.lam < u.lam or v.sigma == 0:
                kept.append(v)
        taken = Path(path.sde, tuple(kept), path.end)
        if at_points:
            return each_step_of(lambda u, v: _step(kind, u, v, stages[u, v]), taken)
        return stencil_rows(kind, [SINGLESTEP[order] for order in orders], taken)

    order = 3 if finish == "high-order" or (evaluations is not None and evaluations % 3 == 2) else 2
    return RowSolver(Description("dpm-fast", "exponential", DPM, order=order), rows)


def _even(path: Path, start: Point, to: Point, n: int) -> list[Point]:
    """Return the ends of ``n`` steps of equal length in lam."""
    # At alpha = 0 lam is infinite: start from a finite lam, as in the spacing "lam".
    low = float(start.lam) if math.isfinite(start.lam) else -abs(float(to.lam)) - 1
    lams = torch.linspace(low, float(to.lam), n + 1, dtype=torch.float64)
    return [*points(path.sde, path.sde.time(lams[1:-1])), to]


def _fast_orders(n: int, finish: str) -> list[int]:
    if finish == "published":
        return [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    twos = min(-n % 3, n // 2)
    return [3] * ((n - 2 * twos) // 3) + [2] * twos if n > 1 else [1]
