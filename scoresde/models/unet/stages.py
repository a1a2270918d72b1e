"""The parts of a U-Net: stages, which are blocks with their attention, and levels, the stages at one resolution."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from scoresde.models.blocks import Attention, CrossAttention, ResidualBlock, Style
from scoresde.models.temporal import Frames, TemporalConvolutions, TemporalTransformer, TimeAttention
from scoresde.models.transformers.spatial import SpatialTransformer

__all__ = ["Level", "Stage", "over_frames"]


class Stage(nn.Module):
    """A residual block, optionally followed by self-attention and cross-attention to the context, or by a transformer.

    With ``merge`` a pointwise convolution before the block changes the number of channels, and not the block itself. In a
    network of videos the attention is followed by ``temporal="attention"`` over the frames or by a ``"transformer"`` along
    them; with the latter, convolutions along the frames follow the block.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        style: Style,
        *,
        attention: bool,
        transformer: int = 0,
        merge: bool = False,
        temporal: str = "none",
    ) -> None:
        super().__init__()
        merge, bare = merge and c_in != c_out, attention and not transformer
        self.merge = style.conv(c_in, c_out, 1) if merge else None
        self.block = ResidualBlock(c_out if merge else c_in, c_out, style)
        self.attention = Attention(c_out, style) if bare else None
        crosses = bare and style.context is not None and not style.append_context
        self.cross = CrossAttention(c_out, style) if crosses else None
        self.transformer = SpatialTransformer(c_out, style, transformer) if attention and transformer else None
        self.along = TemporalConvolutions(c_out, style) if temporal == "transformer" else None
        self.frames = over_frames(temporal, c_out, style, style.heads_of(c_out)) if attention else None

    def forward(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None, frames: Frames | None = None
    ) -> Tensor:
        h = self.block(x if self.merge is None else self.merge(x), embedding)
        if self.along is not None:
            h = self.along(h, frames)
        if self.attention is not None:
            h = self.attention(h, context, mask)
        if self.cross is not None:
            h = self.cross(h, context, mask)
        if self.transformer is not None:
            h = self.transformer(h, context, mask)
        if self.frames is not None:
            h = self.frames(h, frames)
        return cast(Tensor, h)


def over_frames(temporal: str, channels: int, style: Style, heads: int, width: int | None = None) -> nn.Module | None:
    """Return the layer by which the frames of a video attend to each other, ``None`` for networks of other data."""
    if temporal == "transformer":
        return TemporalTransformer(channels, style, heads, width)
    return TimeAttention(channels, style) if temporal == "attention" else None


class Level(nn.Module):
    """The stages at one resolution in one direction, and the change to the next resolution."""

    def __init__(self, stages: list[Stage], resample: nn.Module | None, pyramid: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample, self.pyramid = resample, pyramid

    def change(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Return ``h`` at the next resolution."""
        assert self.resample is not None
        return cast(Tensor, self.resample(h, embedding) if isinstance(self.resample, ResidualBlock) else self.resample(h))
