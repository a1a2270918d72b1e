"""The U-Net: one family that contains the networks of the published diffusion models and a lean one for CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Attention, CrossAttention, Resampled, ResidualBlock, Style, initialize
from scoresde.models.embedding import NoiseEmbedding, time_features
from scoresde.models.labels import Label
from scoresde.models.layers import zero
from scoresde.models.pyramids import PYRAMIDS, InputPyramid, OutputPyramid

__all__ = ["UNet"]

_CHOICES = {"resample": ("conv", "block"), "input_pyramid": PYRAMIDS, "output_pyramid": PYRAMIDS}


class _Stage(nn.Module):
    """A residual block, optionally followed by self-attention and cross-attention to the context.

    With ``merge`` a pointwise convolution before the block changes the number of channels, and not the block itself.
    """

    def __init__(self, c_in: int, c_out: int, style: Style, *, attention: bool, merge: bool = False) -> None:
        super().__init__()
        merge = merge and c_in != c_out
        self.merge = style.conv(c_in, c_out, 1) if merge else None
        self.block = ResidualBlock(c_out if merge else c_in, c_out, style)
        self.attention = Attention(c_out, style) if attention else None
        self.cross = CrossAttention(c_out, style) if attention and style.context is not None else None

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
        h = self.block(x if self.merge is None else self.merge(x), embedding)
        if self.attention is not None:
            h = self.attention(h)
        if self.cross is not None:
            h = self.cross(h, context)
        return cast(Tensor, h)


class _Level(nn.Module):
    """The stages at one resolution in one direction, and the change to the next resolution."""

    def __init__(self, stages: list[_Stage], resample: nn.Module | None, pyramid: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample, self.pyramid = resample, pyramid

    def change(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Return ``h`` at the next resolution."""
        assert self.resample is not None
        return cast(Tensor, self.resample(h, embedding) if isinstance(self.resample, ResidualBlock) else self.resample(h))


class UNet(nn.Module):
    r"""The U-Net of DDPM, DDPM++, NCSN++ and ADM, in one, two or three dimensions, and a lean one for CPUs.

    Each level has ``blocks`` residual blocks on the way down and one more on the way up, where each block takes one skip
    connection. Between levels the resolution is halved. Sources: Ho et al., 2020, https://arxiv.org/abs/2006.11239; Song et
    al., 2021, https://arxiv.org/abs/2011.13456; Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233; and Karras
    et al., 2022, https://arxiv.org/abs/2206.00364. :data:`~scoresde.models.NETWORKS` holds the published configurations.

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
        blocks: number of residual blocks per level.
        attention: the levels with self-attention, 0 for the full resolution, -1 for the lowest. A network that is not lean
            always has attention between the two directions as well.
        last_attention: on the way up, apply attention after the last block of a level only, and not after each.
        heads: number of attention heads.
        head_channels: number of channels of an attention head; if given, it determines the number of heads.
        context: number of features of a context sequence. Each self-attention is then followed by cross-attention to this
            sequence. ``None`` for a network without context.
        resample: "conv", a strided convolution and the nearest neighbour, or "block", a residual block that resamples.
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
        blocks: int = 2,
        attention: Sequence[int] = (-1,),
        last_attention: bool = False,
        heads: int = 4,
        head_channels: int | None = None,
        context: int | None = None,
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
        groups: int = 32,
        group_size: int = 4,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = config | {"multipliers": list(multipliers), "attention": list(attention)}
        _check(self.config)
        self.config["attention"] = [i % len(multipliers) for i in attention]
        self.channels, self.dims, self.context, self.lean = channels, dims, context, lean
        self.factor = 2 ** (len(multipliers) - 1)
        sizes = [int(m * width) for m in multipliers]
        shared = {field.name: self.config[field.name] for field in fields(Style) if field.name in self.config}
        style = Style(embedding=4 * width, **shared)
        self.embedding = _embedding(self.config)
        self.stem = style.conv(channels, stem or sizes[0])
        self.down, skips = self._way_down(sizes, style)
        middle = () if lean else (True, False)
        self.middle = nn.ModuleList([_Stage(sizes[-1], sizes[-1], style, attention=a) for a in middle])
        self.up = self._way_up(sizes, skips, style)
        writes = output_pyramid != "skip"
        self.norm = style.norm(sizes[0]) if writes else None
        self.output = style.conv(sizes[0], channels if out_channels is None else out_channels) if writes else None
        initialize(self)
        for last in [self.output] if writes else [level.pyramid.conv for level in self.up]:  # type: ignore[union-attr]
            zero(cast(nn.Module, last))

    def _resample(self, c: int, style: Style, *, up: bool) -> nn.Module:
        if self.lean:
            return style.resample(up=up)
        if self.config["resample"] == "block":
            return ResidualBlock(c, c, style, up=up, down=not up)
        return Resampled(c, c, style, up=up, asymmetric=self.config["asymmetric"])

    def _way_down(self, sizes: list[int], style: Style) -> tuple[nn.ModuleList, list[int]]:
        """Return the levels from the full resolution to the lowest, and the channels of the skip connections."""
        levels = nn.ModuleList()
        c = self.config["stem"] or sizes[0]
        c_image, kind = self.channels, self.config["input_pyramid"]
        skips = [] if self.lean else [c]
        for i, size in enumerate(sizes):
            stages = []
            for _ in range(self.config["blocks"]):
                stages.append(_Stage(c, size, style, attention=i in self.config["attention"], merge=self.lean))
                c = size
                skips.append(c)
            if i == len(sizes) - 1:
                levels.append(_Level(stages, None, None))
                break
            pyramid = None if kind == "none" else InputPyramid(kind, c_image, c, style)
            c_image = c if kind == "residual" else c_image
            levels.append(_Level(stages, self._resample(c, style, up=False), pyramid))
            if not self.lean:
                skips.append(c)
        return levels, skips

    def _way_up(self, sizes: list[int], skips: list[int], style: Style) -> nn.ModuleList:
        """Return the levels from the lowest resolution to the full one."""
        levels = nn.ModuleList()
        c, kind, blocks = sizes[-1], self.config["output_pyramid"], self.config["blocks"] + (not self.lean)
        c_out = self.config["out_channels"] or self.channels
        c_before = None
        for i, size in reversed(list(enumerate(sizes))):
            stages = []
            for j in range(blocks):
                attention = i in self.config["attention"] and (j == blocks - 1 or not self.config["last_attention"])
                stages.append(_Stage(c + skips.pop(), size, style, attention=attention, merge=self.lean))
                c = size
            pyramid = None if kind == "none" else OutputPyramid(kind, c_before, c, c_out, style)
            c_before = c
            levels.append(_Level(stages, self._resample(c, style, up=True) if i else None, pyramid))
        return levels

    def _check_input(self, x: Tensor, context: Tensor | None) -> None:
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels or any(n % self.factor for n in x.shape[2:]):
            axes = ("length", "height, width", "depth, height, width")[self.dims - 1]
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {self.channels}, {axes}), each axis a multiple of "
                f"{self.factor}: pad the samples or take fewer multipliers"
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

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Label | None = None,
        context: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Return the output at ``x``.

        Args:
            x: samples, shape ``(batch, channels, *axes)``.
            t: times, shape ``(batch,)``.
            label: integers, one per sample or one for all, for a network with classes; see :data:`~scoresde.models.Label`.
            context: sequences, shape ``(batch, tokens, features)``, for a network with context.
            augment: augmentation vectors, shape ``(batch, augment)``, for a network with them; ``None`` for samples that
                were not augmented.

        Returns:
            The output, shape ``(batch, out_channels, *axes)``.
        """
        self._check_input(x, context)
        embedding = self.embedding(t, label, augment)
        h, image = self.stem(x), x
        skips = [] if self.lean else [h]
        for level in cast(list[_Level], self.down):
            for stage in level.stages:
                h = stage(h, embedding, context)
                skips.append(h)
            if level.resample is not None:
                h = level.change(h, embedding)
                if level.pyramid is not None:
                    h, image = level.pyramid(h, image)
                if not self.lean:
                    skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding, context)
        output = None
        for level in cast(list[_Level], self.up):
            for stage in level.stages:
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding, context)  # channels of both
            if level.pyramid is not None:
                h, output = level.pyramid(h, output)
            if level.resample is not None:
                h = level.change(h, embedding)
        if self.norm is None or self.output is None:
            return cast(Tensor, output)
        return cast(Tensor, self.output(F.silu(self.norm(h))))


