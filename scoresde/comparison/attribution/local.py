r"""Attribution of a deterministic solver's error to the steps of its path.

Let :math:`\Phi_i(x)` be the end of the exact flow from x at the i-th point, and :math:`x_0, \ldots, x_n` the states of the
solver. The error at the end is a sum over the steps, without remainder:

.. math:: x_n - \Phi_0(x_0) = \sum_{i=1}^n \big( \Phi_i(x_i) - \Phi_{i-1}(x_{i-1}) \big).

Each term is the error of one step, carried to the end by the flow itself: :func:`attribute`. :func:`local_errors` gives the
error of each step from an exact state and an exact history, where the step ends. It is of order p + 1 in the step for a
method of order p.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scoresde.base.shape import check_batch
from scoresde.sampling import sample
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.reference import check_falls, follow, in_double, truth_of
from scoresde.score import ScoreModel
from scoresde.solvers.drivers.states import Allocating
from scoresde.solvers.path import Path, PathLike, Point, make_path
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get
from scoresde.solvers.updates import Row, run

__all__ = ["Attribution", "attribute", "local_errors"]


@dataclass(frozen=True)
class Attribution:
    """The error at the end of a path as a sum over its steps.

    Attributes:
        times: the time at the end of each step.
        lams: half the log signal-to-noise ratio at these times.
        carried: the contribution of each step to the error at the end, ``(steps, n, *event)``, float64.

    Example:
        >>> found = Attribution((0.5, 0.0), (0.0, 9.0), torch.tensor([[[3.0]], [[-1.0]]]))  # two steps, one sample
        >>> found.end.item(), found.shares  # the second step cancels a part of the first
        (2.0, tensor([ 1.5000, -0.5000]))
    """

    times: tuple[float, ...]
    lams: tuple[float, ...]
    carried: Tensor

    @property
    def end(self) -> Tensor:
        """The error at the end, shape ``(n, *event)``: the sum over the steps."""
        return self.carried.sum(0)

    @property
    def rms(self) -> Tensor:
        """The root mean square of each step's contribution over samples and coordinates, shape ``(steps,)``."""
        return self.carried.flatten(1).square().mean(1).sqrt()

    @property
    def shares(self) -> Tensor:
        """The share of each step in the squared error at the end, shape ``(steps,)``, with sum one.

        A share is negative where a step cancels what others add, and NaN where there is no error.
        """
        end = self.end
        return (self.carried * end).flatten(1).sum(1) / end.square().sum()


def _check(model: ScoreModel, solver: str | Solver, path: PathLike, start: Tensor) -> tuple[Solver, Path]:
    method = get(solver) if isinstance(solver, str) else solver
    if method.stochastic:
        raise ValueError(
            f"got solver {method.name!r}, which draws noise and follows no flow; expected a deterministic one, such as "
            "dpmpp-2m: set its eta to 0, if it has one"
        )
    check_batch(start)
    return method, check_falls(make_path(model.sde, path))


def attribute(
    model: ScoreModel, solver: str | Solver, path: PathLike, start: Tensor, *, tolerance: float = 1e-10
) -> Attribution:
    """Attribute the error at the end to the steps of the path: see the module.

    The cost is one solve of the flow from the end of each step to the end of the path, in float64.

    Args:
        model: an exact model or a network.
        solver: a deterministic solver, with rows or without, since only its states count.
        path: the path, as for :func:`scoresde.sample`.
        start: the states at the first time of the path, shape ``(n, *event)``.
        tolerance: the largest error of each solve.

    Raises:
        ValueError: for a solver that draws noise, or a path that goes back towards the noise.

    Example:
        >>> from scoresde import VP, problems
        >>> start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = attribute(problems.ring().model(VP()), "ddim", make_path(VP(), "lam", 5), start)
        >>> found.carried.shape, round(found.shares.sum().item(), 12)
        (torch.Size([5, 4, 2]), 1.0)
    """
    method, where = _check(model, solver, path, start)
    model, x = in_double(model, start), start.detach().double()
    states: list[tuple[Point, Tensor]] = []
    sample(model, x, method, path=where, progress=False, callback=lambda s: states.append((s.point, s.x.clone())))
    ends = [_end(model, y, point, where, tolerance) for point, y in ((where.points[0], x), *states)]
    carried = torch.stack([b - a for a, b in itertools.pairwise(ends)])
    return Attribution(tuple(p.t for p, _ in states), tuple(p.lam for p, _ in states), carried)


