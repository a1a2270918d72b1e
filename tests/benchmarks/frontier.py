"""The default solver beside the best of all others: the error of ``sample(model, x, steps=n)`` over the frontier's.

    python tests/benchmarks/frontier.py --out runs/frontier

The problems are those of the standard suite and some of this file. The page docs/auto.md says how far the default was chosen
without them. Each solver of this package with fixed steps and without noise, with --peers those of k-diffusion and diffusers
too, runs from the same starts, on the paths "lam" and "karras", with the end "flow", within each budget of evaluations; the
frontier is the best of them all. The methods "abm-n", which the default takes, are left out. The error is the root mean
square distance from the end of the probability flow of the data, x(0). Every finished solver is kept in the folder, and the
same command goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import scoresde
from scoresde import VP, problems, solvers
from scoresde.base.files import replacing
from scoresde.comparison import PEERS, SUITES, Case, budgets
from scoresde.comparison.peers.modules import missing
from scoresde.sampling.reference import flow_end
from scoresde.solvers import SOLVERS, FreshNoise, RowSolver, Solver, make_path, sample_seeds

BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
BANDS = {"5 to 10": (5, 6, 8, 10), "12 to 30": (12, 15, 20, 30), "50 to 100": (50, 100)}
PATHS = ("lam", "karras")
MOST = 32
"""The number of samples, or fewer where the suite takes fewer."""
MORE = {"random-1024": 128}
"""Other numbers of samples: where one of thirty-two ends at another mode, the least of a hundred runs is one with luck."""


def emoji() -> Any:
    """The empirical distribution of 800 emoji of 8 x 8 pixels; the file lies beside the checkout."""
    import numpy as np

    file = Path(__file__).resolve().parents[3] / "shared" / "data" / "emoji" / "emoji_64.npz"
    x = torch.from_numpy(np.load(file)["x"][:800].copy()).double() / 255
    x = x[..., :3] * x[..., 3:] + 1 - x[..., 3:]
    return problems.Empirical(torch.nn.functional.avg_pool2d(2 * x.permute(0, 3, 1, 2) - 1, 8), 0.05)


def cases() -> dict[str, Callable[[], Case]]:
    """The problems of the standard suite, and others."""
    found = {
        name: functools.partial(lambda e, n: Case.of(e.problem(), e.sde(), n), e, MORE.get(name, min(e.n, MOST)))
        for name, e in SUITES["standard"].problems.items()
    }
    return {
        **found,
        "emoji": lambda: Case.of(emoji(), VP(), 12),
        "random-16": lambda: Case.of(problems.random_mixture(16, 7, 3, seed=101), VP(), MOST),
        "ring-cosine": lambda: Case.of(problems.ring(5, 1.2, 0.2), scoresde.sde.CosineVP(), MOST),
    }


def rivals(peers: bool) -> dict[str, Solver]:
    """The solvers with fixed steps and without noise: of the table, of the suite, and of other packages."""
    found: dict[str, Solver] = {name: solvers.get(name) for name in SOLVERS}
    found |= {name: make() for name, make in SUITES["standard"].solvers.items()}
    if peers:
        found |= {name: peer for name, peer in PEERS.items() if peer.package not in missing() and peer.rtol is None}
    fixed = {n: s for n, s in found.items() if not s.stochastic and not s.brings_path and not n.startswith("abm")}
    return {n: s for n, s in fixed.items() if n in PEERS or isinstance(s, RowSolver)}


class Bench:
    """One case: its start, the end x(0) of its flow, and the errors of runs."""

    def __init__(self, name: str, case: Case, out: Path) -> None:
        self.case, self.out = case, out / f"{name}.json"
        n = case.n or MOST
        x = torch.empty(n, *case.event, dtype=torch.float64)
        self.start = FreshNoise(sample_seeds(0, n), x.device).normal(x).mul_(float(case.sde.sigma(case.t_max)))
        whole = make_path(case.sde, "lam", 4, t_max=case.t_max)
        cache = out / "references"
        self.end = flow_end(case.model, self.start, whole, tolerance=1e-9, to="data", cache=cache).x
        self.found: dict[str, dict[str, float]] = json.loads(self.out.read_text()) if self.out.exists() else {}

    def error(self, solver: str | Solver, steps: int, path: str | None, end: str | None) -> float:
        """The error of one run, infinite where it fails."""
        where = None if path is None else make_path(self.case.sde, path, steps, t_max=self.case.t_max, end=end or "flow")
        try:
            x = scoresde.sample(self.case.model, self.start, solver, steps, where, t_max=self.case.t_max, progress=False).x
        except (ValueError, ArithmeticError):
            return math.inf
        return float((x - self.end).square().mean().sqrt())

    def fill(self, name: str, solver: Solver) -> None:
        """Run a rival on all paths and budgets, unless it is in the file."""
        if name in self.found:
            return
        errors = {}
        for path in PATHS:
            make = functools.partial(make_path, self.case.sde, path, t_max=self.case.t_max, end="flow")
            try:
                steps = budgets.largest(solver, BUDGETS, lambda k, make=make: make(k))  # type: ignore[misc]
            except ValueError:
                continue
            for budget, (k, _) in steps.items():
                if k > 1:
                    errors[f"{path} {budget}"] = self.error(solver, k, path, "flow")
        self.found[name] = errors
        with replacing(self.out) as temporary:
            temporary.write_text(json.dumps(self.found))

    def frontier(self, budget: int) -> tuple[float, str]:
        """The smallest error of a rival within a budget, and the rival and its path."""
        ends = [
            (errors[f"{path} {budget}"], f"{name} on {path}")
            for name, errors in self.found.items()
            for path in PATHS
            if f"{path} {budget}" in errors
        ]
        return min(ends)


def geometric(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"), help="folder of the results")
    parser.add_argument("--solver", default="auto", help="the solver beside the frontier, on its own path")
    parser.add_argument("--peers", action="store_true", help="let the samplers of k-diffusion and diffusers run too")
    parser.add_argument("--cases", nargs="*", help="some of the problems")
    given = parser.parse_args()
    (given.out / "references").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    listed, against = cases(), rivals(given.peers)
    ratios: dict[int, dict[str, float]] = {budget: {} for budget in BUDGETS}
    print("| problem | " + " | ".join(map(str, BUDGETS)) + " |\n|---|" + "--:|" * len(BUDGETS), flush=True)
    for name in given.cases or listed:
        bench = Bench(name, listed[name](), given.out)
        for rival, solver in against.items():
            bench.fill(rival, solver)
        row = []
        for budget in BUDGETS:
            mine, (best, _) = bench.error(given.solver, budget, None, None), bench.frontier(budget)
            ratios[budget][name] = mine / best
            row.append(f"{mine / best:.2f}")
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)
    for band, inside in BANDS.items():
        cells = [ratio for budget in inside for ratio in ratios[budget].values()]
        print(f"{band}: geometric mean {geometric(cells):.2f}, worst {max(cells):.2f}")


if __name__ == "__main__":
    main()
