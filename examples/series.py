"""Train a network on series of two channels, forecast and impute, and score the draws beside the exact answer.

python examples/series.py [--quick] [--out runs/series]
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import metrics, models, plots, problems, systems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--steps", type=int, default=2000, help="of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/series"))
    a = parser.parse_args()
    steps, draws = (20, 20) if a.quick else (a.steps, 200)

    length = 32
    process = problems.gaussian_process((2, length), (1.5, 4.0), "squared")  # two channels of correlation exp(-2/9)
    torch.manual_seed(0)
    net = models.UNet(2, 32, (1, 2, 2), dims=1, lean=True, blocks=1)
    model = scoresde.ScoreModel(net, scoresde.VP(), "v")
    fitted = scoresde.fit(model, process, "v", steps=steps, batch_size=64, lr=1e-3).model

    truth = process.sample(1, torch.Generator().manual_seed(3))[0]
    later = torch.arange(length).expand(2, length) >= 20
    gaps = torch.zeros(2, length, dtype=torch.bool)
    gaps[0, 6:16] = gaps[1, 18:28] = True
    for task, missing in (("forecast", later), ("imputation", gaps)):
        for name, score_model, by in (
            ("network, reconstruction", fitted, "reconstruction"),
            ("network, replacement", fitted, "replacement"),
            ("exact model, tmpd", process.model(scoresde.VP()), "tmpd"),
        ):
            how = {"by": by, "steps": 10 if a.quick else 50, "progress": False}
            x = systems.impute(score_model, truth, ~missing, draws, **how)
            score = float(metrics.crps(x, truth)[missing].mean())
            print(f"{task:<12} {name:<24} CRPS {score:.3f}")
            if by == "reconstruction":
                picture = a.out / f"{task}.png"
                plots.save_figure(plots.quantile_bands(x, truth, ~missing, title=f"{task}: CRPS {score:.2f}"), picture)
    print(f"figures: {a.out}")


if __name__ == "__main__":
    main()
