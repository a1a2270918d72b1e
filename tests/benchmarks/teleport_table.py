"""Write the table of docs/tuning.md of teleported starts: the default solver from there, beside the plain start.

    python tests/benchmarks/teleport_table.py

The problems are those of frontier.py; the time is found on 64 other samples. Errors are distances from x(0) of the start.
"""

import math
import statistics
import sys
from pathlib import Path

import torch
from frontier import Bench, cases

from scoresde import sample
from scoresde.sampling import teleport
from scoresde.sampling.reference import flow_end
from scoresde.solvers import make_path

OUT = Path(__file__).resolve().parents[2] / "docs" / "tables"
BUDGETS = (5, 8, 10, 15, 20, 30)
NAMES = ("ring", "grid", "moons", "checkerboard", "spiral", "random-16", "random-64", "ppca_digits", "digits", "ring-ve")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    work = OUT.parent / "_build" / "chosen"
    (work / "references").mkdir(parents=True, exist_ok=True)
    lines = ["| problem | sigma / alpha | estimate | error | " + " | ".join(map(str, BUDGETS)) + " |"]
    lines.append("|---|--:|--:|--:|" + "--:|" * len(BUDGETS))
    ratios: dict[int, list[float]] = {n: [] for n in BUDGETS}
    for name in names or NAMES:
        case = cases()[name]()
        bench = Bench(name, case, work)
        found = teleport(case.model, (64, *case.event), seed=1, dtype=torch.float64)
        x = teleport(case.model, bench.start, t=found.t).x
        rest = make_path(case.sde, "lam", 4, t_max=found.t)
        end = flow_end(case.model, x, rest, tolerance=1e-8, to="data", cache=work / "references").x
        row = [name, f"{math.exp(-float(case.sde.lam(found.t))):.2g}", f"{found.error:.1e}"]
        row.append(f"{float((end - bench.end).square().mean().sqrt()):.1e}")
        for n in BUDGETS:
            carried = sample(case.model, x, steps=n, t_max=found.t, progress=False).x
            ratio = float((carried - bench.end).square().mean().sqrt()) / bench.error("auto", n, None, None)
            ratios[n].append(math.log(ratio))
            row.append(f"{ratio:.2f}")
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    means = [f"{math.exp(statistics.fmean(ratios[n])):.2f}" for n in BUDGETS]
    lines.append("| geometric mean | | | | " + " | ".join(means) + " |")
    (OUT / "teleport.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
