"""The comparison of solvers on tokens: each on every model, from the same seeds, within each budget of evaluations."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import is_whole, whole
from scoresde.comparison import budgets
from scoresde.comparison.arguments import DEFAULT_SOLVERS
from scoresde.comparison.measures import Measure, of_samples
from scoresde.comparison.metadata import versions
from scoresde.comparison.records import Record
from scoresde.comparison.result import Comparison
from scoresde.comparison.tokens.measures import TOKEN_MEASURES, TokenRun
from scoresde.discrete import (
    TOKEN_SOLVERS,
    Absorbing,
    DenoisingModel,
    EmbeddedModel,
    ExactDenoiser,
    FirstHitting,
    MarkovChain,
    TokenProcess,
    TokenSolver,
    noised_law,
    solver_law,
    token_times,
)
from scoresde.discrete.solvers import token_solver
from scoresde.sampling import sample
from scoresde.solvers import SOLVERS, Solver, make_path, sample_seeds
from scoresde.solvers import get as real_solver

__all__ = ["compare_tokens", "on_tokens"]

ENUMERATED = 256
"""The largest number of sequences for which the law of a solver is computed: of two stages there are as many pairs."""


def on_tokens(problem: Any) -> bool:
    """Tell whether what is to be compared, or the first of several, has tokens for states.

    Example:
        >>> from scoresde import problems
        >>> on_tokens(MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], length=3)), on_tokens(problems.ring())
        (True, False)
    """
    items = list(problem.values()) if isinstance(problem, Mapping) else problem
    if isinstance(items, list | tuple):
        items = items[0] if items else None
    return isinstance(items, MarkovChain | DenoisingModel | EmbeddedModel)


@dataclass(frozen=True)
class _Case:
    """A model on tokens, what is known of its data, and the shape of one sequence."""

    model: DenoisingModel | EmbeddedModel
    event: tuple[int, ...]
    problem: MarkovChain | None
    truth: Tensor | None

    @property
    def process(self) -> str:
        return type(self.model.sde).__name__

    @property
    def vocabulary(self) -> int:
        if isinstance(self.model, DenoisingModel):
            return self.model.process.vocabulary
        return len(self.model.embedding.table)


def compare_tokens(
    problem: Any,
    solvers: Any = DEFAULT_SOLVERS,
    evaluations: Sequence[int] = (1, 2, 4, 8, 16, 32),
    metrics: Any = None,
    *,
    process: Any = None,
    n: int = 256,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    truth: Tensor | None = None,
    conditions: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare solvers on tokens; :func:`scoresde.compare` calls this for models and problems on tokens.

    A Markov chain is compared with its exact model. A score model of embedded tokens is sampled by solvers of real numbers,
    and its samples are rounded to tokens; each solver runs on the models that know its name.

    Args:
        problem: a :class:`~scoresde.discrete.MarkovChain`, a denoising model, an embedded one; several of them in a list, or
            a mapping from names to them.
        solvers: names of ``scoresde.discrete.TOKEN_SOLVERS`` (of ``scoresde.solvers.SOLVERS`` for embedded tokens), solvers,
            or a mapping from labels to either; by default all of the first.
        evaluations: the budgets of evaluations.
        metrics: names of :data:`TOKEN_MEASURES`, functions of samples or of samples and truth, or a mapping; by default all
            of the table.
        process: the process of a Markov chain, by default :class:`~scoresde.discrete.Absorbing`; several in a list.
        n: the number of samples.
        seed: the seed from which all random numbers derive.
        shape: the shape of one sequence of a model.
        truth: sequences of the data of a model, shape ``(m, *event)``.
        conditions: the values on which a model is conditioned.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for nothing to compare, unknown names, and a model without the shape of its samples.

    Example:
        >>> chain = MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], length=3)
        >>> found = compare_tokens(chain, ["ancestral", "first-hitting"], [1, 2, 3], ["total-variation"], progress=False)
        >>> [(r.solver, r.budget, round(r.value, 3)) for r in found.records if not r.error]
        [('ancestral', 1, 0.471), ('ancestral', 2, 0.244), ('ancestral', 3, 0.164), ('first-hitting', 3, 0.0)]
    """
    cases = _cases(problem, process, shape, truth)
    made = _solvers(solvers)
    measures = _measures(metrics)
    allowed = _budgets(evaluations)
    whole("n", n, 2)
    runs = [
        (names, label, solver, budget)
        for names, case in cases.items()
        for label, solver in made.items()
        if _fits(solver, case)
        for budget in allowed
    ]
    if not runs:
        raise ValueError(
            f"got solvers {', '.join(made)}, none of which samples these models; expected {', '.join(TOKEN_SOLVERS)}"
        )
    records: list[Record] = []
    for names, label, solver, budget in _shown(runs, progress):
        records += _records(cases[names], names, label, solver, budget, measures, n, seed, conditions)
    about = {
        "versions": versions(),
        "seed": seed,
        "n": n,
        "end": "denoise",
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": sorted({str(case.model.device) for case in cases.values()}),
        },
        "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "evaluations": list(allowed),
        "paths": ["t"],
        "problems": _about_problems(cases, n),
        "solvers": {label: _about(solver) for label, solver in made.items()},
        "metrics": {name: {"unit": m.unit, "better": m.better, "doc": m.doc} for name, m in measures.items()},
        "notes": [],
    }
    return Comparison(tuple(records), about)


