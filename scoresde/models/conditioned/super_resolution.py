"""A U-Net that is given a smaller version of its output: the network of a stage of a cascade."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.unet import UNet

__all__ = ["SuperResolution"]

_FREQUENCIES = 4
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SuperResolution(nn.Module):
    """A U-Net whose input is the noised sample beside a smaller one, enlarged, and the level of its augmentation.

    Args:
        channels: number of channels of a sample.
        unet: further arguments of :class:`UNet`: ``{"width": 64, "multipliers": [1, 2, 4]}``. The level takes the place of
            the augmentation vector, so ``augment`` is not among them.
        low_channels: number of channels of the smaller sample; ``None`` for those of a sample.
        highest: the highest level, by which levels are divided.

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for arguments of the U-Net that are set here, and those that it refuses.

    Source: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", 2021,
    https://arxiv.org/abs/2106.15282.

    Example:
        >>> net = SuperResolution(1, {"width": 8, "multipliers": [1, 2]})
        >>> net(torch.zeros(2, 1, 8, 8), torch.rand(2), low=torch.zeros(2, 1, 4, 4), level=torch.zeros(2)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        unet: Mapping[str, Any],
        low_channels: int | None = None,
        highest: float = 1.0,
    ) -> None:
        super().__init__()
        if taken := sorted({"channels", "out_channels", "augment"} & unet.keys()):
            raise ValueError(f"got {taken[0]!r} for the U-Net of a SuperResolution, which sets it itself; leave it out")
        if not highest > 0:
            raise ValueError(f"got highest={highest}; expected a positive number")
        self.low_channels, self.highest = channels if low_channels is None else low_channels, highest
        self.unet = UNet(channels + self.low_channels, out_channels=channels, augment=2 * _FREQUENCIES + 1, **unet)
        own = {"channels": channels, "unet": dict(unet), "low_channels": low_channels, "highest": highest}
        self.config: dict[str, Any] = own

    def forward(self, x: Tensor, t: Tensor, low: Tensor, level: Tensor | None = None, **conditions: Any) -> Tensor:
        """Return the output at ``x``.

        Args:
            x: samples, shape ``(batch, channels, *axes)``.
            t: times, shape ``(batch,)``.
            low: smaller samples, augmented at their level, shape ``(batch, low_channels, *axes)``.
            level: the levels, shape ``(batch,)``; ``None`` for 0.
            conditions: further conditions of the U-Net.
        """
        if low.ndim != x.ndim or low.shape[:2] != (len(x), self.low_channels):
            raise ValueError(
                f"got low of shape {tuple(low.shape)} for x of shape {tuple(x.shape)}; expected "
                f"({len(x)}, {self.low_channels}, ..), a smaller sample for each sample"
            )
        large = F.interpolate(low.to(x), size=x.shape[2:], mode=_MODES[x.ndim - 2], align_corners=False)
        told = torch.zeros(len(x), device=x.device) if level is None else level.to(x.device)
        return cast(Tensor, self.unet(torch.cat([x, large], 1), t, augment=self._features(told).to(x), **conditions))

    def _features(self, level: Tensor) -> Tensor:
        """Return waves of the level, shape ``(batch, features)``; all 0 at level 0, as for an input without augmentation."""
        u = level[:, None] / self.highest
        angles = math.pi / 2 * u * 2.0 ** torch.arange(_FREQUENCIES, device=level.device)
        return torch.cat([u, angles.sin(), angles.cos() - 1], 1)
