"""The runs of a comparison: a solver goes from the common start along a path, and the metrics measure its end."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.comparison import budgets
from scoresde.comparison.arguments import Arguments
from scoresde.comparison.cases import Case
from scoresde.comparison.measures import Measure, Run
from scoresde.comparison.store import Result
from scoresde.inverse import Steered
from scoresde.metrics import peak_memory
from scoresde.sampling import Samples, sample
from scoresde.sampling.reference import flow_end
from scoresde.solvers import BrownianNoise, Path, RowSolver, Solver, State, points

__all__ = ["Bench", "Outcome"]

TRACED = 24
"""The number of samples whose trajectories are kept for pictures."""

FINER = 4
"""The factor between the steps of the largest budget and the steps of the run from which strong errors are measured."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its end, or the reason why there is none."""

    end: Tensor | None
    steps: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    memory: int | None = None
    error: str = ""
    trace: list[tuple[float, Any]] = field(default_factory=list)


class Bench:
    """The parts that all runs on one case share, each computed when a run first needs it.

    Args:
        name: the name of the case in the arguments.
        case: the case.
        arguments: the arguments of the comparison.
        references: the folder in which the end points of the flow are kept, or ``None``.
    """

    def __init__(self, name: str, case: Case, arguments: Arguments, references: str | os.PathLike[str] | None) -> None:
        self.name, self.case, self.arguments, self.references = name, case, arguments, references
        self._has: dict[tuple[bool, bool], frozenset[str]] = {}
        self._strong: dict[tuple[Solver, str], Tensor | None] = {}
        self._ends: dict[str, Tensor | str] = {}

    @functools.cached_property
    def _start(self) -> tuple[Tensor, list[int]]:
        return self.arguments.start(self.case)

    def _reference(self, to: str) -> Tensor | str:
        """Return the end of the probability flow, or the reason why there is none; ``to`` as in :func:`flow_end`."""
        if to not in self._ends:
            self._ends[to] = self._solved(to)
        return self._ends[to]

    def _solved(self, to: str) -> Tensor | str:
        path, error = self.arguments.path(self.case, "lam", 2), ""
        for cache in dict.fromkeys((self.references, None)):  # no cache for a model without an identity
            try:
                return flow_end(self.case.model, self._start[0], path, to=to, cache=cache, conditions=self.case.conditions).x
            except ArithmeticError as unsolved:
                return _said(unsolved)
            except ValueError as refused:
                error = _said(refused)
        return error

    @functools.cached_property
    def _truth(self) -> Tensor | None:
        case, generator = self.case, self.arguments.generator("truth", self.name)
        truth = case.truth
        if truth is None and case.problem is not None:
            truth = case.problem.sample(case.n or self.arguments.n, generator, torch.float64)
        if truth is not None and self.arguments.end == "stop":
            eps = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
            truth = case.sde.perturb(truth.double().cpu(), case.sde.span[0], eps)
        return None if truth is None else truth.to(self._start[0])

    @functools.cached_property
    def _knots(self) -> list[float]:
        """The grid of lam at which the shared Brownian paths are cheap: the points of all paths of the comparison."""
        lams = {p.lam for p in points(self.case.sde, torch.tensor([self.case.t_max, self.case.sde.span[0]]).double())}
        for name in self.arguments.paths:
            for budget in self.arguments.budgets:
                lams |= {p.lam for p in self.arguments.path(self.case, name, budget).points}
            if "strong" in self.arguments.metrics:
                lams |= {p.lam for p in self._fine_path(name).points}
        for solver in self.arguments.solvers.values():
            if solver.brings_path and solver.stochastic:
                for budget in self.arguments.budgets:
                    lams |= {p.lam for p in self.arguments.path(self.case, "", budget, solver).points}
        return sorted(lam for lam in lams if math.isfinite(lam))

    def _fine_path(self, name: str, solver: Solver | None = None) -> Path:
        return self.arguments.path(self.case, name, FINER * self.arguments.budgets[-1], solver)

    def _finer(self, solver: Solver, name: str) -> Tensor | None:
        """Return the end of a run with many more steps on the same Brownian path, or None.

        Only solvers that follow the Brownian path have such an end. Moves towards the noise and Langevin corrections draw
        fresh noise instead.
        """
        if (solver, name) not in self._strong:
            path, end = self._fine_path(name, solver), None
            if isinstance(solver, RowSolver) and all(row.follows_path for row in solver.rows(path)):
                end = self.run(solver, path).end
            self._strong[solver, name] = end
        return self._strong[solver, name]

    def run(self, solver: Solver, path: Path, traced: bool = False) -> Outcome:
        """Sample along a path; return an outcome whatever goes wrong."""
        start = self._start[0]
        trace: list[tuple[float, Any]] = [(path.points[0].t, start[:TRACED].tolist())] if traced else []

        def keep(state: State) -> None:
            trace.append((state.point.t, state.x[:TRACED].tolist()))

        memory = None
        try:
            found = self._sample(solver, path, keep if traced else None)
            if "memory" in self.arguments.metrics:
                with peak_memory(start.device) as peak:
                    self._sample(solver, path, None)
                memory = peak.bytes
        except Exception as error:  # a user's solver or model may raise anything
            return Outcome(None, error=_said(error))
        if not bool(torch.isfinite(found.x).all()):
            return Outcome(None, error=f"solver {solver.name!r} returned values that are not finite")
        calls = found.evaluations + found.backward
        return Outcome(found.x, len(path), calls, found.seconds, memory, trace=trace if len(trace) > 2 else [])

    def _sample(self, solver: Solver, path: Path, callback: Callable[[State], None] | None) -> Samples:
        start, seeds = self._start
        # A new noise for every run, so that no run depends on the runs before it.
        shares = solver.stochastic and not (
            isinstance(solver, Steered) and solver.solver is None
        )  # samplers for inverse problems draw fresh noise
        noise = BrownianNoise(seeds, start.device, self._knots) if shares else None
        given: dict[str, Any] = {"seed": seeds, "noise": noise, "conditions": self.case.conditions}
        model, inner = self.case.on(solver)
        return sample(model, start, inner, path=path, progress=False, callback=callback, **given)

    def climb(self, solver: Solver) -> list[Outcome]:
        """Run a solver that chooses its own steps, with ever smaller tolerances, up to the largest budget."""
        path = self.arguments.path(self.case, "lam", 2)
        return list(_until(self.arguments.budgets[-1], (self.run(s, path) for s in budgets.ladder(solver))))

    def measured(self, outcome: Outcome, solver: Solver, path: str, key: str) -> Result:
        """Measure a run on the path of this name; return the numbers to keep."""
        if outcome.end is None:
            return Result(outcome.steps, outcome.evaluations, outcome.error)
        wanted = any("reference" in m.needs for m in self.arguments.metrics.values())
        # A solver with an end of its own is measured from x(0), which no move from t_min is the limit of.
        to = "data" if solver.own_end == "extrapolate" and self.arguments.end != "stop" and solver.brings_path else "path"
        reference = self._reference(to) if wanted and not solver.stochastic else None
        run = Run(
            problem=self.case.problem,
            model=self.case.model,
            sde=self.case.sde,
            start=self._start[0],
            end=outcome.end,
            reference=reference if isinstance(reference, Tensor) else None,
            truth=self._truth,
            strong=self._finer(solver, path) if solver.stochastic and "strong" in self.arguments.metrics else None,
            memory=outcome.memory,
            evaluations=outcome.evaluations,
            seconds=outcome.seconds,
            t=self.case.sde.span[0] if self.arguments.end == "stop" else 0.0,
            stochastic=solver.stochastic,
            generator=self.arguments.generator("metrics", key),
        )
        kind = solver.stochastic, run.strong is not None
        if kind not in self._has:  # the requirements that runs meet are the same for the kind
            self._has[kind] = run.has
        metrics = self.arguments.metrics.items()
        values = {name: _value(m, run) for name, m in metrics if m.needs <= self._has[kind]}
        if isinstance(reference, str):
            values |= {name: reference for name, m in metrics if "reference" in m.needs}
        times, states = [t for t, _ in outcome.trace], [x for _, x in outcome.trace]
        return Result(outcome.steps, outcome.evaluations, outcome.error, values, times, states)


def _until(budget: int, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        if outcome.evaluations > budget:
            return


def _value(measure: Measure, run: Run) -> tuple[float, float, float] | str:
    """Return the estimate and its interval, or the reason why there is none."""
    try:
        found = measure.compute(run)
        return float(found.value), float(found.low), float(found.high)
    except Exception as error:  # a user's metric may raise anything
        return _said(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
