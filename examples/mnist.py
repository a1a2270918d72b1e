"""Train on MNIST or Fashion-MNIST with a CPU, draw every class, and measure how far the samples are from the test set.

python examples/mnist.py --data FOLDER [--set fashion-mnist] [--sde vp] [--steps 7000 | --minutes 20] [--out runs/mnist]

FOLDER holds the four files of the set as they are published. Without one, as with --quick, it takes the embedded digits.
A run of so many steps that was interrupted, or is to be measured again, continues by the same command.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import scoresde
from scoresde import data, evaluation, metrics, models, plots
from scoresde.objectives import DSM, LogNormalTimes
from scoresde.training import Files, Method, Trainer

# The SDE, the prediction of the network, and the objective. Predicting "edm" keeps the input and the output of the
# network at a standard deviation of 1 for every noise level: those of EDM and VE reach 80 and 50, while that of the
# data is 0.6. Half of the noise levels in EDM's published objective, for photographs, are below exp(-1.2) = 0.3; the
# shape of a digit is determined at higher ones.
EDM_OF_STROKES = DSM("edm", LogNormalTimes(-0.6, 1.2))
LEARN = {
    "edm": (scoresde.EDM(), "edm", EDM_OF_STROKES),
    "vp": (scoresde.VP(), "v", "v"),
    "ve": (scoresde.VE(), "edm", EDM_OF_STROKES),
}


class Patches(nn.Module):
    """A U-Net that sees patches of 2 x 2 pixels as channels: a quarter of the work of one that sees pixels."""

    def __init__(self, classes: int, width: int, precision: torch.dtype) -> None:
        super().__init__()
        self.unet = models.UNet(4, width, (1, 2), lean=True, blocks=1, num_classes=classes)
        self.precision = precision

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The output at images ``(batch, 1, height, width)``; computed in ``precision``, kept in that of ``x``."""
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != x.dtype):
            y = self.unet(F.pixel_unshuffle(x, 2), t, label)  # (batch, 4, height / 2, width / 2)
        return F.pixel_shuffle(y.to(x.dtype), 2)


def open_sets(name: str, folder: Path | None) -> tuple[data.Arrays, data.Arrays]:
    """The training set and the test set; of the embedded digits every fifth is for the test."""
    if folder is not None:
        return tuple(data.open(f"{name}:{folder}", split=part) for part in ("train", "test"))
    images, labels = data.load_digits()
    return tuple(data.Arrays(images[part], labels[part]) for part in data.split(len(images), held_out=0.2))


def classifier(training: data.Arrays) -> evaluation.Features:
    """Where no extractor is named: a small classifier of the training set, trained here, and its last hidden layer."""
    x = training.tensor()[:20_000]
    network = metrics.train_classifier(x, training.labels[: len(x)], epochs=3)
    return evaluation.Features(lambda x: {"features": network.features(x), "logits": network(x)}, "a small classifier")


def draw(model: scoresde.ScoreModel, event: tuple[int, ...], labels: Tensor) -> Tensor:
    """A sample of each label; the i-th depends on its number and its label alone."""
    drawn = []
    for part in tqdm(torch.arange(len(labels)).split(500), desc="samples", disable=None):
        asked = {"label": labels[part]}
        found = scoresde.sample(
            model, (len(part), *event), steps=18, path="karras", seed=part.tolist(), conditions=asked, progress=False
        )
        drawn.append(found.x.cpu())
    return torch.cat(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the set; without, the embedded digits")
    parser.add_argument("--set", choices=["mnist", "fashion-mnist"], default="mnist")
    parser.add_argument("--sde", choices=list(LEARN), default="edm")
    parser.add_argument("--steps", type=int, default=7000, help="of the training")
    parser.add_argument("--minutes", type=float, help="of the training, in place of its steps")
    parser.add_argument("--samples", type=int, default=10_000, help="to draw and to measure")
    parser.add_argument("--features", help="the extractor for the distance, named as for scoresde evaluate")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="fp32 for a CPU without bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few steps on the embedded digits, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    a = parser.parse_args()

    training, test = open_sets(a.set, None if a.quick else a.data)
    sde, predicts, objective = LEARN[a.sde]
    precision = {"bf16": torch.bfloat16, "fp32": torch.float32}[a.precision]
    torch.manual_seed(0)  # of the initial weights
    network = Patches(10, 16 if a.quick else 64, precision)
    model = scoresde.ScoreModel(network, sde, predicts=predicts, sigma_data=float(training.tensor().std()))
    method = Method(batch_size=64, lr=2e-3, ema="power-0.05")

    steps = 200 if a.quick else a.steps
    if a.minutes:
        start = time.perf_counter()
        Trainer(copy.deepcopy(model), training, objective, method=method, device=a.device, progress=False).run(10)
        steps = int(a.minutes * 60 * 10 / (time.perf_counter() - start))
    method, files = replace(method, schedule=f"linear-{steps}"), Files(a.out / "model.safetensors")
    trainer = Trainer(model, training, objective, method=method, files=files, device=a.device)
    done, start = trainer.steps, time.process_time()
    trainer.run(steps)
    print(f"{steps - done} steps of 64 images took {(time.process_time() - start) / 60:.1f} minutes of processor time")

    best = trainer.averaged["power-0.05"].eval()
    n = min(500 if a.quick else a.samples, len(training))
    picture = a.out / "samples.png"
    plots.save_figure(plots.panels({"samples": draw(best, training.event, torch.arange(100) % 10)}, columns=10), picture)
    print(f"figure: {picture}")
    features = evaluation.find_features(a.features) if a.features else classifier(training)
    some = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:n]
    floor = data.Arrays(training.x[some], training.labels[some])
    samples = data.Arrays(draw(best, training.event, floor.labels))  # the classes as often as they are in the data
    print(evaluation.evaluate(samples, test, features, floor=floor))
    logits = features(samples.x[:1000]).get("logits")
    if logits is not None:
        print(f"{float((logits.argmax(1) == floor.labels[:1000]).float().mean()):.1%} show the class that was asked for")


if __name__ == "__main__":
    main()
