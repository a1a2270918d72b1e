r"""The solver "auto": which solver runs, on which path and with which end, from the number of steps alone.

Both tables, :data:`FLOW` and :data:`SDE`, were fitted to problems that no published measurement uses: see the page "The
default solver" of the documentation. They hold data of about unit scale; the times follow from the SDE through lam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sde import GaussianSDE
from scoresde.solvers.drivers import State
from scoresde.solvers.methods.ancestral import ddpm, euler_maruyama
from scoresde.solvers.methods.exponential_sde import sde_dpmpp
from scoresde.solvers.methods.runge_kutta import heun
from scoresde.solvers.methods.unipc import adams_moulton
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path, make_path
from scoresde.solvers.solver import Description, Dynamics, RowSolver, Solver, maker
from scoresde.solvers.spacings import Arctan, Spacing
from scoresde.solvers.updates import Update

__all__ = ["Choice", "Chooser", "auto", "auto_sde", "rows_of"]

ABOUT = 'scoresde, the page "The default solver"'

MOST_CUT = 0.2
"""The largest part of a path's length in lam that a choice leaves to the last move."""


@dataclass(frozen=True)
class Choice:
    """A row of the table of a solver that chooses: what runs from ``steps`` steps on, up to the next row.

    Attributes:
        steps: the smallest number of steps.
        solver: the solver that runs.
        spacing: the spacing of its times, or the name of one.
        cut: how much sooner than at the SDE's smallest time the last move begins, in lam. Few steps serve better where the
            data take shape.
        end: the end of the path, as in :func:`scoresde.sample`.

    Example:
        >>> from scoresde.solvers import ddim
        >>> Choice(5, ddim(), cut=0.5).spacing
        'arctan'
    """

    steps: int
    solver: RowSolver
    spacing: Spacing | str = "arctan"
    cut: float = 0.0
    end: str = "extrapolate"

    def path(
        self,
        sde: GaussianSDE,
        steps: int,
        *,
        t_max: float | None = None,
        t_min: float | None = None,
        end: str | None = None,
    ) -> Path:
        """Return the path of ``steps`` moves; the arguments are those of :func:`~scoresde.solvers.make_path`."""
        if t_min is None and end is None and self.cut:
            t_min = _sooner(sde, self.cut, t_max)
        return make_path(sde, self.spacing, steps, t_max=t_max, t_min=t_min, end=end or self.end)


def _choice(choices: Sequence[Choice], steps: int) -> Choice:
    return [choice for choice in choices if choice.steps <= max(steps, 1)][-1]


def rows_of(choices: Sequence[Choice], path: Path) -> Sequence[Update]:
    """Return the rows of the solver that the table chooses for as many steps as the path has."""
    return _choice(choices, len(path)).solver.rows(path)


@dataclass(frozen=True, repr=False)
class Chooser(RowSolver):
    """A solver that takes another one, and a path for it, by the number of steps: :func:`auto` and :func:`auto_sde`.

    On an SDE without marginals, which has no lam, it is Heun's method, or Euler-Maruyama if it draws noise.

    Args:
        description: the claims, those of the last row of the table.
        rows: the function from a path to the rows of the solver chosen for as many steps.
        choices: the table, by rising numbers of steps, the first from 1 on.
        early: the departure at one step up to which the Gaussian of the data takes the place of a model that knows it; it
            falls with the fourth power of the number of steps. With 0 it never does. See
            :func:`scoresde.sampling.measure_departure`.

    Example:
        >>> auto().choice(100).solver.name
        'abm-4'
    """

    brings_path: ClassVar[bool] = True

    choices: tuple[Choice, ...] = ()
    early: float = 0.0

    @property
    def own_end(self) -> str:
        return self.choices[-1].end

    def choice(self, steps: int) -> Choice:
        """Return the row of the table for this number of steps."""
        return _choice(self.choices, steps)

    def chosen(self, path: Path | None) -> Solver:
        if path is None:
            return euler_maruyama() if self.stochastic else heun()
        return self.choice(len(path)).solver

    def own_path(
        self,
        sde: GaussianSDE,
        steps: int,
        *,
        t_max: float | None = None,
        t_min: float | None = None,
        end: str | None = None,
    ) -> Path:
        return self.choice(whole("steps", steps, 1)).path(sde, steps, t_max=t_max, t_min=t_min, end=end)

    def integrate(self, dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
        return self.chosen(None).integrate(dynamics, x, times, noise)


def _sooner(sde: GaussianSDE, cut: float, t_max: float | None) -> float:
    """Return the time that lies ``cut`` before the SDE's smallest in lam, or less on a short span."""
    low, high = (float(sde.lam(t)) for t in (sde.span[1] if t_max is None else t_max, sde.span[0]))
    if not math.isfinite(high):
        return sde.span[0]
    return float(sde.time(high - min(cut, MOST_CUT * (high - low))))


WIDE = Arctan(centre=0.3, width=2.6)
"""The spacing for the flow: wide enough for data in a thousand dimensions, whose modes part at less than lam = -2."""

FLOW = (
    Choice(1, adams_moulton(3), WIDE, cut=1.2),
    Choice(8, adams_moulton(3), WIDE, cut=0.8),
    Choice(10, adams_moulton(3), WIDE, cut=0.6),
    Choice(15, adams_moulton(4), WIDE),
)
"""The choices of :func:`auto`."""

EARLY = 7.0
"""The departure at one step of :func:`auto`: at n steps 7 / n^4 is less than the error of the steps."""

SDE = (
    Choice(1, ddpm(), end="denoise"),
    Choice(10, sde_dpmpp("2m"), end="denoise"),
    Choice(20, sde_dpmpp("3m"), end="denoise"),
)
"""The choices of :func:`auto_sde`."""


@maker
def auto() -> Chooser:
    r"""Return the solver that takes the best solver, path and end for the probability flow by the number of steps.

    It is the default of :func:`scoresde.sample`. A step makes one evaluation, so that the number of steps is the number of
    evaluations. All rows of its table :data:`FLOW` are :func:`~scoresde.solvers.adams_moulton`, of an order that grows with
    the steps, on the spacing :class:`~scoresde.solvers.Arctan`, up to sigma = 0 by the method's own rule,
    ``end="extrapolate"``. A path or an end that the user gives replaces its own.

    Example:
        >>> from scoresde import VP, problems, sample
        >>> sample(problems.ring().model(VP()), (4, 2), auto(), 8, progress=False)
        Samples(x=(4, 2), solver='abm-3', evaluations=8, seconds=...)
    """
    return Chooser(
        Description("auto", "multistep", ABOUT, order=3),
        lambda path: _choice(FLOW, len(path)).solver.rows(path),
        choices=FLOW,
        early=EARLY,
    )


@maker
def auto_sde() -> Chooser:
    """Return the solver that takes the best solver and path for the reverse SDE by the number of steps, from :data:`SDE`.

    A step makes one evaluation. A path or an end that the user gives replaces its own.

    Example:
        >>> auto_sde().choice(5).solver.name
        'ddpm'
    """
    order = SDE[-1].solver.description.weak_order
    claims = Description("auto-sde", "exponential", ABOUT, weak_order=order, stochastic=True)
    return Chooser(claims, partial(rows_of, SDE), choices=SDE)
