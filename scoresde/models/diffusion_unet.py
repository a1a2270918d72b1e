"""The family of U-Nets that the published diffusion models are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Attention, CrossAttention, Resampled, ResidualBlock, Style, initialize
from scoresde.models.embedding import FourierFeatures, NoiseEmbedding, PositionalFeatures
from scoresde.models.layers import zero

__all__ = ["DiffusionUNet"]

_RESAMPLES = ("conv", "block")
_PYRAMIDS = ("none", "skip", "residual")
_TIMES = ("positional", "fourier")


class _Stage(nn.Module):
    """A residual block, then self-attention and attention to the context where asked for."""

    def __init__(self, c_in: int, c_out: int, style: Style, *, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(c_in, c_out, style)
        self.attention = Attention(c_out, style) if attention else None
        self.cross = CrossAttention(c_out, style) if attention and style.context is not None else None

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
        h = self.block(x, embedding)
        if self.attention is not None:
            h = self.attention(h)
        if self.cross is not None:
            h = self.cross(h, context)
        return cast(Tensor, h)


class _InputPyramid(nn.Module):
    """The image at the next resolution, joined to what the network made of it.

    "skip": the shrunken image through a 1x1 convolution, added. "residual": shrunken by a convolution, added, and the sum
    is the image that is shrunken next.
    """

    def __init__(self, kind: str, c_image: int, c: int, style: Style) -> None:
        super().__init__()
        self.kind, self.style = kind, style
        self.shrink = style.resample(up=False) if kind == "skip" else Resampled(c_image, c, style, up=False)
        self.conv = style.conv(c_image, c, 1) if kind == "skip" else nn.Identity()

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        image = self.shrink(image)
        if self.kind == "skip":
            return h + self.conv(image), image
        h = self.style.add(image, h)
        return h, h


class _OutputPyramid(nn.Module):
    """The output of the resolutions so far, joined by this one's.

    "skip": the enlarged output plus a convolution of this resolution's features. "residual": enlarged by a convolution
    and added to the features, which go on with the sum. The first, at the lowest resolution, has nothing to enlarge.
    """

    def __init__(self, kind: str, c_before: int | None, c: int, c_out: int, style: Style) -> None:
        super().__init__()
        self.kind, self.style = kind, style
        first = c_before is None
        self.enlarge: nn.Module | None = None
        if c_before is not None:
            self.enlarge = style.resample(up=True) if kind == "skip" else Resampled(c_before, c, style, up=True)
        writes = kind == "skip" or first
        self.norm = style.norm(c) if writes else None
        self.conv = style.conv(c, c_out if kind == "skip" else c) if writes else None

    def forward(self, h: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.norm is not None and self.conv is not None:
            written = self.conv(F.silu(self.norm(h)))
            return h, written if output is None or self.enlarge is None else self.enlarge(output) + written
        assert self.enlarge is not None
        h = self.style.add(self.enlarge(output), h)
        return h, h


class _Level(nn.Module):
    """All that happens at one resolution, in one direction, and the way to the next."""

    def __init__(self, stages: list[_Stage], resample: nn.Module | None, pyramid: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample, self.pyramid = resample, pyramid


class DiffusionUNet(nn.Module):
    r"""The U-Net of DDPM, DDPM++, NCSN++ and ADM, in one, two or three dimensions.

    Each level has ``blocks`` residual blocks on the way down and one more on the way up, where each takes one skip
    connection; between levels the resolution is halved. After Ho et al., 2020, https://arxiv.org/abs/2006.11239; Song et
    al., 2021, https://arxiv.org/abs/2011.13456; Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233; and Karras
    et al., 2022, https://arxiv.org/abs/2206.00364. :data:`~scoresde.models.PRESETS` holds the published points of it.

    Args:
        channels: of a sample of shape ``(channels, *axes)``.
        width: channels that ``multipliers`` multiply; also the number of time features, and a quarter of the embedding.
        multipliers: one per level, from the full resolution down.
        dims: number of axes: 1 for series, 2 for images, 3 for videos and volumes.
        out_channels: of the output; ``None`` for those of a sample.
        stem: channels of the first convolution; ``None`` for those of the first level.
        blocks: residual blocks per level.
        attention: the levels with self-attention, 0 for the full resolution; the lowest level always has one between the
            two directions.
        last_attention: on the way up, only after the last block of a level, and not after each.
        heads, head_channels: of the attention: their number, or, if given, their size.
        context: number of features of a context sequence, to which every attention is followed by cross-attention;
            ``None`` for none.
        resample: "conv", a strided convolution and the nearest neighbour, or "block", a residual block that resamples.
        fir: resample with a binomial filter and not with a box.
        project_skips: give a block that resamples a convolution in its skip connection even if its channels agree.
        asymmetric: pad strided convolutions at the last border alone, as DDPM does.
        input_pyramid: "none", "skip" or "residual": how the shrunken input enters each level.
        output_pyramid: likewise, how each level contributes to the output.
        adaptive: the embedding scales and shifts normalized features, and is not added before the normalization.
        rescale: divide each sum of a skip connection and its branch by the square root of 2.
        time: "positional" or "fourier" features.
        endpoint: of :class:`~scoresde.models.embedding.PositionalFeatures`.
        time_scale, time_shift: the unit of time and its zero; the features are those of (t - time_shift) / time_scale. The
            unit is 1 for the steps of a chain and 1/999 for times in [0, 1] that stand for 1000 of them.
        num_classes: number of class labels; ``None`` for a network without.
        label_dropout: probability, in training, of hiding a label; ``None`` for a network that needs its label.
        early_label: add the label's embedding to the features of time, and not to the embedding.
        augment: size of a vector that describes how a sample was augmented; 0 for none.
        groups, group_size: of the normalizations: their number, or fewer, so that each has ``group_size`` channels.
        eps: of the normalizations.
        dropout: probability, in training, of zeroing a feature of a residual block.

    The last convolutions of residual branches and the output start at zero. :attr:`config` holds the arguments, as plain
    values.

    Raises:
        ValueError: for sizes that are not positive, channels that groups or heads do not divide, and unknown choices.

    Example:
        >>> net = DiffusionUNet(1, 16, (1, 2), dims=1, context=5, attention=(1,))
        >>> net(torch.randn(3, 1, 8), torch.rand(3), context=torch.randn(3, 7, 5)).shape
        torch.Size([3, 1, 8])
    """

    def __init__(
        self,
        channels: int,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        *,
        dims: int = 2,
        out_channels: int | None = None,
        stem: int | None = None,
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        last_attention: bool = False,
        heads: int = 1,
        head_channels: int | None = None,
        context: int | None = None,
        resample: str = "block",
        fir: bool = False,
        project_skips: bool = False,
        asymmetric: bool = False,
        input_pyramid: str = "none",
        output_pyramid: str = "none",
        adaptive: bool = False,
        rescale: bool = False,
        time: str = "positional",
        endpoint: bool = False,
        time_scale: float = 1.0,
        time_shift: float = 0.0,
        num_classes: int | None = None,
        label_dropout: float | None = 0.1,
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
        sizes = [int(m * width) for m in multipliers]
        self.channels, self.dims, self.context = channels, dims, context
        self.factor = 2 ** (len(sizes) - 1)
        style = Style(
            dims,
            4 * width,
            groups,
            group_size,
            eps,
            adaptive,
            rescale,
            fir,
            project_skips,
            dropout,
            heads,
            head_channels,
            context,
        )
        features = 2 * width if time == "fourier" else width
        self.embedding = NoiseEmbedding(
            FourierFeatures(features, time_scale=time_scale, time_shift=time_shift)
            if time == "fourier"
            else PositionalFeatures(features, endpoint=endpoint, time_scale=time_scale, time_shift=time_shift),
            features,
            4 * width,
            num_classes=num_classes,
            label_dropout=label_dropout,
            early_label=early_label,
            augment=augment,
        )
        self.stem = style.conv(channels, stem or sizes[0])
        self.down, skips = self._way_down(sizes, style)
        self.middle = nn.ModuleList([_Stage(sizes[-1], sizes[-1], style, attention=a) for a in (True, False)])
        self.up = self._way_up(sizes, skips, style)
        c_out = channels if out_channels is None else out_channels
        writes = output_pyramid != "skip"
        self.norm = style.norm(sizes[0]) if writes else None
        self.output = style.conv(sizes[0], c_out) if writes else None
        initialize(self)
        for last in [self.output] if writes else [level.pyramid.conv for level in self.up]:  # type: ignore[union-attr]
            zero(cast(nn.Module, last))

    def _resample(self, c: int, style: Style, *, up: bool) -> nn.Module:
        if self.config["resample"] == "block":
            return ResidualBlock(c, c, style, up=up, down=not up)
        return Resampled(c, c, style, up=up, asymmetric=self.config["asymmetric"])

    def _way_down(self, sizes: list[int], style: Style) -> tuple[nn.ModuleList, list[int]]:
        """The levels from the full resolution to the lowest, and the channels of the skip connections."""
        levels = nn.ModuleList()
        c = self.config["stem"] or sizes[0]
        c_image, skips, kind = self.channels, [c], self.config["input_pyramid"]
        for i, size in enumerate(sizes):
            stages = []
            for _ in range(self.config["blocks"]):
                stages.append(_Stage(c, size, style, attention=i in self.config["attention"]))
                c = size
                skips.append(c)
            if i == len(sizes) - 1:
                levels.append(_Level(stages, None, None))
                break
            pyramid = None if kind == "none" else _InputPyramid(kind, c_image, c, style)
            c_image = c if kind == "residual" else c_image
            levels.append(_Level(stages, self._resample(c, style, up=False), pyramid))
            skips.append(c)
        return levels, skips

    def _way_up(self, sizes: list[int], skips: list[int], style: Style) -> nn.ModuleList:
        """The levels from the lowest resolution to the full one."""
        levels = nn.ModuleList()
        c, kind, blocks = sizes[-1], self.config["output_pyramid"], self.config["blocks"]
        c_out = self.config["out_channels"] or self.channels
        c_before = None
        for i, size in reversed(list(enumerate(sizes))):
            stages = []
            for j in range(blocks + 1):
                attention = i in self.config["attention"] and (j == blocks or not self.config["last_attention"])
                stages.append(_Stage(c + skips.pop(), size, style, attention=attention))
                c = size
            pyramid = None if kind == "none" else _OutputPyramid(kind, c_before, c, c_out, style)
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
        label: Tensor | None = None,
        context: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """The output at ``x`` of shape ``(batch, channels, *axes)``.

        Args:
            x: samples.
            t: times, shape ``(batch,)``.
            label: integers, shape ``(batch,)``, for a network with classes.
            context: sequences, shape ``(batch, tokens, features)``, for a network with context.
            augment: descriptions of the augmentation, shape ``(batch, augment)``, for a network with them; ``None``
                stands for samples as they are.

        Returns:
            Shape ``(batch, out_channels, *axes)``.
        """
        self._check_input(x, context)
        embedding = self.embedding(t, label, augment)
        h, image = self.stem(x), x
        skips = [h]
        for level in cast(list[_Level], self.down):
            for stage in level.stages:
                h = stage(h, embedding, context)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, embedding)
                if level.pyramid is not None:
                    h, image = level.pyramid(h, image)
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
                h = level.resample(h, embedding)
        if self.norm is None or self.output is None:
            return cast(Tensor, output)
        return cast(Tensor, self.output(F.silu(self.norm(h))))


def _check(config: dict[str, Any]) -> None:
    """Refuse what no network can be built from."""
    multipliers, width = config["multipliers"], config["width"]
    sizes = [config[name] for name in ("channels", "width", "blocks", "heads", "groups", "group_size")]
    if not multipliers or min(*sizes, *(int(m * width) for m in multipliers)) < 1:
        raise ValueError(
            f"got channels={config['channels']}, width={width}, multipliers={tuple(multipliers)}, "
            f"blocks={config['blocks']}, heads={config['heads']}, groups={config['groups']}, "
            f"group_size={config['group_size']}; expected positive sizes and at least one level"
        )
    if config["dims"] not in (1, 2, 3):
        raise ValueError(f"got dims={config['dims']}; expected 1 for series, 2 for images or 3 for videos")
    if bad := sorted(set(config["attention"]) - set(range(len(multipliers)))):
        raise ValueError(
            f"got attention at levels {bad}; expected levels from 0, the full resolution, to {len(multipliers) - 1}"
        )
    choices = {"resample": _RESAMPLES, "input_pyramid": _PYRAMIDS, "output_pyramid": _PYRAMIDS, "time": _TIMES}
    for name, allowed in choices.items():
        if config[name] not in allowed:
            raise ValueError(f"got {name}={config[name]!r}; expected one of {', '.join(map(repr, allowed))}")
