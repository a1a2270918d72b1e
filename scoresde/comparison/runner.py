"""The comparison itself: every solver on every problem, from the same noise, within the same budgets; results are kept."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from scoresde.base.processes import launch_rank, share
from scoresde.comparison import budgets
from scoresde.comparison.arguments import DEFAULT_SOLVERS, Arguments, Metrics, Paths, Solvers
from scoresde.comparison.cases import Case, Processes, gather
from scoresde.comparison.metadata import about, package, versions
from scoresde.comparison.records import Record, Trace
from scoresde.comparison.result import Comparison
from scoresde.comparison.runs import Bench, Outcome
from scoresde.comparison.store import Result, Store, StoreError
from scoresde.comparison.tokens.runner import compare_tokens, on_tokens
from scoresde.inverse import Steered

__all__ = ["BUDGETS", "OWN", "compare"]

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50, 100)
"""The budgets of evaluations that are compared by default."""

OWN = "own"
"""The name of the path of a solver that chooses its own steps, or that brings a path, as "auto" does."""


def compare(
    problem: Any,
    solvers: Solvers = DEFAULT_SOLVERS,
    evaluations: Sequence[int] = BUDGETS,
    paths: Paths = ("lam",),
    metrics: Metrics | None = None,
    *,
    sde: Processes | None = None,
    n: int = 256,
    seed: int = 0,
    end: str = "flow",
    shape: Sequence[int] | None = None,
    truth: Tensor | None = None,
    conditions: Mapping[str, Any] | None = None,
    out: str | PathLike[str] | None = None,
    references: str | PathLike[str] | None = None,
    peers: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare solvers: each on every problem and path, from the same noise, within each budget of evaluations.

    A solver takes the largest number of steps whose counted evaluations do not exceed the budget. A solver that chooses its
    own steps runs with a ladder of tolerances, and the run that comes closest to the budget counts. "auto" runs on its own
    path, to its own end, and its error is the distance from the end x(0) of the flow of the data. All runs are in float64.
    Solvers that draw noise share one Brownian path per sample. An evaluation is a call of the network, forward or backward.

    On a posterior, ``problem.posterior(operator, y, sigma)``, a solver is given the exact score of the posterior. A method
    for inverse problems is given the score of the prior, and the measurement: ``"tmpd + dpmpp-2m"``, ``"ddrm"``.

    Args:
        problem: a problem, its name in ``scoresde.problems.PROBLEMS``, a score model, a :class:`~scoresde.comparison.Case`;
            several of them in a list, or a mapping from names to them. Models and problems on tokens are compared by
            :func:`scoresde.comparison.tokens.compare_tokens`, which explains what the other arguments then mean.
        solvers: names (of ``scoresde.solvers.SOLVERS`` or ``scoresde.comparison.PEERS``), solvers, or a mapping from labels
            to either. On posteriors also a method of ``scoresde.inverse.METHODS`` with a plus and the name of a solver, or a
            name of ``scoresde.inverse.SAMPLERS``.
        evaluations: the budgets of evaluations.
        paths: names of ``scoresde.solvers.PATHS``, or spacing functions.
        metrics: names of ``scoresde.comparison.MEASURES``, functions, or a mapping from labels to either. A function of the
            samples, or of the samples and exact ones, returns a number; lower is better: see
            :func:`scoresde.comparison.measures.of_samples`. The default is "rms", "strong" and "energy". A metric is left
            out where the problem or the solver does not meet its requirements.
        sde: the SDE of problems: an SDE, a chain, or the name of one ("vp", "ve: sigma_max=100.0"); several of them in a
            list, or a mapping from labels to them, to compare on each. By default VP. A model brings its own.
        n: the number of samples.
        seed: the seed from which all random numbers derive.
        end: the end of the path, as in :func:`scoresde.sample`.
        shape: the shape of one sample of a score model.
        truth: samples of the data of a score model, ``(m, *event)``, for metrics that compare with the data.
        conditions: the values on which a model is conditioned, as for :func:`scoresde.sample`; a value per sample has ``n``
            entries.
        out: a folder in which each result is kept when its run ends. Call again with the same arguments to continue. Several
            processes that call it at once, on one machine or on several that see the folder, share the runs.
        references: a folder in which the end points of the flows are kept; by default ``references`` in ``out``.
        peers: whether to compare the samplers of k-diffusion, diffusers and torchsde too, as far as they are installed.
        progress: whether to show a progress bar.

    Returns:
        A :class:`~scoresde.comparison.Comparison`. Where a solver failed, or no number of steps fits a budget, the record
        gives the reason.

    Raises:
        ValueError: for nothing to compare, an unknown name, metrics that do not apply to any solver and problem, a budget
            that no solver can keep, a model whose output has a wrong shape or is not finite, or a folder that holds another
            comparison.
        StoreError: if a result cannot be written; the error carries all results so far.

    Example:
        >>> found = compare("ring", ["ddim", "dpmpp-2m"], [10, 20], metrics=["rms"], n=16, progress=False)
        >>> [(r.solver, r.budget, r.evaluations) for r in found.records]
        [('ddim', 10, 10), ('ddim', 20, 20), ('dpmpp-2m', 10, 10), ('dpmpp-2m', 20, 20)]
        >>> ddim, dpmpp = found.select(budget=20)
        >>> dpmpp.value < ddim.value
        True
    """
    if on_tokens(problem):
        given = {"out": out, "references": references, "peers": peers, "paths": tuple(paths) != ("lam",)}
        if refused := [name for name, value in given.items() if value]:
            raise ValueError(
                f"got {', '.join(refused)} for models on tokens, whose runs are short and have no paths of real numbers; "
                "expected none of these arguments: keep the result by its save(folder)"
            )
        told: dict[str, Any] = {"process": sde, "n": n, "seed": seed, "shape": shape, "truth": truth, "progress": progress}
        return compare_tokens(problem, solvers, evaluations, metrics, conditions=conditions, **told)
    cases = gather(problem, sde, shape, truth, conditions)
    arguments = Arguments.checked(cases, solvers, evaluations, paths, metrics, n, seed, end, peers)
    groups = _groups(arguments)
    store = Store(out, lambda: {"version": versions()["scoresde"], **arguments.identity()})
    if references is None and store.path is not None:
        references = store.path.parent / "references"
    finished = functools.partial(_comparison, arguments, groups, store, peers)

    @functools.lru_cache(maxsize=1)  # the runs on a case follow each other, and its samples may be large
    def bench(names: tuple[str, str]) -> Bench:
        return Bench(names[0], arguments.cases[names], arguments, references)

    try:
        with _bar(progress and launch_rank()[0] == 0, len(groups) * len(arguments.budgets)) as advance:
            _fill_all(groups, arguments, bench, store, advance)
    except StoreError as error:
        error.comparison = finished()
        raise
    except KeyboardInterrupt:
        kept = f"are in {store.path}; the same comparison continues there" if store.path else "were not kept: give out="
        raise KeyboardInterrupt(f"{len(store)} runs {kept}") from None
    return finished()