def _end(model: ScoreModel, x: Tensor, point: Point, path: Path, tolerance: float) -> Tensor:
    """Return the end of the flow from ``x`` at ``point``, by the convention of the whole path."""
    if point == path.points[-1]:
        return x
    later = [p for p in truth_of(path).points[1:] if p.lam > point.lam]
    return follow(model, x, Path(path.sde, (point, *later), path.end), tolerance)


# Local errors --------------------------------------------------------------------------------------------------------


def local_errors(
    model: ScoreModel, solver: str | Solver, path: PathLike, start: Tensor, *, tolerance: float = 1e-10
) -> Tensor:
    """Return the error of each step alone, ``(steps, n, *event)``, from an exact state and an exact history.

    The history of a multistep method holds the values at the exact flow. The sum of the local errors, carried to the end, is
    therefore the error there to leading order. This does not hold for methods that predict and correct (unipc, expam). Their
    history holds values at predicted states, whose errors are not counted here. The move to sigma = 0, which all solvers
    make alike, has no error.

    Args:
        model, path, start, tolerance: the arguments of :func:`attribute`.
        solver: a deterministic solver with rows.

    Raises:
        ValueError: as for :func:`attribute`, and for a solver without rows.

    Example:
        >>> from scoresde import VP, problems
        >>> start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> model = problems.ring().model(VP())
        >>> few, many = (local_errors(model, "ddim", make_path(VP(), "lam", n), start).square().mean() for n in (20, 80))
        >>> bool(few > 100 * many)  # the local error is of order 2, its square of order 4
        True
    """
    method, where = _check(model, solver, path, start)
    if not isinstance(method, RowSolver):
        raise ValueError(f"got solver {method.name!r}, which makes no rows; expected one with fixed steps, such as heun")
    model = in_double(model, start)
    steps = list(_steps([row for row in method.rows(where) if isinstance(row, Row)]))
    exact = _trajectory(model, start.detach().double(), where, steps, tolerance)
    found = []
    with torch.no_grad(), evaluation_mode(model):
        for step in steps:
            end = _run(model, step, exact)
            found.append(end - exact[step.rows[-1].to])
    return torch.stack(found)


@dataclass(frozen=True)
class _Step:
    """The rows of one step, its start, and the earlier rows that evaluate, by how long ago they did."""

    start: Point
    rows: list[Row]
    past: dict[int, Row]


def _steps(rows: list[Row]) -> Iterator[_Step]:
    evaluated: list[Row] = []
    here, step = rows[0].at, list[Row]()
    assert here is not None  # the first row evaluates where the path starts
    for row in rows:
        step.append(row)
        if not row.ends_step:
            continue
        past: dict[int, Row] = {}
        new = 0
        for r in step:
            new += r.at is not None
            past |= {j - new: evaluated[new - j - 1] for j, w in enumerate(r.w) if w and j >= new}
        yield _Step(here, step, past)
        evaluated += [r for r in step if r.at is not None]
        here, step = row.to, []


def _trajectory(model: ScoreModel, x: Tensor, path: Path, steps: list[_Step], tolerance: float) -> dict[Point, Tensor]:
    """Return the exact flow at the ends of all steps, and wherever the history of a step was evaluated."""
    wanted = {step.rows[-1].to for step in steps} | {row.at for step in steps for row in step.past.values() if row.at}
    here, exact = path.points[0], {path.points[0]: x}
    for point in sorted(wanted - set(exact), key=lambda p: p.lam):
        x = follow(model, x, Path(path.sde, (here, point), path.end), tolerance)
        here, exact[point] = point, x
    return exact


def _run(model: ScoreModel, step: _Step, exact: dict[Point, Tensor]) -> Tensor:
    """Take a step from the exact state and return its end."""

    def predict(at: Point, y: Tensor) -> Tensor:
        return model.x0(y, torch.tensor(at.t, dtype=torch.float64))

    def value(row: Row) -> Tensor:
        assert row.at is not None
        return row.p * exact[row.at] + row.q * predict(row.at, exact[row.at])

    x = exact[step.start]
    oldest = max(step.past, default=-1)
    history = [value(step.past[ago]) if ago in step.past else torch.zeros_like(x) for ago in range(oldest + 1)]
    on = Allocating(step.rows, (partial(predict, r.at) for r in step.rows if r.at is not None), x, None, history=history)
    for _ in run(step.rows, on):
        pass
    end: Tensor = on.x
    return end
