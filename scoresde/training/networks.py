"""Untrained networks for given data: a small network for any data, published ones by name, and defaults for an SDE."""

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
    """The default prediction of the network and the default objective for an SDE or a chain."""

    predicts: str
    objective: str


# If alpha^2 + sigma^2 = 1, v stays accurate at both ends of time. EDM's preconditioning is made for a large sigma. The
# objective of DDPM would leave velocity untrained where alpha = 0. EDM's preconditioning, in terms of sigma / alpha, is
# finite on every SDE, so it is the default for SDEs that users register.
_CHOICES = {
    "vp": Choice("v", "ddpm"),
    "cosine": Choice("v", "ddpm"),
    "subvp": Choice("v", "ddpm"),
    "ve": Choice("edm", "edm"),
    "edm": Choice("edm", "edm"),
    "flow": Choice("velocity", "edm"),
}


def choice(text: str) -> Choice:
    """Return the default prediction and objective for the SDE or chain that ``text`` names; its settings have no influence.

    Raises:
        ValueError: for an unknown SDE or chain, with the nearest names.

    Example:
        >>> choice("ve: sigma_max=100.0")
        Choice(predicts='edm', objective='edm')
    """
    if isinstance(process(text), Chain):
        return Choice("eps", "ddpm")
    return _CHOICES.get(SDES.name(parse(text)[0]), Choice("edm", "edm"))


def _levels(height: int, width: int) -> tuple[int, ...]:
    """Return the channel multipliers of a U-Net that halves the image while its sides are even and larger than 4."""
    multipliers = [1]
    while height % 2 == width % 2 == 0 and min(height, width) > 4 and len(multipliers) < 4:
        height, width = height // 2, width // 2
        multipliers.append(2)
    return tuple(multipliers)


def build(x: Tensor, sde: GaussianSDE, predicts: str, *, width: int = 32, classes: int = 0, seed: int = 0) -> ScoreModel:
    """Build an untrained score model for data like ``x``: a small U-Net for images, an MLP for vectors.

    Args:
        x: data, shape ``(n, c, h, w)`` or ``(n, d)``; their standard deviation becomes ``sigma_data``.
        sde: the SDE of the score model.
        predicts: a name in :data:`scoresde.score.PREDICTIONS`.
        width: channels of the U-Net's first level; the MLP's layers are four times as wide.
        classes: number of classes that the network is conditioned on; 0 for none.
        seed: seed of the initial weights. The state of the global generator is restored.

    Example:
        >>> from scoresde import VP
        >>> build(torch.randn(8, 2), VP(), "v").net.config["hidden"]
        [128, 128, 128]
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
    """Build an untrained published network, fitted to the images, their classes and the times of an SDE.

    Args:
        text: a name in :data:`scoresde.models.NETWORKS` and changes to its arguments, ``"ddpmpp-cifar10: dropout=0.2"``.
            These changes take precedence over the other arguments.
        event: the shape of an image, ``(c, h, w)``.
        made: the SDE or chain of the score model. With ``predicts`` it determines the unit of the network's time.
        predicts: a name in :data:`scoresde.score.PREDICTIONS`.
        classes: number of classes that the network is conditioned on; 0 for none.
        augment: length of the descriptions of augmented images; 0 for none.
        seed: seed of the initial weights. The state of the global generator is restored.

    Raises:
        ValueError: for an unknown name or argument, with the nearest ones; for samples that are not images; for classes or
            augmentation if the network takes no such condition.

    Example:
        >>> from scoresde import VP
        >>> with torch.device("meta"):  # without memory
        ...     network("ddpmpp-cifar10: dropout=0.2", (3, 32, 32), VP(), "eps").config["dropout"]
        0.2
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
            raise ValueError(
                f"got {key}={value} for the network {name!r}, which takes no {key}; expected {key}=0 or a "
                "U-Net of scoresde.models.NETWORKS"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, **{key: value for key, value in own.items() if key in known} | changes)


def _time(made: GaussianSDE | Chain, predicts: str) -> dict[str, float]:
    r"""Return ``time_scale`` and ``time_shift``, with which a published network gets the times that it was made for.

    A network on a chain gets the step. On a VE SDE it gets :math:`\log(\sigma / 2)`, with :math:`\sigma` for data in
    [-1, 1], which is linear in t. On EDM, and with EDM's preconditioning, the score model provides the time itself. On
    every other SDE the network gets 999 t.
    """
    if isinstance(made, Chain | EDM) or predicts == "edm":
        return {}
    if isinstance(made, VE):
        rate = math.log(made.sigma_max / made.sigma_min)
        return {"time_scale": 1 / rate, "time_shift": -math.log(made.sigma_min / 2) / rate}
    return {"time_scale": 1 / 999}