# The plan ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The runs of one solver on one path of one case.

    Attributes:
        case: the names of the problem and the SDE.
        steps: for each budget, the number of steps and the evaluations they make; 0 steps and the evaluations of one step
            where one step exceeds the budget.
        error: the reason why the solver does not run on this path, or empty.
    """

    case: tuple[str, str]
    solver: str
    path: str
    steps: dict[int, tuple[int, int]]
    error: str = ""

    def key(self, *budget: int) -> str:
        """Return the name of the group, or of its run within a budget."""
        return json.dumps([*self.case, self.solver, self.path, *budget])


def _groups(arguments: Arguments) -> list[_Group]:
    groups, planned = [], {}
    for name, case in arguments.cases.items():
        for label, solver in arguments.solvers.items():
            if budgets.adaptive(solver):
                groups.append(_Group(name, label, OWN, {}))
                continue
            for path in [OWN] if solver.brings_path else arguments.paths:
                key = (case.sde, case.model.calls, label, path)
                if isinstance(solver, Steered) or key not in planned:  # counted once, for all problems on an SDE
                    planned[key] = _plan(arguments, case, path, label)
                groups.append(_Group(name, label, path, *planned[key]))
        _refuse_beyond_reach(name[0], [g for g in groups if g.case == name], arguments)
    return groups


def _plan(arguments: Arguments, case: Case, path: str, label: str) -> tuple[dict[int, tuple[int, int]], str]:
    make = functools.partial(arguments.path, case, path, solver=arguments.solvers[label])
    try:
        model, solver = case.on(arguments.solvers[label])
        return budgets.largest(solver, arguments.budgets, make, sum(model.calls)), ""
    except ValueError as error:  # the solver refuses the path, or the method refuses the measurement
        return {}, str(error)


def _refuse_beyond_reach(case: str, groups: list[_Group], arguments: Arguments) -> None:
    if any(g.path == OWN and not g.steps for g in groups):  # whose tolerance a budget fixes
        return
    for budget in arguments.budgets:
        needed = [g.steps[budget] for g in groups if not g.error]
        if needed and all(steps == 0 for steps, _ in needed):
            raise ValueError(
                f"got a budget of {budget} evaluations, within which no solver here makes a step on {case}; expected at "
                f"least {min(calls for _, calls in needed)}, or another solver"
            )


# The runs ------------------------------------------------------------------------------------------------------------

Advance = Callable[[str, int], None]
"""A function of the runs in progress and the number of runs in the store."""


@contextlib.contextmanager
def _bar(progress: bool, total: int) -> Iterator[Advance]:
    if not progress:
        yield lambda text, done: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="run", leave=False) as bar:

        def advance(text: str, done: int) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)

        yield advance


def _fill_all(
    groups: Sequence[_Group],
    arguments: Arguments,
    bench: Callable[[tuple[str, str]], Bench],
    store: Store,
    advance: Advance,
) -> None:
    """Make all runs that are not in the store, together with other processes that fill the same store."""
    named = {group.key(): group for group in groups}

    def done(name: str) -> bool:
        store.refresh()
        found = all(named[name].key(budget) in store for budget in arguments.budgets)
        advance(f"{named[name].case[0]} {named[name].solver}", len(store))
        return found

    def fill(name: str) -> None:
        _fill(named[name], bench(named[name].case), store, advance)

    share(list(named), None if store.path is None else store.path.parent, done, fill)


def _fill(group: _Group, bench: Bench, store: Store, advance: Advance) -> None:
    """Make the runs of a group that are not in the store yet."""
    solver, arguments = bench.arguments.solvers[group.solver], bench.arguments
    climbed: list[Outcome] | None = None
    done: dict[int, Outcome] = {}
    for budget in arguments.budgets:
        advance(f"{group.case[0]} {group.solver}", len(store))
        key = group.key(budget)
        if key in store:
            continue
        if budgets.adaptive(solver):
            climbed = bench.climb(solver) if climbed is None else climbed
            outcome = _closest(climbed, budget)
        elif group.error or not group.steps[budget][0]:
            outcome = Outcome(None, error=group.error or f"one step takes {group.steps[budget][1]} evaluations")
        else:
            steps = group.steps[budget][0]
            if steps not in done:
                where = arguments.path(bench.case, group.path, steps, solver)
                done[steps] = bench.run(solver, where, _is_traced(group, budget, bench))
            outcome = done[steps]
            if outcome.evaluations > budget:
                outcome = Outcome(None, error=f"{steps} steps took {outcome.evaluations} evaluations")
        store.add(key, bench.measured(outcome, solver, group.path, key))


def _is_traced(group: _Group, budget: int, bench: Bench) -> bool:
    """Tell whether to keep trajectories: for problems in the plane, on the first path, at the budget closest to 20."""
    arguments = bench.arguments
    about_20 = min(arguments.budgets, key=lambda b: abs(b - 20))
    return bench.case.event == (2,) and group.path == next(iter(arguments.paths)) and budget == about_20


def _closest(climbed: Sequence[Outcome], budget: int) -> Outcome:
    """Return the run with the most evaluations within the budget and, among equal ones, the smallest tolerance."""
    ran = [outcome for outcome in climbed if outcome.end is not None]
    within = [outcome for outcome in ran if outcome.evaluations <= budget]
    if within:
        return max(reversed(within), key=lambda outcome: outcome.evaluations)
    if ran:
        return Outcome(None, error=f"takes at least {min(o.evaluations for o in ran)} evaluations at any tolerance")
    return climbed[0]


# The result ----------------------------------------------------------------------------------------------------------


def _comparison(arguments: Arguments, groups: Sequence[_Group], store: Store, peers: bool) -> Comparison:
    records: list[Record] = []
    traces = []
    for group in groups:
        for budget in arguments.budgets:
            if group.key(budget) not in store:
                continue
            result = store[group.key(budget)]
            records += _records(arguments, group, budget, result)
            if result.times:
                x = torch.tensor(result.states, dtype=torch.float64)
                problem, sde = group.case
                traces.append(Trace(problem, group.solver, group.path, budget, tuple(result.times), x, sde))
    return Comparison(tuple(records), about(arguments, peers), tuple(traces))


def _records(arguments: Arguments, group: _Group, budget: int, result: Result) -> Iterator[Record]:
    values = dict.fromkeys(arguments.metrics, result.error) if result.error else result.values
    for metric, found in values.items():
        error = found if isinstance(found, str) else ""
        value, low, high = (math.nan,) * 3 if isinstance(found, str) else found
        yield Record(
            problem=group.case[0],
            sde=group.case[1],
            solver=group.solver,
            path=group.path,
            budget=budget,
            steps=result.steps,
            evaluations=result.evaluations,
            metric=metric,
            value=value,
            low=low,
            high=high,
            package=package(arguments.solvers[group.solver]),
            error=error,
        )
