"""Run folders: what a training leaves in one, and how sampling finds it again.

A folder holds ``model.safetensors``, the checkpoint, and ``run.json``, which has what the weights do not tell: the shape
of a sample.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scoresde import models
from scoresde._files import replacing
from scoresde._near import near
from scoresde._settings import check_names, parse
from scoresde.chain import DDPM, Chain
from scoresde.models import MLP, UNet
from scoresde.score import ScoreModel
from scoresde.sde import EDM, VE, VP, AffineSDE, CosineVP, RectifiedFlow, SubVP
from scoresde.training import load
from scoresde.training.checkpoint import read

__all__ = [
    "CHECKPOINT",
    "SDES",
    "Choice",
    "build",
    "choice",
    "network",
    "open_run",
    "process",
    "sde",
    "steps_done",
    "write_shape",
]

CHECKPOINT = "model.safetensors"
_SHAPE = "run.json"


@dataclass(frozen=True)
class Choice:
    """An SDE or a chain, and what suits it: what the network predicts, and the objective."""

    make: Callable[..., AffineSDE | Chain]
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
    "ddpm": Choice(DDPM.linear, "eps", "ddpm"),
}


def choice(text: str) -> Choice:
    """The entry of :data:`SDES` that ``text`` names, whatever its settings, or a ValueError with the nearest names."""
    name = parse(text)[0]
    if name not in SDES:
        raise ValueError(f"got SDE {name!r}; expected one of {', '.join(SDES)}{near(name, SDES)}")
    return SDES[name]


def process(text: str) -> AffineSDE | Chain:
    """The SDE or chain that ``text`` names, with its settings: ``"ve: sigma_min=0.02, sigma_max=100.0"``."""
    make, settings = choice(text).make, parse(text)[1]
    check_names(f"the SDE {text!r}", settings, make)
    return make(**settings)


def sde(text: str) -> AffineSDE:
    """The same as an SDE: of a chain, the one through its marginals."""
    made = process(text)
    return made.sde() if isinstance(made, Chain) else made


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


def network(
    text: str,
    event: Sequence[int],
    made: AffineSDE | Chain,
    predicts: str,
    *,
    classes: int = 0,
    augment: int = 0,
    seed: int = 0,
) -> nn.Module:
    """An untrained published network that fits data, labels and time.

    Args:
        text: a name of :data:`scoresde.models.PRESETS`, and changes to its arguments, which win over all that follows:
            ``"ddpmpp-cifar10: dropout=0.2"``.
        event: the shape of an image, ``(c, h, w)``.
        made, predicts: of the score model, from which it follows what the network is told for the time.
        classes: of the labels; 0 for none.
        augment: length of the descriptions of augmented images; 0 for none.
        seed: of the initial weights; the global generator stays as it is.

    Raises:
        ValueError: for an unknown name or argument, with the nearest ones, for samples that are no images, and for labels
            or augmentation that the network cannot be told.
    """
    name, changes = parse(text)
    if len(event) != 3:
        raise ValueError(f"got the network {name!r} for samples of shape {tuple(event)}; expected images (c, h, w)")
    if name not in models.PRESETS:
        raise ValueError(
            f"got the network {name!r}; expected one of {', '.join(models.PRESETS)}{near(name, models.PRESETS)}"
        )
    make = models.PRESETS[name].network
    check_names(f"the network {name!r}", changes, make)
    told: dict[str, int | None] = {"num_classes": classes or None, "augment": augment}
    own: dict[str, object] = {"channels": event[0], "size": event[-1], "out_channels": None, **told, **_time(made, predicts)}
    known = inspect.signature(make).parameters
    for key, value in told.items():
        if value and key not in known:
            raise ValueError(f"got {key}={value} for the network {name!r}, which takes none; expected a U-Net of the table")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, **{key: value for key, value in own.items() if key in known} | changes)


def _time(made: AffineSDE | Chain, predicts: str) -> dict[str, float]:
    r"""The unit and the zero of time with which a published network gets the numbers that it was made for.

    They are steps of a chain, or 999 t; of a VE SDE :math:`\log(\sigma / 2)`, with :math:`\sigma` for data in [-1, 1],
    which is linear in t; and what EDM prescribes, which the score model itself provides.
    """
    if isinstance(made, Chain | EDM) or predicts == "edm":
        return {}
    if isinstance(made, VE):
        rate = math.log(made.sigma_max / made.sigma_min)
        return {"time_scale": 1 / rate, "time_shift": -math.log(made.sigma_min / 2) / rate}
    return {"time_scale": 1 / 999}


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
