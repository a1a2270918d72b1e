"""The U-Net: one family that contains the networks of the published diffusion models and a lean one for CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Resampled, ResidualBlock, Style, initialize
from scoresde.models.labels import Label
from scoresde.models.layers import check_mask, widths, zero
from scoresde.models.pyramids import InputPyramid, OutputPyramid
from scoresde.models.temporal import Frames, TemporalConvolutions, TemporalTransformer, TimeAttention, fold, unfold
from scoresde.models.transformers.spatial import SpatialTransformer
from scoresde.models.unet.arguments import BY_LEVEL, check_arguments, embedding_of
from scoresde.models.unet.stages import Level, Stage, over_frames

__all__ = ["UNet"]


class UNet(nn.Module):
    r"""The U-Net of DDPM, DDPM++, NCSN++, ADM, Stable Diffusion and Imagen, in one, two or three dimensions.

    Each level has ``blocks`` residual blocks on the way down and one more on the way up, where each block takes one skip
    connection. Between levels the resolution is halved. Sources: Ho et al., 2020, https://arxiv.org/abs/2006.11239; Song et
    al., 2021, https://arxiv.org/abs/2011.13456; Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233; Karras et al.,
    2022, https://arxiv.org/abs/2206.00364; Rombach et al., 2022, https://arxiv.org/abs/2112.10752; and Saharia et al.,
    "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", 2022,
    https://arxiv.org/abs/2205.11487, appendix B, for the efficient one with ``resample="outer"``.
    :data:`~scoresde.models.NETWORKS` holds the published configurations.

    Args:
        channels: number of channels of a sample of shape ``(channels, *axes)``.
        width: number of channels that ``multipliers`` multiply; also the number of time features, and a quarter of the
            width of the embedding.
        multipliers: one multiplier per level, from the full resolution down.
        dims: number of axes: 1 for series, 2 for images, 3 for videos and volumes.
        lean: build a network with about half the arithmetic. It has as many blocks on the way up as on the way down; a skip
            connection from each of the latter, merged by a pointwise convolution; no blocks between the two directions; and
            changes of resolution without weights, so ``resample`` and its options have no effect.
        out_channels: number of channels of the output; ``None`` for that of a sample.
        stem: number of channels of the first convolution; ``None`` for that of the first level.
        blocks: number of residual blocks per level, or one number for each level.
        scale_skips: divide the skip connections between the two directions by the square root of 2, as Imagen does.
        attention: the levels with self-attention, 0 for the full resolution, -1 for the lowest. A network that is not lean
            always has attention between the two directions as well.
        last_attention: on the way up, apply attention after the last block of a level only, and not after each; with
            ``resample="outer"`` on the way down as well.
        heads: number of attention heads, or one number for each level.
        head_channels: number of channels of an attention head; if given, it determines the number of heads.
        context: number of features of a context sequence. Each self-attention is then followed by cross-attention to this
            sequence. ``None`` for a network without context.
        append_context: append the keys and values of the context to those of each self-attention, in place of
            cross-attention, as GLIDE does (Nichol et al., 2022, https://arxiv.org/abs/2112.10741).
        transformer: number of transformer blocks in place of each attention, as in Stable Diffusion, or one number for each
            level; 0 for attention alone. The middle has as many as the lowest level.
        temporal: with ``dims=3``, factorise the network into space and time, for videos ``(channels, frames, height,
            width)`` of any number of frames. Convolutions are 1 x 3 x 3 and the resolution of frames alone changes, so that
            blocks see each frame apart. "attention": each attention over space, and the first convolution, is followed by
            one over time with relative positions; with one frame the network is that of images (Ho et al., "Video Diffusion
            Models", 2022, https://arxiv.org/abs/2204.03458). "transformer": convolutions along the frames follow each
            block, and a transformer along them each attention (Wang et al., "ModelScope Text-to-Video Technical Report",
            2023, https://arxiv.org/abs/2308.06571). "none": the three axes are alike, as in volumes.
        resample: how the resolution changes. "conv": a strided convolution and the nearest neighbour. "block": a residual
            block that resamples. "outer": convolutions like those of "conv", before the blocks of each level on the way down
            and after them on the way up, the first level included. Such a network has no blocks between the two
            directions, and as many on the way up as on the way down, each with a skip connection.
        fir: resample with a binomial filter and not with a box.
        project_skips: give a block that resamples a convolution in its skip connection even if its channels agree.
        asymmetric: pad strided convolutions at the last border only, as DDPM does.
        input_pyramid: how the downsampled input enters each level: "none", "skip" or "residual".
        output_pyramid: how each level contributes to the output: "none", "skip" or "residual".
        adaptive: let the embedding scale and shift normalized features, instead of adding it before the normalization.
        rescale: divide each sum of a skip connection and its branch by the square root of 2.
        time: the kind of time features: "octaves", for all times in an interval
            (:class:`~scoresde.models.embedding.TimeFeatures`); "positional", for the steps of a chain; or "fourier".
        endpoint: an option of :class:`~scoresde.models.embedding.PositionalFeatures`.
        time_scale, time_shift: the unit of time and its zero; the features are those of (t - time_shift) / time_scale. For
            octaves the unit is the length of the interval of times: 1 for [0, 1], n for the steps of a chain of n. For
            positional features it is 1 for the steps of a chain, and 1/999 for times in [0, 1] that stand for 1000 steps.
        num_classes: number of class labels; ``None`` for an unconditional network.
        unconditional: whether a network with classes also accepts "no label", index ``num_classes``; see
            :class:`~scoresde.objectives.LabelDropout`. If not, every call needs a label.
        early_label: add the embedding of the label to the time features, and not to the final embedding.
        augment: size of the augmentation vector, which describes how a sample was augmented; 0 for none.
        pooled: number of features of a vector for each sample, such as the pooled embedding of a text, which is embedded and
            added to the embedding of time; 0 for none.
        guidance: whether the network is told a guidance scale, as one distilled from a guided network is.
        groups: number of groups of each normalization.
        group_size: the least number of channels of a group; if given, narrow layers have fewer than ``groups`` groups.
        eps: the constant added to the variance in the normalizations.
        dropout: probability of zeroing a feature of a residual block in training.

    The last convolutions of residual branches and the output are zero at initialisation. :attr:`config` holds the arguments
    as plain values.

    Raises:
        ValueError: for sizes that are not positive, channels that groups or heads do not divide, and unknown choices.

    Example:
        >>> net = UNet(1, 16, (1, 2), dims=1, context=5)
        >>> net(torch.randn(3, 1, 8), torch.rand(3), context=torch.randn(3, 7, 5)).shape
        torch.Size([3, 1, 8])
        >>> sizes = [sum(p.numel() for p in UNet(3, lean=lean).parameters()) for lean in (True, False)]
        >>> sizes[0] < 0.6 * sizes[1]
        True
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[float] = (1, 2, 2),
        *,
        dims: int = 2,
        lean: bool = False,
        out_channels: int | None = None,
        stem: int | None = None,
        blocks: int | Sequence[int] = 2,
        scale_skips: bool = False,
        attention: Sequence[int] = (-1,),
        last_attention: bool = False,
        heads: int | Sequence[int] = 4,
        head_channels: int | None = None,
        context: int | None = None,
        append_context: bool = False,
        transformer: int | Sequence[int] = 0,
        temporal: str = "none",
        resample: str = "block",
        fir: bool = False,
        project_skips: bool = False,
        asymmetric: bool = False,
        input_pyramid: str = "none",
        output_pyramid: str = "none",
        adaptive: bool = True,
        rescale: bool = False,
        time: str = "octaves",
        endpoint: bool = False,
        time_scale: float = 1.0,
        time_shift: float = 0.0,
        num_classes: int | None = None,
        unconditional: bool = True,
        early_label: bool = False,
        augment: int = 0,
        pooled: int = 0,
        guidance: bool = False,
        groups: int = 32,
        group_size: int = 4,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = config | {"multipliers": list(multipliers), "attention": list(attention)}
        self.config |= {n: v if isinstance(v, int) else list(v) for n, v in self.config.items() if n in BY_LEVEL}
        check_arguments(self.config)
        self.config["attention"] = [i % len(multipliers) for i in attention]
        self.channels, self.dims, self.context, self.lean = channels, dims, context, lean
        self.outer = resample == "outer" and not lean
        self.factor = 2 ** (len(multipliers) - (not self.outer))
        sizes = widths(width, multipliers)
        heads_here = self._levels("heads")
        shared = {field.name: self.config[field.name] for field in fields(Style) if field.name in self.config}
        in_time = temporal != "none"
        style = Style(embedding=4 * width, **shared | {"heads": heads_here[-1], "dims": dims - in_time})
        styles = [replace(style, heads=n) for n in heads_here]
        self.embedding = embedding_of(self.config)
        first = stem or sizes[0]
        self.stem = style.conv(channels, first)
        self.frames = over_frames(temporal, first, style, 8, 8 * (head_channels or -(-first // 8)))
        self.down, skips = self._way_down(sizes, styles)
        middle, depth = () if lean or self.outer else (True, False), self._levels("transformer")[-1]
        self.middle = nn.ModuleList(
            [Stage(sizes[-1], sizes[-1], style, attention=a, transformer=depth, temporal=temporal) for a in middle]
        )
        self.up = self._way_up(sizes, skips, styles)
        last = first if self.outer else sizes[0]
        writes = output_pyramid != "skip"
        self.norm = style.norm(last) if writes else None
        self.output = style.conv(last, channels if out_channels is None else out_channels) if writes else None
        self._initialize()

    def _initialize(self) -> None:
        initialize(self)
        for part in self.modules():
            if isinstance(part, SpatialTransformer | TemporalTransformer):
                zero(part.outward)
            elif isinstance(part, TemporalConvolutions):
                zero(part.convs[-1])
            elif isinstance(part, TimeAttention):
                zero(part.output)
        for last in [level.pyramid.conv for level in self.up] if self.output is None else [self.output]:  # type: ignore[union-attr]
            zero(cast(nn.Module, last))

    def _levels(self, name: str) -> list[int]:
        """Return the argument ``name`` for each level, from the full resolution down."""
        value = self.config[name]
        return [value] * len(self.config["multipliers"]) if isinstance(value, int) else value

    def _resample(self, c: int, style: Style, *, up: bool, c_out: int | None = None) -> nn.Module:
        if self.lean:
            return style.resample(up=up)
        if self.config["resample"] == "block":
            return ResidualBlock(c, c, style, up=up, down=not up)
        return Resampled(c, c_out or c, style, up=up, asymmetric=self.config["asymmetric"])

    def _way_down(self, sizes: list[int], styles: list[Style]) -> tuple[nn.ModuleList, list[int]]:
        """Return the levels from the full resolution to the lowest, and the channels of the skip connections."""
        levels = nn.ModuleList()
        c = self.config["stem"] or sizes[0]
        c_image, kind = self.channels, self.config["input_pyramid"]
        skips = [] if self.lean or self.outer else [c]
        depths, blocks = self._levels("transformer"), self._levels("blocks")
        kind_of_stage = {"merge": self.lean, "temporal": self.config["temporal"]}
        for i, (size, style) in enumerate(zip(sizes, styles, strict=True)):
            shrink = self._resample(c, style, up=False, c_out=size) if self.outer else None
            c, stages = size if self.outer else c, []
            for j in range(blocks[i]):
                attention = i in self.config["attention"]
                if self.outer and self.config["last_attention"]:
                    attention &= j == blocks[i] - 1
                stages.append(Stage(c, size, style, attention=attention, transformer=depths[i], **kind_of_stage))
                c = size
                skips.append(c)
            if self.outer or i == len(sizes) - 1:
                levels.append(Level(stages, shrink, None))
                continue
            pyramid = None if kind == "none" else InputPyramid(kind, c_image, c, style)
            c_image = c if kind == "residual" else c_image
            levels.append(Level(stages, self._resample(c, style, up=False), pyramid))
            if not self.lean:
                skips.append(c)
        return levels, skips

    def _way_up(self, sizes: list[int], skips: list[int], styles: list[Style]) -> nn.ModuleList:
        """Return the levels from the lowest resolution to the full one."""
        levels = nn.ModuleList()
        c, kind = sizes[-1], self.config["output_pyramid"]
        depths, more = self._levels("transformer"), not (self.lean or self.outer)
        kind_of_stage = {"merge": self.lean, "temporal": self.config["temporal"]}
        c_out = self.config["out_channels"] or self.channels
        c_before = None
        for i, (size, blocks, style) in reversed(list(enumerate(zip(sizes, self._levels("blocks"), styles, strict=True)))):
            stages = []
            for j in range(blocks + more):
                attention = i in self.config["attention"]
                attention &= j == blocks + more - 1 or not self.config["last_attention"]
                c_in = c + skips.pop()
                stages.append(Stage(c_in, size, style, attention=attention, transformer=depths[i], **kind_of_stage))
                c = size
            pyramid = None if kind == "none" else OutputPyramid(kind, c_before, c, c_out, style)
            c_before = c
            if self.outer:
                c = sizes[i - 1] if i else self.config["stem"] or sizes[0]
            enlarge = self._resample(size, style, up=True, c_out=c) if i or self.outer else None
            levels.append(Level(stages, enlarge, pyramid))
        return levels

    def _check_input(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> None:
        temporal = self.frames is not None
        wrong = x.ndim != self.dims + 2 or x.shape[1] != self.channels
        if wrong or any(n % self.factor for n in x.shape[2 + temporal :]):
            axes = (
                "frames, height, width" if temporal else ("length", "height, width", "depth, height, width")[self.dims - 1]
            )
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {self.channels}, {axes}), each axis "
                f"{'but the frames ' * temporal}a multiple of {self.factor}: pad the samples or take fewer multipliers"
            )
        if (context is None) != (self.context is None):
            raise ValueError(
                f"got {'no context' if context is None else 'a context'} for a network with context={self.context}; pass "
                "context=.. of shape (batch, tokens, features), or build the network without"
            )
        if context is not None and (context.ndim != 3 or context.shape[2] != self.context or len(context) != len(x)):
            raise ValueError(
                f"got a context of shape {tuple(context.shape)}; expected ({len(x)}, tokens, {self.context}), one "
                "sequence per sample"
            )
        check_mask(mask, context)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Label | None = None,
        context: Tensor | None = None,
        augment: Tensor | None = None,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
        still: Tensor | None = None,
    ) -> Tensor:
        """Return the output at ``x``.

        Args:
            x: samples, shape ``(batch, channels, *axes)``, such as videos, ``(batch, channels, frames, height, width)``.
            t: times, shape ``(batch,)``.
            label: integers, one per sample or one for all, for a network with classes; see :data:`~scoresde.models.Label`.
            context: sequences, shape ``(batch, tokens, features)``, for a network with context.
            augment: augmentation vectors, shape ``(batch, augment)``, for a network with them; ``None`` for samples that
                were not augmented.
            context_mask: the tokens of the context that are attended to, booleans or whole numbers, shape
                ``(batch, tokens)``; ``None`` for all of them.
            pooled: vectors, shape ``(batch, pooled)``, for a network with them.
            guidance: guidance scales, shape ``(batch,)``, for a network that is told them.
            still: frames that are single images, between which and others there is no attention over time, booleans of
                shape ``(batch, frames)``, or ``(batch,)`` for all frames of a sample; for ``temporal="attention"``.

        Returns:
            The output, shape ``(batch, out_channels, *axes)``.
        """
        self._check_input(x, context, context_mask)
        mask = None if context_mask is None else context_mask.bool()
        embedding = self.embedding(t, label, augment, pooled, guidance)
        if still is not None and self.config["temporal"] != "attention":
            raise ValueError(
                f"got still for a network with temporal={self.config['temporal']!r}; expected temporal='attention', whose "
                "frames can be single images"
            )
        frames = None if self.frames is None else Frames.of(x, still)
        if frames is not None:  # each frame is a sample of its own, except for the layers along the frames
            x, embedding = fold(x), embedding.repeat_interleave(frames.number, 0)
            context, mask = (None if told is None else told.repeat_interleave(frames.number, 0) for told in (context, mask))
        h, image = self.stem(x), x
        if self.frames is not None:
            h = self.frames(h, frames)
        skips = [] if self.lean or self.outer else [h]
        for level in cast(list[Level], self.down):
            if self.outer:
                h = level.change(h, embedding)
            for stage in level.stages:
                h = stage(h, embedding, context, mask, frames)
                skips.append(h)
            if level.resample is not None and not self.outer:
                h = level.change(h, embedding)
                if level.pyramid is not None:
                    h, image = level.pyramid(h, image)
                if not self.lean:
                    skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding, context, mask, frames)
        output = None
        for level in cast(list[Level], self.up):
            for stage in level.stages:
                skip = skips.pop() * math.sqrt(0.5) if self.config["scale_skips"] else skips.pop()
                h = stage(torch.cat([h, skip], dim=1), embedding, context, mask, frames)  # of both
            if level.pyramid is not None:
                h, output = level.pyramid(h, output)
            if level.resample is not None:
                h = level.change(h, embedding)
        if self.norm is not None and self.output is not None:
            output = self.output(F.silu(self.norm(h)))
        return cast(Tensor, output if frames is None else unfold(cast(Tensor, output), frames.number))
