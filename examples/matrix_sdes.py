"""Diffuse with velocities, and blur and unblur digits: python examples/matrix_sdes.py [--quick] [--out FOLDER]"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import scoresde
from scoresde import models, plots, problems
from scoresde.score import MatrixModel
from scoresde.sde import CLD, Blurring

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("runs/matrix_sdes"))
a = parser.parse_args()
generator = torch.Generator().manual_seed(0)

# Langevin: a network with the score of positions and velocities, which has the task of a scalar SDE
torch.manual_seed(0)
ring, sde = problems.ring(), CLD()
model = MatrixModel(models.MLP(2), sde, sigma_data=1.0)
how = {"steps": 20 if a.quick else 3000, "batch_size": 256, "lr": 2e-3, "seed": 0}
fit = scoresde.fit(model, ring, "hsm", truth=ring.model(sde), **how)
print(f"excess loss over the exact score: {fit.report.excess.mean():.2g}")
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for ax, solver in zip(axes, ("gddim-2", "sscs"), strict=False):
    path = torch.linspace(1, 0.03, 60).double().tolist()
    states = [sde.prior((400, 2, 2), generator=generator)]
    watch = {"progress": False, "callback": lambda s, to=states: to.append(s.x.clone())}
    scoresde.sample(fit.model, states[0], solver, path=path, **watch)
    way = torch.stack(states)  # (time, sample, variable, coordinate)
    ax.plot(way[:, :4, 0, 0], way[:, :4, 1, 0], lw=0.9)
    ax.scatter(way[-1, :, 0, 0], way[-1, :, 1, 0], s=3, color="0.6", zorder=0)
    ax.set(title=f"{solver}: four samples on their way", xlabel="position", ylabel="velocity", xlim=(-3, 3), ylim=(-2, 2))
x = scoresde.sample(fit.model, (1000, 2), "gddim-2", 30, progress=False).x
axes[2].scatter(*x.T, s=3)
axes[2].set(title="positions after 30 steps", aspect="equal", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
plots.save_figure(fig, a.out / "langevin.png")

# Blurring: digits as a mixture of Gaussians, whose score is exact
low = problems.ppca_digits()
variance = low.noise[:, None, None] * torch.eye(64, dtype=torch.float64)
digits = problems.GaussianMixture(low.means, low.factors @ low.factors.mT + variance, low.weights)
blurring, x0 = Blurring((8, 8), blur=5.0), digits.sample(8, generator)
grids = {"digits": x0}
for t in (0.15, 0.3):
    grids[f"mean at t = {t:g}"] = blurring.perturb(x0, t, torch.zeros_like(x0))
    grids[f"state at t = {t:g}"] = blurring.perturb(x0, t, torch.randn(x0.shape, generator=generator))
drawn = scoresde.sample(digits.model(blurring), (8, 1, 8, 8), "data-2", 5 if a.quick else 60, path="t", progress=False)
grids["drawn by data-2"] = drawn.x
plots.save_figure(plots.panels(grids, columns=4, across=6), a.out / "blurring.png")
print(f"figures: {a.out / 'langevin.png'}, {a.out / 'blurring.png'}")
