"""The multimodal diffusion transformer (MM-DiT): patches of an image and tokens of a text that attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.embedding import NoiseEmbedding
from scoresde.models.embedding import time_features as features_of
from scoresde.models.layers import check_mask, zero
from scoresde.models.transformers.patches import pack, unpack
from scoresde.models.transformers.positions import grid, rotate, rotations, sines

__all__ = ["MMDiT"]

Pair = tuple[Tensor, Tensor]


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + scale) h + shift for h of shape (batch, tokens, width) and the others (batch, width)."""
    return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


def _part(rotation: Pair, tokens: slice) -> Pair:
    cos, sin = rotation
    return cos[tokens], sin[tokens]


class _Projections(nn.Module):
    """Queries, keys and values of one kind of token, the first two normalized and rotated."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, h: Tensor, rotation: Pair | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of ``h``, shape ``(batch, heads, tokens, features)`` each."""
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotation is None else (rotate(q, *rotation), rotate(k, *rotation), v)


class _Stream(nn.Module):
    """The layers of a double block for one kind of token.

    Args:
        width, heads, ratio, qk_norm: the settings of the network.
        last: the tokens are attended to and not used afterwards, so that the stream ends with its keys and values.
        dual: the tokens attend to themselves alone as well, in a second attention beside the joint one.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, qk_norm: bool, *, last: bool = False, dual: bool = False
    ) -> None:
        super().__init__()
        self.last, self.dual = last, dual
        self.norm = _norm(width)
        self.modulation = nn.Linear(width, (2 if last else 9 if dual else 6) * width)
        self.joint = _Projections(width, heads, qk_norm)
        self.own = _Projections(width, heads, qk_norm) if dual else None
        self.own_output = nn.Linear(width, width) if dual else None
        self.output = None if last else nn.Linear(width, width)
        self.hidden = None if last else nn.Linear(width, int(ratio * width))
        self.back = None if last else nn.Linear(int(ratio * width), width)

    def begin(self, h: Tensor, embedding: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the normalized and modulated tokens, and the rest of the modulation."""
        shift, scale, *rest = self.modulation(embedding).chunk(2 if self.last else 9 if self.dual else 6, dim=1)
        return _modulate(self.norm(h), shift, scale), tuple(rest)

    def end(self, h: Tensor, attended: Tensor, rest: tuple[Tensor, ...], rotation: Pair | None) -> Tensor:
        """Add the attention, shape ``(batch, tokens, width)``, and the perceptron to the tokens ``h``."""
        assert self.output is not None and self.hidden is not None and self.back is not None
        gate1, shift2, scale2, gate2, *more = rest
        before = h
        h = h + gate1[:, None] * self.output(attended)
        if self.own is not None and self.own_output is not None:
            shift, scale, gate = more
            own = F.scaled_dot_product_attention(*self.own(_modulate(self.norm(before), shift, scale), rotation))
            h = h + gate[:, None] * self.own_output(own.transpose(1, 2).flatten(2))
        inner = F.gelu(self.hidden(_modulate(self.norm(h), shift2, scale2)), approximate="tanh")
        return cast(Tensor, h + gate2[:, None] * self.back(inner))


class _Double(nn.Module):
    """A block with layers of their own for image and text, whose tokens attend to each other."""

    def __init__(
        self, width: int, heads: int, ratio: float, qk_norm: bool, *, last: bool = False, dual: bool = False
    ) -> None:
        super().__init__()
        self.image = _Stream(width, heads, ratio, qk_norm, dual=dual)
        self.text = _Stream(width, heads, ratio, qk_norm, last=last)

    def forward(
        self, text: Tensor, image: Tensor, embedding: Tensor, rotation: tuple[Pair | None, Pair | None], mask: Tensor | None
    ) -> Pair:
        streams: list[_Stream] = [self.text, self.image]
        begun = [stream.begin(h, embedding) for stream, h in zip(streams, (text, image), strict=True)]
        heads = [stream.joint(h, turn) for stream, (h, _), turn in zip(streams, begun, rotation, strict=True)]
        q, k, v = (torch.cat(both, dim=2) for both in zip(*heads, strict=True))  # (batch, heads, tokens of both, c)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        of_text, of_image = h[:, : text.shape[1]], h[:, text.shape[1] :]
        if not self.text.last:
            text = self.text.end(text, of_text, begun[0][1], rotation[0])
        return text, self.image.end(image, of_image, begun[1][1], rotation[1])


