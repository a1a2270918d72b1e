"""Encode digits into latents, go from one to another, and turn drawings into digits; the pictures are in --out.

python examples/editing.py [--quick] [--out runs/editing]
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import data, plots, sampling
from scoresde.problems import ppca_mixture

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="fewer digits and steps, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("runs/editing"))
a = parser.parse_args()
images, labels = data.load_digits()
sde, n = scoresde.VP(), 4 if a.quick else 8
model = ppca_mixture(images, modes=10 if a.quick else 40, rank=10).model(sde)  # no network: a mixture fitted to the digits
one, other = (torch.stack([images[labels == k][i] for k in range(n)]) for i in (0, 5))

x = one.double()
latent = sampling.encode(model, x, "rk4", steps=20 if a.quick else 100)
back = sampling.decode(model, latent.x, "rk4", steps=20 if a.quick else 100)
print(
    f"round trip: {float((back.x - x).abs().max()):.1e} in {latent.evaluations} evaluations; latent std {latent.x.std():.2f}"
)
both = sampling.encode(model, x, sampling.Bidirectional(), steps=20)
again = sampling.decode(model, both.x, sampling.Bidirectional(), steps=20, partner=both.info["partner"])
print(f"round trip of an invertible method: {float((again.x - x).abs().max()):.1e} in {both.evaluations} evaluations")

between = sampling.interpolate(model, one, other.roll(1, 0), [0, 0.2, 0.4, 0.6, 0.8, 1], "dpmpp-2m", 20)
plots.save_figure(plots.panels({"two digits": between.transpose(0, 1).flatten(0, 1)}, columns=6), a.out / "way.png")
drawing = torch.full((n, 1, 8, 8), -1.0)
drawing[..., 1:7, 3:5] = 0.8  # a bar
levels = {f"lam = {lam}": float(sde.time(lam)) for lam in (1.5, 0.5, -0.5)}
edits = {name: sampling.sdedit(model, drawing, t, "ddpm", 50).x for name, t in levels.items()}
plots.save_figure(plots.panels({"drawing": drawing, **edits}, columns=4), a.out / "drawing.png")
