"""Grow a volume that shows three digits from three sides, under a score model of digits, and turn it in an animation.

python examples/scenes.py [--quick] [--data FOLDER] [--digits 3 1 4] [--out runs/scenes]    (FOLDER: the files of MNIST)
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F

import scoresde
from scoresde import data, guidance, models
from scoresde.objectives import DSM, LabelDropout, LogNormalTimes
from scoresde.systems.scenes import Cameras, Volume, distill
from scoresde.training import Method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps on the embedded digits, to see that it runs")
    parser.add_argument("--data", type=Path, help="the folder of MNIST; without, the embedded digits of 8 x 8 pixels")
    parser.add_argument("--digits", type=int, nargs=3, default=[3, 1, 4], help="along the x, the y and the z axis")
    parser.add_argument("--steps", type=int, default=6000, help="of the training of the score model")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    a = parser.parse_args()
    images, labels = data.load_digits()
    if a.data is not None and not a.quick:
        found = data.open(f"mnist:{a.data}", split="train")
        images, labels = found.tensor(), torch.as_tensor(found.labels)
    size, steps = images.shape[-1], 10 if a.quick else a.steps

    # The network sees patches of 2 x 2 pixels as channels: a quarter of the work.
    torch.manual_seed(0)  # of the initial weights
    net = models.UNet(4, 16 if a.quick else 32, (1, 2), lean=True, blocks=1, num_classes=10)
    model = scoresde.ScoreModel(net, scoresde.VP(), "edm", sigma_data=float(images.std()))
    objective = LabelDropout(DSM("edm", LogNormalTimes(-0.6, 1.2)), {"label": 10}, 0.1)
    method = Method(batch_size=64, lr=2e-3, ema="power-0.05", schedule=f"linear-{steps}")
    how = {"steps": steps, "method": method, "conditions": {"label": labels}, "out": a.out / "model.safetensors"}
    model = scoresde.fit(model, F.pixel_unshuffle(images, 2), objective, **how).model

    volume, sides, n = Volume(size, start=0.3), Cameras([0, 90, 0], [0, 0, 90]), 5 if a.quick else 1000
    guided = guidance.ClassifierFree(model, 8.0, {"label": 10})
    how = {"steps": n, "lr": 0.1, "lr_schedule": f"linear-{n}", "conditions": {"label": a.digits}}
    distill(guided, lambda generator: F.pixel_unshuffle(volume(sides, size), 2), volume.parameters(), **how)

    # From the x axis to the y axis, up to the z axis, and back; each side stays for a while.
    turn, rest = ((1 - torch.linspace(0, torch.pi, 24).cos()) * 45).tolist(), 10
    azimuth = [0.0] * rest + turn + [90.0] * rest + turn[::-1] + [0.0] * (rest + 24)
    elevation = [0.0] * (2 * rest + 24) + turn + [90.0] * rest + turn[::-1]
    with torch.no_grad():
        frames = 127.5 * (volume(Cameras(azimuth, elevation), 4 * size)[:, 0].clamp(-1, 1) + 1)
    shown = [Image.fromarray(frame) for frame in frames.round().byte().numpy()]
    shown[0].save(a.out / "turning.gif", save_all=True, append_images=shown[1:], duration=60, loop=0)
    print(f"animation: {a.out / 'turning.gif'}")


if __name__ == "__main__":
    main()
