r"""The function :func:`choose`, which tries solvers, paths and ends on a model itself and keeps the best for each budget.

A pilot runs in three rounds, each judged by the distance from the ends of the model's own flow:

1. On a quarter of the starts: all named solvers of one evaluation a step on the paths lam, karras and t, each to each end
   that it has; and the families abm-n on a coarse grid of :class:`~scoresde.solvers.Arctan` spacings and cuts.
2. On all starts: the best of the first round, and some of each kind.
3. On all starts: the neighbours of the best spacing, though a named path may be better still, at half the distance each time
   nothing is gained.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import torch

from scoresde.base.numbers import is_whole, whole
from scoresde.sampling import sample
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_model
from scoresde.score import ScoreModel
from scoresde.sde import VP
from scoresde.solvers import SOLVERS, Arctan, RowSolver, Solver, get, make_path
from scoresde.solvers import evaluations as count
from scoresde.solvers.chooser import Chooser
from scoresde.solvers.fitted import Chosen, Pilot, Trial, model_identity
from scoresde.solvers.fitted.kept import read_plain
from scoresde.training.interrupts import interrupts
from scoresde.tuning.sharing import fitted
from scoresde.tuning.teacher import Advance, Metric, Teacher, bar, event_of

__all__ = ["choose"]

PATHS = ("lam", "karras", "t")
"""The paths on which named solvers are tried."""

METHODS = ("abm-2", "abm-3", "abm-4", "velocity-3", "lms")
"""The solvers that are tried on the spacings of :func:`_grid`, from the start to sigma = 0 by their own rule."""

CENTRES, WIDTHS, CUTS = (-0.6, 0.3, 1.2), (1.4, 2.6, 5.0), (0.0, 0.6, 1.2)
"""The grid of spacings of the first round."""

KEPT, LISTED = 32, 32
"""The number of trials that go on from the first round, and how many of the best a pilot lists."""

HALVINGS = 3
"""How often the distance of the neighbours of the third round is halved."""


def choose(
    model: ScoreModel,
    evaluations: int | Sequence[int] = (5, 8, 10, 20),
    *,
    shape: Sequence[int] | None = None,
    starts: int = 64,
    conditions: Mapping[str, Any] | None = None,
    metric: Metric | None = None,
    end: str = "data",
    tolerance: float = 1e-8,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Chosen:
    """Choose the solver, the path and the end for each number of evaluations, by a pilot on the model itself.

    Nothing is learned: the choice is among the solvers of the table, and runs on any number of steps. It takes some hundred
    short runs of ``starts`` samples, and two solutions of the model's own flow to a small tolerance. The table of what was
    tried is :meth:`scoresde.solvers.Chosen.table`, and :func:`scoresde.tuning.plot_trials` draws it.

    The first Ctrl-C or SIGTERM ends the pilot by an error. With ``out`` the numbers of evaluations that are done are kept,
    and the same call goes on from there.

    Args:
        model: any score model. A network is copied to float64.
        evaluations: the numbers of data predictions; a guided model makes several network calls for each.
        shape: the shape of one sample; by default that of the model's problem, or else it is needed.
        starts: the number of starts of the pilot, at least 8. As many others measure the error of the choice.
        conditions, metric: as for :func:`scoresde.tuning.tune`.
        end: where the flow ends from which errors are measured. ``"data"`` is its end at sigma = 0; a network is then
            evaluated at levels of noise below the SDE's smallest. ``"flow"`` and ``"denoise"`` stop there, with this last
            move.
        tolerance: the tolerance of the model's own flow, :func:`scoresde.comparison.flow_end`.
        seed: the seed of the starts.
        cache: a folder in which the ends of the flow are kept.
        out: a JSON file, written after each number of evaluations. Choices in it for this model are kept. Its name is the
            name of a solver. Several processes that make the same call share the numbers of evaluations.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, wrong numbers, a model without a shape,
            and an ``out`` for another model.
        ArithmeticError: if the model's flow has no end: see :func:`scoresde.comparison.flow_end`.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> solver = choose(model, 5, starts=16, tolerance=1e-6, progress=False)
        >>> solver.pilots[0].trials[0].error <= solver.pilots[0].trials[-1].error
        True
        >>> scoresde.sample(model, (4, 2), solver, steps=5, progress=False).evaluations
        5
    """
    check_model(model)
    given = [evaluations] if is_whole(evaluations) else list(evaluations)  # type: ignore[arg-type]
    wanted = sorted({whole("evaluations", n, 1) for n in given})
    if not wanted or end not in ("data", "flow", "denoise"):
        raise ValueError(
            f"got evaluations={evaluations!r} and end={end!r}; expected at least one number of evaluations, and 'data', "
            "'flow' or 'denoise'"
        )
    identity, half = model_identity(model), whole("starts", starts, 8)
    total = sum(n not in _kept(out, identity) for n in wanted) * _Search.most()

    @functools.cache
    def taught() -> Teacher:
        how: dict[str, Any] = {"conditions": conditions, "metric": metric, "end": end, "tolerance": tolerance}
        how |= {"t_max": model.sde.span[1], "seed": seed, "cache": cache}
        return Teacher.of(model, event_of(model, shape), (half, half), **how)

    with (
        interrupts() as interrupted,
        torch.no_grad(),
        bar(progress, total, "choose", "run") as advance,
    ):

        def pilot(n: int) -> Pilot | None:
            with evaluation_mode(taught().model):
                return _Search(taught(), interrupted).pilot(n, advance)

        def write(pilots: Sequence[Pilot]) -> None:
            Chosen.of(pilots, get, identity).write(out or "")

        found = fitted(wanted, out, lambda: _kept(out, identity), pilot, write, interrupted)
    return Chosen.of(found, get, identity)


def _kept(out: str | os.PathLike[str] | None, identity: str) -> dict[int, Pilot]:
    """Return the pilots of an earlier call for the same model, by their numbers of evaluations."""
    if out is None or not File(out).exists():
        return {}
    found = Chosen.from_json(read_plain(out), get)
    if found.model != identity:
        raise ValueError(
            f"got {str(out)!r}, which holds a solver chosen for another model; expected another name, or no file"
        )
    return {pilot.evaluations: pilot for pilot in found.pilots}


# The candidates ------------------------------------------------------------------------------------------------------


@functools.cache
def _named() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the names of the deterministic solvers that make rows on any path, each with the ends that it has."""
    return tuple((name, _ends(name)) for name in SOLVERS if _fits(get(name)))