def _embedding(config: dict[str, Any]) -> NoiseEmbedding:
    """Return the embedding of time, label and augmentation of a network with these arguments."""
    n = config["width"] * (2 if config["time"] == "fourier" else 1)
    of_time = {name: config[name] for name in ("endpoint", "time_scale", "time_shift")}
    rest = {name: config[name] for name in ("num_classes", "unconditional", "early_label", "augment")}
    return NoiseEmbedding(time_features(config["time"], n, **of_time), 4 * config["width"], **rest)


def _check(config: dict[str, Any]) -> None:
    """Refuse arguments from which no network can be built."""
    multipliers, width = config["multipliers"], config["width"]
    levels = len(multipliers)
    sizes = [config[name] for name in ("channels", "width", "blocks", "heads", "groups", "group_size")]
    if not multipliers or min(*sizes, *(int(m * width) for m in multipliers)) < 1:
        raise ValueError(
            f"got channels={config['channels']}, width={width}, multipliers={tuple(multipliers)}, "
            f"blocks={config['blocks']}, heads={config['heads']}, groups={config['groups']}, "
            f"group_size={config['group_size']}; expected positive sizes and at least one level"
        )
    if config["dims"] not in (1, 2, 3):
        raise ValueError(f"got dims={config['dims']}; expected 1 for series, 2 for images or 3 for videos")
    if bad := sorted(set(config["attention"]) - set(range(-levels, levels))):
        raise ValueError(
            f"got attention at levels {bad}; expected levels from 0, the full resolution, to {levels - 1}, or, counted from "
            f"the lowest, from -1 to {-levels}"
        )
    for name, allowed in _CHOICES.items():
        if config[name] not in allowed:
            raise ValueError(f"got {name}={config[name]!r}; expected one of {', '.join(map(repr, allowed))}")
    if config["lean"] and config["context"] is not None and not config["attention"]:
        raise ValueError("got a context for a lean network without attention, which has no place for it; pass attention=..")
