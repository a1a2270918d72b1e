"""Write the table and the figure of docs/tuning.md: tuned solvers beside the best named solver, on starts that no fit saw.

    python tests/benchmarks/tuned_table.py [ring] [random-64] [ppca-digits] [random-3072] [network-ring] [network-digits]

Without names it measures all. Each result is kept in a file as it is made, and the same command continues. The starts of the
test are others than those with which ``tune`` reports its own error, and more of them. The best named solver is the one with
the least error of all deterministic solvers of the table, on the paths lam and karras, within as many evaluations.
"""

import functools
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import scoresde
from scoresde import VP, ScoreModel, problems, sample, solvers, tuning
from scoresde.comparison import flow_end
from scoresde.plots.figure import PALETTE, new_figure, save_figure
from scoresde.solvers import Tuned, make_path

OUT = Path(__file__).resolve().parents[2] / "docs" / "tables"
KEPT = OUT / "tuned.json"
BUDGETS = (5, 8, 10)
TOLERANCE = 1e-6


def of_network(net: torch.nn.Module, data: object, steps: int) -> ScoreModel:
    torch.manual_seed(0)
    model = ScoreModel(net, VP(), "v")
    scoresde.fit(model, data, steps=steps, progress=False)
    return model.double().eval()


@functools.cache
def made(name: str) -> ScoreModel:
    return PROBLEMS[name][0]()


# The model, the shape of a sample, the number of starts of the fit and that of the test.
PROBLEMS = {
    "ring": (lambda: problems.ring().model(VP()), (2,), 1024, 4096),
    "random-64": (lambda: problems.random_mixture(64).model(VP()), (64,), 1024, 2048),
    "ppca-digits": (lambda: problems.ppca_digits().model(VP()), (1, 8, 8), 1024, 1024),
    "random-3072": (lambda: problems.random_mixture(3072).model(VP()), (3072,), 256, 256),
    "network-ring": (lambda: of_network(scoresde.models.MLP(2, hidden=(64, 64)), problems.ring(), 2000), (2,), 512, 512),
    "network-digits": (
        lambda: of_network(
            scoresde.models.UNet(channels=1, width=16, multipliers=(1, 2), blocks=1, attention=()), problems.digits(), 1500
        ),
        (1, 8, 8),
        256,
        256,
    ),
}


def frontier(model: ScoreModel, x: Tensor, reference: Tensor, n: int) -> tuple[float, str]:
    """Return the least error of a deterministic solver of the table, and its name and path."""
    found = [(math.inf, "")]
    for name in solvers.SOLVERS:
        solver = solvers.get(name)
        if solver.stochastic or not isinstance(solver, solvers.RowSolver):
            continue
        for path in ("lam", "karras"):
            steps = scoresde.comparison.budgets.largest(solver, [n], lambda k, at=path: make_path(VP(), at, k))[n][0]
            if steps:
                end = sample(model, x, solver, steps, path, end="flow", progress=False).x
                found.append((rms(end, reference), f"{name}, {path}"))
    return min(error for error in found if not math.isnan(error[0]))


def rms(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).square().mean().sqrt())


def measured(name: str, n: int) -> dict[str, object]:
    _, event, starts, test = PROBLEMS[name]
    model = made(name)
    generator = torch.Generator().manual_seed(1)
    x = float(model.sde.sigma(1.0)) * torch.randn(test, *event, generator=generator, dtype=torch.float64)
    path = make_path(model.sde, "lam", 2, end="flow")
    reference = flow_end(model, x, path, tolerance=TOLERANCE, cache=OUT.parent / "_build" / "references").x
    began = time.process_time()
    cache = OUT.parent / "_build" / "references"
    solver = tuning.tune(model, n, shape=event, starts=starts, tolerance=TOLERANCE, cache=cache, progress=False)
    seconds = time.process_time() - began
    best, named = frontier(model, x, reference, n)
    error = rms(sample(model, x, solver, n, progress=False).x, reference)
    return {"solver": solver.to_json(), "error": error, "frontier": best, "named": named, "seconds": seconds}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in names or PROBLEMS:
        for n in BUDGETS:
            key = f"{name} {n}"
            if key not in kept:
                kept[key] = measured(name, n)
                KEPT.write_text(json.dumps(kept))
            one = kept[key]
            print(key, f"{one['error']:.2e} {one['frontier']:.2e} {one['error'] / one['frontier']:.2f}", flush=True)
    lines = [
        "| model | evaluations | best named solver | its error | tuned | ratio | held out / fit | seconds |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    models = list(dict.fromkeys(key.rsplit(" ", 1)[0] for key in kept))
    for key, one in sorted(kept.items(), key=lambda entry: models.index(entry[0].rsplit(" ", 1)[0])):
        name, n = key.rsplit(" ", 1)
        steps = Tuned.from_json(one["solver"]).steps[0]
        lines.append(
            f"| {name} | {n} | {one['named']} | {one['frontier']:.2g} | {one['error']:.2g} | "
            f"**{one['error'] / one['frontier']:.2f}** | {one['error'] / steps.training:.1f} | {one['seconds']:.0f} |"
        )
    (OUT / "tuned.md").write_text("\n".join(lines) + "\n")
    save_figure(figure(kept), OUT.parent / "images" / "tuned.png")


def figure(kept: dict[str, dict[str, float]]) -> object:
    """Draw the errors over the frontier: filled on starts that no fit saw, hollow on the starts of the fit."""
    made = new_figure(6.4, 3.8)
    ax = made.subplots()
    models = list(dict.fromkeys(key.rsplit(" ", 1)[0] for key in kept))
    for colour, name in zip(PALETTE, models, strict=False):
        of_model = {n: kept[f"{name} {n}"] for n in BUDGETS if f"{name} {n}" in kept}
        steps = {n: Tuned.from_json(one["solver"]).steps[0] for n, one in of_model.items()}
        held_out = [one["error"] / one["frontier"] for one in of_model.values()]
        ax.plot(list(of_model), held_out, "o-", color=colour, label=name)
        fitted = [steps[n].training / one["frontier"] for n, one in of_model.items()]
        ax.plot(list(of_model), fitted, "o", color=colour, markerfacecolor="white", markersize=4)
    for level, word in ((1.0, "best named solver"), (0.33, "a third of it")):
        ax.axhline(level, color="0.5", linewidth=0.8, linestyle="--")
        ax.annotate(
            word, (BUDGETS[-1], level), textcoords="offset points", xytext=(0, 3), ha="right", fontsize=7, color="0.4"
        )
    ax.set(xlabel="evaluations", ylabel="error / error of the best named solver", yscale="log")
    ax.set_xticks(BUDGETS)
    ax.grid(True, which="major", color="0.9", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
