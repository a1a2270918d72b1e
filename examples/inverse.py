"""Digits from a quarter of their numbers: methods for inverse problems beside exact samples of the posterior.

python examples/inverse.py [--quick] [--out runs/inverse]
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import inverse, plots, problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/inverse"))
    arguments = parser.parse_args()
    prior = problems.digits(std=0.0)  # the images themselves, whose score and posteriors are known exactly
    model = prior.model(scoresde.VP())
    truth = prior.sample(8, torch.Generator().manual_seed(1))
    operator = inverse.Downsample(2, prior.event)  # 4 x 4 means of 2 x 2 pixels
    seen = inverse.observe(operator, truth, sigma=0.2)  # one measurement for each digit

    exact = [prior.posterior(operator, y, 0.2).sample(1, torch.Generator().manual_seed(2)) for y in seen.y]
    rows = {"truth": truth, "measured": operator.pinv(seen.y), "exact posterior": torch.cat(exact)}
    for name in ("pigdm", "mmps", "ddnm"):
        guided = inverse.METHODS[name](model, seen)
        steps = 10 if arguments.quick else 100
        rows[name] = scoresde.sample(guided, truth.shape, "ddpm", steps=steps, progress=False).x
    for name, x in rows.items():
        print(f"{name:<16} mean square distance from the truth {float((x - truth).square().mean()):.3f}")
    figure = plots.panels(rows, columns=4, across=3, title="Digits from a quarter of their numbers, with noise 0.2")
    plots.save_figure(figure, arguments.out / "digits.png")
    print(f"figure: {arguments.out / 'digits.png'}")


if __name__ == "__main__":
    main()
