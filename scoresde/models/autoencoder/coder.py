"""The encoder and the decoder of the autoencoders of latent diffusion: residual blocks with attention at the lowest level.

They have the architecture of the first stages of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models", 2022, https://arxiv.org/abs/2112.10752, which diffusers keeps: group normalization in 32 groups with 1e-6 added to
the variance, attention of one head, convolutions of stride 2 padded at the last border, nearest neighbours on the way up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Attention, Resampled, Style

__all__ = ["Decoder", "Encoder", "style"]


def style(dims: int, groups: int, dropout: float) -> Style:
    """Return the settings of all blocks of an encoder or decoder."""
    return Style(
        dims=dims,
        embedding=1,
        groups=groups,
        group_size=1,
        eps=1e-6,
        adaptive=False,
        rescale=False,
        fir=False,
        project_skips=False,
        dropout=dropout,
        heads=1,
        head_channels=None,
        context=None,
    )


class _Residual(nn.Module):
    """A residual block without an embedding, x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, c_in: int, c_out: int, style: Style) -> None:
        super().__init__()
        self.norm1, self.conv1 = style.norm(c_in), style.conv(c_in, c_out)
        self.norm2, self.conv2 = style.norm(c_out), style.conv(c_out, c_out)
        self.dropout = nn.Dropout(style.dropout)
        self.skip = style.conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return cast(Tensor, self.skip(x) + h)


class _Stage(nn.Module):
    """A residual block, optionally followed by attention."""

    def __init__(self, c_in: int, c_out: int, style: Style, *, attention: bool) -> None:
        super().__init__()
        self.block = _Residual(c_in, c_out, style)
        self.attention = Attention(c_out, style) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(x)
        return cast(Tensor, h if self.attention is None else self.attention(h))


class _Level(nn.Module):
    """The stages at one resolution, and the change to the next one."""

    def __init__(self, stages: list[_Stage], resample: nn.Module | None) -> None:
        super().__init__()
        self.stages, self.resample = nn.ModuleList(stages), resample

    def forward(self, h: Tensor) -> Tensor:
        for stage in self.stages:
            h = stage(h)
        return h if self.resample is None else self.resample(h)


def _middle(channels: int, style: Style, *, attention: bool) -> nn.Sequential:
    first = _Stage(channels, channels, style, attention=attention)
    return nn.Sequential(first, _Stage(channels, channels, style, attention=False))


class Encoder(nn.Module):
    """The encoder: levels from the full resolution down, each halving it except the last.

    Args:
        c_in, c_out: number of channels of its input and its output.
        sizes: number of channels of each level.
        blocks: number of residual blocks of each level.
        attention: the levels with attention after each block.
        middle: apply attention between the two blocks after the last level.
        style: the settings of the blocks.

    Example:
        >>> import torch
        >>> Encoder(3, 8, (16, 32), 1, (), True, style(2, 8, 0.0))(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self, c_in: int, c_out: int, sizes: Sequence[int], blocks: int, attention: Sequence[int], middle: bool, style: Style
    ) -> None:
        super().__init__()
        self.stem = style.conv(c_in, sizes[0])
        self.down, c = nn.ModuleList(), sizes[0]
        for i, size in enumerate(sizes):
            stages = [_Stage(size if j else c, size, style, attention=i in attention) for j in range(blocks)]
            last = i == len(sizes) - 1
            self.down.append(_Level(stages, None if last else Resampled(size, size, style, up=False, asymmetric=True)))
            c = size
        self.middle = _middle(c, style, attention=middle)
        self.norm, self.output = style.norm(c), style.conv(c, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the code of ``x`` of shape ``(batch, c_in, *axes)``, each axis halved between levels."""
        h = self.stem(x)
        for level in self.down:
            h = level(h)
        return cast(Tensor, self.output(F.silu(self.norm(self.middle(h)))))


class Decoder(nn.Module):
    """The decoder: levels from the lowest resolution up, each doubling it except the last, with one block more each.

    Args:
        c_in, c_out: number of channels of its input and its output.
        sizes: number of channels of each level, from the full resolution down, as for :class:`Encoder`.
        blocks: number of residual blocks of each level of the encoder; here there is one more.
        attention, middle, style: the same as for :class:`Encoder`.

    Example:
        >>> import torch
        >>> Decoder(4, 3, (16, 32), 1, (), True, style(2, 8, 0.0))(torch.zeros(2, 4, 4, 4)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self, c_in: int, c_out: int, sizes: Sequence[int], blocks: int, attention: Sequence[int], middle: bool, style: Style
    ) -> None:
        super().__init__()
        c = sizes[-1]
        self.stem = style.conv(c_in, c)
        self.middle = _middle(c, style, attention=middle)
        self.up = nn.ModuleList()
        for i, size in reversed(list(enumerate(sizes))):
            stages = [_Stage(size if j else c, size, style, attention=i in attention) for j in range(blocks + 1)]
            self.up.append(_Level(stages, Resampled(size, size, style, up=True) if i else None))
            c = size
        self.norm, self.output = style.norm(c), style.conv(c, c_out)

    def forward(self, z: Tensor) -> Tensor:
        """Return the data of ``z`` of shape ``(batch, c_in, *axes)``, each axis doubled between levels."""
        h = self.middle(self.stem(z))
        for level in self.up:
            h = level(h)
        return cast(Tensor, self.output(F.silu(self.norm(h))))
