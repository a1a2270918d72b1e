"""Write the table of docs/auto.md of early steps: the default solver on a model that knows its departure, over one that does
not.

    python tests/benchmarks/early_table.py [ring] [grid] ..

The problems and the starts are those of frontier.py. Errors are distances from x(0). Each result is kept in a file, and the
same command continues.
"""

import json
import math
import statistics
import sys
from pathlib import Path

import torch
from frontier import BUDGETS, Bench, cases

from scoresde.sampling import measure_departure

OUT = Path(__file__).resolve().parents[2] / "docs" / "tables"
KEPT = OUT / "early.json"
WORK = OUT.parent / "_build" / "chosen"


def measured(name: str) -> dict[str, list[float]]:
    bench = Bench(name, cases()[name](), WORK)
    model = bench.case.model
    plain = [bench.error("auto", n, None, None) for n in BUDGETS]
    if model.moments is None:
        return {"plain": plain}
    model.departure = measure_departure(model)
    return {"plain": plain, "early": [bench.error("auto", n, None, None) for n in BUDGETS]}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    (WORK / "references").mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in names or cases():
        if name not in kept:
            kept[name] = measured(name)
            KEPT.write_text(json.dumps(kept, indent=1))
        print(name, flush=True)
    lines = ["| problem | " + " | ".join(map(str, BUDGETS)) + " |", "|---|" + "--:|" * len(BUDGETS)]
    rows = []
    for name, one in kept.items():
        if "early" in one:
            rows.append([a / b for a, b in zip(one["early"], one["plain"], strict=True)])
            lines.append(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in rows[-1]) + " |")
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in zip(*rows, strict=True)]
    lines.append("| geometric mean | " + " | ".join(f"**{mean:.2f}**" for mean in means) + " |")
    (OUT / "early.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
