"""Draw the chart of docs/tuning.md: the default, chosen, tuned and a student beside all named solvers.

    python tests/benchmarks/tuning_chart.py

The problems are no problems of the standard suite, and nothing in the package was chosen on them: two mixtures, and a
network that is trained here on spirals, whose own flow is the truth. An error is the root mean square distance from the end
of the flow, on 128 starts that no pilot and no fit saw. Each named solver takes the better of the paths lam and karras,
within as many evaluations; the peers run if k-diffusion or diffusers are installed. Each result is kept in a file, and the
same command goes on.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from frontier import PATHS, rivals
from torch import Tensor

import scoresde
from scoresde import VP, ScoreModel, problems, training, tuning
from scoresde.comparison import budgets, flow_end
from scoresde.plots.figure import PALETTE, new_figure, save_figure
from scoresde.sampling import measure_departure
from scoresde.solvers import make_path
from scoresde.tuning import students

OUT = Path(__file__).resolve().parents[2] / "docs" / "tables"
KEPT = OUT / "chart.json"
BUDGETS = (4, 5, 6, 8, 10, 15)
STUDENT = (1, 2, 4)
TOLERANCE = 1e-6


@functools.cache
def network() -> ScoreModel:
    torch.manual_seed(0)
    model = ScoreModel(scoresde.models.MLP(2, hidden=(96, 96)), VP(), "v")
    data = problems.spirals()
    return scoresde.fit(model, data, "v", steps=3000, batch_size=512, progress=False).model.double().eval()


def student(teacher: ScoreModel, steps: int) -> ScoreModel:
    """A student in this number of steps, by progressive distillation in halvings from eight steps."""
    data = problems.spirals().sample(20_000, torch.Generator().manual_seed(1)).float()
    taught, n = teacher.float(), 8
    while n >= steps:
        torch.manual_seed(n)
        made = ScoreModel(scoresde.models.MLP(2, hidden=(96, 96)), VP(), "velocity")
        method = training.Method(batch_size=512, lr=2e-3, schedule="cosine-1500", ema=0.99)
        trainer = training.Trainer(made, data, students.Progressive(steps=n, teacher=taught), method=method, progress=False)
        trainer.run(1500)
        taught, n = trainer.sampled.eval(), n // 2
    return taught.double()


MODELS: dict[str, Any] = {
    "mixture in 6 dimensions": lambda: problems.random_mixture(6, 7, 3, seed=4711).model(VP()),
    "mixture in 40 dimensions": lambda: problems.random_mixture(40, 5, 4, seed=815).model(VP()),
    "network": network,
}


class Bench:
    """A model, starts that no pilot and no fit sees, and the ends of its flow from there."""

    def __init__(self, name: str) -> None:
        self.model = MODELS[name]()
        self.network = name == "network"
        event = (2,) if self.network else tuple(self.model.problem.event)
        self.event, self.end = event, "flow"
        generator = torch.Generator().manual_seed(99)
        self.x = float(VP().sigma(1.0)) * torch.randn(128, *event, generator=generator, dtype=torch.float64)
        self.reference = self.truth("path" if self.network else "data")

    def truth(self, to: str) -> Tensor:
        return flow_end(self.model, self.x, make_path(VP(), "lam", 2, end="flow"), tolerance=TOLERANCE, to=to).x

    def error(self, solver: Any, steps: int, path: str | None = None, model: ScoreModel | None = None) -> float:
        given: dict[str, Any] = {"end": None if path is None else "flow", "progress": False}
        try:
            x = scoresde.sample(model or self.model, self.x, solver, steps, path, **given).x
        except (ValueError, ArithmeticError):
            return math.inf
        error = float((x - self.reference).square().mean().sqrt())
        return error if math.isfinite(error) else math.inf

    def named(self) -> dict[str, list[float]]:
        found = {}
        for name, solver in rivals(peers=True).items():
            best = [math.inf] * len(BUDGETS)
            for path in PATHS:
                steps = budgets.largest(solver, BUDGETS, functools.partial(make_path, VP(), path, end="flow"))
                for i, n in enumerate(BUDGETS):
                    if steps[n][0] > 1:
                        best[i] = min(best[i], self.error(solver, steps[n][0], path))
            found[name] = best
        return found

    def measured(self) -> dict[str, Any]:
        model, found = self.model, {"named": self.named()}
        known, model.departure = model.departure, None
        found["default"] = [self.error("auto", n) for n in BUDGETS]
        model.departure = measure_departure(model) if known is None else known
        found["default, moments known"] = [self.error("auto", n) for n in BUDGETS]
        model.departure = None
        how: dict[str, Any] = {"shape": self.event, "tolerance": TOLERANCE, "progress": False}
        chosen = tuning.choose(model, BUDGETS, end="flow" if self.network else "data", **how)
        found["chosen"] = [self.error(chosen, n) for n in BUDGETS]
        tuned = tuning.tune(model, BUDGETS[:5], starts=512, **how)
        found["tuned"] = [self.error(tuned, n) for n in BUDGETS[:5]]
        if self.network:
            found["student"] = [self.error("student", n, "straight", student(network(), n)) for n in STUDENT]
        return found


def main() -> None:
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in MODELS:
        if name not in kept:
            kept[name] = Bench(name).measured()
            KEPT.write_text(json.dumps(kept))
        best = [min(errors[i] for errors in kept[name]["named"].values()) for i in range(len(BUDGETS))]
        for kind in KINDS:
            print(name, kind, [f"{e / b:.2f}" for e, b in zip(kept[name].get(kind, []), best, strict=False)], flush=True)
    (OUT / "chart.md").write_text("\n".join(summary(kept)) + "\n")
    save_figure(figure(kept), OUT.parent / "images" / "chart.png")


KINDS = ("default", "default, moments known", "chosen", "tuned")


def figure(kept: dict[str, Any]) -> Any:
    """Draw the errors against evaluations, a panel for each model; the named solvers in grey."""
    made = new_figure(9.6, 3.6)
    panels = made.subplots(1, len(kept))
    for ax, (name, one) in zip(panels, kept.items(), strict=True):
        for errors in one["named"].values():
            shown = [(n, e) for n, e in zip(BUDGETS, errors, strict=True) if e < 3]
            ax.plot([n for n, _ in shown], [e for _, e in shown], "-", color="0.82", linewidth=0.7, zorder=1)
        for colour, kind in zip(PALETTE, KINDS, strict=False):
            errors = one.get(kind, [])
            ax.plot(BUDGETS[: len(errors)], errors, "o-", color=colour, markersize=4, label=kind, zorder=3)
        if "student" in one:
            ax.plot(STUDENT, one["student"], "s--", color=PALETTE[len(KINDS)], markersize=4, label="student", zorder=3)
        ax.set(title=name, xlabel="evaluations", xscale="log", yscale="log")
        ticks = (*STUDENT[:2], *BUDGETS) if "student" in one else BUDGETS
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("rms error")
    handles, labels = panels[-1].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncol=len(labels), frameon=False, fontsize=8)
    return made


def summary(kept: dict[str, Any]) -> list[str]:
    """Return the geometric means of the errors over those of the best named solver, as lines of a table."""
    lines = ["| | " + " | ".join(map(str, BUDGETS)) + " |", "|---|" + "--:|" * len(BUDGETS)]
    for kind in KINDS:
        cells = []
        for i in range(len(BUDGETS)):
            logs = [
                math.log(one[kind][i] / min(errors[i] for errors in one["named"].values()))
                for one in kept.values()
                if i < len(one[kind])
            ]
            cells.append(f"{math.exp(statistics.fmean(logs)):.2f}" if logs else "")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
