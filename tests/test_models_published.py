"""The published networks: their counts, their parts against definitions, and what every choice must leave unchanged."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import up_fir_down
from torch import Tensor, nn
from torch.nn import functional as F

import scoresde
from scoresde import VP, ScoreModel, models
from scoresde.models import DiT, NCSNv2, UNet
from scoresde.models.blocks import Attention, CrossAttention, Resampled, ResidualBlock, Style
from scoresde.models.embedding import FourierFeatures, PositionalFeatures, TimeFeatures
from scoresde.models.labels import LabelTable
from scoresde.models.ncsnv2 import _InstanceNorm, _Refine
from scoresde.models.resample import Resample

STYLE = Style(2, 8, 32, 4, 1e-6, False, False, False, False, 0.0, 2, None, 5)


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """All weights drawn anew in double precision, so that no layer is silent."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net.double().eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Presets (the U-Nets' counts are tested against the published code in test_weights) -----------------------------------


def counted(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in models.NETWORKS[name].build().parameters())


@pytest.mark.parametrize("name", ["ddpm-cifar10", "ddpm-256"])
def test_ddpm_has_three_more_attentions_than_its_rebuilding(name: str) -> None:
    # After each of the three blocks of the way up, and not once: norm, q k v and output of 256 or 512 channels.
    c = {"ddpm-cifar10": 256, "ddpm-256": 512}[name]
    assert counted(name) == counted(f"song-{name}") + 2 * (2 * c + 4 * (c * c + c)) == models.NETWORKS[name].parameters


@pytest.mark.parametrize(("name", "millions"), [("dit-s-2", 33), ("dit-b-2", 130), ("dit-l-2", 458), ("dit-xl-2", 675)])
def test_counts_of_dit(name: str, millions: int) -> None:
    d, depth = models.NETWORKS[name].config["width"], models.NETWORKS[name].config["depth"]
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + (6 * d * d + 6 * d)
    ends = (4 * 4 * d + d) + (2 * d * d + 2 * d) + (32 * d + 32)
    told = (256 * d + d) + (d * d + d) + 1001 * d
    assert counted(name) == depth * block + ends + told == models.NETWORKS[name].parameters
    assert round(models.NETWORKS[name].parameters / 1e6) == millions


@pytest.mark.parametrize("name", ["ncsnv2-cifar10", "ncsnv2-128", "ncsnv2-256"])
def test_counts_of_ncsnv2(name: str) -> None:
    n = 128
    sizes = [n * m for m, _ in models.NETWORKS[name].build(width=8, channels=1).config["stages"]]  # type: ignore[union-attr]
    dilations = [d for _, d in models.NETWORKS[name].build(width=8, channels=1).config["stages"]]  # type: ignore[union-attr]
    count = (27 * n + n) + (27 * n + 3) + 3 * n  # first and last convolution, last normalization
    for i, (c, dilation) in enumerate(zip(sizes, dilations, strict=True)):
        before = sizes[max(i - 1, 0)]
        count += 6 * before + 9 * before * before + before + 9 * before * c + c  # the block that enters
        if i:
            count += (1 if dilation == 1 else 9) * before * c + c
        count += 6 * c + 2 * (9 * c * c + c)
    refined = 0
    for i in reversed(range(len(sizes))):
        inputs, out = [sizes[i], *([refined] if refined else [])], sizes[max(i - 1, 0)]
        count += sum(4 * 9 * c * c for c in inputs)
        count += sum(9 * c * out + out for c in inputs) if refined else 0
        count += 2 * 9 * out * out + (6 if i == 0 else 2) * 9 * out * out
        refined = out
    assert counted(name) == count == models.NETWORKS[name].parameters


