"""The arguments of a comparison, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.identity import digest
from scoresde.base.numbers import is_whole, whole
from scoresde.comparison.cases import Case
from scoresde.comparison.measures import MEASURES, Measure, of_samples
from scoresde.comparison.peers.modules import missing
from scoresde.comparison.peers.samplers import PEERS
from scoresde.inverse import Steered, steered
from scoresde.score import Conditions
from scoresde.solvers import PATHS, SOLVERS, FreshNoise, Path, Solver, get, make_path, sample_seeds
from scoresde.solvers.path import ENDS
from scoresde.solvers.spacings import Spacing
from scoresde.solvers.table import is_file

__all__ = ["DEFAULT_METRICS", "DEFAULT_SOLVERS", "Arguments", "Metrics", "Paths", "Solvers"]

DEFAULT_SOLVERS = (
    "auto",
    "ddim",
    "heun",
    "dpm-2",
    "dpm-3m",
    "dpmpp-2s",
    "dpmpp-2m",
    "dpmpp-3m",
    "deis-3",
    "unipc-3",
    "ipndm",
    "dopri5",
)
"""The solvers that are compared by default: one or two of each deterministic family."""

DEFAULT_METRICS = ("rms", "strong", "energy")
"""The metrics of a comparison by default: the end of the flow, the end of a Brownian path, and the law of the samples."""

Solvers = Sequence[str | Solver] | Mapping[str, str | Solver]
"""Names, solvers, or a mapping from labels to either."""

Paths = Sequence[str | Spacing]
"""Names or spacing functions."""

Metric = str | Measure | Callable[..., Any]

Metrics = Metric | Sequence[Metric] | Mapping[str, Metric]
"""Names, measures, functions of samples or of (samples, truth), or a mapping from labels to them."""


@dataclass(frozen=True, eq=False)
class Arguments:
    """The checked arguments of a comparison, which decide its results.

    Each part is a mapping by the name it has in the records. A case goes by the names of its problem and its SDE. ``asked``
    holds the solvers that were asked for, empty for the default; it decides the colours of figures and nothing else.
    """

    cases: dict[tuple[str, str], Case]
    solvers: dict[str, Solver]
    budgets: tuple[int, ...]
    paths: dict[str, Spacing | str]
    metrics: dict[str, Measure]
    n: int
    seed: int
    end: str
    asked: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        cases: dict[tuple[str, str], Case],
        solvers: Solvers,
        evaluations: Sequence[int],
        paths: Paths,
        metrics: Metrics | None,
        n: int,
        seed: int,
        end: str,
        peers: bool,
    ) -> Arguments:
        """Return the checked arguments; raise ValueError where they allow no comparison."""
        if end not in ENDS:
            raise ValueError(f"got end={end!r}; expected one of {', '.join(ENDS)}")
        made = cls(
            {name: case.precise() for name, case in cases.items()},
            _solvers(solvers, peers),
            _budgets(evaluations),
            _paths(paths),
            _metrics(metrics),
            whole("n", n, 2),
            whole("seed", seed, 0),
            end,
            () if (asked := tuple(_solvers(solvers, peers=False))) == DEFAULT_SOLVERS else asked,
        )
        made._refuse_methods_without_a_measurement()
        made._refuse_what_no_metric_applies_to()
        for (name, _), case in made.cases.items():
            made._probe(name, case)
        return made

    def path(self, case: Case, name: str, steps: int, solver: Solver | None = None) -> Path:
        """Return a path of ``steps`` steps: the solver's own if it brings one, or that of a name in ``self.paths``.

        ``name`` may also be one of ``scoresde.solvers.PATHS``.
        """
        if solver is not None and solver.brings_path:
            return solver.own_path(case.sde, steps, t_max=case.t_max, end="stop" if self.end == "stop" else None)
        return make_path(case.sde, self.paths.get(name, name), steps, t_max=case.t_max, end=self.end)

    def start(self, case: Case, n: int | None = None) -> tuple[Tensor, list[int]]:
        """Draw the states from which all solvers start; return them with the seed of each sample."""
        n = n or case.n or self.n
        seeds = sample_seeds(self.seed, n)
        x = torch.empty(n, *case.event, dtype=torch.float64, device=case.device)
        return FreshNoise(seeds, case.device).normal(x).mul_(float(case.sde.sigma(case.t_max))), seeds

    def generator(self, *key: Any) -> torch.Generator:
        """Return a random generator for one purpose, independent of what was drawn for another."""
        digest = hashlib.sha256(json.dumps([self.seed, *key]).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _probe(self, name: str, case: Case) -> None:
        """Evaluate the model once, so that a broken model is reported before any solver is blamed for it."""
        x, _ = self.start(case, None if case.conditions else 2)
        told = Conditions.of(case.conditions, len(x), device=x.device, dtype=x.dtype).values
        for t in (case.t_max, max(case.sde.span[0], 1e-3 * case.t_max)):
            with torch.no_grad():
                m = case.model.x0(x, t, **told)
            if not bool(torch.isfinite(m).all()):
                raise ValueError(
                    f"the model of {name} returned values that are not finite at t={t:.6g}, for a state of shape "
                    f"{tuple(x.shape)} and deviation {float(x.std()):.3g}; expected finite predictions: check it there"
                )

    def _refuse_methods_without_a_measurement(self) -> None:
        for label, solver in self.solvers.items():
            for (name, _), case in self.cases.items():
                if isinstance(solver, Steered) and getattr(case.problem, "given", None) is None:
                    raise ValueError(
                        f"got the method {label!r} for inverse problems on {name}, which is no posterior; expected "
                        "problem.posterior(operator, y, sigma), or the name \"measured: prior='ring', sigma=0.3\""
                    )

    def _refuse_what_no_metric_applies_to(self) -> None:
        """Refuse a comparison in which no metric applies to any run."""
        for case in self.cases.values():
            given = {"memory", *(["truth"] if case.problem is not None or case.truth is not None else [])}
            given |= {"moments", "log_prob", "modes"} if case.problem is not None else set()
            for solver in self.solvers.values():
                ends = {"strong"} if solver.stochastic else {"reference"}
                if any(measure.needs <= given | ends for measure in self.metrics.values()):
                    return
        needs = "; ".join(f"{name} needs {' and '.join(sorted(m.needs))}" for name, m in self.metrics.items())
        raise ValueError(
            f"got no metric that applies to these solvers and problems ({needs}); solvers that draw noise have no reference "
            "and models without truth= no truth: expected others, such as energy for a problem or rms for ddim"
        )

    def identity(self) -> dict[str, Any]:
        """Return plain values that identify the comparison: equal for equal ones, in every process.

        Raises:
            ValueError: for a model, a solver or a function that cannot be identified by its content.
        """
        return {
            "problems": {" on ".join(names): _content(case) for names, case in self.cases.items()},
            "solvers": {label: digest(solver) for label, solver in self.solvers.items()},
            "evaluations": list(self.budgets),
            "paths": {name: name if name == path else digest(path) for name, path in self.paths.items()},
            "metrics": {name: name if m is MEASURES.get(name) else digest(m) for name, m in self.metrics.items()},
            "n": self.n,
            "seed": self.seed,
            "end": self.end,
        }


def _content(case: Case) -> dict[str, Any]:
    parts = {"model": case.model, "problem": case.problem, "truth": case.truth, "conditions": dict(case.conditions)}
    return {"event": list(case.event), "n": case.n, **{k: digest(v) for k, v in parts.items() if v is not None}}


# The parts -----------------------------------------------------------------------------------------------------------


def _solvers(solvers: Solvers, peers: bool) -> dict[str, Solver]:
    listed: list[tuple[str | None, Any]]
    if isinstance(solvers, Mapping):
        listed = list(solvers.items())
    else:
        listed = [(None, s) for s in ([solvers] if isinstance(solvers, str | Solver) else solvers)]
    made: dict[str, Solver] = {}
    for label, item in listed:
        name, solver = _named(item) if isinstance(item, str) else (None, item)
        if not isinstance(solver, Solver):
            raise TypeError(
                f"got {item!r} among the solvers; expected names or solvers; compare.Foreign makes one of a function"
            )
        key = label or name or solver.name
        if key in made:
            raise ValueError(f"got two solvers called {key!r}; expected a mapping from labels of your own to solvers")
        made[key] = solver
    if not made:
        raise ValueError(f"got no solvers; expected names, such as {', '.join(DEFAULT_SOLVERS[:4])}, or solvers")
    if peers:
        absent = missing()
        theirs: dict[str, Solver] = {name: peer for name, peer in PEERS.items() if peer.package not in absent}
        theirs |= {name: get(name) for name in SOLVERS if name.startswith("torchsde-")}
        made |= {name: peer for name, peer in theirs.items() if name not in made}
    return made


def _named(text: str) -> tuple[str, Solver]:
    """Return the solver or peer that ``text`` names, after its name in the records."""
    if text in SOLVERS:
        return SOLVERS.name(text), get(text)
    if is_file(text):
        return text, get(text)
    if "/" in text and ":" not in text:
        return PEERS.name(text), PEERS[text]
    method = steered(text)
    if method is not None:
        return method.name, method
    return text, get(text)  # a name with settings, or an unknown one


def _budgets(evaluations: Any) -> tuple[int, ...]:
    found = [evaluations] if is_whole(evaluations) else list(evaluations)
    if not found or any(not is_whole(b) or b < 1 for b in found):
        raise ValueError(f"got evaluations={evaluations!r}; expected whole numbers of at least 1, such as 5, 10, 20, 50")
    return tuple(sorted({int(b) for b in found}))


def _paths(paths: Any) -> dict[str, Spacing | str]:
    found = [paths] if isinstance(paths, str) or callable(paths) else list(paths)
    if not found:
        raise ValueError(f"got no paths; expected some of {', '.join(PATHS)}")
    for path in found:
        if not callable(path):
            PATHS.name(path)  # refuses an unknown one
    return {PATHS.name(p) if isinstance(p, str) else getattr(p, "__name__", type(p).__name__): p for p in found}


def _metrics(metrics: Metrics | None) -> dict[str, Measure]:
    listed: list[tuple[str, Any]]
    if metrics is None:
        listed = [(name, name) for name in DEFAULT_METRICS]
    elif isinstance(metrics, Mapping):
        listed = list(metrics.items())
    else:
        single = isinstance(metrics, str | Measure) or callable(metrics)
        listed = [("", item) for item in ([metrics] if single else metrics)]  # type: ignore[union-attr]
    found: dict[str, Measure] = {}
    for label, item in listed:
        measure = MEASURES[item] if isinstance(item, str) else item if isinstance(item, Measure) else of_samples(item, label)
        name = label or measure.name
        if name in found and found[name] is not measure:
            raise ValueError(f"got two metrics called {name!r}; expected a mapping from labels of your own to metrics")
        found[name] = measure
    if not found:
        raise ValueError(f"got no metrics; expected some of {', '.join(MEASURES)}")
    return found
