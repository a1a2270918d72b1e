"""The published U-Nets, written down from the structure of their code, on tensors addressed by their published names.

Each function runs a network on a :class:`State`, which makes a tensor when it is first asked for, so that one run gives
the names, the shapes and the output. Nothing here uses the library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RGB = 3


@dataclass
class State:
    """Tensors by name: random ones in double precision, or none at all on the meta device."""

    device: str = "cpu"
    tensors: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            if self.device == "meta":
                self.tensors[name] = torch.empty(shape, device="meta", dtype=torch.float64)
            else:
                draw = torch.randn(shape, generator=self.generator).double() / math.sqrt(math.prod(shape[1:]))
                self.tensors[name] = draw + (len(shape) == 1 and name.endswith("weight"))
        assert self.tensors[name].shape == shape, name
        return self.tensors[name]

    def conv(self, name: str, x: Tensor, c: int, k: int = 3, **options: Any) -> Tensor:
        options.setdefault("padding", k // 2)
        return F.conv2d(x, self(f"{name}.weight", c, x.shape[1], k, k), self(f"{name}.bias", c), **options)

    def linear(self, name: str, x: Tensor, n: int, bias: bool = True) -> Tensor:
        return F.linear(x, self(f"{name}.weight", n, x.shape[-1]), self(f"{name}.bias", n) if bias else None)

    def norm(self, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
        c = x.shape[1]
        return F.group_norm(x, groups, self(f"{name}.weight", c), self(f"{name}.bias", c), eps)

    def nin(self, name: str, x: Tensor, n: int) -> Tensor:
        return torch.einsum("bc..., cn -> bn...", x, self(f"{name}.W", x.shape[1], n)) + self(f"{name}.b", n)[:, None, None]


def up_fir_down(x: Tensor, line: list[float], up: int, down: int, pad: tuple[int, int]) -> Tensor:
    """Insert zeros, pad, filter, and drop points: the definition."""
    b, c, h, w = x.shape
    spread = torch.zeros(b, c, h, up, w, up, dtype=x.dtype, device=x.device)
    spread[:, :, :, 0, :, 0] = x
    spread = F.pad(spread.reshape(b, c, h * up, w * up), (*pad, *pad))
    f = torch.tensor(line, dtype=x.dtype, device=x.device)
    f = torch.outer(f, f) / f.sum() ** 2 * up**2
    return F.conv2d(spread.flatten(0, 1)[:, None], f[None, None]).unflatten(0, (b, c))[:, :, 0, ::down, ::down]


def filtered(x: Tensor, fir: bool, *, up: bool) -> Tensor:
    line = [1.0, 3.0, 3.0, 1.0] if fir else [1.0, 1.0]
    p = len(line) - 2
    if up:
        return up_fir_down(x, line, 2, 1, ((p + 1) // 2 + 1, p // 2))
    return up_fir_down(x, line, 1, 2, ((p + 1) // 2, p // 2))


def sines(t: Tensor, n: int, endpoint: bool) -> tuple[Tensor, Tensor]:
    half = n // 2
    f = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64, device=t.device) / (half - endpoint))
    return (t[:, None] * f).sin(), (t[:, None] * f).cos()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(batch * heads, channels, points) each."""
    weight = torch.einsum("bcp,bcq->bpq", q, k) / math.sqrt(q.shape[1])
    return torch.einsum("bpq,bcq->bcp", weight.softmax(2), v)


@dataclass(frozen=True)
class Song:
    """A configuration of score_sde_pytorch, under its names."""

    name: str = "ncsnpp"
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    image_size: int = 32
    fir: bool = False
    progressive: str = "none"
    progressive_input: str = "none"
    embedding_type: str = "positional"


