"""The plain blocks of Python of README and the pages run, in order, with small stand-ins for what the reader has.

The cells of executed pages run when the site is built, and sessions by doctest; see ``test_pages``. Here the code runs as
it is shown but for its sizes, which ``smaller`` lists. ``.ci/run`` runs the slow ones as well.
"""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_bert
from test_pages import FENCE, PAGES, ROOT, THEIRS

import scoresde
from scoresde import models

Names = dict[str, Any]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _net(**options: Any) -> models.MLP:
    """A small network of images of 8 x 8 whose output is not zero."""
    net = models.MLP(64, (8,), **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=_generator())
    return net


def _digits(**options: Any) -> scoresde.ScoreModel:
    return scoresde.ScoreModel(_net(**options), scoresde.VP())


def _images(n: int = 8, size: int = 8, channels: int = 3) -> torch.Tensor:
    return 2 * torch.rand(n, channels, size, size, generator=_generator()) - 1


def _folders_of_images(place: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for folder in ("my_folder", *(f"my_classes/{i}" for i in range(10))):
        (place / folder).mkdir(parents=True)
        for j, pixels in enumerate(_images(4)):
            image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127).byte().numpy()).save(place / folder / f"{j}.png")


def _guided() -> Names:
    names = {"scoresde": scoresde, "sde": scoresde.VP(), "images": _images(channels=1), "labels": torch.arange(8)}
    return names | {"model": _digits(num_classes=10), "net": _net(out_features=10)}


def _measured() -> Names:
    return {
        "scoresde": scoresde,
        "model": scoresde.problems.ring().model(scoresde.VP()),
        "data": torch.randn(64, 2, generator=_generator()),
    }


def _judged() -> Names:
    """What the block on a contrastive model has: pictures with embeddings of their texts, and a model of the pictures."""
    model = scoresde.ScoreModel(models.UNet(3, 8, (1, 2), lean=True), scoresde.VP(), "v")
    texts = torch.randn(8, 384, generator=_generator())
    return {"images": _images(size=16), "texts": texts, "text": texts[:2], "model": model}


def _texts() -> Names:
    from scoresde.models import KLAutoencoder, UNet

    names = [f"{colour} {thing}" for colour in ("red", "green") for thing in ("apple", "locomotive")] * 2
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    images = _images(size=16)
    return {
        "images": images,
        "names": names,
        "UNet": UNet,
        "KLAutoencoder": KLAutoencoder,
        "known": images[:1],
        "mask": mask,
    }


def _encoder(place: Path) -> None:
    pytest.importorskip("transformers")
    (place / "text-encoder-minilm").mkdir()
    tiny_bert(place / "text-encoder-minilm")


def _molecules(place: Path) -> None:
    """Ethane, eight times, a little deformed."""
    angles = np.arange(6) * np.pi / 3
    hydrogens = np.stack([np.where(np.arange(6) % 2, 1.89, -0.36), 1.03 * np.cos(angles), 1.03 * np.sin(angles)], 1)
    ethane = np.concatenate([[[0, 0, 0], [1.53, 0, 0]], hydrogens])
    positions = ethane + np.random.default_rng(0).normal(scale=0.01, size=(8, 8, 3))
    np.savez(place / "nci_small.npz", positions=positions.astype(np.float32), z=np.tile([6, 6] + [1] * 6, (8, 1)))


def _dequantization() -> Names:
    from torch import nn

    from scoresde import objectives, training

    names = vars(objectives) | vars(training) | {"nn": nn, "VP": scoresde.VP, "ScoreModel": scoresde.ScoreModel}
    images = _images().mul(127.5).round() / 127.5
    names |= {"net": models.MLP(192, (8,)), "images": images, "generator": _generator()}
    return names | {"log_prob": lambda y: y.flatten(1).sum(1)}


def _scenes() -> Names:
    from scoresde.systems.scenes import Cameras, Volume, distill

    return {
        "Volume": Volume,
        "Cameras": Cameras,
        "distill": distill,
        "model": scoresde.ScoreModel(models.MLP(64, (8,)), scoresde.VP()),
    }


def _tuned() -> Names:
    from scoresde import tuning

    model = scoresde.problems.ring().model(scoresde.VP())
    return {"scoresde": scoresde, "model": model, "tuned": tuning.tune(model, 2, starts=16, tolerance=1e-3, progress=False)}


