"""What a training costs: floating-point operations of the network, and the hours of a GPU that they take."""

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
"""Operations per second of an A100 in bfloat16 without sparsity, as its maker states."""


def operations(net: nn.Module, event: Sequence[int]) -> int:
    """Floating-point operations of one evaluation of ``net`` for one sample of shape ``event``, as torch counts them.

    Those of convolutions, linear layers and attention, a multiplication and an addition counting as two. Nothing is
    computed: the network is copied to the meta device, where also attention consists of products that are counted.

    Example:
        >>> operations(models.MLP(2, hidden=(3,)), (2,)) >= 2 * (2 * 3 + 3 * 2)
        True
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).to("meta")(torch.empty(1, *event, device="meta"), torch.empty(1, device="meta"))
    return int(counter.get_total_flops())


def gpu_hours(preset: Preset, event: Sequence[int] = (3, 32, 32), *, rate: float = 0.4 * PEAK) -> float:
    r"""Hours that the training of ``preset`` takes on one GPU: three times a forward pass for every image.

    .. math:: \frac{3 \cdot \mathrm{operations} \cdot \mathrm{images}}{3600 \cdot \mathrm{rate}},

    a backward pass costing twice a forward one.

    Args:
        preset: a preset.
        event: the shape of an image.
        rate: operations per second that are sustained. The default is an assumption: 40 % of the peak of an A100, in
            bfloat16, compiled.

    Example:
        >>> from scoresde.presets import get
        >>> abs(gpu_hours(get("ddpm-cifar10")) / get("ddpm-cifar10").cost["a100-hours"] - 1) < 0.02
        True
    """
    name, changes = parse(preset.train["network"])
    with torch.device("meta"):
        net = models.build(name, **{"num_classes": None, **changes})
    return 3 * operations(net, event) * preset.images / rate / 3600