def song(s: State, x: Tensor, t: Tensor, c: Song) -> Tensor:
    count = -1
    plus = c.name == "ncsnpp"
    root = math.sqrt(2) if plus else 1.0

    def take() -> str:
        nonlocal count
        count += 1
        return f"all_modules.{count}"

    def groups(channels: int) -> int:
        return min(channels // 4, 32) if plus else 32

    def block(x: Tensor, out: int, up: bool = False, down: bool = False) -> Tensor:
        m = take()
        h = F.silu(s.norm(f"{m}.GroupNorm_0", x, groups(x.shape[1]), 1e-6))
        change = (lambda y: filtered(y, c.fir, up=up)) if up or down else (lambda y: y)
        h = s.conv(f"{m}.Conv_0", change(h), out) + s.linear(f"{m}.Dense_0", F.silu(temb), out)[:, :, None, None]
        h = s.conv(f"{m}.Conv_1", F.silu(s.norm(f"{m}.GroupNorm_1", h, groups(out), 1e-6)), out)
        skip = change(x)
        if plus and (up or down or x.shape[1] != out):
            skip = s.conv(f"{m}.Conv_2", skip, out, 1)
        elif x.shape[1] != out:
            skip = s.nin(f"{m}.NIN_0", skip, out)
        return (skip + h) / root

    def attention(x: Tensor) -> Tensor:
        m, n = take(), x.shape[1]
        h = s.norm(f"{m}.GroupNorm_0", x, groups(n), 1e-6)
        q, k, v = (s.nin(f"{m}.NIN_{i}", h, n).flatten(2) for i in range(3))
        return (x + s.nin(f"{m}.NIN_3", attend(q, k, v).reshape(x.shape), n)) / root

    def resampled(x: Tensor, out: int, up: bool) -> Tensor:
        """A filter and a convolution whose padding is done once, before."""
        m = take()
        if not c.fir:
            if up:
                return s.conv(f"{m}.Conv_0", x.repeat_interleave(2, 2).repeat_interleave(2, 3), out)
            return s.conv(f"{m}.Conv_0", F.pad(x, (0, 1, 0, 1)), out, stride=2, padding=0)
        return s.conv(f"{m}.Conv2d_0", up_fir_down(x, [1.0, 3.0, 3.0, 1.0], 1, 1, (2, 2)), out, stride=2, padding=0)

    if c.embedding_type == "fourier":
        angle = 2 * math.pi * t[:, None] * s(f"{take()}.W", c.nf)  # t is the logarithm of the noise level
        temb = torch.cat([angle.sin(), angle.cos()], 1)
    else:
        temb = torch.cat(sines(t, c.nf, True), 1)
    temb = s.linear(take(), temb, 4 * c.nf)
    temb = s.linear(take(), F.silu(temb), 4 * c.nf)

    image, h = x, s.conv(take(), x, c.nf)
    skips = [h]
    for i, mult in enumerate(c.ch_mult):
        for _ in range(c.num_res_blocks):
            h = block(h, c.nf * mult)
            if c.image_size >> i == 16:
                h = attention(h)
            skips.append(h)
        if i < len(c.ch_mult) - 1:
            h = block(h, h.shape[1], down=True) if plus else resampled(h, h.shape[1], up=False)
            if c.progressive_input == "input_skip":
                take()
                image = filtered(image, c.fir, up=False)
                h = h + s.conv(f"{take()}.Conv", image, h.shape[1], 1)
            elif c.progressive_input == "residual":
                h = image = (resampled(image, h.shape[1], up=False) + h) / root
            skips.append(h)
    h = block(attention(block(h, h.shape[1])), h.shape[1])
    output = None
    for i, mult in reversed(list(enumerate(c.ch_mult))):
        for _ in range(c.num_res_blocks + 1):
            h = block(torch.cat([h, skips.pop()], 1), c.nf * mult)
        if c.image_size >> i == 16:
            h = attention(h)
        if c.progressive == "output_skip":
            if output is not None:
                take()
                output = filtered(output, c.fir, up=True)
            written = F.silu(s.norm(take(), h, groups(h.shape[1]), 1e-6))
            written = s.conv(take(), written, RGB)
            output = written if output is None else output + written
        if i:
            h = block(h, h.shape[1], up=True) if plus else resampled(h, h.shape[1], up=True)
    if output is not None:
        return output
    h = F.silu(s.norm(take(), h, groups(h.shape[1]), 1e-6))
    return s.conv(take(), h, RGB)


@dataclass(frozen=True)
class EDM:
    """The arguments of EDM's SongUNet or, with ``adm``, of its DhariwalUNet, under their names."""

    img_resolution: int = 32
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    label_dim: int = 0
    augment_dim: int = 9
    ncsnpp: bool = False
    adm: bool = False


def edm(s: State, x: Tensor, t: Tensor, c: EDM, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
    line = [1.0, 3.0, 3.0, 1.0] if c.ncsnpp else [1.0, 1.0]
    width = 4 * c.model_channels
    eps, scale = (1e-5, 1.0) if c.adm else (1e-6, math.sqrt(0.5))

    def keep_filter(name: str) -> None:
        f = torch.tensor(line, dtype=torch.float64, device=x.device)
        s.tensors[f"{name}.resample_filter"] = torch.outer(f, f)[None, None] / f.sum() ** 2

    def norm(name: str, h: Tensor) -> Tensor:
        return s.norm(name, h, min(32, h.shape[1] // 4), eps)

    def block(name: str, x: Tensor, out: int, attention: bool = False, up: bool = False, down: bool = False) -> Tensor:
        change = (lambda y: filtered(y, c.ncsnpp, up=up)) if up or down else (lambda y: y)
        h = s.conv(f"{name}.conv0", change(F.silu(norm(f"{name}.norm0", x))), out)
        told = s.linear(f"{name}.affine", emb, 2 * out if c.adm else out)[:, :, None, None]
        n = norm(f"{name}.norm1", h if c.adm else h + told)
        h = s.conv(f"{name}.conv1", F.silu(n * (1 + told[:, :out]) + told[:, out:] if c.adm else n), out)
        skip = change(x)
        if x.shape[1] != out or ((up or down) and not c.adm):
            skip = s.conv(f"{name}.skip", skip, out, 1)
        if up or down:
            keep_filter(f"{name}.conv0")
            keep_filter(f"{name}.skip")
        h = (h + skip) * scale
        if attention:
            heads = out // 64 if c.adm else 1
            qkv = s.conv(f"{name}.qkv", norm(f"{name}.norm2", h), 3 * out, 1)
            q, k, v = qkv.reshape(len(x) * heads, out // heads, 3, -1).unbind(2)
            h = (h + s.conv(f"{name}.proj", attend(q, k, v).reshape(h.shape), out, 1)) * scale
        return h

    if c.ncsnpp:
        angle = 2 * math.pi * t[:, None] * s("map_noise.freqs", c.model_channels)
        emb = torch.cat([angle.sin(), angle.cos()], 1)
    else:
        sin, cos = sines(t, c.model_channels, not c.adm)
        emb = torch.cat([cos, sin] if c.adm else [sin, cos], 1)
    one_hot = torch.zeros(len(x), c.label_dim, dtype=x.dtype, device=x.device)
    if label is not None:
        one_hot = F.one_hot(label, c.label_dim).to(x)
    if c.label_dim and not c.adm:
        emb = emb + s.linear("map_label", one_hot * math.sqrt(c.label_dim), emb.shape[1])
    if c.augment_dim:
        given = torch.zeros(len(x), c.augment_dim, dtype=x.dtype, device=x.device) if augment is None else augment
        emb = emb + s.linear("map_augment", given, emb.shape[1], bias=False)
    emb = s.linear("map_layer1", F.silu(s.linear("map_layer0", emb, width)), width)
    if c.label_dim and c.adm:
        emb = emb + s.linear("map_label", one_hot, width, bias=False)
    emb = F.silu(emb)

    image = x
    h = s.conv(f"enc.{c.img_resolution}x{c.img_resolution}_conv", x, c.model_channels * (c.channel_mult[0] if c.adm else 1))
    skips = [h]
    for level, mult in enumerate(c.channel_mult):
        r = c.img_resolution >> level
        place = f"enc.{r}x{r}"
        if level:
            h = block(f"{place}_down", h, h.shape[1], down=True)
            if c.ncsnpp:
                name = f"{place}_aux_residual"
                keep_filter(name)
                f = up_fir_down(image, line, 1, 1, (2, 2))
                h = image = (h + s.conv(name, f, h.shape[1], stride=2, padding=0)) / math.sqrt(2)
            skips.append(h)
        for i in range(c.num_blocks):
            h = block(f"{place}_block{i}", h, c.model_channels * mult, r in c.attn_resolutions)
            skips.append(h)
    for level, mult in reversed(list(enumerate(c.channel_mult))):
        r = c.img_resolution >> level
        place = f"dec.{r}x{r}"
        if level == len(c.channel_mult) - 1:
            h = block(f"{place}_in0", h, h.shape[1], True)
            h = block(f"{place}_in1", h, h.shape[1])
        else:
            h = block(f"{place}_up", h, h.shape[1], up=True)
        for i in range(c.num_blocks + 1):
            attention = r in c.attn_resolutions and (c.adm or i == c.num_blocks)
            h = block(f"{place}_block{i}", torch.cat([h, skips.pop()], 1), c.model_channels * mult, attention)
    names = ("out_norm", "out_conv") if c.adm else (f"{place}_aux_norm", f"{place}_aux_conv")
    return s.conv(names[1], F.silu(norm(names[0], h)), RGB)


@dataclass(frozen=True)
class OpenAI:
    """The flags of improved- and guided-diffusion, under their names."""

    image_size: int = 64
    num_channels: int = 128
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    num_head_channels: int = -1
    class_cond: int = 0
    resblock_updown: bool = False
    use_scale_shift_norm: bool = True
    use_new_attention_order: bool = False


def openai(s: State, x: Tensor, t: Tensor, c: OpenAI, label: Tensor | None = None) -> Tensor:
    width = 4 * c.num_channels
    sizes = [int(m * c.num_channels) for m in c.channel_mult]
    rates = {c.image_size // r for r in c.attention_resolutions}

    def norm(name: str, h: Tensor) -> Tensor:
        return s.norm(name, h, 32, 1e-5)

    def block(name: str, x: Tensor, out: int, up: bool = False, down: bool = False) -> Tensor:
        change = (lambda y: filtered(y, False, up=up)) if up or down else (lambda y: y)
        h = s.conv(f"{name}.in_layers.2", change(F.silu(norm(f"{name}.in_layers.0", x))), out)
        told = s.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out if c.use_scale_shift_norm else out)[:, :, None, None]
        if c.use_scale_shift_norm:
            h = norm(f"{name}.out_layers.0", h) * (1 + told[:, :out]) + told[:, out:]
        else:
            h = norm(f"{name}.out_layers.0", h + told)
        h = s.conv(f"{name}.out_layers.3", F.silu(h), out)
        return h + (change(x) if x.shape[1] == out else s.conv(f"{name}.skip_connection", change(x), out, 1))

    def attention(name: str, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        heads = c.num_heads if c.num_head_channels < 0 else n // c.num_head_channels
        h = norm(f"{name}.norm", x).flatten(2)
        qkv = F.conv1d(h, s(f"{name}.qkv.weight", 3 * n, n, 1), s(f"{name}.qkv.bias", 3 * n))
        if c.use_new_attention_order:
            q, k, v = (part.reshape(b * heads, n // heads, -1) for part in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(b * heads, 3 * n // heads, -1).chunk(3, 1)
        h = attend(q, k, v).reshape(b, n, -1)
        h = F.conv1d(h, s(f"{name}.proj_out.weight", n, n, 1), s(f"{name}.proj_out.bias", n))
        return x + h.reshape(x.shape)

    sin, cos = sines(t, c.num_channels, False)
    emb = s.linear("time_embed.0", torch.cat([cos, sin], 1), width)
    emb = s.linear("time_embed.2", F.silu(emb), width)
    if c.class_cond:
        table = s("label_emb.weight", c.class_cond, width)
        emb = emb + (table[:1] if label is None else table[label])
    h = s.conv("input_blocks.0.0", x, sizes[0])
    skips, n, rate = [h], 0, 1
    for i, size in enumerate(sizes):
        for _ in range(c.num_res_blocks):
            n += 1
            h = block(f"input_blocks.{n}.0", h, size)
            h = attention(f"input_blocks.{n}.1", h) if rate in rates else h
            skips.append(h)
        if i < len(sizes) - 1:
            n, rate = n + 1, 2 * rate
            if c.resblock_updown:
                h = block(f"input_blocks.{n}.0", h, size, down=True)
            else:
                h = s.conv(f"input_blocks.{n}.0.op", h, size, stride=2)
            skips.append(h)
    h = block("middle_block.0", h, size)
    h = block("middle_block.2", attention("middle_block.1", h), size)
    n = -1
    for i, size in reversed(list(enumerate(sizes))):
        for j in range(c.num_res_blocks + 1):
            n += 1
            h = block(f"output_blocks.{n}.0", torch.cat([h, skips.pop()], 1), size)
            if rate in rates:
                h = attention(f"output_blocks.{n}.1", h)
            if i and j == c.num_res_blocks:
                place = f"output_blocks.{n}.{2 if rate in rates else 1}"
                if c.resblock_updown:
                    h = block(place, h, size, up=True)
                else:
                    h = s.conv(f"{place}.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3), size)
                rate //= 2
    return s.conv("out.2", F.silu(norm("out.0", h)), 2 * RGB)


def dit(
    s: State, x: Tensor, t: Tensor, label: Tensor, *, width: int, depth: int, heads: int, patch: int, out: int
) -> Tensor:
    """A diffusion transformer, under the names of its code."""
    b, channels, n, _ = x.shape
    side = n // patch

    def normalized(h: Tensor) -> Tensor:
        return (h - h.mean(2, keepdim=True)) / (h.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()

    def line(positions: Tensor) -> Tensor:
        angle = positions[:, None] / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        return torch.cat([angle.sin(), angle.cos()], 1)

    place = torch.arange(side * side)
    s.tensors["pos_embed"] = torch.cat([line(place % side), line(place // side)], 1)[None]
    h = F.conv2d(x, s("x_embedder.proj.weight", width, channels, patch, patch), s("x_embedder.proj.bias", width), patch)
    h = h.reshape(b, width, side * side).mT + s.tensors["pos_embed"]
    sin, cos = sines(t, 256, False)
    c = s.linear("t_embedder.mlp.2", F.silu(s.linear("t_embedder.mlp.0", torch.cat([cos, sin], 1), width)), width)
    c = F.silu(c + s("y_embedder.embedding_table.weight", 8, width)[label])
    for i in range(depth):
        told = s.linear(f"blocks.{i}.adaLN_modulation.1", c, 6 * width)[:, None].chunk(6, 2)
        qkv = s.linear(f"blocks.{i}.attn.qkv", normalized(h) * (1 + told[1]) + told[0], 3 * width)
        q, k, v = (part.reshape(b, -1, heads, width // heads).permute(0, 2, 3, 1).flatten(0, 1) for part in qkv.chunk(3, 2))
        mixed = attend(q, k, v).reshape(b, heads, width // heads, -1).permute(0, 3, 1, 2).flatten(2)
        h = h + told[2] * s.linear(f"blocks.{i}.attn.proj", mixed, width)
        inner = s.linear(f"blocks.{i}.mlp.fc1", normalized(h) * (1 + told[4]) + told[3], 4 * width)
        h = h + told[5] * s.linear(f"blocks.{i}.mlp.fc2", F.gelu(inner, approximate="tanh"), width)
    shift, scale = s.linear("final_layer.adaLN_modulation.1", c, 2 * width)[:, None].chunk(2, 2)
    h = s.linear("final_layer.linear", normalized(h) * (1 + scale) + shift, patch * patch * out)
    return torch.einsum("bijpqc -> bcipjq", h.reshape(b, side, side, patch, patch, out)).reshape(b, out, n, n)


def ncsnv2(s: State, x: Tensor, *, width: int, deeper: int) -> Tensor:
    """The RefineNets NCSNv2 (0), NCSNv2Deeper (1) and NCSNv2Deepest (2), under their names; sigma times the score."""
    stages: list[tuple[str, int, int]] = [("1", 1, 1), ("2", 2, 1), ("3", 2, 2), ("4", 2, 4)]
    if deeper:
        between = [("31", 2, 1)] if deeper == 2 else []
        stages = [("1", 1, 1), ("2", 2, 1), ("3", 2, 1), *between, ("4", 4, 2), ("5", 4, 4)]

    def norm(name: str, h: Tensor) -> Tensor:
        c = h.shape[1]
        means = h.mean((2, 3))
        means = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
        plain = (h - h.mean((2, 3), keepdim=True)) / (h.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        h = plain + (means * s(f"{name}.alpha", c))[:, :, None, None]
        return s(f"{name}.gamma", c)[:, None, None] * h + s(f"{name}.beta", c)[:, None, None]

    def residual(name: str, h: Tensor, out: int, dilation: int, down: bool) -> Tensor:
        wide: dict[str, Any] = {"padding": dilation, "dilation": dilation}
        inner = s.conv(f"{name}.conv1", F.elu(norm(f"{name}.normalize1", h)), h.shape[1] if down else out, **wide)
        inner = F.elu(norm(f"{name}.normalize2", inner))
        if down and dilation == 1:
            both = s.conv(f"{name}.conv2.conv", inner, out) + s.conv(f"{name}.shortcut.conv", h, out, 1)
            return (both[:, :, ::2, ::2] + both[:, :, 1::2, ::2] + both[:, :, ::2, 1::2] + both[:, :, 1::2, 1::2]) / 4
        return s.conv(f"{name}.conv2", inner, out, **wide) + (s.conv(f"{name}.shortcut", h, out, **wide) if down else h)

    def bare(name: str, h: Tensor, out: int) -> Tensor:
        return F.conv2d(h, s(f"{name}.weight", out, h.shape[1], 3, 3), padding=1)

    def units(name: str, h: Tensor, n: int) -> Tensor:
        for i in range(n):
            first = bare(f"{name}.{i + 1}_1_conv", F.elu(h), h.shape[1])
            h = h + bare(f"{name}.{i + 1}_2_conv", F.elu(first), h.shape[1])
        return h

    def refine(name: str, xs: list[Tensor], out: int, n: int) -> Tensor:
        hs = [units(f"{name}.adapt_convs.{i}", h, 2) for i, h in enumerate(xs)]
        h = hs[0]
        if len(hs) > 1:
            size = h.shape[2:]
            each = [s.conv(f"{name}.msf.convs.{i}", h, out) for i, h in enumerate(hs)]
            h = sum(F.interpolate(h, size=size, mode="bilinear", align_corners=True) for h in each)  # type: ignore[assignment]
        h = path = F.elu(h)
        for i in range(2):
            path = bare(f"{name}.crp.convs.{i}", F.max_pool2d(path, 5, 1, 2), out)
            h = path + h
        return units(f"{name}.output_convs", h, n)

    h, layers = s.conv("begin_conv", x, width), []
    for i, (name, mult, dilation) in enumerate(stages):
        h = residual(f"res{name}.0", h, width * mult, dilation, i > 0)
        h = residual(f"res{name}.1", h, width * mult, dilation, False)
        layers.append(h)
    order = ["1", "2", "31", "3", "4", "5"] if deeper == 2 else [name for name, _, _ in stages]
    found: list[Tensor] = []
    for i, name in zip(reversed(range(len(stages))), order, strict=True):
        out = width * stages[max(i - 1, 0)][1]
        found = [refine(f"refine{name}", [layers[i], *found], out, 1 if i else 3)]
    return s.conv("end_conv", F.elu(norm("normalizer", found[0])), x.shape[1])


# The configurations, as published ------------------------------------------------------------------------------------

_NCSNPP = {"fir": True, "progressive_input": "residual"}
_SKIPS = {"fir": True, "progressive_input": "input_skip", "progressive": "output_skip", "embedding_type": "fourier"}
_256 = Song(ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, image_size=256, **_SKIPS)
_1024 = Song(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, image_size=1024, **_SKIPS)
_DDPM = Song("ddpm", num_res_blocks=2)
_DDPM_256 = Song("ddpm", ch_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, image_size=256)
_EDM64 = {"img_resolution": 64, "channel_mult": (1, 2, 2, 2)}
_IMAGENET = {"model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3, "attn_resolutions": (32, 16, 8)}
_ADM = {"num_head_channels": 64, "num_res_blocks": 2, "resblock_updown": True, "attention_resolutions": (32, 16, 8)}
_ADM256 = OpenAI(256, 256, (1, 1, 2, 2, 4, 4), **_ADM)
_LSUN = OpenAI(256, 128, (1, 1, 2, 2, 4, 4), 2, (16,), num_heads=1, use_scale_shift_norm=False)

CONFIGS: dict[str, Song | EDM | OpenAI] = {
    "vp/cifar10_ddpmpp": Song(),
    "vp/cifar10_ddpmpp_continuous": Song(),
    "vp/cifar10_ddpmpp_deep_continuous": Song(num_res_blocks=8),
    "vp/cifar10_ncsnpp": Song(**_NCSNPP),
    "vp/cifar10_ncsnpp_continuous": Song(**_NCSNPP),
    "vp/cifar10_ncsnpp_deep_continuous": Song(num_res_blocks=8, **_NCSNPP),
    "subvp/cifar10_ddpmpp_continuous": Song(),
    "subvp/cifar10_ddpmpp_deep_continuous": Song(num_res_blocks=8),
    "subvp/cifar10_ncsnpp_continuous": Song(**_NCSNPP),
    "subvp/cifar10_ncsnpp_deep_continuous": Song(num_res_blocks=8, **_NCSNPP),
    "ve/cifar10_ncsnpp": Song(**_NCSNPP),
    "ve/cifar10_ncsnpp_continuous": Song(embedding_type="fourier", **_NCSNPP),
    "ve/cifar10_ncsnpp_deep_continuous": Song(num_res_blocks=8, embedding_type="fourier", **_NCSNPP),
    **{f"ve/{name}_ncsnpp_continuous": _256 for name in ("bedroom", "church", "ffhq_256", "celebahq_256")},
    **{f"ve/{name}_ncsnpp_continuous": _1024 for name in ("ffhq", "celebahq")},
    **{name: _DDPM for name in ("ve/cifar10_ddpm", "vp/ddpm/cifar10", "vp/ddpm/cifar10_continuous")},
    "subvp/cifar10_ddpm_continuous": _DDPM,
    **{f"vp/ddpm/{name}": _DDPM_256 for name in ("bedroom", "church", "celebahq")},
    "edm-cifar10-32x32-uncond-vp": EDM(),
    "edm-cifar10-32x32-cond-vp": EDM(label_dim=10),
    "edm-cifar10-32x32-uncond-ve": EDM(ncsnpp=True),
    "edm-cifar10-32x32-cond-ve": EDM(ncsnpp=True, label_dim=10),
    "edm-ffhq-64x64-uncond-vp": EDM(**_EDM64),
    "edm-ffhq-64x64-uncond-ve": EDM(ncsnpp=True, **_EDM64),
    "edm-afhqv2-64x64-uncond-vp": EDM(**_EDM64),
    "edm-afhqv2-64x64-uncond-ve": EDM(ncsnpp=True, **_EDM64),
    "edm-imagenet-64x64-cond-adm": EDM(64, label_dim=1000, augment_dim=0, adm=True, **_IMAGENET),
    "baseline-cifar10-32x32-uncond-vp": EDM(channel_mult=(1, 2, 2, 2), augment_dim=0),
    "baseline-cifar10-32x32-uncond-ve": EDM(channel_mult=(1, 2, 2, 2), augment_dim=0, ncsnpp=True),
    **{f"cifar10_uncond_{name}50M_500K": OpenAI(32, 128, (1, 2, 2, 2)) for name in ("", "vlb_")},
    **{f"imagenet64_uncond_{name}100M_1500K": OpenAI() for name in ("", "vlb_")},
    "imagenet64_cond_270M_250K": OpenAI(num_channels=192, class_cond=1000),
    "lsun_uncond_100M_1200K_bs128": _LSUN,
    "lsun_uncond_100M_2400K_bs64": _LSUN,
    "64x64_diffusion": OpenAI(
        64,
        192,
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        num_head_channels=64,
        class_cond=1000,
        resblock_updown=True,
        use_new_attention_order=True,
    ),
    "128x128_diffusion": OpenAI(128, 256, (1, 1, 2, 3, 4), class_cond=1000, **(_ADM | {"num_head_channels": -1})),
    "256x256_diffusion": OpenAI(256, 256, (1, 1, 2, 2, 4, 4), class_cond=1000, **_ADM),
    "512x512_diffusion": OpenAI(512, 256, (0.5, 1, 1, 2, 2, 4, 4), class_cond=1000, **_ADM),
    "256x256_diffusion_uncond": _ADM256,
    **{f"lsun_{name}": _ADM256 for name in ("bedroom", "cat", "horse", "horse_nodropout")},
}


def run(s: State, config: Song | EDM | OpenAI, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
    """The output of a configuration's network."""
    return {Song: song, EDM: edm, OpenAI: openai}[type(config)](s, x, t, config, **conditions)  # type: ignore[operator]
