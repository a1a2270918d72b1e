"""Run folders: what a training leaves in one, and how sampling finds it again.

A folder holds ``model.safetensors``, the checkpoint, and ``run.json``, which has what the weights do not tell: the shape
of a sample.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde._files import replacing
from scoresde.models import MLP, UNet
from scoresde.score import ScoreModel
from scoresde.sde import EDM, VE, VP, AffineSDE, CosineVP, RectifiedFlow, SubVP
from scoresde.training import load
from scoresde.training.checkpoint import read

__all__ = ["CHECKPOINT", "SDES", "Choice", "build", "choice", "open_run", "steps_done", "write_shape"]

CHECKPOINT = "model.safetensors"
_SHAPE = "run.json"


@dataclass(frozen=True)
class Choice:
    """An SDE, and what suits it: what the network predicts, and the objective."""

    sde: Callable[[], AffineSDE]
    predicts: str
    objective: str


# v stays accurate at both ends of time where alpha^2 + sigma^2 = 1; the preconditioning of EDM is made for a large sigma;
# and the objective of DDPM would leave velocity untrained where alpha = 0.
SDES: dict[str, Choice] = {
    "vp": Choice(VP, "v", "ddpm"),
    "cosine": Choice(CosineVP, "v", "ddpm"),
    "subvp": Choice(SubVP, "v", "ddpm"),
    "ve": Choice(VE, "edm", "edm"),
    "edm": Choice(EDM, "edm", "edm"),
    "flow": Choice(RectifiedFlow, "velocity", "edm"),
}


def choice(name: str) -> Choice:
    """The entry of :data:`SDES` called ``name``, or a ValueError with the nearest names."""
    if name not in SDES:
        near = difflib.get_close_matches(name.lower(), SDES, n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"got SDE {name!r}; expected one of {', '.join(SDES)}{hint}")
    return SDES[name]


def _levels(height: int, width: int) -> tuple[int, ...]:
    """Multipliers of the channels: halve the image while it can be halved and is larger than 4."""
    multipliers = [1]
    while height % 2 == width % 2 == 0 and min(height, width) > 4 and len(multipliers) < 4:
        height, width = height // 2, width // 2
        multipliers.append(2)
    return tuple(multipliers)


def build(x: Tensor, sde: AffineSDE, predicts: str, *, width: int = 32, classes: int = 0, seed: int = 0) -> ScoreModel:
    """An untrained score model for data like ``x``: a lean U-Net for images, an MLP for vectors.

    Args:
        x: data, shape ``(n, c, h, w)`` or ``(n, d)``.
        sde, predicts: of the score model.
        classes: of the labels that the network gets; 0 for none.
        width: channels of the U-Net's first level; the MLP's layers are four times as wide.
        seed: of the initial weights; the global generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module
        if x.ndim == 4:
            levels = _levels(x.shape[2], x.shape[3])
            net = UNet(x.shape[1], width, levels, lean=True, blocks=1, num_classes=classes or None)
        else:
            net = MLP(x.shape[1], hidden=(4 * width,) * 3, num_classes=classes or None)
    return ScoreModel(net, sde, predicts, sigma_data=float(x.std()))


def write_shape(folder: Path, event: Sequence[int]) -> None:
    """Note the shape of a sample in the run folder."""
    with replacing(folder / _SHAPE) as temporary:
        temporary.write_text(json.dumps({"event": list(event)}) + "\n")


def _shape(folder: Path) -> tuple[int, ...]:
    path = folder / _SHAPE
    try:
        event = tuple(json.loads(path.read_text())["event"])
    except FileNotFoundError:
        raise ValueError(f"found no {path}, which would tell the shape of a sample; give it: --shape 1,28,28") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the shape of a sample in {path}: {error!r}; give it: --shape 1,28,28") from error
    return event


def open_run(where: str | os.PathLike[str], event: Sequence[int] | None = None) -> tuple[ScoreModel, tuple[int, ...]]:
    """The model of a run folder or of a checkpoint file, and the shape of a sample, ``event`` where that is given."""
    path = Path(where)
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    model = load(checkpoint)
    return model, _shape(checkpoint.parent) if event is None else tuple(event)


def steps_done(checkpoint: Path) -> int:
    """The steps of training that a checkpoint holds; 0 where there is none."""
    return int(read(checkpoint, ()).description.get("step", 0)) if checkpoint.exists() else 0
