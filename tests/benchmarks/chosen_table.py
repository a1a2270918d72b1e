"""Write the table of docs/tuning.md of chosen solvers: ``tuning.choose`` beside the best named solver, on other starts.

    python tests/benchmarks/chosen_table.py [ring] [grid] ..

The problems are those of frontier.py. The frontier is the best of its rivals, the solvers of this package with fixed steps
and without noise but "abm-n", on the paths "lam" and "karras" with the end "flow", within as many evaluations. Errors are
distances from x(0) on starts that the pilot never saw. Each result is kept in a file, and the same command continues.
"""

import functools
import json
import math
import statistics
import sys
from pathlib import Path

import torch
from frontier import PATHS, Bench, cases, rivals

from scoresde import tuning
from scoresde.comparison import budgets
from scoresde.solvers import make_path

OUT = Path(__file__).resolve().parents[2] / "docs" / "tables"
KEPT = OUT / "chosen.json"
BUDGETS = (5, 8, 10, 20)
WORK = OUT.parent / "_build" / "chosen"


def measured(name: str) -> dict[str, object]:
    case = cases()[name]()
    bench = Bench(name, case, WORK)
    solver = tuning.choose(
        case.model, BUDGETS, shape=case.event, tolerance=1e-7, seed=1, cache=WORK / "references", progress=False
    )
    found: dict[str, object] = {}
    best = {budget: (math.inf, "") for budget in BUDGETS}
    for rival, method in rivals(peers=False).items():
        for path in PATHS:
            make = functools.partial(make_path, case.sde, path, t_max=case.t_max, end="flow")
            try:
                steps = budgets.largest(method, BUDGETS, lambda k, make=make: make(k))  # type: ignore[misc]
            except ValueError:
                continue
            for budget, (k, _) in steps.items():
                if k > 1:
                    best[budget] = min(best[budget], (bench.error(method, k, path, "flow"), f"{rival} on {path}"))
    for pilot in solver.pilots:
        n = pilot.evaluations
        found[str(n)] = {
            "error": bench.error(solver, n, None, None),
            "auto": bench.error("auto", n, None, None),
            "frontier": best[n][0],
            "best": best[n][1],
            "chosen": str(pilot.trials[0]),
        }
    return found


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    (WORK / "references").mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in names or cases():
        if name not in kept:
            kept[name] = measured(name)
            KEPT.write_text(json.dumps(kept, indent=1))
        print(name, {n: round(one["error"] / one["frontier"], 2) for n, one in kept[name].items()}, flush=True)
    head = [f"{n}, {kind}" for n in BUDGETS for kind in ("auto", "chosen")]
    lines = ["| problem | " + " | ".join(head) + " |", "|---|" + "--:|" * len(head)]
    ratios: dict[str, list[float]] = {h: [] for h in head}
    for name, one in kept.items():
        cells = []
        for n in BUDGETS:
            for kind in ("auto", "error"):
                ratio = one[str(n)][kind] / one[str(n)]["frontier"]
                cells.append(f"{ratio:.2f}" if kind == "auto" else f"**{ratio:.2f}**")
                ratios[f"{n}, {'auto' if kind == 'auto' else 'chosen'}"].append(math.log(ratio))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = [f"{math.exp(statistics.fmean(ratios[h])):.2f}" for h in head]
    lines.append("| geometric mean | " + " | ".join(means) + " |")
    (OUT / "chosen.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