def test_published_sizes_are_those_of_the_papers_tables() -> None:
    millions = {
        "ddpm-cifar10": 35.7,
        "ddpm-256": 114,
        "edm-ddpmpp-cifar10": 55.7,
        "edm-adm-imagenet64": 295.9,
        "adm-imagenet64": 296,
        "adm-imagenet128": 422,
        "adm-imagenet256": 554,
        "adm-imagenet512": 559,
        "iddpm-imagenet64-cond": 273,
    }
    for name, stated in millions.items():
        assert models.NETWORKS[name].parameters / 1e6 == pytest.approx(stated, abs=0.5 if stated >= 100 else 0.05)


def test_unknown_presets_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got network 'ddpm_cifar'; expected one of .* did you mean 'ddpm-cifar10'"):
        models.build("ddpm_cifar")


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "unet": (lambda: UNet(2, 16, (1, 2), num_classes=3, augment=4, adaptive=True), (2, 8, 8)),
    "unet, fourier": (lambda: UNet(1, 16, (1, 2), dims=1, time="fourier", time_shift=0.2, time_scale=-3.0), (1, 8)),
    "unet, lean": (lambda: UNet(2, 16, (1, 2), num_classes=3, augment=4, lean=True), (2, 8, 8)),
    "dit": (lambda: DiT(2, (8, 4), width=16, depth=2, heads=2, num_classes=3), (2, 8, 4)),
    "ncsnv2": (lambda: NCSNv2(2, 8, ((1, 1), (2, 1), (2, 2))), (2, 8, 8)),
    "unet, by level": (lambda: UNet(2, 16, (1, 2), heads=(1, 2), blocks=(1, 2), resample="outer", transformer=1), (2, 8, 8)),
    "unet, video": (lambda: UNet(2, 16, (1, 2), dims=3, temporal="transformer"), (2, 3, 8, 8)),
    "unet, space and time": (lambda: UNet(2, 16, (1, 2), dims=3, temporal="attention"), (2, 3, 8, 8)),
}
each_network = pytest.mark.parametrize(("make", "event"), NETWORKS.values(), ids=list(NETWORKS))


@each_network
def test_checkpoints_build_the_network_again(make: Any, event: tuple[int, ...], tmp_path: Path) -> None:
    model = ScoreModel(randomized(make()).float(), VP()).eval()
    scoresde.save(model, tmp_path / "model")
    x, t = normal(2, *event).float(), torch.tensor([0.3, 0.8])
    assert torch.equal(scoresde.load(tmp_path / "model").score(x, t), model.score(x, t))


@pytest.mark.parametrize(("make", "event"), [entry for entry in NETWORKS.values() if len(entry[1]) == 3])
def test_the_memory_format_does_not_matter(make: Any, event: tuple[int, ...]) -> None:
    net, x, t = randomized(make()), normal(2, *event), normal(2, seed=2)
    expected = net(x, t)
    last = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last), t), expected)


# Resampling ---------------------------------------------------------------------------------------------------------

LINE = [1.0, 3.0, 3.0, 1.0]


def test_filtered_resampling_is_its_definition() -> None:
    x = normal(2, 3, 6, 4)
    down, up = Resample(2, up=False, fir=True).double(), Resample(2, up=True, fir=True).double()
    torch.testing.assert_close(down(x), up_fir_down(x, LINE, 1, 2, (1, 1)))
    torch.testing.assert_close(up(x), up_fir_down(x, LINE, 2, 1, (2, 1)))


@given(dims=st.integers(1, 3), fir=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_doubling_is_the_transpose_of_halving(dims: int, fir: bool, seed: int) -> None:
    down, up = (Resample(dims, up=up, fir=fir).double() for up in (False, True))
    x, y = normal(1, 2, *[4] * dims, seed=seed), normal(1, 2, *[2] * dims, seed=seed + 1)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum() / 2**dims)


