"""Layers along the frames of a video, between the blocks of a U-Net that sees each frame apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Style
from scoresde.models.layers import zero
from scoresde.models.transformers.tokens import TokenBlock

__all__ = ["Frames", "TemporalConvolutions", "TemporalTransformer", "TimeAttention", "fold", "offset_buckets", "unfold"]

_BUCKETS, _FURTHEST = 32, 128


def fold(x: Tensor) -> Tensor:
    """Return the frames of videos ``(batch, channels, frames, *axes)`` as one batch, ``(batch * frames, channels, *axes)``.

    Example:
        >>> import torch
        >>> fold(torch.zeros(2, 3, 5, 4, 4)).shape
        torch.Size([10, 3, 4, 4])
    """
    return x.transpose(1, 2).flatten(0, 1)


def unfold(h: Tensor, frames: int) -> Tensor:
    """Return videos of so many frames from a batch of frames, the inverse of :func:`fold`.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 3, 5, 4, 4)
        >>> torch.equal(unfold(fold(x), 5), x)
        True
    """
    return h.reshape(-1, frames, *h.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Frames:
    """The frames of a batch of videos.

    Args:
        number: the number of frames of each video.
        still: true for frames that are single images, which no other frame attends to, shape ``(batch, frames)``; ``None``
            if there are none.
    """

    number: int
    still: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, still: Tensor | None) -> Frames:
        """Return the frames of the videos ``x``, ``(batch, channels, frames, height, width)``.

        Args:
            x: the videos.
            still: booleans or whole numbers, shape ``(batch,)`` for whole samples or ``(batch, frames)``.

        Raises:
            ValueError: for another shape or dtype of ``still``.

        Example:
            >>> Frames.of(torch.zeros(2, 1, 3, 8, 8), torch.tensor([False, True])).still
            tensor([[False, False, False],
                    [ True,  True,  True]])
        """
        shape = (len(x), x.shape[2])
        if still is None:
            return cls(shape[1])
        if still.is_floating_point() or still.is_complex() or tuple(still.shape) not in (shape, shape[:1]):
            raise ValueError(
                f"got still of shape {tuple(still.shape)} and dtype {still.dtype}; expected booleans of shape {shape}, or "
                f"{shape[:1]} for all frames of a sample, true for frames that are single images"
            )
        return cls(shape[1], still.bool().reshape(len(x), -1).expand(shape))


def offset_buckets(frames: int, device: torch.device | None = None) -> Tensor:
    """Return the bucket of the offset from each frame to each other one, shape ``(frames, frames)``, int64.

    Offsets up to 7 frames in either direction have a bucket each. Larger ones share buckets whose widths grow
    geometrically, and from 91 frames on there is one bucket. So the same weights serve videos of any length.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
    https://arxiv.org/abs/1910.10683.

    Example:
        >>> offset_buckets(3)
        tensor([[ 0, 17, 18],
                [ 1,  0, 17],
                [ 2,  1,  0]])
    """
    place = torch.arange(frames, device=device)
    offset = place - place[:, None]  # from the row to the column
    half, near, size = _BUCKETS // 2, _BUCKETS // 4, offset.abs()
    far = near + ((size.clamp(min=1) / near).log() / math.log(_FURTHEST / near) * (half - near)).long().clamp(
        max=half - near - 1
    )
    return torch.where(size < near, size, far) + half * (offset > 0)


class TimeAttention(nn.Module):
    """A residual self-attention layer over the frames at each point, with a bias for the offset of two frames.

    A single image, and the only frame of a video, is returned as it is, so that the network is one of images there.

    Source: Ho et al., "Video Diffusion Models", 2022, https://arxiv.org/abs/2204.03458, section 3.
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.heads = style.heads_of(channels)
        self.style, self.norm = style, style.norm(channels)
        self.qkv, self.output = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.offsets = nn.Parameter(torch.zeros(self.heads, _BUCKETS))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """Apply the layer to frames ``x`` of shape ``(batch * frames, channels, height, width)``."""
        if frames.number == 1:
            return x
        points = x.shape[2:].numel()
        h = unfold(self.norm(x), frames.number).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (batch * points, frames, channels)
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch * points, heads, frames, c)
        bias = self.offsets[:, offset_buckets(frames.number, x.device)].to(q.dtype)[None]  # (1, heads, frames, frames)
        apart = None if frames.still is None else frames.still.repeat_interleave(points, 0)  # (batch * points, frames)
        if apart is not None:
            own = torch.eye(frames.number, dtype=torch.bool, device=x.device)
            seen = own | ~(apart[:, :, None] | apart[:, None])  # (batch * points, frames, frames)
            bias = bias.masked_fill(~seen[:, None], -math.inf)
        h = self.output(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        h = h.reshape(-1, *x.shape[2:], *h.shape[1:]).permute(0, 4, 3, 1, 2)  # (batch, channels, frames, height, width)
        if frames.still is None:
            return self.style.add(x, fold(h))
        alone = frames.still | ((~frames.still).sum(1, keepdim=True) == 1)
        return torch.where(alone.reshape(-1, 1, 1, 1), x, self.style.add(x, fold(h)))


class TemporalConvolutions(nn.Module):
    """Four convolutions along the frames, each after a normalization and silu, in a residual branch.

    Source: Wang et al., "ModelScope Text-to-Video Technical Report", 2023, https://arxiv.org/abs/2308.06571, section 3.2.
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.norms = nn.ModuleList([style.norm(channels, eps=1e-5) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(4)])
        self.dropout = nn.Dropout(style.dropout)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """Apply the layer to frames ``x`` of shape ``(batch * frames, channels, height, width)``."""
        h = unfold(x, frames.number)  # (batch, channels, frames, height, width)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(self.dropout(nn.functional.silu(norm(h))))
        return x + fold(h)


class TemporalTransformer(nn.Module):
    """A residual transformer over the frames at each point, which attend to each other twice.

    Args:
        channels: number of channels.
        style: the settings of the network.
        heads: number of heads.
        width: number of features of a token; ``None`` for ``channels``.

    Source: Wang et al., 2023, https://arxiv.org/abs/2308.06571, section 3.2.
    """

    def __init__(self, channels: int, style: Style, heads: int, width: int | None = None) -> None:
        super().__init__()
        width = width or channels
        self.norm = style.norm(channels, eps=1e-6)
        self.inward, self.outward = nn.Linear(channels, width), zero(nn.Linear(width, channels))
        self.blocks = nn.ModuleList([TokenBlock(width, heads, contexts=(None, None))])

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """Apply the layer to frames ``x`` of shape ``(batch * frames, channels, height, width)``."""
        videos = self.norm(unfold(x, frames.number)).permute(0, 3, 4, 2, 1)  # (batch, height, width, frames, channels)
        h = self.inward(videos.flatten(0, 2))  # (batch * height * width, frames, width)
        for block in self.blocks:
            h = block(h)
        h = self.outward(h).reshape(videos.shape).permute(0, 4, 3, 1, 2)  # (batch, channels, frames, height, width)
        return x + fold(h)
