"""The cost of a training: floating-point operations of the network, and GPU hours."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from scoresde import models
from scoresde.base.settings import parse
from scoresde.presets.files import Preset

__all__ = ["PEAK", "gpu_hours", "operations"]

PEAK = 312e12
"""Peak operations per second of an A100 in bfloat16 without sparsity, from its data sheet."""


def operations(net: nn.Module, event: Sequence[int]) -> int:
    """Count the floating-point operations of one evaluation of ``net`` for one sample of shape ``event``.

    The operations of convolutions, linear layers and attention are counted. A multiplication and an addition are two
    operations. Nothing is computed: the network is copied to the meta device, where attention consists of products, which
    are counted too.

    Example:
        >>> operations(models.MLP(2, hidden=(3,)), (2,)) >= 2 * (2 * 3 + 3 * 2)
        True
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).to("meta")(torch.empty(1, *event, device="meta"), torch.empty(1, device="meta"))
    return int(counter.get_total_flops())


def gpu_hours(preset: Preset, event: Sequence[int] = (3, 32, 32), *, rate: float = 0.4 * PEAK) -> float:
    r"""Estimate the hours that the training of ``preset`` takes on one GPU.

    .. math:: \frac{3 \cdot \mathrm{operations} \cdot \mathrm{images}}{3600 \cdot \mathrm{rate}}

    The factor 3 counts a forward pass, and a backward pass that costs twice as much.

    Args:
        preset: the preset.
        event: the shape of an image.
        rate: sustained operations per second. The default is an assumption for an A100 with a compiled network in bfloat16:
            40 % of the peak.

    Example:
        >>> from scoresde.presets import find_preset
        >>> abs(gpu_hours(find_preset("ddpm-cifar10")) / find_preset("ddpm-cifar10").cost["a100-hours"] - 1) < 0.02
        True
    """
    name, changes = parse(preset.train["network"])
    with torch.device("meta"):
        net = models.build(name, **{"num_classes": None, **changes})
    return 3 * operations(net, event) * preset.images / rate / 3600
