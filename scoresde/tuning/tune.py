r"""The function :func:`tune`, which fits the times and coefficients of a solver to a model.

A solver of n evaluations has n - 1 free times and n (n - 1) / 2 free coefficients (:mod:`scoresde.tuning.families`). They
are fitted to the end of the model's own probability flow, from many starts, by the Levenberg-Marquardt method
(:mod:`scoresde.tuning.least_squares`): first the times of a few multistep methods, then all numbers of the best of them.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import is_whole, whole
from scoresde.sampling import sample
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_model
from scoresde.score import ScoreModel
from scoresde.solvers.fitted import Tuned, TunedSteps, model_identity
from scoresde.training.interrupts import interrupts
from scoresde.tuning.families import BASES, Family
from scoresde.tuning.least_squares import LeastSquares, minimize
from scoresde.tuning.sharing import fitted
from scoresde.tuning.teacher import Advance, Metric, Teacher, bar, event_of

__all__ = ["NAMED", "tune"]

NAMED = ("velocity-2", "velocity-3", "velocity-4", "deis-3", "deis-4", "ipndm", "ipndm-v", "unipc-3", "dpmpp-3m", "expam-3")
"""The solvers of the table with which a tuned one is compared, on the paths lam and karras."""

LAST = (0.02, 1.0)
"""The gaps after the last evaluation, relative to the others, from which a fit starts."""


@dataclass(frozen=True)
class _Stage:
    """A stage of a fit: how many methods, at most how many iterations, the share of the starts, and what is free."""

    methods: int
    most: int
    share: float
    coefficients: bool
    tolerance: float


def _stages(iterations: int) -> tuple[_Stage, ...]:
    """Return the stages: the times of all methods, all numbers of three on a part of the starts, and of the best on all."""
    return (
        _Stage(len(BASES), min(8, iterations), 0.25, False, 1e-2),
        _Stage(3, min(12, iterations), 0.25, True, 1e-2),
        _Stage(1, iterations, 1.0, True, 1e-3),
    )


def tune(
    model: ScoreModel,
    evaluations: int | Sequence[int] = 8,
    *,
    shape: Sequence[int] | None = None,
    starts: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    metric: Metric | None = None,
    t_max: float | None = None,
    end: str = "flow",
    iterations: int = 40,
    penalty: float = 1e-3,
    robust: float = 100.0,
    tolerance: float = 1e-10,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tuned:
    """Fit a solver to a model: its times and its coefficients, for each number of evaluations.

    The result is a solver for this model alone. Its rows are exact for constant data predictions, so that it is a method of
    order one whatever the numbers. Its errors are those on starts that the fit never saw; on another model it may be worse
    than any named solver. Where the ends of a few starts are much more wrong than all others, because they lie between two
    modes, more ``starts`` close the gap between the starts of the fit and others.

    The first Ctrl-C or SIGTERM ends the fit by an error. With ``out`` the numbers of evaluations that are done are kept, and
    the same call goes on from there.

    Args:
        model: any score model. A network is copied to float64.
        evaluations: the numbers of data predictions; a guided model makes several network calls for each.
        shape: the shape of one sample; by default that of the model's problem, or else it is needed.
        starts: the number of starts of the fit. Half as many choose among its iterations, and half as many measure the
            result. By default as many as have 65,536 numbers, but between 256 and 1024.
        conditions: the values on which the model is conditioned, as for :func:`scoresde.sample`. Entries for samples are
            taken in turn.
        metric: a function ``metric(x, reference)`` of two batches that returns residuals, ``(batch, ..)``. The mean of their
            squares is minimised. By default they are ``x - reference``; they may be differences of features of a network.
        t_max: the time of the start, by default the end of the SDE's time or, where alpha = 0 there, the time with lam = -5.
        end: the end of the teacher at the smallest time of the SDE, "flow" or "denoise", as for :func:`scoresde.sample`.
        iterations: the largest number of iterations over all numbers.
        penalty: the weight of the squared numbers in the objective, relative to the error. Zero is an unpenalised fit.
        robust: tau, the mean square error of a sample, in units of their median, from which on an error counts by its
            logarithm. Starts between two modes, whose samples end at the wrong mode, would rule a fit without it;
            ``math.inf`` is least squares, better where there are none.
        tolerance: the tolerance of the teacher, :func:`scoresde.comparison.flow_end`.
        seed: the seed of the starts.
        cache: a folder in which the ends of the teacher are kept.
        out: a JSON file, written after each number of evaluations. Numbers in it that were fitted to this model are kept.
            Several processes that make the same call share the numbers of evaluations.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, wrong numbers, a model without a shape,
            and an ``out`` that was fitted to another model.
        ArithmeticError: if the model's flow has no end: see :func:`scoresde.comparison.flow_end`.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.

    Sources of the idea: Tong et al., "Learning to Discretize Denoising Diffusion ODEs" (LD3), 2024,
    https://arxiv.org/abs/2405.15506; Frankel et al., "S4S: Solving for a Diffusion Model Solver", 2025,
    https://arxiv.org/abs/2502.17423. Both use stochastic gradients, and relax the starts.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> solver = tune(model, 3, starts=64, iterations=5, tolerance=1e-6, progress=False)
        >>> solver.steps[0].held_out < solver.steps[0].untuned
        True
        >>> scoresde.sample(model, (4, 2), solver, steps=3, progress=False).evaluations
        3
    """
    check_model(model)
    wanted = sorted({whole("evaluations", n, 1) for n in ([evaluations] if is_whole(evaluations) else evaluations)})  # type: ignore[union-attr]
    if not wanted:
        raise ValueError("got no numbers of evaluations; expected at least one, such as evaluations=8")
    identity = model_identity(model)
    kept = _kept(out, identity)
    if end not in ("flow", "denoise") and not kept.keys() >= set(wanted):
        raise ValueError(f"got end={end!r}; expected 'flow' or 'denoise', since a tuned solver ends at sigma = 0")
    settings = _Settings(whole("iterations", iterations, 0), penalty, robust)
    stages = _stages(settings.iterations)
    total = sum(n not in kept for n in wanted) * sum(stage.methods * stage.most for stage in stages)

    @functools.cache
    def fit() -> _Fit:
        event = event_of(model, shape)
        count = min(max(65_536 // math.prod(event), 256), 1024) if starts is None else whole("starts", starts, 4)
        given: dict[str, Any] = {"conditions": conditions, "metric": metric, "end": end, "tolerance": tolerance}
        given |= {"t_max": _first(model) if t_max is None else t_max, "seed": seed, "cache": cache}
        return _Fit(Teacher.of(model, event, (count, count // 2, count // 2), **given))

    with (
        interrupts() as interrupted,
        torch.no_grad(),
        bar(progress, total, "tune", "iteration") as advance,
    ):

        def best(n: int) -> TunedSteps | None:
            with evaluation_mode(fit().teacher.model):
                found = fit().best(n, replace(settings, interrupted=interrupted), advance)
            return None if interrupted() else found  # in the middle of it, as far as anyone can tell

        def write(fits: Sequence[TunedSteps]) -> None:
            Tuned(tuple(fits), identity).write(out or "")

        found = fitted(wanted, out, lambda: _kept(out, identity), best, write, interrupted)
    return Tuned(tuple(found), identity)


def _first(model: ScoreModel) -> float:
    """Return the end of the SDE's time or, where alpha = 0 there, the time with lam = -5."""
    last = model.sde.span[1]
    return last if math.isfinite(float(model.sde.lam(last))) else float(model.sde.time(-5.0))


