"""Solvers chosen for a model: for each number of evaluations the solver, path and end that a pilot found best."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import nn

from scoresde.base.numbers import whole
from scoresde.solvers.chooser import Choice, Chooser, rows_of
from scoresde.solvers.fitted.kept import check_same, write_plain
from scoresde.solvers.path import ENDS, Path
from scoresde.solvers.solver import Description, RowSolver, Solver
from scoresde.solvers.spacings import Arctan
from scoresde.solvers.updates import Update

__all__ = ["KIND", "Chosen", "Pilot", "Trial"]

KIND = "scoresde chosen solver"
"""The kind of the JSON files of :class:`Chosen`."""


@dataclass(frozen=True)
class Trial:
    """A solver that a pilot tried, with its path and its end, and its error on the pilot's starts.

    Attributes:
        solver: the name of the solver in the table of solvers.
        spacing: the spacing of the times: the name of a path, or :class:`~scoresde.solvers.Arctan`.
        cut: how much sooner than at the SDE's smallest time the last move begins, in lam.
        end: the end of the path, as in :func:`scoresde.sample`.
        error: the root mean square error.

    Raises:
        ValueError: for a spacing that is neither a name nor an ``Arctan``, an unknown end, or a negative cut.

    Example:
        >>> str(Trial("abm-3", Arctan(0.3, 2.6), 0.6, "extrapolate"))
        'abm-3 on arctan((lam - 0.3) / 2.6), cut 0.6, end extrapolate'
    """

    solver: str
    spacing: str | Arctan = "lam"
    cut: float = 0.0
    end: str = "flow"
    error: float = math.inf

    def __post_init__(self) -> None:
        if not isinstance(self.spacing, str | Arctan) or self.end not in ENDS or not 0 <= self.cut < math.inf:
            raise ValueError(
                f"got the path {self.spacing!r}, the cut {self.cut!r} and the end {self.end!r}; expected the name of a path "
                f"or Arctan(..), a cut of at least 0, and one of {', '.join(ENDS)}"
            )

    def __str__(self) -> str:
        where = self.spacing
        if isinstance(where, Arctan):
            where = f"arctan((lam {'-' if where.centre >= 0 else '+'} {abs(where.centre):.3g}) / {where.width:.3g})"
        return f"{self.solver} on {where}" + f", cut {self.cut:.2g}" * bool(self.cut) + f", end {self.end}"

    def choice(self, steps: int, make: Callable[[str], Solver]) -> Choice:
        """Return the trial as a row of a table, from ``steps`` steps on; ``make`` makes the solver of a name."""
        solver = make(self.solver)
        if not isinstance(solver, RowSolver) or solver.brings_path:
            raise ValueError(f"got the solver {self.solver!r} for a choice; expected one that makes rows on any path")
        return Choice(steps, solver, self.spacing, self.cut, self.end)


@dataclass(frozen=True)
class Pilot:
    """The trials of a pilot for one number of evaluations.

    Attributes:
        evaluations: the number of evaluations.
        trials: the trials on all starts of the pilot, by rising error. The first is the choice.
        held_out: the error of the choice on starts that the pilot never saw.

    Raises:
        ValueError: for no trials, or fewer than one evaluation.

    Example:
        >>> found = Pilot(8, (Trial("dpmpp-2m", error=0.1), Trial("ddim", error=0.3)))
        >>> found.trials[0].solver  # the choice
        'dpmpp-2m'
    """

    evaluations: int
    trials: tuple[Trial, ...]
    held_out: float = math.nan

    def __post_init__(self) -> None:
        if whole("evaluations", self.evaluations, 1) and not self.trials:
            raise ValueError(f"got a pilot for {self.evaluations} evaluations without trials; expected at least one")


@dataclass(frozen=True, repr=False)
class Chosen(Chooser):
    """A solver that takes for each number of steps the solver, path and end that a pilot found best on one model.

    It is the result of :func:`scoresde.tuning.choose`. A step makes one evaluation. Between two numbers of evaluations it
    takes the choice for the smaller one, and below the first the choice for the first.

    Args:
        choices: the table, one row for each pilot: see :meth:`of`.
        pilots: the pilots, by rising numbers of evaluations.
        model: the digest of the model, :func:`~scoresde.solvers.fitted.model_identity`; sampling refuses any other model.
        any_model: whether to sample other models.

    Example:
        >>> from scoresde import VP, problems, sample, solvers
        >>> pilots = Pilot(5, (Trial("abm-2"),)), Pilot(8, (Trial("abm-3"),))
        >>> solver = Chosen.of(pilots, solvers.get, any_model=True)
        >>> sample(problems.ring().model(VP()), (4, 2), solver, 9, progress=False).solver
        'abm-3'
        >>> Chosen.from_json(solver.to_json(), solvers.get) == solver
        True
    """

    description: Description = field(init=False, repr=False, compare=False)
    rows: Callable[[Path], Sequence[Update]] = field(init=False, repr=False, compare=False)
    general: None = field(init=False, default=None, repr=False, compare=False)
    choices: tuple[Choice, ...] = field(default=(), compare=False)  # follow from the pilots
    early: float = field(init=False, default=0.0, repr=False, compare=False)
    pilots: tuple[Pilot, ...] = ()
    model: str = ""
    any_model: bool = False

    def __post_init__(self) -> None:
        about = Description("chosen", "chosen", "chosen for a model by scoresde.tuning.choose", order=1)
        object.__setattr__(self, "description", about)
        object.__setattr__(self, "rows", partial(rows_of, self.choices))

    @classmethod
    def of(cls, pilots: Sequence[Pilot], make: Callable[[str], Solver], model: str = "", any_model: bool = False) -> Chosen:
        """Return the solver of some pilots; ``make`` makes the solver of a name.

        Raises:
            ValueError: for no pilots, two for one number of evaluations, and a solver that makes no rows.
        """
        ordered = tuple(sorted(pilots, key=lambda pilot: pilot.evaluations))
        counts = [pilot.evaluations for pilot in ordered]
        if not counts or len(set(counts)) < len(counts):
            raise ValueError(f"got pilots for {counts} evaluations; expected at least one, and one for each number")
        choices = tuple(p.trials[0].choice(p.evaluations if i else 1, make) for i, p in enumerate(ordered))
        return cls(choices, ordered, model, any_model)

    def __repr__(self) -> str:
        return f"<solver chosen for {', '.join(str(pilot.evaluations) for pilot in self.pilots)} evaluations>"

    def __reduce__(self) -> Any:
        return type(self), (self.choices, self.pilots, self.model, self.any_model)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model for which the solver was not chosen, unless ``any_model`` is set."""
        if not self.any_model:
            check_same(model, self.model)

    def table(self, most: int = 5) -> str:
        """Return a Markdown table of the ``most`` best trials for each number of evaluations, the choice first."""
        lines = ["| evaluations | solver | error | held out |", "|--:|---|--:|--:|"]
        for pilot in self.pilots:
            for i, trial in enumerate(pilot.trials[:most]):
                held = f"{pilot.held_out:.3g}" if i == 0 else ""
                lines.append(f"| {pilot.evaluations} | {trial} | {trial.error:.3g} | {held} |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the solver as plain values for ``json.dumps``."""
        plain = asdict(self)
        pilots = [{**pilot, "held_out": _plain(pilot["held_out"])} for pilot in plain["pilots"]]
        for pilot in pilots:
            pilot["trials"] = [{**trial, "error": _plain(trial["error"])} for trial in pilot["trials"]]
        return {"kind": KIND, "version": 1, "model": self.model, "any_model": self.any_model, "pilots": pilots}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], make: Callable[[str], Solver]) -> Chosen:
        """Return the solver from the plain values made by :meth:`to_json`; ``make`` makes the solver of a name.

        Raises:
            ValueError: for values of another kind or version, or that are damaged.
        """
        if not isinstance(value, Mapping) or (value.get("kind"), value.get("version")) != (KIND, 1):
            raise ValueError("got values that are no chosen solver of version 1; expected those that Chosen.to_json makes")
        try:
            pilots = [
                Pilot(int(p["evaluations"]), tuple(_trial(t) for t in p["trials"]), _number(p["held_out"]))
                for p in value["pilots"]
            ]
            return cls.of(pilots, make, str(value["model"]), bool(value["any_model"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"got a damaged chosen solver ({error}); expected the values that Chosen.to_json makes"
            ) from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the solver to a JSON file, whose name is then the name of a solver: ``"mine.json"``.

        Raises:
            ValueError: for a name that does not end in ``.json``.
        """
        write_plain(path, self.to_json())


def _plain(value: float) -> float | None:
    """Return the number; None for an infinite one or NaN, for which JSON has no word."""
    return value if math.isfinite(value) else None


def _number(value: float | None, missing: float = math.nan) -> float:
    return missing if value is None else float(value)


def _trial(value: Mapping[str, Any]) -> Trial:
    spacing = value["spacing"]
    where = spacing if isinstance(spacing, str) else Arctan(float(spacing["centre"]), float(spacing["width"]))
    error = _number(value["error"], math.inf)
    return Trial(str(value["solver"]), where, float(value["cut"]), str(value["end"]), error)
