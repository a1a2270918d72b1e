r"""Singlestep solvers with learned mid-points: each step evaluates at its start and at a learned time between its ends.

With :math:`\rho = \sigma / \alpha`, in which the flow of :math:`x / \alpha` has the slope eps, a step from u to v is

.. math:: \frac{x_s}{\alpha_s} = \frac{x_u}{\alpha_u} + (\rho_s - \rho_u)\, \epsilon(x_u, u), \qquad
          \frac{x_v}{\alpha_v} = \frac{x_u}{\alpha_u} + c\, (\rho_v - \rho_u)\, \epsilon(x_s, s), \qquad
          \rho_s = \rho_u^{r} \rho_v^{1 - r}.

With r = 1/2 and c = 1 it is DPM-Solver-2. AMED-Solver learns r and c, which it predicts for each sample by a small network;
here they are numbers of the step.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from scoresde.sde import GaussianSDE
from scoresde.solvers.fitted.kept import check_same, learned_for, plain, restored_solver, write_plain
from scoresde.solvers.path import Path, Point, points
from scoresde.solvers.prediction import Rho
from scoresde.solvers.rows import last_move
from scoresde.solvers.solver import Description, RowSolver
from scoresde.solvers.updates import Row, Update

__all__ = ["MIDPOINT_KIND", "MidpointSteps", "Midpoints", "midpoint_rows"]

MIDPOINT_KIND = "scoresde midpoint solver"
"""The kind of the JSON files of :class:`Midpoints`."""


def midpoint_rows(u: Point, s: Point, v: Point, scale: Any) -> list[Row]:
    """Return the two rows of a step from u to v with the mid-point s; all may hold tensors, to run many solvers at once.

    Example:
        >>> from scoresde import EDM
        >>> u, s, v = points(EDM(), torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
        >>> [round(row.w[0], 12) for row in midpoint_rows(u, s, v, 1.0)]
        [-2.0, -3.0]
    """
    carried = Rho()
    rows = []
    for at, to, factor, ends in ((u, s, 1.0, False), (s, v, scale, True)):
        length = carried.clock(to) - carried.clock(u)
        p, q = carried.mix(at)
        w = factor * carried.gain(to) * length
        rows.append(Row(to=to, at=at, a=carried.carry(u, to), w=(w,), p=p, q=q, ends_step=ends))
    return rows


@dataclass(frozen=True)
class MidpointSteps:
    """The learned numbers for one number of steps n, and what they reached.

    Attributes:
        times: the n times of the path before its clean end, from noise to data.
        log_alpha, log_sigma: the logarithms of the marginal at these times, by which another SDE is recognised.
        places: r of each step but the last, more than 0 and less than 1.
        scales: c of each step but the last.
        training, held_out: the root mean square error on the starts of the fit, and on starts that the fit never saw.
        untuned: the error on the held-out starts with r = 1/2 and c = 1.

    Raises:
        ValueError: for numbers that are not finite, times that do not fall, and places that lie outside a step.

    Example:
        >>> MidpointSteps((1.0, 0.5), (-5.0, -1.3), (0.0, -0.1), (0.5,), (1.0,)).evaluations
        3
    """

    times: tuple[float, ...]
    log_alpha: tuple[float, ...]
    log_sigma: tuple[float, ...]
    places: tuple[float, ...]
    scales: tuple[float, ...]
    training: float = math.nan
    held_out: float = math.nan
    untuned: float = math.nan

    def __post_init__(self) -> None:
        n = len(self.times)
        counts = [len(v) for v in (self.log_alpha, self.log_sigma, self.places, self.scales)]
        numbers = (*self.times, *self.log_alpha, *self.log_sigma, *self.places, *self.scales)
        fits = n > 0 and counts == [n, n, n - 1, n - 1] and all(map(math.isfinite, numbers))
        if not fits or any(b >= a for a, b in itertools.pairwise(self.times)) or not all(0 < r < 1 for r in self.places):
            raise ValueError(
                f"got {n} times, {counts[0]} and {counts[1]} marginals, {counts[2]} places and {counts[3]} scales; expected "
                "as many marginals as times, which fall, one place and scale less, places between 0 and 1, and all finite"
            )

    @property
    def evaluations(self) -> int:
        """The number of evaluations: two a step, and one for the last."""
        return 2 * len(self.times) - 1


@dataclass(frozen=True, repr=False)
class Midpoints(RowSolver):
    """A solver with learned mid-points, for one model and some numbers of steps: see the module.

    It brings its own times. ``scoresde.sample(model, shape, solver, steps=4)`` makes 7 evaluations.

    Args:
        steps: the learned numbers, one entry for each number of steps.
        model: the digest of the model; sampling refuses any other.
        any_model: whether to sample other models on the same SDE.

    Raises:
        ValueError: for no numbers, and two entries for one number of steps.

    Example:
        >>> from scoresde import VP, solvers
        >>> u, v = solvers.make_path(VP(), "lam", 2).points[:2]
        >>> one = MidpointSteps((u.t, v.t), (u.log_alpha, v.log_alpha), (u.log_sigma, v.log_sigma), (0.5,), (1.0,))
        >>> solver = Midpoints((one,), any_model=True)
        >>> solver, Midpoints.from_json(solver.to_json()) == solver
        (<solver with learned mid-points for 3 evaluations>, True)
    """

    description: Description = field(init=False, repr=False, compare=False)
    rows: Callable[[Path], Sequence[Update]] = field(init=False, repr=False, compare=False)
    general: None = field(init=False, default=None, repr=False, compare=False)
    steps: tuple[MidpointSteps, ...] = ()
    model: str = ""
    any_model: bool = False

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.steps, key=lambda one: len(one.times)))
        counts = [len(one.times) for one in ordered]
        if not counts or len(set(counts)) < len(counts):
            raise ValueError(f"got learned numbers for {counts} steps; expected at least one entry, and one for each")
        about = Description("midpoints", "tuned", "Zhou et al. 2024, arXiv:2312.00094", order=1, evaluations=2)
        for name, value in (("steps", ordered), ("description", about), ("rows", self._rows)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<solver with learned mid-points for {', '.join(str(one.evaluations) for one in self.steps)} evaluations>"

    def __reduce__(self) -> Any:
        return type(self), (self.steps, self.model, self.any_model)

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of steps that the solver was tuned for."""
        return tuple(len(one.times) for one in self.steps)

    def followed(self, path: Path) -> Path:
        """Return the path through the learned times, for a path with as many steps and the same start and SDE."""
        one = learned_for(path, self.steps, "steps")
        times = (*one.times, 0.0)
        return path if path.times == times else Path.from_times(path.sde, times, path.end)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model for which the solver was not tuned, unless ``any_model`` is set.

        Raises:
            ValueError: for another model.
        """
        if not self.any_model:
            check_same(model, self.model)

    def _rows(self, path: Path) -> list[Row]:
        one, path = learned_for(path, self.steps, "steps"), self.followed(path)
        rows = []
        for (u, v), r, c in zip(path.moves[:-1], one.places, one.scales, strict=True):
            rows += midpoint_rows(u, middle(path.sde, u, v, r), v, c)
        return [*rows, last_move(path)]

    def to_json(self) -> dict[str, Any]:
        """Return the solver as plain values for ``json.dumps``."""
        steps = [{f.name: plain(getattr(one, f.name)) for f in fields(one)} for one in self.steps]
        return {"kind": MIDPOINT_KIND, "version": 1, "model": self.model, "any_model": self.any_model, "steps": steps}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Midpoints:
        """Return the solver from the plain values made by :meth:`to_json`.

        Raises:
            ValueError: for values of another kind or version, or that are damaged.
        """
        return restored_solver(value, MIDPOINT_KIND, MidpointSteps, cls)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the solver to a JSON file, whose name is then the name of a solver: ``"mine.json"``.

        Raises:
            ValueError: for a name that does not end in ``.json``.
        """
        write_plain(path, self.to_json())


def middle(sde: GaussianSDE, u: Point, v: Point, place: float) -> Point:
    """Return the point with rho = rho_u^r rho_v^(1 - r)."""
    lam = torch.tensor([place * u.lam + (1 - place) * v.lam], dtype=torch.float64)
    return points(sde, sde.time(lam))[0]