@dataclass(frozen=True)
class Case:
    """What a page needs: names before its first block or a later one, files, and smaller sizes."""

    names: Callable[[], Names] | None = None
    again: dict[int, Callable[[], Names]] = field(default_factory=dict)
    files: Callable[[Path], None] | None = None
    smaller: tuple[tuple[str, str], ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)
    slow: bool = False


CASES: dict[str, Case] = {
    "README.md": Case(
        again={
            1: lambda: {"model": _digits(num_classes=10)},
            3: lambda: {"model": scoresde.problems.ring().model(scoresde.VP())},
        },
        smaller=(
            ("steps=1000, ", "steps=2, batch_size=8, "),
            ("(1000, 2), steps=20", "(8, 2), steps=2"),
            ("(64, 1, 28, 28)", "(2, 1, 8, 8)"),
            ("(1, 1, 28, 28), particles=64", "(1, 1, 8, 8), particles=2"),
            ('"unipc-3"], [5, 10, 20, 50])', '"unipc-3"], [5, 10], n=8)'),
            ('"dpmpp-2m", steps=100', '"dpmpp-2m", steps=2'),
        ),
        slow=True,
    ),
    "docs/api/objectives.md": Case(
        names=_dequantization,
        smaller=(("trainer.run(100_000)", "trainer.run(1)"), ("images, objective", "images[:4], objective")),
    ),
    "docs/api/weights.md": Case(
        left_out={
            0: "loads Stable Diffusion, a download of gigabytes; test_pipelines draws from a tiny pipeline",
            1: "opens a pickle of EDM, in EDM's environment",
            2: "loads weights of half a gigabyte; test_weights loads tiny ones of every kind",
        }
    ),
    "docs/architecture.md": Case(
        names=lambda: {"scoresde": scoresde}, smaller=(("steps=100, ", "steps=1, batch_size=8, "),)
    ),
    "docs/auto.md": Case(names=_measured),
    "docs/choose_a_solver.md": Case(names=lambda: {"scoresde": scoresde}, smaller=(("n=64", "n=8"),), slow=True),
    "docs/guidance.md": Case(
        names=_guided,
        again={1: lambda: {"model": _digits()}, 2: _judged},
        smaller=(
            ("(64, 1, 28, 28)", "(2, 1, 8, 8)"),
            ("(64, 3, 64, 64)", "(2, 3, 16, 16)"),
            ("steps=5000, ", "steps=1, batch_size=8, "),
        ),
    ),
    "docs/index.md": Case(
        smaller=(("steps=1000)", "steps=1)"), ("(1000, 2), steps=20", "(8, 2), steps=2"), ("[5, 10, 20])", "[5, 10], n=8)")),
        slow=True,
    ),
    "docs/inverse.md": Case(
        names=lambda: {"scoresde": scoresde, "problems": scoresde.problems},
        smaller=(("[50, 100, 200])", "[6, 10], n=8)"),),
        slow=True,
    ),
    "docs/latent.md": Case(
        names=_texts,
        files=_encoder,
        smaller=(
            ("UNet(4, 64, (1, 2, 2), ", "UNet(4, 8, (1, 2), lean=True, blocks=1, "),
            ("KLAutoencoder(3, 4, 32, (1, 2, 4))", "KLAutoencoder(3, 4, 8, (1, 2), groups=4)"),
            ("(5000, 20000)", "(1, 1)"),
            ("guidance=4.0)", "guidance=4.0, steps=2)"),
        ),
        slow=True,
    ),
    "docs/matrix_sdes.md": Case(
        names=lambda: {"scoresde": scoresde, "data": scoresde.problems.ring()},
        smaller=(("steps=3000", "steps=1, batch_size=8"), ('"gddim-2")', '"gddim-2", steps=4)')),
    ),
    "docs/molecules.md": Case(
        files=_molecules,
        smaller=(
            ("steps=10_000, ", "steps=1, "),
            ("system.draw(500)", "system.draw(2, steps=2)"),
            ("system.draw(8, atoms=9", "system.draw(2, steps=2, atoms=2"),
        ),
        slow=True,
    ),
    "docs/read_the_report.md": Case(
        smaller=(
            ('["ring", "spiral"], solvers, [5, 8, 10, 15, 20, 30, 50, 100, 200]', '["ring"], solvers[:4], [5, 10]'),
            ("n=128", "n=8"),
            ('"lam", 20)', '"lam", 4)'),
        ),
        slow=True,
    ),
    "docs/real_images.md": Case(names=lambda: {"scoresde": scoresde, "EDM_OF_STROKES": "edm"}),
    "docs/rectified_flow.md": Case(
        names=_texts,
        files=_encoder,
        smaller=(
            (
                '"width": 192, "depth": 4, "single": 4, "heads": 4, "rotary": (16, 16, 16)',
                '"width": 24, "depth": 1, "single": 1, "heads": 2, "rotary": (4, 4, 4)',
            ),
            ('"pooled": 384', '"pooled": 8'),
            ("MMDiT(4, 2, 384", "MMDiT(4, 2, 8"),
            ("KLAutoencoder(3, 4, 32, (1, 2, 4))", "KLAutoencoder(3, 4, 8, (1, 2), groups=4)"),
            ("(5000, 20000)", "(1, 1)"),
            ("(0, 10000)", "(0, 1)"),
            ("guidance=4.0)", "guidance=4.0, steps=2)"),
            ("told=4.0)", "told=4.0, steps=2)"),
        ),
        slow=True,
    ),
    "docs/scale.md": Case(left_out={0: "needs eight GPUs; test_sharded_states runs the same on two processes"}),
    "docs/scenes.md": Case(
        names=_scenes,
        smaller=(("Volume(28)", "Volume(8)"), ("generator), 28)", "generator), 8)"), ("steps=1000", "steps=1")),
    ),
    "docs/text_to_image.md": Case(
        names=lambda: _texts() | {"known": _images(1, 4), "mask": torch.ones(1, 1, 4, 4)},
        files=_encoder,
        smaller=(
            ("(3, 16, 16), (3, 32, 32), (3, 64, 64)", "(3, 4, 4), (3, 8, 8), (3, 16, 16)"),
            ('{"width": 64, "multipliers": [1, 2]}', '{"width": 8, "multipliers": [1, 2]}'),
            ('{"width": 32, "multipliers": [1, 2, 4]}', '{"width": 8, "multipliers": [1, 2]}'),
            ("(20000, 10000, 10000)", "(1, 1, 1)"),
            ("(5000, 0, 0)", "(1, 0, 0)"),
        ),
        slow=True,
    ),
    "docs/tokens.md": Case(
        names=lambda: {"words": torch.randint(26, (8, 8), generator=_generator())},
        smaller=(("steps=3000", "steps=1, batch_size=8"), ("(64, 8)", "(2, 8)")),
    ),
    "docs/training.md": Case(
        files=_folders_of_images,
        smaller=(
            ("UNet(3, width=64)", "UNet(3, 8, (1,))"),
            ("UNet(3, num_classes=10)", "UNet(3, 8, (1,), num_classes=10)"),
            ("size=32", "size=8"),
            ("batch_size=256", "batch_size=2"),
            ("range(64)", "range(4)"),
            ("snapshot_every=2000", "snapshot_every=1"),
            ("trainer.run(100_000)", "trainer.run(2)"),
            ("steps=100_000", "steps=1, batch_size=2"),
            ("(10, 3, 32, 32), cond", "(10, 3, 8, 8), steps=2, cond"),
        ),
        slow=True,
    ),
    "docs/tuning.md": Case(
        names=_tuned, smaller=(("(1000, 2)", "(8, 2)"), ("steps=5", "steps=2"), ("[5]", "[2]")), slow=True
    ),
}
"""Every page with plain blocks."""


