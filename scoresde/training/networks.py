"""Untrained networks for data: what suits an SDE, a small network for any data, and published ones by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoresde import models
from scoresde.base.names import check_names
from scoresde.base.settings import parse
from scoresde.models import MLP, UNet
from scoresde.score import ScoreModel
from scoresde.sde import EDM, VE, Chain, GaussianSDE
from scoresde.sde.names import SDES, process

__all__ = ["Choice", "build", "choice", "network"]


class Choice(NamedTuple):
    """What suits an SDE or a chain: what the network predicts, and the objective."""

    predicts: str
    objective: str


# v stays accurate at both ends of time where alpha^2 + sigma^2 = 1; the preconditioning of EDM is made for a large sigma;
# and the objective of DDPM would leave velocity untrained where alpha = 0. EDM's preconditioning, in terms of sigma / alpha,
# is finite on every SDE, and so suits those that others register.
_CHOICES = {
    "vp": Choice("v", "ddpm"),
    "cosine": Choice("v", "ddpm"),
    "subvp": Choice("v", "ddpm"),
    "ve": Choice("edm", "edm"),
    "edm": Choice("edm", "edm"),
    "flow": Choice("velocity", "edm"),
}


def choice(text: str) -> Choice:
    """What suits the SDE that ``text`` names, whatever its settings; a ValueError for an unknown one."""
    if isinstance(process(text), Chain):
        return Choice("eps", "ddpm")
    return _CHOICES.get(SDES.name(parse(text)[0]), Choice("edm", "edm"))


def _levels(height: int, width: int) -> tuple[int, ...]:
    """Multipliers of the channels: halve the image while it can be halved and is larger than 4."""
    multipliers = [1]
    while height % 2 == width % 2 == 0 and min(height, width) > 4 and len(multipliers) < 4:
        height, width = height // 2, width // 2
        multipliers.append(2)
    return tuple(multipliers)


def build(x: Tensor, sde: GaussianSDE, predicts: str, *, width: int = 32, classes: int = 0, seed: int = 0) -> ScoreModel:
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
    made: GaussianSDE | Chain,
    predicts: str,
    *,
    classes: int = 0,
    augment: int = 0,
    seed: int = 0,
) -> nn.Module:
    """An untrained published network that fits data, labels and time.

    Args:
        text: a name of :data:`scoresde.models.NETWORKS`, and changes to its arguments, which win over all that follows:
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
    make = models.NETWORKS[name].network
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


def _time(made: GaussianSDE | Chain, predicts: str) -> dict[str, float]:
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
