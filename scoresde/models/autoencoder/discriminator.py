"""A discriminator of patches, which tells reconstructions from data."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """A convolutional network with one logit for each patch of an image, positive for data and negative for reconstructions.

    The published one normalises over the batch. Here the normalizations are in groups, so that the answer for a sample
    depends on no other sample, and neither on the number of processes.

    Args:
        channels: number of channels of an image.
        width: number of channels of the first layer, doubled by each layer up to eight times.
        layers: number of further layers of stride 2; a patch has 70 pixels a side with 3.
        groups: number of groups of each normalization.

    Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017,
    https://arxiv.org/abs/1611.07004.

    Raises:
        ValueError: for sizes that are not positive, and a width that is no multiple of ``groups``.

    Example:
        >>> import torch
        >>> PatchDiscriminator(3, 8, layers=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3, *, groups: int = 8) -> None:
        super().__init__()
        if min(channels, width, layers, groups) < 1 or width % groups:
            raise ValueError(
                f"got channels={channels}, width={width}, layers={layers}, groups={groups}; expected positive sizes and a "
                "width that is a multiple of groups"
            )
        self.config: dict[str, Any] = {"channels": channels, "width": width, "layers": layers, "groups": groups}
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        c = width
        for i in range(1, layers + 1):
            size = width * min(2**i, 8)
            parts.append(nn.Conv2d(c, size, 4, 2 if i < layers else 1, 1, bias=False))
            parts += [nn.GroupNorm(groups, size), nn.LeakyReLU(0.2)]
            c = size
        self.body = nn.Sequential(*parts, nn.Conv2d(c, 1, 4, 1, 1))
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the patches of images ``x``, shape ``(batch, 1, rows, columns)``."""
        return cast(Tensor, self.body(x))