def plain(page: Path) -> list[str]:
    """The plain blocks of a page, without its cells and sessions."""
    return [code for kind, code in FENCE.findall(page.read_text()) if kind == "python"]


def _case(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow if CASES[name].slow else ())


@pytest.mark.parametrize("name", [_case(name) for name in CASES])
@pytest.mark.filterwarnings("ignore")
def test_the_plain_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, parts = CASES[name], plain(ROOT / name)
    monkeypatch.chdir(tmp_path)
    unused = [old for old, _ in case.smaller if not any(old in part for part in parts)]
    assert unused == []  # a size that the page has no more
    if case.files is not None:
        case.files(tmp_path)
    torch.manual_seed(0)
    ran: Names = {"__name__": name} | (case.names() if case.names else {})
    for i, part in enumerate(parts):
        if i in case.left_out:
            continue
        ran |= case.again[i]() if i in case.again else {}
        for old, new in case.smaller:
            part = part.replace(old, new)
        exec(compile(part, f"{name}, plain block {i}", "exec"), ran)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


# Coming from another package ------------------------------------------------------------------------------------------


def of_package(package: str) -> list[str]:
    """The lines of a package in each block of the page: those under a comment that begins with its name."""
    found = []
    for block in plain(ROOT / "docs" / "coming_from.md"):
        lines: list[str] = []
        mine = False
        for line in block.splitlines():
            if line.startswith("# "):
                mine = package in line.partition(":")[0].split()
            elif mine:
                lines.append(line)
        found.append("\n".join(lines))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lines_of_diffusers_run() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8,), "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    net = diffusers.UNet2DModel(8, 1, 1, norm_num_groups=4, layers_per_block=1, add_attention=False, **sizes)
    ran: Names = {name: getattr(diffusers, name) for name in ("DDPMScheduler", "DPMSolverMultistepScheduler")}
    x0 = torch.randn(2, 1, 8, 8)
    ran |= {"torch": torch, "F": torch.nn.functional, "net": net, "x0": x0, "noise": torch.randn_like(x0), "w": 3.0}
    ran |= {"x": torch.randn(2, 1, 8, 8), "eps_cond": torch.ones(2), "eps_uncond": torch.zeros(2)}
    says, trains, samples, guides, likelihood = of_package("diffusers")
    with torch.no_grad():
        for lines in (says, trains, samples, guides):
            assert lines
            exec(lines, ran)
    assert likelihood == ""
    assert float(ran["loss"]) > 0 and bool(ran["x"].isfinite().all()) and ran["eps"].tolist() == [3.0, 3.0]
    assert len(ran["scheduler"].timesteps) == 20 and ran["scheduler"].config.prediction_type == "v_prediction"


