"""Animate how noise becomes data, beside the score that moves it. python examples/animate.py [--quick] [--out FILE]

It makes docs/images/motion.gif with --out docs/images/motion.gif; other suffixes are .mp4 and .html.
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import plots
from scoresde.solvers import make_path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few frames, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("runs/motion.gif"))
a = parser.parse_args()

sde, data = scoresde.VP(), scoresde.problems.moons()
model = data.model(sde)  # its exact score
path = [p.t for p in make_path(sde, "lam", 8 if a.quick else 96).points]
n, generator = 40 if a.quick else 400, torch.Generator().manual_seed(0)
start = torch.randn(n, 2, generator=generator, dtype=torch.float64) * float(sde.sigma(path[0]))


def states(solver: str) -> torch.Tensor:
    """The states at all times of the path, the start included."""
    kept = [start]
    scoresde.sample(model, start, solver, path=path, callback=lambda state: kept.append(state.x), progress=False)
    return torch.stack(kept)


ways = {"reverse SDE": states("ddpm"), "probability-flow ODE": states("ddim")}
frames = range(len(path)) if a.quick else [*range(34, 84), len(path) - 1]  # before and after these little changes
shown = {name: x[list(frames)] for name, x in ways.items()}
a.out.parent.mkdir(parents=True, exist_ok=True)
times = [path[i] for i in frames]
plots.save_animation(shown, times, a.out, score=lambda x, t: model.score(x, max(t, sde.t_min)), fps=12, hold=2)
print(f"animation: {a.out}")