@given(dims=st.integers(2, 3), fir=st.booleans(), up=st.booleans())
@settings(max_examples=12, deadline=None)
def test_resampling_acts_along_each_axis_alike(dims: int, fir: bool, up: bool) -> None:
    lines = [normal(4, seed=i) for i in range(dims)]
    product = lines[0]
    for line in lines[1:]:
        product = product[..., None] * line
    one = Resample(1, up=up, fir=fir).double()
    expected = torch.ones((), dtype=torch.float64)
    for line in lines:
        expected = expected[..., None] * one(line[None, None])[0, 0]
    torch.testing.assert_close(Resample(dims, up=up, fir=fir).double()(product[None, None])[0, 0], expected)


@pytest.mark.parametrize("fir", [False, True])
def test_resampling_keeps_constants_away_from_the_border(fir: bool) -> None:
    for up in (False, True):
        y = Resample(1, up=up, fir=fir).double()(torch.ones(1, 1, 16, dtype=torch.float64))
        torch.testing.assert_close(y[..., 2:-2], torch.ones_like(y[..., 2:-2]))


def test_a_filtered_convolution_pads_once() -> None:
    style, line = dataclasses.replace(STYLE, dims=1, fir=True), torch.tensor(LINE, dtype=torch.float64)[None, None]
    x, down, up = normal(1, 1, 8), *(randomized(Resampled(1, 1, style, up=up)) for up in (False, True))
    smooth = F.conv1d(F.pad(x, (2, 2)), line / 8)
    torch.testing.assert_close(down(x), F.conv1d(smooth, down.conv.weight, down.conv.bias, stride=2))
    # Up, the convolution is of the image with zeros between its points, and the filter comes after it.
    spread = torch.stack([x, torch.zeros_like(x)], -1).flatten(2)[..., :-1]
    full = F.conv1d(F.pad(spread, (2, 2)), up.conv.weight)
    torch.testing.assert_close(up(x), F.conv1d(F.pad(full, (1, 1)), line / 4) + up.conv.bias)


# Blocks -------------------------------------------------------------------------------------------------------------


def test_attention_is_the_softmax_of_products() -> None:
    layer, x = randomized(Attention(8, STYLE)), normal(3, 8, 2, 3)
    h = layer.norm(x).flatten(2)
    q, k, v = torch.einsum("oc,bcp->bop", layer.qkv.weight, h).add(layer.qkv.bias[:, None]).reshape(3, 3, 2, 4, 6).unbind(1)
    weight = torch.einsum("bhcp,bhcq->bhpq", q / 2, k).softmax(-1)
    h = torch.einsum("bhpq,bhcq->bhcp", weight, v).reshape(3, 8, 6)
    h = torch.einsum("oc,bcp->bop", layer.output.weight, h) + layer.output.bias[:, None]
    torch.testing.assert_close(layer(x), x + h.reshape(x.shape))


def test_cross_attention_is_the_softmax_of_products() -> None:
    layer, x, context = randomized(CrossAttention(8, STYLE)), normal(3, 8, 2, 3), normal(3, 7, 5)
    q = F.linear(layer.norm(x).flatten(2).mT, layer.q.weight, layer.q.bias).reshape(3, 6, 2, 4)
    k, v = F.linear(context, layer.kv.weight, layer.kv.bias).reshape(3, 7, 2, 2, 4).unbind(2)
    weight = torch.einsum("bphc,bthc->bhpt", q / 2, k).softmax(-1)
    h = torch.einsum("bhpt,bthc->bphc", weight, v).reshape(3, 6, 8)
    h = F.linear(h, layer.output.weight, layer.output.bias).mT.reshape(x.shape)
    torch.testing.assert_close(layer(x, context), x + h)


def test_context_is_a_set_that_matters() -> None:
    net, x, t = randomized(UNet(1, 16, (1, 2), context=5, heads=2)), normal(2, 1, 8, 8), normal(2, seed=3)
    context = normal(2, 6, 5, seed=4)
    output = net(x, t, context=context)
    torch.testing.assert_close(net(x, t, context=context[:, torch.randperm(6)]), output)
    torch.testing.assert_close(net(x, t, context=context.repeat(1, 2, 1)), output)
    assert (net(x, t, context=context.flip(0)) - output).abs().amax() > 1e-3


