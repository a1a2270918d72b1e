"""Which score tells anomalies from data? Digits against faint and mirrored ones, or MNIST against Fashion-MNIST.

python examples/anomaly.py [--quick] [--data FOLDER_OF_BOTH] [--out runs/anomaly]
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import data, evaluation, metrics, models
from scoresde.training import fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
parser.add_argument("--data", type=Path, help="a folder with the published files in mnist and fashion-mnist")
parser.add_argument("--out", type=Path, default=Path("runs/anomaly"))
a = parser.parse_args()
if a.data:
    training, test = (data.open(f"mnist:{a.data / 'mnist'}", split=part).tensor() for part in ("train", "test"))
    others = {"clothes": data.open(f"fashion-mnist:{a.data / 'fashion-mnist'}", split="test").tensor()}
else:
    training, test = (data.load_digits()[0][part] for part in data.split(1797, held_out=0.3))
    others = {"faint digits": 0.4 * (test + 1) - 1, "mirrored digits": test.flip(3)}

torch.manual_seed(0)  # of the initial weights
net = models.UNet(1, 16, (1, 2), lean=True, blocks=1)
model = scoresde.ScoreModel(net, scoresde.EDM(), predicts="edm", sigma_data=float(training.std()))
steps = 50 if a.quick else 2000
model = fit(
    model, training, "edm", steps=steps, batch_size=64, lr=2e-3, out=a.out / "model.safetensors", progress=False
).model
n, few = (20, ", steps=8") if a.quick else (200, "")
for name in (f"likelihood: t_min=0.05{few}", f"typicality: t_min=0.05{few}", "reconstruction", "score-norms", "loss-excess"):
    detector = evaluation.Detector(model, name, test[:n])
    for kind, x in others.items():
        area = metrics.auroc_estimate(detector(test[n : 2 * n]).score, detector(x[:n]).score)
        print(f"{name:<32} {kind:<16} AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})")