# Arguments -----------------------------------------------------------------------------------------------------------


def _cases(problem: Any, process: Any, shape: Sequence[int] | None, truth: Tensor | None) -> dict[tuple[str, str], _Case]:
    if isinstance(problem, Mapping):
        named = dict(problem)
    else:
        items = list(problem) if isinstance(problem, list | tuple) else [problem]
        named = {type(item).__name__: item for item in items}
        if len(named) < len(items):
            raise ValueError("got problems of one name; expected a mapping from names of your own to them")
    found: dict[tuple[str, str], _Case] = {}
    for name, item in named.items():
        if isinstance(item, MarkovChain):
            for on in _processes(process, item.vocabulary):
                found[str(name), type(on).__name__] = _Case(item.model(on), item.event, item, truth)
            continue
        if not isinstance(item, DenoisingModel | EmbeddedModel):
            raise TypeError(
                f"got a {type(item).__name__} among models on tokens; expected a MarkovChain, a DenoisingModel or an "
                "EmbeddedModel"
            )
        known = getattr(item, "problem", None)
        event = tuple(shape) if shape is not None else known.event if known is not None else ()
        if not event and truth is not None:
            event = tuple(truth.shape[1:])
        if not event:
            raise ValueError("got a model without the shape of its sequences; expected shape=(8,), say, or truth=tokens")
        case = _Case(item, event, known, truth)
        found[str(name), case.process] = case
    return found


def _processes(given: Any, vocabulary: int) -> list[TokenProcess]:
    if given is None:
        return [Absorbing(vocabulary)]
    found = (
        list(given.values()) if isinstance(given, Mapping) else [given] if not isinstance(given, Iterable) else list(given)
    )
    for item in found:
        if not isinstance(item, TokenProcess):
            raise TypeError(
                f"got {item!r:.60} for the process of a chain of tokens; expected one on tokens: Absorbing({vocabulary})"
            )
    return found


def _solvers(given: Any) -> dict[str, Solver | TokenSolver]:
    if given is DEFAULT_SOLVERS:
        given = list(TOKEN_SOLVERS)
    if isinstance(given, Mapping):
        labelled = list(given.items())
    else:
        items = [given] if isinstance(given, str | Solver | TokenSolver) else list(given)
        labelled = [(item if isinstance(item, str) else item.name, item) for item in items]
    made: dict[str, Solver | TokenSolver] = {}
    for label, item in labelled:
        name = str(item).partition(":")[0]
        real = isinstance(item, Solver) or (isinstance(item, str) and name not in TOKEN_SOLVERS and name in SOLVERS)
        key = TOKEN_SOLVERS.name(label) if label in TOKEN_SOLVERS else label
        if key in made:
            raise ValueError(f"got two solvers called {key!r}; expected a mapping from labels of your own to solvers")
        made[key] = (real_solver(item) if isinstance(item, str) else item) if real else token_solver(item)
    if not made:
        raise ValueError(f"got no solvers; expected some of {', '.join(TOKEN_SOLVERS)}")
    return made


def _fits(solver: Solver | TokenSolver, case: _Case) -> bool:
    if isinstance(solver, Solver):
        return isinstance(case.model, EmbeddedModel)
    on = case.model
    return isinstance(on, DenoisingModel) and (isinstance(on.process, Absorbing) or not isinstance(solver, FirstHitting))


def _measures(given: Any) -> dict[str, Measure]:
    if given is None:
        return dict(TOKEN_MEASURES)
    if isinstance(given, Mapping):
        labelled = list(given.items())
    else:
        labelled = [("", item) for item in ([given] if isinstance(given, str | Measure) or callable(given) else given)]
    found: dict[str, Measure] = {}
    for label, item in labelled:
        made = TOKEN_MEASURES[item] if isinstance(item, str) else item
        made = made if isinstance(made, Measure) else of_samples(made, label)
        found[label or made.name] = made
    if not found:
        raise ValueError(f"got no metrics; expected some of {', '.join(TOKEN_MEASURES)}")
    return found


def _budgets(given: Any) -> list[int]:
    found = [given] if is_whole(given) else list(given)
    if not found or any(not is_whole(b) or b < 1 for b in found):
        raise ValueError(f"got evaluations={given!r}; expected whole numbers of at least 1, such as 1, 2, 4, 8")
    return sorted({int(b) for b in found})


