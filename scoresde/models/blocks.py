"""The blocks of the U-Nets: residual blocks, attention, and changes of resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.layers import modulate, zero
from scoresde.models.resample import Resample

__all__ = ["Attention", "CrossAttention", "Resampled", "ResidualBlock", "Style", "initialize"]

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Style:
    """The settings that all blocks of one network share."""

    dims: int
    embedding: int
    groups: int
    group_size: int
    eps: float
    adaptive: bool
    rescale: bool
    fir: bool
    project_skips: bool
    dropout: float
    heads: int
    head_channels: int | None
    context: int | None
    append_context: bool = False

    def norm(self, channels: int, eps: float | None = None) -> nn.GroupNorm:
        """Return a group normalization in ``groups`` groups, or in fewer groups of at least ``group_size`` channels."""
        groups = max(1, min(self.groups, channels // self.group_size))
        if channels % groups:
            raise ValueError(
                f"got {channels} channels for a normalization in {groups} groups; expected a multiple: take a width that "
                "is a multiple of groups, or fewer groups"
            )
        return nn.GroupNorm(groups, channels, eps=self.eps if eps is None else eps)

    def conv(self, c_in: int, c_out: int, size: int = 3, stride: int = 1, padding: int | None = None) -> nn.Module:
        """Return a convolution of kernel size ``size``, which by default keeps the resolution."""
        module = _CONV[self.dims](c_in, c_out, size, stride, size // 2 if padding is None else padding)
        return cast(nn.Module, module)

    def resample(self, *, up: bool) -> Resample:
        """Return the parameter-free layer that doubles the resolution, or halves it unless ``up``."""
        return Resample(self.dims, up=up, fir=self.fir)

    def heads_of(self, channels: int) -> int:
        """Return the number of attention heads for ``channels``: ``heads``, or as many as have ``head_channels`` each."""
        heads = self.heads if self.head_channels is None else channels // self.head_channels
        if heads < 1 or channels % heads or (self.head_channels and channels % self.head_channels):
            raise ValueError(
                f"got heads={self.heads} and head_channels={self.head_channels} for attention between {channels} channels; "
                "expected heads of equal size"
            )
        return heads

    def add(self, x: Tensor, h: Tensor) -> Tensor:
        """Return x + h, divided by the square root of 2 if the network rescales its sums."""
        return (x + h) * math.sqrt(0.5) if self.rescale else x + h


class ResidualBlock(nn.Module):
    """A residual block, x + conv(silu(norm(conv(silu(norm(x)))))), conditioned on the embedding.

    The embedding is added before the second normalization; in an ``adaptive`` style it scales and shifts the result of that
    normalization instead. With ``up`` or ``down`` both branches change the resolution, the residual branch after its first
    nonlinearity (Brock et al., "Large Scale GAN Training", 2019, https://arxiv.org/abs/1809.11096).
    """

    def __init__(self, c_in: int, c_out: int, style: Style, *, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.style = style
        self.norm1, self.conv1 = style.norm(c_in), style.conv(c_in, c_out)
        self.modulation = nn.Linear(style.embedding, 2 * c_out if style.adaptive else c_out)
        self.norm2, self.conv2 = style.norm(c_out), style.conv(c_out, c_out)
        self.dropout = nn.Dropout(style.dropout)
        self.resample = style.resample(up=up) if up or down else nn.Identity()
        projected = c_in != c_out or ((up or down) and style.project_skips)
        self.skip = style.conv(c_in, c_out, 1) if projected else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block to ``x`` of shape ``(batch, c_in, *axes)`` with ``embedding``, ``(batch, style.embedding)``."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))  # (batch, c_out, *axes)
        told = self.modulation(embedding)
        if self.style.adaptive:
            h = modulate(self.norm2(h), told)
        else:
            h = self.norm2(h + told.reshape(*told.shape, *[1] * (h.ndim - 2)))
        h = self.conv2(self.dropout(F.silu(h)))
        return self.style.add(self.skip(self.resample(x)), h)


class Attention(nn.Module):
    """A residual self-attention layer over the points of an image, and over a context sequence where it is appended."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.style, self.heads = style, style.heads_of(channels)
        self.norm = style.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.appended = None
        if style.append_context and style.context is not None:
            self.appended = nn.Linear(style.context, 2 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer to ``x`` of shape ``(batch, channels, *axes)``.

        A style that appends the context adds the keys and values of ``context``, shape ``(batch, tokens, features)``, to
        those of the points; ``mask``, shape ``(batch, tokens)``, is true for the tokens that are attended to.
        """
        h = self.norm(x).flatten(2).transpose(1, 2)  # (batch, points, channels)
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch, heads, points, c)
        allowed = None
        if self.appended is not None and context is not None:
            more = self.appended(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            k, v = (torch.cat(both, dim=2) for both in zip((k, v), more, strict=True))  # (batch, heads, points + tokens, c)
            allowed = None if mask is None else F.pad(mask, (h.shape[1], 0), value=True)[:, None, None]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        h = self.output(h.transpose(1, 2).flatten(2))  # (batch, points, channels)
        return self.style.add(x, h.transpose(1, 2).reshape(x.shape))


class CrossAttention(nn.Module):
    """A residual cross-attention layer from the points of an image to a context sequence."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        if style.context is None:
            raise ValueError("got a style without context; expected the number of its features")
        self.style, self.heads = style, style.heads_of(channels)
        self.norm = style.norm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(style.context, 2 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the layer to ``x`` of shape ``(batch, channels, *axes)``.

        ``context`` has shape ``(batch, tokens, features)``, ``mask`` has shape ``(batch, tokens)`` and is true for the
        tokens that are attended to.
        """
        h = self.norm(x).flatten(2).transpose(1, 2)  # (batch, points, channels)
        q = self.q(h).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch, heads, points, c)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, c)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        h = self.output(h.transpose(1, 2).flatten(2))  # (batch, points, channels)
        return self.style.add(x, h.transpose(1, 2).reshape(x.shape))


class _PadLast(nn.Module):
    """A layer that pads each axis at its end by one zero, which a convolution of size 3 and stride 2 needs."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.pad = (0, 1) * dims

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad)


class Resampled(nn.Module):
    """A convolution together with a change of resolution; the image is padded once, before both.

    With a filter, the filter is applied first. On the way down it is applied at full resolution, and the convolution has
    stride 2. Without a filter the resolution changes by the stride or by nearest neighbours; ``asymmetric`` then pads the
    last border only, as DDPM does.
    """

    def __init__(self, c_in: int, c_out: int, style: Style, *, up: bool, asymmetric: bool = True) -> None:
        super().__init__()
        self.resample: nn.Module
        if style.fir:
            self.resample = Resample(style.dims, up=up, fir=True, stride=2 if up else 1, padding=0 if up else 2)
        elif up:
            self.resample = style.resample(up=True)
        else:
            self.resample = _PadLast(style.dims) if asymmetric else nn.Identity()
        padding = int(not style.fir and (up or not asymmetric))
        self.conv = style.conv(c_in, c_out, stride=1 if up else 2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape ``(batch, c_in, *axes)`` with c_out channels at the new resolution."""
        return cast(Tensor, self.conv(self.resample(x)))


def initialize(module: nn.Module) -> None:
    """Initialise a network as DDPM does.

    Weights are uniform with variance 2 / (inputs + outputs). Biases and the last layers of residual branches are zero.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            zero(part.conv2)
        elif isinstance(part, Attention | CrossAttention):
            zero(part.output)
