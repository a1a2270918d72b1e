"""A U-Net that is given the known part of an image, which it completes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.models.unet import UNet

__all__ = ["Inpainting"]


class Inpainting(nn.Module):
    """A U-Net whose input is the noised sample beside the known part of the sample and its mask.

    The weights of the first convolution for these ``channels + 1`` further channels are zero at initialisation. A network
    made from a trained one by :meth:`of` therefore equals it until it is trained.

    Args:
        channels: number of channels of a sample.
        unet: further arguments of :class:`UNet`: ``{"width": 64, "multipliers": [1, 2, 4]}``.

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for arguments of the U-Net that are set here, and those that it refuses.

    Source: Nichol et al., "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models",
    2022, https://arxiv.org/abs/2112.10741, section 2.4.

    Example:
        >>> base = UNet(3, 8, (1, 2))
        >>> net, x, t = Inpainting.of(base), torch.randn(2, 3, 8, 8), torch.rand(2)
        >>> torch.equal(net(x, t, known=torch.randn(2, 3, 8, 8), mask=torch.ones(2, 1, 8, 8)), base(x, t))
        True
    """

    def __init__(self, channels: int, unet: Mapping[str, Any]) -> None:
        super().__init__()
        if taken := sorted({"channels", "out_channels"} & unet.keys()):
            raise ValueError(f"got {taken[0]!r} for the U-Net of an Inpainting, which sets it itself; leave it out")
        self.channels = channels
        self.unet = UNet(2 * channels + 1, out_channels=channels, **unet)
        with torch.no_grad():
            cast(nn.Conv2d, self.unet.stem).weight[:, channels:] = 0
        self.config: dict[str, Any] = {"channels": channels, "unet": dict(unet)}

    @classmethod
    def of(cls, net: nn.Module) -> Inpainting:
        """Return a network with the weights of ``net``, which it equals whatever is known.

        Raises:
            TypeError: for another network than a :class:`UNet`.
            ValueError: for a U-Net whose output has other channels than its input.
        """
        if not isinstance(net, UNet):
            raise TypeError(f"got a {type(net).__name__} to complete images; expected a UNet")
        config = {name: value for name, value in net.config.items() if name not in ("channels", "out_channels")}
        if net.config["out_channels"] not in (None, net.channels):
            raise ValueError(
                f"got a U-Net of {net.channels} channels with out_channels={net.config['out_channels']}; expected as many"
            )
        own = cls(net.channels, config)
        weights = dict(net.state_dict())
        first = own.unet.state_dict()["stem.weight"].clone()
        first[:, : net.channels] = weights["stem.weight"]
        own.unet.load_state_dict(weights | {"stem.weight": first})
        return own.to(weights["stem.weight"])

    def forward(self, x: Tensor, t: Tensor, known: Tensor, mask: Tensor, **conditions: Any) -> Tensor:
        """Return the output at ``x``.

        Args:
            x: samples, shape ``(batch, channels, *axes)``.
            t: times, shape ``(batch,)``.
            known: samples of the same shape, of which the masked part is seen.
            mask: 1 where a sample is known and 0 elsewhere, shape ``(batch, 1, *axes)``.
            conditions: further conditions of the U-Net.
        """
        if known.shape != x.shape or mask.shape != (len(x), 1, *x.shape[2:]):
            raise ValueError(
                f"got known of shape {tuple(known.shape)} and mask of shape {tuple(mask.shape)} for x of shape "
                f"{tuple(x.shape)}; expected {tuple(x.shape)} and {(len(x), 1, *x.shape[2:])}"
            )
        seen = mask.to(x)
        return cast(Tensor, self.unet(torch.cat([x, known.to(x) * seen, seen], 1), t, **conditions))
