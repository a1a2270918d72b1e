"""Write the figures and the table of real images of docs/inverse.md.

    python tests/benchmarks/inverse_images.py [mnist] [cifar]

The prior is the empirical distribution of training images, whose score and posteriors are known exactly. The truths of MNIST
are digits that it does not have, those of CIFAR-10 are of its images. It needs ``../shared/data`` beside the checkout and
torchmetrics.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from scoresde import VP, data, plots, problems, sample
from scoresde.inverse import METHODS, SAMPLERS, Blur, Downsample, Grayscale, Mask, Observation, Operator, observe
from scoresde.inverse.operators import gaussian_kernel
from scoresde.metrics import wasserstein

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TRUTHS, SHOWN, COPIES, STEPS, SIGMA = 6, 4, 4, 50, 0.1
SKIPPED = ("tmpd", "repaint", "daps")  # a product with the Jacobian for each measured number; ten times the calls


def mnist() -> tuple[Tensor, Tensor]:
    """Return 2,000 training images and the truths, of the test set."""
    train, test = (data.open(f"mnist:{SHARED / 'mnist'}", split=split) for split in ("train", "test"))
    return train.batch(range(2000))[0].float(), test.batch(range(TRUTHS))[0].float()


def cifar() -> tuple[Tensor, Tensor]:
    """Return 1,500 images of the subset, and the truths, some of them: among so few others nothing is like a photograph."""
    x = np.load(SHARED / "cifar10-subset" / "cifar10_train_first4000.npz")["x"]
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images[:1500], images[100 : 100 * (TRUTHS + 1) : 100]


def tasks(event: torch.Size) -> dict[str, Operator]:
    """Return the operators that are shown."""
    half = torch.zeros(event, dtype=torch.bool)
    half[..., : event[-1] // 2] = True
    made: dict[str, Operator] = {
        "inpainting": Mask(half),
        "super-resolution x2": Downsample(2, event),
        "super-resolution x4": Downsample(4, event),
        "deblurring": Blur(gaussian_kernel(2.0), event),
    }
    return made if event[0] == 1 else {**made, "colorization": Grayscale(event)}


def main(name: str) -> None:
    """Run every task on the images of this name."""
    atoms, truth = {"mnist": mnist, "cifar": cifar}[name]()
    prior = problems.Empirical(atoms)
    model, rows, grids = prior.model(VP()), [], {}
    for task, operator in tasks(prior.event).items():
        seen = observe(operator, truth, SIGMA)
        posteriors = [prior.posterior(operator, y, SIGMA) for y in seen.y]
        exact = torch.stack([p.sample(COPIES, torch.Generator().manual_seed(2)) for p in posteriors])
        again = torch.stack([p.sample(COPIES, torch.Generator().manual_seed(3)) for p in posteriors])
        each = Observation(operator, seen.y.repeat_interleave(COPIES, 0), SIGMA)
        found = {"exact posterior": again, "pseudoinverse": operator.pinv(seen.y)[:, None].expand_as(exact)}
        for method in (*METHODS, *SAMPLERS):
            if method in SKIPPED:
                continue
            guided, solver = (
                (model, SAMPLERS[method](each)) if method in SAMPLERS else (METHODS[method](model, each), "ddpm")
            )
            x = sample(guided, (TRUTHS * COPIES, *prior.event), solver, STEPS, progress=False).x
            found[method] = x.reshape(exact.shape)
            print(task, method, flush=True)
        same = operator.measured == operator.event
        shown = {"truth": truth, "measured": seen.y if same else found["pseudoinverse"][:, 0]}
        shown |= {method: found[method][:, 0] for method in ("exact posterior", "pigdm", "mmps")}
        grids |= {f"{task}: {method}": x[:SHOWN] for method, x in shown.items()}
        rows += [[task, method, *scores(x, truth, exact)] for method, x in found.items()]
    head = ["task", "method", "PSNR", "SSIM", "distance to the posterior"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---:|---:|---:|", *("| " + " | ".join(row) + " |" for row in rows)]
    (ROOT / "docs" / "tables" / f"inverse-{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    figure = plots.panels(grids, columns=SHOWN, across=5)
    plots.save_figure(figure, ROOT / "docs" / "images" / f"inverse-{name}.png")


def scores(x: Tensor, truth: Tensor, exact: Tensor) -> list[str]:
    """Return PSNR and SSIM against the truth, and the mean over truths of the Wasserstein distance from exact samples."""
    found, true = x.flatten(0, 1).clamp(-1, 1), truth.repeat_interleave(x.shape[1], 0)
    apart = torch.stack([wasserstein(a, b) for a, b in zip(x, exact, strict=True)]).mean() / math.sqrt(truth[0].numel())
    psnr = peak_signal_noise_ratio(found, true, data_range=2.0)
    ssim = structural_similarity_index_measure(found, true, data_range=2.0)
    return [f"{float(psnr):.1f}", f"{float(ssim):.2f}", f"{float(apart):.3f}" if apart < 100 else "over 100"]


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ("mnist", "cifar"):
        main(chosen)
