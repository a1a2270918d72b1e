"""A small noise-conditional U-Net, for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.layers import Embedding, modulate, zero

__all__ = ["UNet"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class _ResidualBlock(nn.Module):
    """x + conv(silu(modulate(norm(conv(silu(norm(x)))), embedding)))."""

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.norm2, self.conv2 = _norm(channels), zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (batch, channels, height, width)
        h = modulate(self.norm2(h), self.modulation(embedding))
        return x + cast(Tensor, self.conv2(self.dropout(F.silu(h))))


class _Attention(nn.Module):
    """x + the self-attention of its pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = math.gcd(heads, channels)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2)  # (batch, 3 channels, pixels)
        qkv = qkv.unflatten(1, (3, self.heads, -1)).transpose(3, 4)  # (batch, 3, heads, pixels, channels / heads)
        h = F.scaled_dot_product_attention(*qkv.unbind(1))  # (batch, heads, pixels, channels / heads)
        return x + cast(Tensor, self.output(h.transpose(2, 3).reshape(x.shape)))  # (batch, channels, height, width)


class _Stage(nn.Module):
    """A pointwise change of channels where needed, a residual block, and attention where asked for."""

    def __init__(self, c_in: int, c_out: int, embedding: int, dropout: float, heads: int | None) -> None:
        super().__init__()
        # Merging skip connections here, and not in the block's first convolution, saves a third of the arithmetic.
        self.merge = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.block = _ResidualBlock(c_out, embedding, dropout)
        self.attention = nn.Identity() if heads is None else _Attention(c_out, heads)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return cast(Tensor, self.attention(self.block(self.merge(x), embedding)))


class UNet(nn.Module):
    r"""A noise-conditional U-Net: residual blocks at halving resolutions and back, joined by skip connections.

    After Ho et al., "Denoising Diffusion Probabilistic Models", 2020, with the embedding of time entering as scale and
    shift (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021), average pooling down and nearest
    neighbours up.

    Args:
        channels: of an image.
        width: channels of the first level.
        multipliers: of ``width``, one per level; each halves the resolution, so height and width must be multiples of
            :math:`2^{levels - 1}`.
        blocks: residual blocks per level and direction.
        attention: number of levels, counted from the lowest resolution, with self-attention.
        heads: of the attention.
        time_features: number of Fourier features of time.
        time_scale: about the length of the interval of the times it gets: 1 for times in [0, 1], n for the steps of a
            chain of n, 1 for EDM's noise level.
        num_classes: number of class labels; ``None`` for a network without.
        label_dropout: probability, in training, of hiding a label.
        dropout: probability, in training, of zeroing a feature of a residual block.

    The output layer starts at zero. :attr:`config` holds the arguments, as plain values.

    Example:
        >>> net = UNet(1, width=16, multipliers=(1, 2), num_classes=10)
        >>> x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
        >>> net(x, t, label=torch.tensor([4, 0, 9])).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 3),
        *,
        blocks: int = 1,
        attention: int = 1,
        heads: int = 4,
        time_features: int = 64,
        time_scale: float = 1.0,
        num_classes: int | None = None,
        label_dropout: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(channels, width, blocks, heads, *multipliers, len(multipliers)) < 1:
            raise ValueError(
                f"got channels={channels}, width={width}, multipliers={tuple(multipliers)}, blocks={blocks}, "
                f"heads={heads}; expected positive sizes and at least one level"
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": attention,
            "heads": heads,
            "time_features": time_features,
            "time_scale": time_scale,
            "num_classes": num_classes,
            "label_dropout": label_dropout,
            "dropout": dropout,
        }
        self.channels = channels
        embedding = 4 * width
        self.embedding = Embedding(embedding, time_features, time_scale, num_classes, label_dropout)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        sizes = [width * m for m in multipliers]
        attends = [heads if len(sizes) - level <= attention else None for level in range(len(sizes))]

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = width, []
        for size, h in zip(sizes, attends, strict=True):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(_Stage(c, size, embedding, dropout, h))
                c = size
                skips.append(c)
            self.down.append(level)
        for size, h in zip(reversed(sizes), reversed(attends), strict=True):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(_Stage(c + skips.pop(), size, embedding, dropout, h))
                c = size
            self.up.append(level)
        self.norm, self.output = _norm(c), zero(nn.Conv2d(c, channels, 3, padding=1))

    def _check(self, x: Tensor) -> None:
        factor = 2 ** (len(self.down) - 1)
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {self.channels}, height, width) with height and "
                f"width multiples of {factor}, for {len(self.down)} levels: pad the images or take fewer multipliers"
            )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The output at images ``x``, with ``t`` and ``label`` of shape ``(batch,)``; shape of ``x``."""
        self._check(x)
        embedding = self.embedding(t, label)
        h = self.stem(x)
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            if i:
                h = F.avg_pool2d(h, 2)  # (batch, c, height / 2, width / 2)
            for stage in cast(nn.ModuleList, level):
                h = stage(h, embedding)
                skips.append(h)
        for i, level in enumerate(self.up):
            if i:
                h = F.interpolate(h, scale_factor=2.0)  # (batch, c, 2 height, 2 width)
            for stage in cast(nn.ModuleList, level):
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)  # channels of both
        return cast(Tensor, self.output(F.silu(self.norm(h))))
