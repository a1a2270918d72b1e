"""Layers along the frames of a video, between the blocks of a U-Net that sees each frame apart."""

from __future__ import annotations

from torch import Tensor, nn

from scoresde.models.blocks import Style
from scoresde.models.layers import zero
from scoresde.models.transformers.tokens import TokenBlock

__all__ = ["TemporalConvolutions", "TemporalTransformer", "fold", "unfold"]


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


class TemporalConvolutions(nn.Module):
    """Four convolutions along the frames, each after a normalization and silu, in a residual branch.

    Source: Wang et al., "ModelScope Text-to-Video Technical Report", 2023, https://arxiv.org/abs/2308.06571, section 3.2.
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.norms = nn.ModuleList([style.norm(channels, eps=1e-5) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(4)])
        self.dropout = nn.Dropout(style.dropout)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Apply the layer to frames ``x`` of shape ``(batch * frames, channels, height, width)``."""
        h = unfold(x, frames)  # (batch, channels, frames, height, width)
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

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Apply the layer to frames ``x`` of shape ``(batch * frames, channels, height, width)``."""
        videos = self.norm(unfold(x, frames)).permute(0, 3, 4, 2, 1)  # (batch, height, width, frames, channels)
        h = self.inward(videos.flatten(0, 2))  # (batch * height * width, frames, width)
        for block in self.blocks:
            h = block(h)
        h = self.outward(h).reshape(videos.shape).permute(0, 4, 3, 1, 2)  # (batch, channels, frames, height, width)
        return x + fold(h)