def _fits(solver: Solver) -> bool:
    fits = isinstance(solver, RowSolver) and not solver.stochastic and not solver.brings_path
    return fits and solver.description.evaluations == 1 and solver.description.family != "student"


def _ends(name: str) -> tuple[str, ...]:
    try:
        get(name).rows(make_path(VP(), "lam", 4, end="extrapolate"))  # type: ignore[attr-defined]
    except ValueError:
        return "flow", "denoise"
    return "extrapolate", "flow"


def _grid() -> Iterator[Trial]:
    for name, centre, width, cut in itertools.product(METHODS, CENTRES, WIDTHS, CUTS):
        yield Trial(name, Arctan(centre, width), cut, "extrapolate")


def _candidates() -> list[Trial]:
    named = [Trial(name, path, 0.0, end) for name, ends in _named() for path in PATHS for end in ends]
    return [*named, *_grid()]


def _neighbours(trial: Trial, scale: float) -> Iterator[Trial]:
    """Yield the trials beside one with an arctan spacing, at a distance in proportion to ``scale``."""
    where = trial.spacing
    if not isinstance(where, Arctan):
        return
    for sign in (1, -1):
        yield replace(trial, spacing=Arctan(round(where.centre + 0.4 * scale * sign, 6), where.width))
        yield replace(trial, spacing=Arctan(where.centre, where.width * 1.4 ** (sign * scale)))
        if (cut := round(trial.cut + 0.4 * scale * sign, 6)) >= 0:
            yield replace(trial, cut=cut)
    if scale == 1:
        yield from (replace(trial, solver=name) for name in METHODS if name != trial.solver)


# The search ----------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The search was interrupted."""


@dataclass(frozen=True)
class _Search:
    """The rounds of a pilot on a teacher, whose parts are the starts of the pilot and those held out."""

    teacher: Teacher
    interrupted: Callable[[], bool]

    @staticmethod
    def most() -> int:
        """The largest number of runs for one number of evaluations, about."""
        return len(_candidates()) + KEPT + 12 * HALVINGS

    def pilot(self, n: int, advance: Advance) -> Pilot | None:
        """Return the pilot for n evaluations, or ``None`` if it was interrupted."""
        inside, outside = self.teacher.parts
        few = slice(inside.start, inside.start + max(8, (inside.stop - inside.start) // 4))
        done = 0

        def tried(trials: Sequence[Trial], where: slice) -> list[Trial]:
            nonlocal done
            found = []
            for trial in trials:
                found.append(replace(trial, error=self.error(trial, n, where)))
                done += 1
                advance(1 if done <= self.most() else 0, min(t.error for t in found))
            return sorted(found, key=lambda t: t.error)

        try:
            kept = tried(_varied(tried(_candidates(), few)), inside)
            scale, rounds = 1.0, 0
            while rounds < HALVINGS:
                seen = {replace(trial, error=0.0) for trial in kept}
                best = next((trial for trial in kept if isinstance(trial.spacing, Arctan)), kept[0])
                near = [t for t in _neighbours(best, scale) if replace(t, error=0.0) not in seen]
                found = tried(near, inside)
                if not found or found[0].error > 0.99 * best.error:
                    scale, rounds = scale / 2, rounds + 1
                kept = sorted([*kept, *found], key=lambda t: t.error)
            advance(max(0, self.most() - done), kept[0].error)
            return Pilot(n, _listed(kept), self.error(kept[0], n, outside))
        except _Stopped:
            return None

    def error(self, trial: Trial, n: int, where: slice) -> float:
        """Return the error of a trial on some of the starts; infinite where it fails, or costs more than n evaluations."""
        if self.interrupted():
            raise _Stopped
        taught = self.teacher
        try:
            choice = trial.choice(1, get)
            solver = Chooser(choice.solver.description, choice.solver.rows, choices=(choice,))
            path = solver.own_path(taught.model.sde, n)
            if count(choice.solver.rows(path)) > n:
                return math.inf
            given: dict[str, Any] = {"conditions": taught.told(where).values, "progress": False}
            x = sample(taught.model, taught.x[where], choice.solver, path=path, **given).x
        except (ValueError, ArithmeticError):
            return math.inf
        return taught.error(x, where)


def _varied(trials: Sequence[Trial]) -> list[Trial]:
    """Return the best trials, and the best few of the named solvers and of the families among them."""
    named = [t for t in trials if isinstance(t.spacing, str)]
    spaced = [t for t in trials if not isinstance(t.spacing, str)]
    best = [*trials[: KEPT // 2], *named[: KEPT // 4], *spaced[: KEPT // 4]]
    return list(dict.fromkeys(best))


def _listed(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the best trials, and the best of the named solvers on named paths, by rising error."""
    named = [t for t in trials if isinstance(t.spacing, str)][: LISTED // 4]
    return tuple(t for i, t in enumerate(trials) if i < LISTED or t in named)