def _shown(runs: list[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return runs
    from tqdm.auto import tqdm

    return tqdm(runs, unit="run", leave=False)  # type: ignore[no-any-return]


# Runs ----------------------------------------------------------------------------------------------------------------


def _steps(solver: Solver | TokenSolver, case: _Case, budget: int) -> tuple[int, int]:
    """Return the largest number of steps within a budget, 0 for none, and the evaluations of these, or of one step."""
    calls = sum(case.model.calls)
    if isinstance(solver, Solver):
        sde = case.model.sde
        return budgets.largest(solver, [budget], lambda k: make_path(sde, "lam", k), calls)[budget]  # type: ignore[arg-type]
    each = solver.description.evaluations
    if each is None:  # one evaluation for each token
        needed = calls * math.prod(case.event)
        return (1 if needed <= budget else 0), needed
    steps = (budget // calls - 1) // each + 1  # the last step, to the data, makes one evaluation
    return steps, calls * (each * (max(steps, 1) - 1) + 1)


def _records(
    case: _Case,
    names: tuple[str, str],
    label: str,
    solver: Solver | TokenSolver,
    budget: int,
    measures: Mapping[str, Measure],
    n: int,
    seed: int,
    conditions: Mapping[str, Any] | None,
) -> list[Record]:
    steps, needed = _steps(solver, case, budget)
    path = "own" if isinstance(solver, FirstHitting) else "t" if isinstance(solver, TokenSolver) else "lam"

    def record(metric: str, used: int, value: float, low: float, high: float, error: str = "") -> Record:
        return Record(names[0], label, path, budget, steps, used, metric, value, low, high, error=error, sde=names[1])

    nothing = (math.nan,) * 3
    if not steps:
        return [record(m, 0, *nothing, f"one step takes {needed} evaluations") for m in measures]
    try:
        run = _run(case, solver, steps, n, seed, conditions)
    except Exception as error:  # a user's model or solver may raise anything
        return [record(m, 0, *nothing, f"{type(error).__name__}: {error}") for m in measures]
    found = []
    for name, measure in measures.items():
        if measure.needs <= run.has:
            value = measure.compute(run)  # type: ignore[arg-type]
            found.append(record(name, run.evaluations, float(value.value), float(value.low), float(value.high)))
    return found


def _run(
    case: _Case, solver: Solver | TokenSolver, steps: int, n: int, seed: int, conditions: Mapping[str, Any] | None
) -> TokenRun:
    told: dict[str, Any] = {"seed": sample_seeds(seed, n), "conditions": conditions, "progress": False}
    if isinstance(case.model, EmbeddedModel):
        shape = (n, *case.event, case.model.embedding.table.shape[1])
        drawn = sample(case.model, shape, solver, steps, dtype=torch.float64, **told)
        x = case.model.tokens(drawn.x)
    else:
        drawn = sample(case.model, (n, *case.event), solver, steps, **told)
        x = drawn.x
    truth = case.truth
    if truth is None and case.problem is not None:
        truth = case.problem.sample(n, _generator(seed, "truth"))
    used = drawn.evaluations + drawn.backward
    laws = _laws(case, solver, steps)
    return TokenRun(x, truth, case.problem, case.vocabulary, used, drawn.seconds, laws)


def _laws(case: _Case, solver: Solver | TokenSolver, steps: int) -> Callable[[], tuple[Tensor, Tensor]] | None:
    """Return a function that computes the laws of the solver and of the data, where the exact model is enumerable."""
    model, problem = case.model, case.problem
    if not isinstance(model, ExactDenoiser) or problem is None or not isinstance(solver, TokenSolver):
        return None
    process, length = model.process, problem.length
    if process.states**length > ENUMERATED:
        return None
    times = [1.0, 0.0] if isinstance(solver, FirstHitting) else token_times("t", steps)
    return lambda: (solver_law(model, length, solver, times), noised_law(process, problem.law, 0.0))


def _generator(seed: int, *key: str) -> torch.Generator:
    digest = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _about_problems(cases: Mapping[tuple[str, str], _Case], n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (name, process), case in cases.items():
        told = {"problem": repr(case.problem), "event": list(case.event), "n": n, "sdes": {}}
        found.setdefault(name, told)["sdes"][process] = repr(case.model.sde)
    return found


def _about(solver: Solver | TokenSolver) -> dict[str, Any]:
    d = solver.description
    return {
        "name": d.name,
        "family": d.family,
        "paper": d.paper,
        "order": d.order,
        "weak_order": d.weak_order,
        "evaluations": d.evaluations,
        "stochastic": d.stochastic,
        "package": "scoresde",
    }
