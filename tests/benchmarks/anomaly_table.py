"""Train a model of digits and one of clothes, and write the table and the figure of docs/anomaly.md.

    python tests/benchmarks/anomaly_table.py FOLDER [--out runs/anomaly-table]

FOLDER has the published files of MNIST and Fashion-MNIST in ``mnist`` and ``fashion-mnist``. A training that was interrupted
goes on. Both trainings and the scores of 500 images of each kind take about ten minutes of one core.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import scoresde
from scoresde import data, evaluation, models, plots
from scoresde.metrics import auroc_estimate

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCORES = ("likelihood", "typicality", "reconstruction", "score-norms", "loss-excess")
OPTIONS = {
    "likelihood": ": steps=8, probes=1, t_min=0.02",
    "typicality": ": steps=8, probes=1, t_min=0.02",
    "loss-excess": ": draws=2",
}
N = 500


class Patches(nn.Module):
    """A U-Net that sees patches of 2 x 2 pixels as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = models.UNet(4, 32, (1, 2), lean=True, blocks=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.unet(nn.functional.pixel_unshuffle(x, 2), t), 2)


def trained(kind: str, images: Tensor, out: Path) -> scoresde.ScoreModel:
    """Return a model of the images after 1200 steps."""
    torch.manual_seed(0)  # of the initial weights
    model = scoresde.ScoreModel(Patches(), scoresde.EDM(), predicts="edm", sigma_data=float(images.std()))
    kept = out / f"{kind}.safetensors"
    return scoresde.fit(model, images, "edm", steps=1200, batch_size=64, lr=2e-3, out=kept, progress=False).model


def main(folder: Path, out: Path) -> None:
    """Score the images of both kinds with both models."""
    images = {
        kind: {part: data.open(f"{name}:{folder / name}", split=part).tensor() for part in ("train", "test")}
        for kind, name in {"digits": "mnist", "clothes": "fashion-mnist"}.items()
    }
    found, densities = {}, {}
    for kind, other in (("digits", "clothes"), ("clothes", "digits")):
        model = trained(kind, images[kind]["train"], out)
        test, anomalies = images[kind]["test"], images[other]["test"][:N]
        for name in SCORES:
            detector = evaluation.Detector(model, name + OPTIONS.get(name, ""), test[:N])
            inside, outside = detector(test[N : 2 * N]).score, detector(anomalies).score
            found[kind, name] = auroc_estimate(inside, outside)
            print(kind, name, found[kind, name], flush=True)
            if name == "likelihood":
                densities[kind] = inside, outside

    lines = [
        "| score | MNIST, against Fashion-MNIST | Fashion-MNIST, against MNIST |",
        "|---|---|---|",
    ]
    for name in SCORES:
        areas = [found[kind, name] for kind in ("digits", "clothes")]
        lines.append(f"| `{name}` | " + " | ".join(f"{a.value:.3f} ({a.low:.3f} to {a.high:.3f})" for a in areas) + " |")
    (DOCS / "tables" / "anomaly.md").write_text("\n".join(lines) + "\n")
    figure = plots.new_figure(11.6, 3.5)
    axes = figure.subplots(1, 3)
    for ax, kind, title in zip(
        axes,
        ("digits", "clothes"),
        ("trained on digits,\nclothes are the anomalies", "trained on clothes,\ndigits are the anomalies"),
        strict=False,
    ):
        areas, rows = [found[kind, name] for name in SCORES], list(range(len(SCORES)))
        values = torch.tensor([a.value for a in areas])
        spread = torch.tensor([[a.value - a.low for a in areas], [a.high - a.value for a in areas]])
        ax.errorbar(values, rows, xerr=spread, fmt="o", color=plots.PALETTE[0], lw=3, ms=7)
        ax.axvline(0.5, color="0.6", ls="--", lw=1)
        ax.set(xlim=(-0.03, 1.03), ylim=(len(SCORES) - 0.4, -0.6), xlabel="AUROC", yticks=rows)
        ax.set_yticklabels([name.replace("-", " ") for name in SCORES] if kind == "digits" else [])
        ax.set_title(title, fontsize=10)
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
    for x, label, colour in zip(
        densities["clothes"], ("clothes, the data", "digits, the anomalies"), plots.PALETTE[1::-1], strict=False
    ):
        ends = torch.cat(densities["clothes"]).quantile(torch.tensor([0.005, 0.995]).to(x)).tolist()
        axes[2].hist(x, bins=50, range=ends, color=colour, alpha=0.65, label=label)
    axes[2].set_title("negative log-density under\nthe model of clothes", fontsize=10)
    axes[2].set(xlabel="nats", ylabel="test images")
    axes[2].set_ylim(top=1.35 * axes[2].get_ylim()[1])
    axes[2].legend(frameon=False, fontsize=8.5, loc="upper right")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "images" / "anomaly.png", dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly-table"))
    given = parser.parse_args()
    main(given.folder, given.out)