@pytest.mark.parametrize("rescale", [False, True])
def test_a_silent_block_is_its_skip_connection(rescale: bool) -> None:
    style = dataclasses.replace(STYLE, rescale=rescale)
    block, x = ResidualBlock(8, 8, style).double(), normal(2, 8, 4, 4)
    for p in block.conv2.parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(block(x, normal(2, 8)), x / math.sqrt(2) if rescale else x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("inward", "outward"), [*itertools.product(("none", "skip", "residual"), repeat=2)])
@pytest.mark.parametrize("lean", [False, True])
def test_every_pyramid_in_every_dimension(dims: int, inward: str, outward: str, lean: bool) -> None:
    fir, resample = (inward == "skip") != (outward == "skip"), "conv" if inward == "residual" else "block"
    pyramids = {"input_pyramid": inward, "output_pyramid": outward}
    net = UNet(2, 8, (1, 2, 2), dims=dims, blocks=1, lean=lean, **pyramids, fir=fir, resample=resample)  # type: ignore[arg-type]
    x, t = normal(2, 2, *[4] * dims), normal(2, seed=2)
    assert torch.equal(net.double()(x, t), torch.zeros_like(x))  # starts by saying nothing
    output = randomized(net)(x, t)
    assert output.shape == x.shape
    torch.testing.assert_close(net(x[1:], t[1:]), output[1:])  # each sample depends on itself alone
    output.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_series_images_and_videos_agree_where_they_are_the_same() -> None:
    # A video whose pictures are all alike, through convolutions that look at one picture, is an image.
    image = randomized(UNet(1, 8, (1, 2), dims=2, blocks=1))
    video = randomized(UNet(1, 8, (1, 2), dims=3, blocks=1))
    for p, q in zip(video.parameters(), image.parameters(), strict=True):
        if p.ndim == 5:
            p.data.zero_()
            p.data[:, :, p.shape[2] // 2] = q.data
        else:
            p.data.copy_(q.data)
    x, t = normal(2, 1, 4, 4), normal(2, seed=2)
    pictures = x[:, :, None].repeat(1, 1, 4, 1, 1)
    torch.testing.assert_close(video(pictures, t), image(x, t)[:, :, None].repeat(1, 1, 4, 1, 1))


def test_the_embedding_of_time_is_told_in_its_unit() -> None:
    t = torch.tensor([0.25, 0.75], dtype=torch.float64)
    for make in (TimeFeatures, PositionalFeatures, FourierFeatures):
        expected = make(8)(999 * (t - 0.5))
        torch.testing.assert_close(make(8, time_scale=1 / 999, time_shift=0.5)(t), expected)


def test_positional_features_span_the_stated_periods() -> None:
    for endpoint, lowest in ((True, 1e-4), (False, 1e-3)):
        f = PositionalFeatures(8, endpoint=endpoint).frequencies
        torch.testing.assert_close(f.log().diff(), (f[1] / f[0]).log().expand(3))
        assert f[0] == 1 and float(f[3]) == pytest.approx(lowest)


def test_fourier_features_do_not_depend_on_the_global_generator() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, state = FourierFeatures(64).frequencies, torch.get_rng_state()
        assert torch.equal(FourierFeatures(64).frequencies, first) and torch.equal(torch.get_rng_state(), state)
    assert float(FourierFeatures(20000).frequencies.std()) == pytest.approx(16, rel=0.03)


def test_no_label_is_the_last_row() -> None:
    table, t, label = LabelTable(4, 6), torch.zeros(3), torch.tensor([0, 3, 1])
    assert torch.equal(table(None, t), table.weight[[4, 4, 4]])
    assert torch.equal(table(label, t), table.weight[label])


# DiT and NCSNv2 -----------------------------------------------------------------------------------------------------


def test_dit_is_what_its_paper_writes() -> None:
    net = randomized(DiT(2, (4, 6), 2, width=8, depth=1, heads=2, num_classes=3, out_channels=3, time="positional"))
    x, t, label = normal(2, 2, 4, 6), normal(2, seed=2), torch.tensor([0, 2])
    f = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    angle = t[:, None] * f
    told = F.silu(net.embedding.layer1(torch.cat([angle.cos(), angle.sin()], 1)))
    c = F.silu(net.embedding.layer2(told) + net.embedding.label.weight[label])

    def place(i: int) -> Tensor:  # of a row or a column: two frequencies
        angle = i * torch.tensor([1.0, 0.01], dtype=torch.float64)
        return torch.cat([angle.sin(), angle.cos()])

    tokens = []
    for row, column in itertools.product(range(2), range(3)):
        patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        token = torch.einsum("bcij,ocij->bo", patch, net.stem.weight) + net.stem.bias
        tokens.append(token + torch.cat([place(column), place(row)]))
    h = torch.stack(tokens, 1)

    def normed(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    block = net.blocks[0]
    a, b, g, d, e, j = block.modulation(c).chunk(6, 1)
    q, k, v = block.qkv(normed(h, a, b)).reshape(2, 6, 3, 2, 4).unbind(2)
    weight = torch.einsum("bphc,bqhc->bhpq", q / 2, k).softmax(-1)
    h = h + g[:, None] * block.output(torch.einsum("bhpq,bqhc->bphc", weight, v).reshape(2, 6, 8))
    h = h + j[:, None] * block.back(F.gelu(block.hidden(normed(h, d, e)), approximate="tanh"))
    h = net.output(normed(h, *net.modulation(c).chunk(2, 1)))
    output = net(x, t, label=label)
    for n, (row, column) in enumerate(itertools.product(range(2), range(3))):
        patch = output[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(patch, h[:, n].reshape(2, 2, 2, 3).permute(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_blocks_of_dit_start_as_the_identity() -> None:
    net = DiT(1, 4, width=8, depth=2, heads=2)
    h = torch.randn(2, 4, 8)
    for block in net.blocks:
        assert torch.equal(block(h, torch.randn(2, 8)), h)
    assert torch.equal(net(torch.randn(2, 1, 4, 4), torch.rand(2)), torch.zeros(2, 1, 4, 4))


def test_instance_normalization_keeps_the_means_between_channels() -> None:
    norm, x = randomized(_InstanceNorm(5)), normal(2, 5, 4, 4)
    expected = torch.empty_like(x)
    for i in range(2):
        means = torch.stack([x[i, c].mean() for c in range(5)])
        kept = (means - means.mean()) / (means.var() + 1e-5).sqrt()
        for c in range(5):
            inner = (x[i, c] - means[c]) / (x[i, c].var(unbiased=False) + 1e-5).sqrt()
            expected[i, c] = norm.gamma[c] * (inner + norm.alpha[c] * kept[c]) + norm.beta[c]
    torch.testing.assert_close(norm(x), expected)


def test_refinement_joins_pools_and_adds() -> None:
    refine, fine, coarse = randomized(_Refine([4, 6], 5, last=False)), normal(1, 4, 6, 6), normal(1, 6, 3, 3)

    def unit(convs: Any, x: Tensor) -> Tensor:
        for i in range(0, len(convs), 2):
            h = F.conv2d(F.elu(x), convs[i].weight, padding=1)
            x = x + F.conv2d(F.elu(h), convs[i + 1].weight, padding=1)
        return x

    a, b = (unit(part.convs, x) for part, x in zip(refine.adapt, (fine, coarse), strict=True))
    b = refine.fuse[1](b)
    rows = torch.linspace(0, 2, 6, dtype=torch.float64)  # corners fall on corners
    hat = (1 - (rows[:, None] - torch.arange(3)).abs()).clamp(min=0)
    h = F.elu(refine.fuse[0](a) + torch.einsum("pi,qj,bcij->bcpq", hat, hat, b))
    pooled1 = refine.pooled[0](F.max_pool2d(h, 5, 1, 2))
    pooled2 = refine.pooled[1](F.max_pool2d(pooled1, 5, 1, 2))
    torch.testing.assert_close(refine(fine, coarse), unit(refine.output.convs, h + pooled1 + pooled2))


def test_ncsnv2_does_not_see_the_time_but_the_whole_image() -> None:
    net, x = randomized(NCSNv2(1, 4)), normal(1, 1, 16, 16).requires_grad_()
    assert torch.equal(net(x, torch.zeros(1)), net(x, torch.ones(1)))
    net(x, torch.zeros(1))[0, 0, 0, 0].backward()
    assert x.grad is not None and (x.grad != 0).all()


# Errors -------------------------------------------------------------------------------------------------------------


def unet(**changes: Any) -> UNet:
    return UNet(1, **({"width": 8, "multipliers": (1, 2)} | changes))


X, T = torch.zeros(2, 1, 8, 8), torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unet(multipliers=()), "expected positive sizes and at least one level"),
        (lambda: unet(width=0), "width=0, .* expected positive sizes"),
        (lambda: unet(dims=4), "dims=4; expected 1 for series, 2 for images or 3 for videos"),
        (lambda: unet(attention=(2,)), r"attention at levels \[2\]; expected levels from 0, the full resolution, to 1"),
        (lambda: unet(time="learned"), "got embedding of time 'learned'; expected one of octaves, positional, fourier"),
        (lambda: unet(input_pyramid="sum"), "input_pyramid='sum'; expected one of 'none', 'skip', 'residual'"),
        (lambda: unet(resample="pool"), "resample='pool'; expected one of 'conv', 'block'"),
        (lambda: unet(time_scale=0.0), "time_scale=0.0; expected a number other than 0"),
        (
            lambda: unet(width=2, multipliers=(1,), attention=()),
            "got 2 time features; expected an even number of at least 4",
        ),
        (lambda: unet(width=36, groups=32, group_size=1), "36 channels for a normalization in 32 groups"),
        (lambda: unet(head_channels=5), "head_channels=5 for attention between 16 channels"),
        (
            lambda: unet()(X[:, :, :7], T),
            r"expected \(batch, 1, height, width\), each axis a multiple of 2: pad the samples",
        ),
        (lambda: unet(dims=1)(X, T), r"expected \(batch, 1, length\)"),
        (lambda: unet()(X, T[:, None]), "expected one time per sample, shape"),
        (lambda: unet()(X, T, label=T.long()), "got a label for a network without classes; build it with num_classes"),
        (lambda: unet()(X, T, augment=torch.ones(2, 9)), "augmentation for a network without; build it with augment"),
        (lambda: unet()(X, T, context=torch.ones(2, 3, 5)), "got a context for a network with context=None"),
        (lambda: unet(context=5)(X, T), "got no context for a network with context=5; pass context="),
        (lambda: unet(context=5)(X, T, context=torch.ones(2, 3, 4)), r"shape \(2, 3, 4\); expected \(2, tokens, 5\)"),
        (lambda: unet(num_classes=0), "num_classes=0; expected at least 1"),
        (lambda: unet(num_classes=2)(X, T, label=T), "expected integers of shape"),
        (lambda: unet(num_classes=2, unconditional=False)(X, T), "got no label for a network that needs one"),
        (lambda: DiT(1, 7), "size=7 for patches of 2; expected a multiple of the patch"),
        (lambda: DiT(1, 8, width=6, heads=2), "width=6 with 2 heads; expected a multiple of 4 and of the heads"),
        (lambda: DiT(1, 8, depth=0), "depth=0, .* expected positive sizes"),
        (lambda: DiT(1, 4, width=8, depth=1, heads=2)(X, T), "a DiT has the size that it was built with"),
        (lambda: NCSNv2(1, stages=()), "expected positive sizes and at least one stage"),
        (lambda: NCSNv2(1, 4)(X[:, :, :7], T), "multiples of 2: pad the images"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
