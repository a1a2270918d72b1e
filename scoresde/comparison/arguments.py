"""What a comparison is asked for, checked at the door."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.identity import digest
from scoresde.base.identity import label as labelled
from scoresde.comparison.cases import Case
from scoresde.comparison.measures import MEASURES, Measure
from scoresde.comparison.peers.modules import missing
from scoresde.comparison.peers.samplers import PEERS
from scoresde.solvers import PATHS, SOLVERS, FreshNoise, Path, RowSolver, Solver, get, make_path, sample_seeds, to_json
from scoresde.solvers.path import ENDS, Spacing

__all__ = ["DEFAULT_SOLVERS", "Arguments", "Paths", "Solvers"]

DEFAULT_SOLVERS = (
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

Solvers = Sequence[str | Solver] | Mapping[str, str | Solver]
"""Names or solvers, or a mapping from labels to either."""

Paths = Sequence[str | Spacing]
"""Names or spacing functions."""


@dataclass(frozen=True, eq=False)
class Arguments:
    """All that decides the results of a comparison, each part by the name it has in the records."""

    cases: dict[str, Case]
    solvers: dict[str, Solver]
    budgets: tuple[int, ...]
    paths: dict[str, Spacing | str]
    metrics: dict[str, Measure]
    n: int
    seed: int
    end: str

    @classmethod
    def checked(
        cls,
        cases: dict[str, Case],
        solvers: Solvers,
        evaluations: Sequence[int],
        paths: Paths,
        metrics: Sequence[str] | None,
        n: int,
        seed: int,
        end: str,
        peers: bool,
    ) -> Arguments:
        """From what a caller writes; raises ValueError for whatever no comparison can be made of."""
        if end not in ENDS:
            raise ValueError(f"got end={end!r}; expected one of {', '.join(ENDS)}")
        made = cls(
            {name: case.precise() for name, case in cases.items()},
            _solvers(solvers, peers),
            _budgets(evaluations),
            _paths(paths),
            _metrics(metrics),
            _whole(n, "n", 2),
            _whole(seed, "seed", 0),
            end,
        )
        for name, case in made.cases.items():
            made.probe(name, case)
        return made

    def path(self, case: Case, name: str, steps: int) -> Path:
        """The path of a name here, or of one of ``scoresde.solvers.PATHS``."""
        return make_path(case.sde, self.paths.get(name, name), steps, t_max=case.t_max, end=self.end)

    def start(self, case: Case, n: int | None = None) -> tuple[Tensor, list[int]]:
        """The states from which all solvers start, and the seed of each."""
        n = n or case.n or self.n
        seeds = sample_seeds(self.seed, n)
        x = torch.empty(n, *case.event, dtype=torch.float64, device=case.device)
        return FreshNoise(seeds, case.device).normal(x).mul_(float(case.sde.sigma(case.t_max))), seeds

    def generator(self, *key: Any) -> torch.Generator:
        """A generator for one purpose, whatever was drawn for another."""
        digest = hashlib.sha256(json.dumps([self.seed, *key]).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def probe(self, name: str, case: Case) -> list[str]:
        """A few numbers that the model returns: what tells it from others. What is wrong with it is said here, before any
        solver is blamed for it."""
        x, _ = self.start(case, 2)
        found = []
        for t in (case.t_max, max(case.sde.span[0], 1e-3 * case.t_max)):
            with torch.no_grad():
                m = case.model.x0(x, t)
            if not bool(torch.isfinite(m).all()):
                raise ValueError(
                    f"the model of {name} returned values that are not finite at t={t:.6g}, for a state of shape "
                    f"{tuple(x.shape)} and deviation {float(x.std()):.3g}; expected finite predictions: check it there"
                )
            found += [f"{float(m.mean()):.5g}", f"{float(m.square().mean().sqrt()):.5g}"]
        return found

    def plain(self) -> dict[str, Any]:
        """Plain values that tell this comparison from another."""
        return {
            "problems": {k: {**_case(c), "model": self.probe(k, c)} for k, c in self.cases.items()},
            "solvers": {label: _fingerprint(solver) for label, solver in self.solvers.items()},
            "evaluations": list(self.budgets),
            "paths": list(self.paths),
            "metrics": list(self.metrics),
            "n": self.n,
            "seed": self.seed,
            "end": self.end,
        }


def _case(case: Case) -> dict[str, Any]:
    known = {"problem": labelled(case.problem), "sde": labelled(case.sde), "event": list(case.event), "n": case.n}
    return {**known, "identity": digest(case.problem, case.sde, libraries=False)}


def _fingerprint(solver: Solver) -> str:
    """A hash of what a solver does: its rows on one path or, where it makes none, its name and numbers."""
    if isinstance(solver, RowSolver):
        from scoresde.sde import VP

        what: Any = to_json(solver.rows(make_path(VP(), "lam", 7)))
    else:
        numbers = {k: v for k, v in vars(solver).items() if isinstance(v, int | float | str | None)}
        what = [asdict(solver.description), numbers]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


# The parts -----------------------------------------------------------------------------------------------------------


def _whole(value: Any, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"got {name}={value!r}; expected a whole number of at least {least}")
    return value


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
    """The solver or peer that ``text`` names, and what it is called in the records."""
    if text in SOLVERS:
        return SOLVERS.name(text), get(text)
    if "/" in text and ":" not in text:
        return PEERS.name(text), PEERS[text]
    return text, get(text)  # with settings, or unknown


def _budgets(evaluations: Any) -> tuple[int, ...]:
    found = [evaluations] if isinstance(evaluations, int) else list(evaluations)
    if not found or any(not isinstance(b, int) or b < 1 for b in found):
        raise ValueError(f"got evaluations={evaluations!r}; expected whole numbers of at least 1, such as 5, 10, 20, 50")
    return tuple(sorted(set(found)))


def _paths(paths: Any) -> dict[str, Spacing | str]:
    found = [paths] if isinstance(paths, str) or callable(paths) else list(paths)
    if not found:
        raise ValueError(f"got no paths; expected some of {', '.join(PATHS)}")
    for path in found:
        if not callable(path):
            PATHS.name(path)  # refuses an unknown one
    return {PATHS.name(p) if isinstance(p, str) else getattr(p, "__name__", type(p).__name__): p for p in found}


def _metrics(metrics: Any) -> dict[str, Measure]:
    usual = [name for name in MEASURES if name != "memory"]  # for which every run is made twice
    names = usual if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise ValueError(f"got no metrics; expected some of {', '.join(MEASURES)}")
    return {MEASURES.name(name): MEASURES[name] for name in names}
