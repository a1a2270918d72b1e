r"""The function :func:`tune`, which fits the times and coefficients of a solver to a model.

A solver of n evaluations has n - 1 free times and n (n - 1) / 2 free coefficients (:mod:`scoresde.tuning.families`). They
are fitted to the end of the model's own probability flow, from many starts, by the Levenberg-Marquardt method
(:mod:`scoresde.tuning.least_squares`): first the times of a few multistep methods, then all numbers of the best of them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from scoresde.base.numbers import is_whole, whole
from scoresde.sampling import sample
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.reference import flow_end, in_double
from scoresde.sampling.start import check_model
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.solvers.path import make_path
from scoresde.solvers.tuned import Tuned, TunedSteps, model_identity
from scoresde.training.interrupts import interrupts
from scoresde.tuning.families import BASES, Family
from scoresde.tuning.least_squares import Problem, minimize

__all__ = ["NAMED", "Metric", "tune"]

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function ``metric(x, reference)`` of two batches that returns residuals, ``(batch, ..)``, to be small in mean square."""

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

    The first Ctrl-C ends the fit and returns the best numbers so far; with ``out`` the same call then continues.

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
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, wrong numbers, a model without a shape,
            and an ``out`` that was fitted to another model.
        ArithmeticError: if the model's flow has no end: see :func:`scoresde.comparison.flow_end`.
        KeyboardInterrupt: if interrupted before there are any numbers.

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
    todo = [n for n in wanted if n not in kept]
    with interrupts() as interrupted, torch.no_grad():
        if todo:
            fit = _Fit.of(model, _event(model, shape), starts, conditions, metric, t_max, end, tolerance, seed, cache)
            settings = _Settings(whole("iterations", iterations, 0), penalty, robust, interrupted)
            total = len(todo) * sum(stage.methods * stage.most for stage in _stages(settings.iterations))
            with evaluation_mode(fit.model), _bar(progress, total) as advance:
                for n in todo:
                    if not interrupted():
                        kept[n] = fit.best(n, settings, advance)
                        if out is not None:
                            Tuned(tuple(kept.values()), identity).write(out)
    if not kept:
        raise KeyboardInterrupt("interrupted before there were any numbers")
    return Tuned(tuple(kept.values()), identity)


def _event(model: ScoreModel, shape: Sequence[int] | None) -> tuple[int, ...]:
    event = getattr(getattr(model, "problem", None), "event", None) if shape is None else shape
    if event is None:
        raise ValueError("got a model without the shape of its samples; expected shape=(1, 28, 28), say")
    return tuple(whole("shape", n, 1) for n in event)


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

Advance = Callable[[int, float], None]


@dataclass(frozen=True)
class _Settings:
    iterations: int
    penalty: float
    robust: float
    interrupted: Callable[[], bool]


@dataclass(frozen=True)
class _Fit:
    """A model in float64, its starts and the ends of its flow from there: for the fit, for its choices, and held out."""

    model: ScoreModel
    x: Tensor
    reference: Tensor
    conditions: Mapping[str, Any]
    metric: Metric
    t_max: float
    end: str
    parts: tuple[slice, slice, slice]

    @classmethod
    def of(
        cls,
        model: ScoreModel,
        event: tuple[int, ...],
        starts: int | None,
        conditions: Mapping[str, Any] | None,
        metric: Metric | None,
        t_max: float | None,
        end: str,
        tolerance: float,
        seed: int,
        cache: str | os.PathLike[str] | None,
    ) -> _Fit:
        if end not in ("flow", "denoise"):
            raise ValueError(f"got end={end!r}; expected 'flow' or 'denoise', since a tuned solver ends at sigma = 0")
        count = min(max(65_536 // math.prod(event), 256), 1024) if starts is None else whole("starts", starts, 4)
        bounds = (0, count, count + count // 2, count + 2 * (count // 2))
        if t_max is None:
            last = model.sde.span[1]
            t_max = last if math.isfinite(float(model.sde.lam(last))) else float(model.sde.time(-5.0))
        noise = FreshNoise(sample_seeds(seed, bounds[-1]), model.device)
        x = noise.normal(torch.empty(bounds[-1], *event, dtype=torch.float64, device=model.device))
        x = x.mul_(float(model.sde.sigma(t_max)))
        told = _in_turn(conditions or {}, bounds[-1])
        path = make_path(model.sde, "lam", 2, t_max=t_max, end=end)
        reference = flow_end(model, x, path, tolerance=tolerance, cache=cache, conditions=told).x
        precise = in_double(model, x, Conditions.of(told, len(x), device=x.device, dtype=torch.float64).values)
        parts = tuple(slice(a, b) for a, b in itertools.pairwise(bounds))
        return cls(precise, x, reference, told, metric or torch.sub, t_max, end, cast(tuple[slice, slice, slice], parts))

    def problem(self, family: Family, part: int) -> Problem:
        """Return the residuals of the solvers of a family on one part of the starts."""
        first, last = self.parts[part].start, self.parts[part].stop

        def residuals(vectors: Tensor, samples: slice, apart: bool) -> Tensor:
            where = slice(first + samples.start, min(first + samples.stop, last))
            x, reference = self.x[where], self.reference[where]
            ends = family.ends(vectors, self.model, x, self._told(where), apart=apart)
            found = self.metric(ends.flatten(0, 1), reference.expand_as(ends).flatten(0, 1))
            return found.reshape(len(vectors), len(x), -1)

        return Problem(residuals, last - first)

    def _told(self, where: slice) -> Conditions:
        given = {name: value[where] if _has_entries(value) else value for name, value in self.conditions.items()}
        return Conditions.of(given, where.stop - where.start, device=self.x.device, dtype=torch.float64)

    def best(self, n: int, settings: _Settings, advance: Advance) -> TunedSteps:
        """Return the best numbers for n evaluations: chosen on the second part of the starts, measured on the third."""
        found = [
            _Candidate(family, family.origin, self._error(family, family.origin, 1))
            for family in (Family(self.model.sde, n, self.t_max, base, last) for base in BASES for last in LAST)
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
        where, errors = self.parts[2], [math.inf]
        given: dict[str, Any] = {"t_max": self.t_max, "end": self.end, "conditions": self._told(where).values}
        for name in NAMED:
            for path in ("lam", "karras"):
                samples = sample(self.model, self.x[where], name, n, path, progress=False, **given)
                if samples.evaluations <= n * sum(self.model.calls):
                    errors.append(float(self.metric(samples.x, self.reference[where]).square().mean().sqrt()))
        return min(error for error in errors if not math.isnan(error))


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


def _has_entries(value: Any) -> bool:
    """Tell whether a condition has an entry for each sample."""
    return isinstance(value, list | tuple | range) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def _in_turn(conditions: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the conditions of ``count`` samples, which take the given entries in turn."""
    told = {}
    for name, value in conditions.items():
        if _has_entries(value):
            index = [i % len(value) for i in range(count)]
            value = value[index] if isinstance(value, Tensor | np.ndarray) else [value[i] for i in index]
        told[name] = value
    return told


@contextlib.contextmanager
def _bar(progress: bool, total: int) -> Iterator[Advance]:
    """Show a progress bar of iterations if ``progress``, and yield a function of the iterations done and the error."""
    if not progress:
        yield lambda done, error: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="tune", unit="iteration", leave=False) as bar:

        def advance(done: int, error: float) -> None:
            bar.set_postfix_str(f"error {error:.3g}", refresh=False)
            bar.update(done)

        yield advance
