"""Train on videos of moving digits, draw new ones, continue the first frames of others, and write GIFs.

python examples/video.py [--quick] [--data mnist:FOLDER] [--steps 3000] [--out runs/video]
"""

import argparse
from pathlib import Path

import torch

import scoresde
from scoresde import data, models, plots, systems
from scoresde.objectives import DSM, LogNormalTimes
from scoresde.training import Files, Method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--data", default="digits", help="images of digits, such as mnist:FOLDER for frames of 40 x 40")
    parser.add_argument("--steps", type=int, default=3000, help="of the training, of 16 videos each")
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    a = parser.parse_args()
    steps, frames = (4 if a.quick else a.steps), (4 if a.quick else 8)

    images = data.open(a.data)
    size = images.event[1] + images.event[1] // 2 - images.event[1] // 2 % 4  # 12 for 8 x 8 pixels, 40 for 28 x 28
    unlabelled = data.Arrays(images.tensor())  # the network is not told which digit it is
    videos = data.moving_digits(unlabelled, 100 if a.quick else 20_000, frames=frames, size=size)
    # Some samples are stacks of images, on which the attention over time is masked.
    stills = data.moving_digits(unlabelled, len(videos) // 4, frames=1, size=size, seed=1).tensor()[:, :, 0]
    both = systems.WithImages(videos, data.Arrays(stills))
    torch.manual_seed(0)
    net = models.UNet(1, 32, (1, 2, 2), dims=3, temporal="attention", lean=True, blocks=1)
    model = scoresde.ScoreModel(net, scoresde.EDM(), "edm", sigma_data=float(videos.samples(range(50)).std()))
    method = Method(batch_size=16, lr=2e-3, ema="power-0.05")
    files = Files(a.out / "model.safetensors")  # the same command continues an interrupted training
    objective = DSM("edm", LogNormalTimes(-0.6, 1.2))
    fitted = scoresde.fit(model, both, objective, steps=steps, method=method, files=files).model

    how = {"steps": 2 if a.quick else 18, "path": "karras", "progress": False}
    drawn = scoresde.sample(fitted, (8, *videos.event), **how).x
    truth = videos.samples(range(8))
    rows = {"drawn": drawn, "truth": truth}
    for method in ("replacement", "reconstruction"):
        rows[method] = systems.predict_frames(fitted, truth[:, :, :2], frames, by=method, **how).x
    for name, x in rows.items():
        plots.save_video(x, a.out / f"{name}.gif", columns=4)
        error = f", mean square distance from the truth {float((x - truth).square().mean()):.3f}" * (name != "drawn")
        print(f"{a.out / name}.gif{error}")


if __name__ == "__main__":
    main()