def _k_diffusion() -> Any:
    """k-diffusion's modules that the page names, without the rest of the package; a Runge-Kutta method where it has none."""
    from peers import k_diffusion_sampling

    from scoresde.comparison.peers import modules

    sampling, folder = k_diffusion_sampling(), modules._folder("k_diffusion")
    parent = sys.modules["peer_k_diffusion"]
    parent.sampling = sampling  # type: ignore[attr-defined]
    sampling.odeint = sampling.odeint or _runge_kutta
    absent = [name for name in ("dctorch", "einops") if importlib.util.find_spec(name) is None]
    for name in absent:  # for layers that the page does not use
        modules._stub(name, functional=None, rearrange=None, repeat=None)
    try:
        parts = {name: modules._load(f"peer_k_diffusion.{name}", folder / f"{name}.py") for name in ("external", "layers")}
    finally:
        for name in absent:
            del sys.modules[name]
    return types.SimpleNamespace(sampling=sampling, **parts)


def _runge_kutta(f: Any, start: tuple[torch.Tensor, ...], t: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    ends, grid = list(start), torch.logspace(float(t[0].log10()), float(t[1].log10()), 60)
    for a, b in itertools.pairwise(grid):
        half = [x + (b - a) / 2 * d for x, d in zip(ends, f(a, ends), strict=True)]
        ends = [x + (b - a) * d for x, d in zip(ends, f((a + b) / 2, half), strict=True)]
    return [torch.stack([x, y]) for x, y in zip(start, ends, strict=True)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lines_of_k_diffusion_run() -> None:
    torch.manual_seed(0)
    says, trains, samples, guides, likelihood = of_package("k-diffusion")

    class Net(torch.nn.Module):
        """v of data N(0, 1) at the noise that VDenoiser tells, with a parameter to train."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    x0 = torch.randn(4, 1, 8, 8)
    ran: Names = {
        "K": _k_diffusion(),
        "torch": torch,
        "net": Net(),
        "x0": x0,
        "noise": torch.randn_like(x0),
        "shape": x0.shape,
    }
    ran |= {"sigma": torch.rand(4) + 0.1, "w": 3.0, "eps_cond": torch.ones(2), "eps_uncond": torch.zeros(2)}
    for lines in (says, trains, samples, guides, likelihood):
        assert lines
        exec(lines, ran)
    ran["loss"].backward()
    assert ran["x"].shape == x0.shape and ran["eps"].tolist() == [3.0, 3.0] and ran["net"].scale.grad is not None
    exact = torch.distributions.Normal(0, 1).log_prob(x0).flatten(1).sum(1)  # with v = 0 the data are N(0, 1)
    assert float((ran["ll"] - exact).abs().max()) < 0.5


def test_every_page_with_plain_blocks_is_among_the_cases() -> None:
    found = {str(page.relative_to(ROOT)): len(plain(page)) for page in PAGES if page.name not in THEIRS}
    assert {name for name, n in found.items() if n} == set(CASES)
    assert all(set(case.left_out) <= set(range(found[name])) for name, case in CASES.items())