def _kept(out: str | os.PathLike[str] | None, identity: str) -> dict[int, TunedSteps]:
    """Return the numbers of an earlier call for the same model, by their numbers of evaluations."""
    if out is None or not File(out).exists():
        return {}
    found = Tuned.read(out)
    if found.model != identity:
        raise ValueError(
            f"got {str(out)!r}, which holds a solver tuned for another model; expected another name, or no file"
        )
    return {len(one.times): one for one in found.steps}


# The fit -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    iterations: int
    penalty: float
    robust: float
    interrupted: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _Fit:
    """The fit of solvers to a teacher, whose parts are the starts of the fit, of its choices, and those held out."""

    teacher: Teacher

    def problem(self, family: Family, part: int) -> LeastSquares:
        """Return the residuals of the solvers of a family on one part of the starts."""
        taught = self.teacher
        first, last = taught.parts[part].start, taught.parts[part].stop

        def residuals(vectors: Tensor, samples: slice, apart: bool) -> Tensor:
            where = slice(first + samples.start, min(first + samples.stop, last))
            x, reference = taught.x[where], taught.reference[where]
            ends = family.ends(vectors, taught.model, x, taught.told(where), apart=apart)
            found = taught.metric(ends.flatten(0, 1), reference.expand_as(ends).flatten(0, 1))
            return found.reshape(len(vectors), len(x), -1)

        return LeastSquares(residuals, last - first)

    def best(self, n: int, settings: _Settings, advance: Advance) -> TunedSteps:
        """Return the best numbers for n evaluations: chosen on the second part of the starts, measured on the third."""
        sde = self.teacher.model.sde
        found = [
            _Candidate(family, family.origin, self._error(family, family.origin, 1))
            for family in (Family(sde, n, self.teacher.t_max, base, last) for base in BASES for last in LAST)
        ]
        for stage in _stages(settings.iterations) if n > 1 else ():
            chosen = _of_other_methods(found)[: stage.methods]
            found.extend([self._improved(start, stage, settings, advance) for start in chosen])
        best = min(found, key=lambda c: c.error)
        training, held_out = (self._error(best.family, best.numbers, part) for part in (0, 2))
        about = {"training": training, "held_out": held_out, "untuned": self._untuned(n)}
        return best.family.solver(best.numbers, **about)

    def _improved(self, start: _Candidate, stage: _Stage, settings: _Settings, advance: Advance) -> _Candidate:
        family, best, done = start.family, start, 0
        problem = self.problem(family, 0)
        few = replace(problem, samples=max(min(64, problem.samples), math.ceil(stage.share * problem.samples)))
        free = family.size if stage.coefficients else family.gaps
        how = {"penalty": settings.penalty, "robust": settings.robust, "tolerance": stage.tolerance}
        for reached in minimize(few, start.numbers, free, **how) if stage.most else ():
            candidate = replace(start, numbers=reached.numbers, error=self._error(family, reached.numbers, 1))
            best = min(best, candidate, key=lambda c: c.error)
            done += 1
            advance(1, best.error)
            if done == stage.most or settings.interrupted():
                break
        advance(stage.most - done, best.error)
        return best

    def _error(self, family: Family, numbers: Tensor, part: int) -> float:
        """Return the root mean square residual on a part of the starts; infinite where it is not finite."""
        error = float(self.problem(family, part).errors(numbers).mean().sqrt())
        return error if math.isfinite(error) else math.inf

    def _untuned(self, n: int) -> float:
        """Return the smallest error of the named solvers, each on its better path, on the held-out starts."""
        taught, errors = self.teacher, [math.inf]
        where = taught.parts[2]
        given: dict[str, Any] = {"t_max": taught.t_max, "end": taught.end, "conditions": taught.told(where).values}
        for name in NAMED:
            for path in ("lam", "karras"):
                samples = sample(taught.model, taught.x[where], name, n, path, progress=False, **given)
                if samples.evaluations <= n * sum(taught.model.calls):
                    errors.append(taught.error(samples.x, where))
        return min(errors)


@dataclass(frozen=True)
class _Candidate:
    """A solver: its family and numbers, with its error on the starts by which choices are made."""

    family: Family
    numbers: Tensor
    error: float


def _of_other_methods(found: Sequence[_Candidate]) -> list[_Candidate]:
    """Return the best candidate of each multistep method, the best of all first."""
    best: dict[str, _Candidate] = {}
    for candidate in sorted(found, key=lambda c: c.error):
        best.setdefault(candidate.family.base, candidate)
    return list(best.values())
