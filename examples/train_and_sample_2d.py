"""Train an MLP on a ring of Gaussians, whose score is known: how far is it from perfect, and do its samples show it?

python examples/train_and_sample_2d.py [--quick] [--out runs/train_and_sample_2d]
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import metrics, models, plots, problems
from scoresde.training import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/train_and_sample_2d"))
    arguments = parser.parse_args()

    sde = scoresde.VP()
    problem = problems.ring()
    truth = problem.model(sde)  # the exact score model of the data

    torch.manual_seed(0)  # of the initial weights
    model = scoresde.ScoreModel(models.MLP(2), sde, predicts="v")
    steps = 200 if arguments.quick else 4000
    checkpoint = arguments.out / "model.safetensors"  # run again, and a finished training is loaded from there
    result = fit(model, problem, truth=truth, steps=steps, batch_size=512, lr=2e-3, out=checkpoint)
    report = result.report
    print("the excess is the part of the loss that training could still remove; the score error is relative")
    print(report)

    n = 500 if arguments.quick else 4000
    real = problem.sample(n, torch.Generator().manual_seed(1))
    learned = scoresde.sample(result.model, (n, 2), "dpmpp-2m", steps=20, progress=False)
    exact = scoresde.sample(truth, (n, 2), "dpmpp-2m", steps=20, progress=False)
    other = problem.sample(n, torch.Generator().manual_seed(2))
    clouds = {"data": real, f"trained, {learned.evaluations} evaluations": learned.x, "exact score": exact.x}
    for name, x in [("real data", other), ("trained model", learned.x), ("exact score", exact.x)]:
        print(f"energy distance of {name:<13} from data: {float(metrics.energy_distance(x, real)):8.5f}")

    plots.save_figure(plots.losses(result.history, report.edges, report.loss, report.excess), arguments.out / "loss.png")
    plots.save_figure(plots.scatter(clouds, title="A ring of eight Gaussians"), arguments.out / "samples.png")
    print(f"figures: {arguments.out / 'loss.png'}, {arguments.out / 'samples.png'}")


if __name__ == "__main__":
    main()
