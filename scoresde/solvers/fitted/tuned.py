r"""Solvers made of learned numbers: times and coefficients that were fitted to one model for one number of evaluations.

A row of such a solver is a DDIM step with an extrapolated data prediction. From the point i of its n points to the next,

.. math:: x_{i+1} = \frac{\sigma_{i+1}}{\sigma_i}\, x_i
          + \Big( \alpha_{i+1} - \alpha_i \frac{\sigma_{i+1}}{\sigma_i} \Big) \sum_{j=0}^{i} c_{ij}\, m_{i-j},
          \qquad \sum_j c_{ij} = 1,

with m the data predictions, newest first. The last row ends at sigma = 0, where :math:`x = \sum_j c_{ij} m_{n-1-j}`. Every
deterministic solver that evaluates once a step and is exact for a constant data prediction has this form, since a history of
states is a combination of the start and the predictions.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from scoresde.solvers.fitted.kept import EXACT, check_same, learned_for, plain, read_plain, restored_solver, write_plain
from scoresde.solvers.path import CLEAN, Path, Point
from scoresde.solvers.prediction import Data
from scoresde.solvers.solver import Description, RowSolver
from scoresde.solvers.updates import Row, Update

__all__ = ["Tuned", "TunedSteps", "mixed_rows"]

KIND = "scoresde tuned solver"
"""What files of tuned solvers call themselves."""


def mixed_rows(points: Sequence[Point], mixes: Sequence[Sequence[Any]]) -> list[Row]:
    """Return the rows through ``points`` and on to sigma = 0, with the factors ``mixes`` of the predictions, newest first.

    The fields of the points and the factors may be tensors, to run many solvers at once.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import ddim, make_path
        >>> path = make_path(VP(), "lam", 3)
        >>> rows = mixed_rows(path.points[:-1], [[1.0], [1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> [math.isclose(row.w[0], other.w[0]) for row, other in zip(rows, ddim().rows(path))]
        [True, True, True]
    """
    rows = []
    for u, v, mix in zip(points, [*points[1:], CLEAN], mixes, strict=True):
        a = Data().carry(u, v)
        gain = v.alpha - u.alpha * a
        rows.append(Row(to=v, at=u, a=a, w=tuple(gain * factor for factor in mix)))
    return rows


@dataclass(frozen=True)
class TunedSteps:
    """The learned numbers for one number of evaluations n, and what they reached.

    Attributes:
        times: the n times of the evaluations, from noise to data.
        log_alpha, log_sigma: the logarithms of the marginal at these times, by which another SDE is recognised.
        mixes: for each row, the factors c of the data predictions so far, newest first; their sum is one.
        base: the solver from which the fit started.
        training, held_out: the root mean square error on the starts of the fit, and on starts that the fit never saw.
        untuned: the error on the held-out starts of the best solver among those from which a fit could start.

    Raises:
        ValueError: for numbers that are not finite, times that do not fall, rows of a wrong length, and a row whose factors
            do not sum to one.

    Example:
        >>> steps = TunedSteps((1.0, 0.5), (-5.0, -1.3), (0.0, -0.1), ((1.0,), (1.5, -0.5)), training=0.1, held_out=0.11)
        >>> round(steps.gap, 6)
        1.1
    """

    times: tuple[float, ...]
    log_alpha: tuple[float, ...]
    log_sigma: tuple[float, ...]
    mixes: tuple[tuple[float, ...], ...]
    base: str = ""
    training: float = math.nan
    held_out: float = math.nan
    untuned: float = math.nan

    def __post_init__(self) -> None:
        n = len(self.times)
        if not n or not len(self.log_alpha) == len(self.log_sigma) == len(self.mixes) == n:
            raise ValueError(
                f"got {n} times, {len(self.log_alpha)} and {len(self.log_sigma)} marginals and {len(self.mixes)} rows; "
                "expected as many of each, at least one"
            )
        if not all(map(math.isfinite, (*self.times, *self.log_sigma, *itertools.chain(*self.mixes)))):
            raise ValueError("got times, marginals or factors that are not finite; expected finite numbers")
        if any(later >= earlier for earlier, later in itertools.pairwise(self.times)):
            raise ValueError(f"got times {self.times}; expected times from noise to data, that is, falling")
        for i, mix in enumerate(self.mixes):
            if len(mix) != i + 1 or abs(math.fsum(mix) - 1) > EXACT:
                raise ValueError(
                    f"got {len(mix)} factors with the sum {math.fsum(mix)!r} in row {i}; expected {i + 1} whose sum is one, "
                    "so that the row is exact for a constant prediction"
                )

    @property
    def gap(self) -> float:
        """The error on held-out starts over the error on the starts of the fit; much more than 1 is overfitting."""
        return self.held_out / self.training


@dataclass(frozen=True, repr=False)
class Tuned(RowSolver):
    """A solver of learned numbers, for one model and some numbers of evaluations: see the module.

    It brings its own times. ``scoresde.sample(model, shape, solver, steps=8)`` takes the rows learned for 8 evaluations, and
    the path of the call gives nothing but its start and its number of steps.

    Args:
        steps: the learned numbers, one entry for each number of evaluations.
        model: the digest of the model, :func:`~scoresde.solvers.fitted.model_identity`; sampling refuses any other model.
        any_model: whether to sample other models on the same SDE.

    Raises:
        ValueError: for no numbers, and two entries for one number of evaluations.

    Example:
        >>> from scoresde import VP, solvers
        >>> u = solvers.make_path(VP(), "lam", 1).points[0]
        >>> one = TunedSteps((u.t,), (u.log_alpha,), (u.log_sigma,), ((1.0,),))
        >>> solver = Tuned((one,), any_model=True)
        >>> solver, solver.step_counts
        (<solver tuned for 1 evaluations>, (1,))
        >>> Tuned.from_json(solver.to_json()) == solver
        True
    """

    description: Description = field(init=False, repr=False, compare=False)
    rows: Callable[[Path], Sequence[Update]] = field(init=False, repr=False, compare=False)
    general: None = field(init=False, default=None, repr=False, compare=False)
    steps: tuple[TunedSteps, ...] = ()
    model: str = ""
    any_model: bool = False

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.steps, key=lambda one: len(one.times)))
        counts = [len(one.times) for one in ordered]
        if not counts or len(set(counts)) < len(counts):
            raise ValueError(f"got learned numbers for {counts} evaluations; expected at least one entry, and one for each")
        about = Description("tuned", "tuned", "fitted to a model by scoresde.tuning.tune", order=1)
        for name, value in (("steps", ordered), ("description", about), ("rows", self._rows)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<solver tuned for {', '.join(map(str, self.step_counts))} evaluations>"

    def __reduce__(self) -> Any:
        return type(self), (self.steps, self.model, self.any_model)

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of steps, which are the numbers of evaluations, that the solver was tuned for."""
        return tuple(len(one.times) for one in self.steps)

    def followed(self, path: Path) -> Path:
        """Return the path through the learned times, for a path with as many steps and the same start and SDE."""
        one = self._numbers(path)
        return path if path.times == (*one.times, 0.0) else Path.from_times(path.sde, [*one.times, 0.0], "denoise")

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model for which the solver was not tuned.

        Raises:
            ValueError: for another model, unless ``any_model`` is set.
        """
        if not self.any_model:
            check_same(model, self.model)

    def _rows(self, path: Path) -> list[Row]:
        one = self._numbers(path)
        return mixed_rows(self.followed(path).points[:-1], one.mixes)

    def _numbers(self, path: Path) -> TunedSteps:
        """Return the learned numbers for a path, or refuse it."""
        return learned_for(path, self.steps, "evaluations")

    # Files ---------------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return the solver as plain values for ``json.dumps``."""
        steps = [{f.name: plain(getattr(one, f.name)) for f in fields(one)} for one in self.steps]
        about = {"kind": KIND, "version": 1, "model": self.model, "any_model": self.any_model}
        return {**about, "steps": steps}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tuned:
        """Return the solver from the plain values made by :meth:`to_json`.

        Raises:
            ValueError: for values of another kind or version, or that are damaged.
        """
        return restored_solver(value, KIND, TunedSteps, cls)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the solver to a JSON file, whose name is then the name of a solver: ``"mine.json"``.

        Raises:
            ValueError: for a name that does not end in ``.json``.
        """
        write_plain(path, self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str], any_model: bool | None = None) -> Tuned:
        """Read the solver from a JSON file.

        Args:
            path: the file.
            any_model: whether to sample other models; by default as the solver was written.

        Raises:
            ValueError: for a file that is missing, or holds no tuned solver.
        """
        value = read_plain(path)
        if any_model is not None and isinstance(value, dict):
            value["any_model"] = any_model
        return cls.from_json(value)