class _Single(nn.Module):
    """A block with the same layers for all tokens, whose attention and perceptron are beside each other."""

    def __init__(self, width: int, heads: int, ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.modulation = nn.Linear(width, 3 * width)
        self.joint = _Projections(width, heads, qk_norm)
        self.hidden = nn.Linear(width, int(ratio * width))
        self.output = nn.Linear(width + int(ratio * width), width)

    def forward(self, h: Tensor, embedding: Tensor, rotation: Pair | None, mask: Tensor | None) -> Tensor:
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=1)
        inner = _modulate(self.norm(h), shift, scale)
        q, k, v = self.joint(inner, rotation)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        both = torch.cat([attended, F.gelu(self.hidden(inner), approximate="tanh")], dim=2)
        return cast(Tensor, h + gate[:, None] * self.output(both))


class MMDiT(nn.Module):
    r"""The multimodal diffusion transformer of Stable Diffusion 3 and Flux, for images of any size.

    Patches of the image and tokens of the text have layers of their own in the first blocks (double streams) and share them
    in the blocks after these (single streams); all attend to each other in each block. Time, a pooled vector of the text and
    the guidance scale of a distilled network modulate each block. Sources: Esser et al., "Scaling Rectified Flow
    Transformers for High-Resolution Image Synthesis", 2024, https://arxiv.org/abs/2403.03206; Black Forest Labs, "FLUX.1",
    2024, https://github.com/black-forest-labs/flux.

    Args:
        channels: number of channels of an image.
        patch: height and width of a patch; the sizes of an image are multiples of it.
        context: number of features of a token of the text.
        width: number of features of a token, a multiple of ``heads`` and of 4.
        depth: number of double-stream blocks.
        single: number of single-stream blocks. Without them the last double-stream block ends the stream of the text.
        heads: number of attention heads.
        ratio: number of hidden features of the perceptrons, divided by ``width``.
        out_channels: number of channels of the output; ``None`` for the number of channels of an image.
        pooled: number of features of a vector for each sample, such as the pooled embedding of a text; 0 for none.
        guidance: whether the network is told a guidance scale.
        rotary: number of features of a head for each axis of position: a constant, the row and the column, which sum to the
            features of a head. All tokens of the text have position 0. ``None`` for positions that are added to the patches.
        largest: for added positions, the largest number of patches in a row or column.
        base: for added positions, the number of patches in a row of the images trained on first, to which ``largest`` is
            scaled. Smaller images have the positions in the middle of the largest one.
        qk_norm: normalize queries and keys (RMS), as Stable Diffusion 3.5 and Flux do.
        dual: the double-stream blocks, counted from 0, whose patches attend to themselves alone as well.
        time: the kind of time features, as in :class:`~scoresde.models.UNet`.
        time_features: number of time features.
        time_scale: the unit of time; 1/1000 for times in [0, 1] and "positional" features, as published. The guidance scale
            has the same unit.

    The output is zero at initialisation. :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, or that are not the required multiples.

    Example:
        >>> net = MMDiT(4, 2, 5, width=16, depth=1, single=1, heads=2, rotary=(2, 2, 4), pooled=3)
        >>> x, context, pooled = torch.randn(2, 4, 8, 6), torch.randn(2, 7, 5), torch.randn(2, 3)
        >>> net(x, torch.rand(2), context=context, pooled=pooled).shape
        torch.Size([2, 4, 8, 6])
    """

    def __init__(
        self,
        channels: int,
        patch: int = 2,
        context: int = 4096,
        *,
        width: int = 1536,
        depth: int = 24,
        single: int = 0,
        heads: int = 24,
        ratio: float = 4.0,
        out_channels: int | None = None,
        pooled: int = 0,
        guidance: bool = False,
        rotary: Sequence[int] | None = None,
        largest: int = 192,
        base: int = 64,
        qk_norm: bool = False,
        dual: Sequence[int] = (),
        time: str = "octaves",
        time_features: int = 256,
        time_scale: float = 1.0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        rotary = None if rotary is None else list(rotary)
        self.config: dict[str, Any] = config | {"rotary": rotary, "dual": sorted(dual)}
        _check(self.config)
        self.channels, self.patch, self.context = channels, patch, context
        self.embedding = NoiseEmbedding(
            features_of(time, time_features, time_scale=time_scale), width, pooled=pooled, guidance=guidance
        )
        self.stem, self.text = nn.Linear(channels * patch**2, width), nn.Linear(context, width)
        shared = (width, heads, ratio, qk_norm)
        self.doubles = nn.ModuleList(
            [_Double(*shared, last=not single and i == depth - 1, dual=i in self.config["dual"]) for i in range(depth)]
        )
        self.singles = nn.ModuleList([_Single(*shared) for _ in range(single)])
        self.norm, self.modulation = _norm(width), nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, patch**2 * (channels if out_channels is None else out_channels))
        self._initialize()

    def _initialize(self) -> None:
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
                if name.endswith("modulation"):
                    zero(part)
        for layer in (self.embedding.layer1, self.embedding.layer2):
            nn.init.normal_(layer.weight, std=0.02)
        zero(self.output)

    def _positions(self, rows: int, columns: int, x: Tensor) -> Tensor:
        """Return the positions to add to the patches, those in the middle of the largest image."""
        largest, base = self.config["largest"], self.config["base"]
        if max(rows, columns) > largest:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}, {rows} by {columns} patches, for a network with largest={largest}; "
                "expected no more in a row or column: build it with a larger number, or with rotary=.."
            )
        first = torch.tensor([(largest - n) // 2 for n in (rows, columns)], device=x.device)
        return sines((grid(rows, columns, device=x.device) + first) * (base / largest), self.config["width"]).to(x.dtype)

    def _rotations(self, rows: int, columns: int, tokens: int, x: Tensor) -> Pair | None:
        """Return the rotations of the tokens of the text and the patches after them."""
        if self.config["rotary"] is None:
            return None
        places = F.pad(grid(rows, columns, device=x.device), (1, 0, tokens, 0))  # (tokens + patches, 3)
        return rotations(places, self.config["rotary"])

    def _check_input(self, x: Tensor, context: Tensor, mask: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels or any(n % self.patch or n == 0 for n in x.shape[2:]):
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {self.channels}, height, width), both sizes multiples "
                f"of {self.patch}"
            )
        if context.ndim != 3 or context.shape[2] != self.context or len(context) != len(x):
            raise ValueError(
                f"got a context of shape {tuple(context.shape)}; expected ({len(x)}, tokens, {self.context}), one sequence "
                "per sample"
            )
        check_mask(mask, context)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output at images ``x``.

        Args:
            x: images, shape ``(batch, channels, height, width)``.
            t: times, shape ``(batch,)``.
            context: tokens of the text, shape ``(batch, tokens, context)``.
            pooled: vectors, shape ``(batch, pooled)``, for a network with them.
            guidance: guidance scales, shape ``(batch,)``, for a network that is told them.
            context_mask: the tokens of the text that are attended to, shape ``(batch, tokens)``; ``None`` for all of them.

        Returns:
            The output, shape ``(batch, out_channels, height, width)``.
        """
        if context is None:
            raise ValueError(f"got no context for an MMDiT; pass context=.. of shape (batch, tokens, {self.context})")
        self._check_input(x, context, context_mask)
        rows, columns = (n // self.patch for n in x.shape[2:])
        embedding = self.embedding(t, pooled=pooled, guidance=guidance)
        image, text = self.stem(pack(x, self.patch)), self.text(context.to(self.text.weight.dtype))
        tokens, patches = text.shape[1], image.shape[1]
        turn = self._rotations(rows, columns, tokens, x)
        if turn is None:
            image = image + self._positions(rows, columns, x)
        apart = (None, None) if turn is None else (_part(turn, slice(tokens)), _part(turn, slice(tokens, None)))
        mask = None if context_mask is None else F.pad(context_mask.bool(), (0, patches), value=True)[:, None, None]
        for block in self.doubles:
            text, image = block(text, image, embedding, apart, mask)
        if len(self.singles):
            both = torch.cat([text, image], dim=1)  # (batch, tokens + patches, width)
            for block in self.singles:
                both = block(both, embedding, turn, mask)
            image = both[:, tokens:]
        shift, scale = self.modulation(embedding).chunk(2, dim=1)
        return unpack(self.output(_modulate(self.norm(image), shift, scale)), rows, self.patch)


def _check(config: dict[str, Any]) -> None:
    """Refuse arguments from which no network can be built."""
    names = ("channels", "patch", "context", "width", "depth", "heads", "ratio", "largest", "base")
    if bad := [name for name in names if not config[name] > 0]:
        raise ValueError(f"got {bad[0]}={config[bad[0]]}; expected a positive number")
    if min(config["single"], config["pooled"]) < 0:
        raise ValueError(f"got single={config['single']}, pooled={config['pooled']}; expected at least 0")
    width, heads, rotary = config["width"], config["heads"], config["rotary"]
    if width % heads or width % 4:
        raise ValueError(f"got width={width} with {heads} heads; expected a multiple of 4 and of the heads")
    if rotary is not None and (len(rotary) != 3 or any(n < 0 or n % 2 for n in rotary) or sum(rotary) != width // heads):
        raise ValueError(
            f"got rotary={rotary} for heads of {width // heads} features; expected three even numbers that sum to "
            f"{width // heads}: for the constant axis, the row and the column"
        )
    depth = config["depth"]
    if bad_blocks := sorted(set(config["dual"]) - set(range(depth))):
        raise ValueError(f"got dual blocks {bad_blocks} of {depth}; expected numbers from 0 to {depth - 1}")
