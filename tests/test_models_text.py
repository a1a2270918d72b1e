"""Networks that are told a text or a vector, and the efficient U-Net: laws of each option, and counts by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models_published import normal, randomized
from torch import Tensor
from torch.nn import functional as F

import scoresde
from scoresde import models
from scoresde.models import EmbeddingPrior, MMDiT, UNet
from scoresde.models.transformers.positions import grid, rotate, rotations, sines
from scoresde.models.transformers.tokens import TokenBlock, attend

X, T, CONTEXT = normal(2, 1, 8, 8), normal(2, seed=2), normal(2, 3, 5)


def small(**changes: Any) -> UNet:
    return UNet(1, **{"width": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2, "context": 5} | changes)


WITH_CONTEXT = {
    "attention": {},
    "lean": {"lean": True},
    "transformer": {"transformer": 2},
    "lean transformer": {"transformer": 1, "lean": True},
    "outer": {"resample": "outer", "scale_skips": True},
    "outer transformer": {"resample": "outer", "transformer": (1, 2), "attention": (0, 1), "blocks": (1, 2)},
}
each = pytest.mark.parametrize("name", WITH_CONTEXT)


# The context ---------------------------------------------------------------------------------------------------------


@each
def test_a_masked_token_is_no_token(name: str) -> None:
    net, context = randomized(small(**WITH_CONTEXT[name])), normal(2, 6, 5, seed=4)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0]])
    expected = net(X, T, context=context[:, [0, 1, 3]])
    torch.testing.assert_close(net(X, T, context=context, context_mask=mask), expected)
    torch.testing.assert_close(net(X, T, context=context, context_mask=mask.bool()), expected)
    assert (net(X, T, context=context) - expected).abs().amax() > 1e-6
    own = torch.stack([mask[0], torch.ones_like(mask[0])])  # each sample has its own
    torch.testing.assert_close(net(X, T, context=context, context_mask=own)[:1], expected[:1])
    torch.testing.assert_close(net(X, T, context=context, context_mask=own)[1:], net(X, T, context=context)[1:])


@each
def test_a_sample_without_tokens_is_finite_and_does_not_depend_on_them(name: str) -> None:
    net, context = randomized(small(**WITH_CONTEXT[name])), normal(2, 3, 5, seed=4)
    mask = torch.tensor([[False] * 3, [True] * 3])
    output = net(X, T, context=context, context_mask=mask)
    assert torch.isfinite(output).all()
    context[0] += 1
    assert torch.equal(net(X, T, context=context, context_mask=mask), output)


@each
def test_a_new_network_says_nothing_and_every_weight_learns(name: str) -> None:
    net, context = small(**WITH_CONTEXT[name]).double(), normal(2, 3, 5, seed=4)
    assert torch.equal(net(X, T, context=context), torch.zeros_like(X))
    output = randomized(net)(X, T, context=context)
    assert output.shape == X.shape
    torch.testing.assert_close(net(X[1:], T[1:], context=context[1:]), output[1:])  # each sample depends on itself alone
    output.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_new_transformers_are_silent() -> None:
    net = small(transformer=2).double()
    blocks = [m for m in net.modules() if type(m).__name__ == "SpatialTransformer"]
    h = normal(2, 16, 4, 4)
    assert len(blocks) == 4  # one on the way down, in the middle, and two on the way up
    assert all(torch.equal(block(h, normal(2, 3, 5)), h) for block in blocks)


def test_a_block_of_tokens_is_what_its_papers_write() -> None:
    block = randomized(TokenBlock(8, 2, contexts=(None, 5)))
    h, context = normal(2, 6, 8), normal(2, 4, 5, seed=1)
    expected = h
    for attention, sources in zip(block.attentions, (None, context), strict=True):
        inner = F.layer_norm(expected, (8,), attention.norm.weight, attention.norm.bias)
        q = (inner @ attention.q.weight.T).reshape(2, 6, 2, 4)
        k, v = ((inner if sources is None else sources) @ attention.kv.weight.T).reshape(2, -1, 2, 2, 4).unbind(2)
        weight = torch.einsum("bphc,bqhc->bhpq", q / 2, k).softmax(-1)
        found = torch.einsum("bhpq,bqhc->bphc", weight, v).reshape(2, 6, 8)
        expected = expected + attention.output(found)
    part = block.perceptron
    value, gate = part.hidden(F.layer_norm(expected, (8,), part.norm.weight, part.norm.bias)).chunk(2, 2)
    expected = expected + part.back(value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))))
    torch.testing.assert_close(block(h, context), expected)
    assert torch.equal(block.silence()(h, context), h)


def test_a_mask_of_pairs_is_one_of_sources_where_its_rows_agree() -> None:
    q, k, v = (normal(2, 5, 4, seed=i) for i in range(3))
    mask = torch.tensor([[1, 0, 1, 1, 0]] * 2, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, 2, mask), attend(q, k, v, 2, mask[:, None].expand(2, 5, 5)))
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 5, 5)
    changed = v.clone()
    changed[:, 3:] += 1
    assert torch.equal(attend(q, k, v, 2, causal)[:, :3], attend(q, k, changed, 2, causal)[:, :3])


# Vectors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [{"pooled": 3}, {"guidance": True}])
def test_vectors_and_scales_are_told(told: dict[str, Any]) -> None:
    net = randomized(small(context=None, **told))
    values = normal(2, 3, seed=5) if "pooled" in told else torch.tensor([1.0, 4.0])
    (name,) = told
    output = net(X, T, **{name: values})
    assert (net(X, T, **{name: values.flip(0)}) - output).abs().amax() > 1e-6
    torch.testing.assert_close(net(X[1:], T[1:], **{name: values[1:]}), output[1:])
    if name == "guidance":
        torch.testing.assert_close(net(X, T, guidance=torch.tensor(4.0))[1:], output[1:])  # one for all


# Levels --------------------------------------------------------------------------------------------------------------


def test_one_number_for_each_level_is_one_for_all_where_they_agree() -> None:
    one = small(blocks=2, heads=2, transformer=1, attention=(0, 1))
    each = small(blocks=(2, 2), heads=(2, 2), transformer=(1, 1), attention=(0, 1))
    each.load_state_dict(one.state_dict())
    context = normal(2, 3, 5).float()
    assert torch.equal(one(X.float(), T.float(), context=context), each(X.float(), T.float(), context=context))
    uneven = small(blocks=(1, 3), context=None)
    assert [len(level.stages) for level in uneven.down] == [1, 3]
    assert [len(level.stages) for level in uneven.up] == [4, 2]
    assert UNet(**uneven.config).config == uneven.config


@pytest.mark.parametrize("resample", ["conv", "block", "outer"])
def test_scaled_skips_are_divided_by_the_root_of_two(resample: str) -> None:
    net, seen = randomized(small(context=None, scale_skips=True, resample=resample)), []
    for level in net.up:
        level.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net.down[1].stages[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(X, T)
    lowest, joined = seen[0], seen[1]
    torch.testing.assert_close(joined[:, -16:], lowest / math.sqrt(2))


def test_all_blocks_of_an_outer_network_are_below_the_full_resolution() -> None:
    net, sizes = small(resample="outer", blocks=(1, 2), context=None), []
    for part in net.modules():
        if type(part).__name__ == "ResidualBlock":
            part.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2]))
    net.double()(X, T)
    assert sizes == [4, 2, 2, 2, 2, 4]
    with pytest.raises(ValueError, match="each axis a multiple of 4"):
        net(normal(2, 1, 6, 6), T)
    net(normal(2, 1, 4, 12), T)


def test_the_count_of_imagen() -> None:
    c, f = (128, 256, 512, 1024), 512  # channels, and features of the embedding
    total = (128 * f + f) + (f * f + f) + (4096 * f + f) + (f * f + f)  # time and text
    total += 9 * 6 * 128 + 128 + 2 * 128 + 9 * 128 * 3 + 3  # ends

    def block(a: int, b: int) -> int:
        return 2 * a + 9 * a * b + b + (2 * b * f + 2 * b) + 2 * b + 9 * b * b + b + (a * b + b if a != b else 0)

    for i, n in enumerate((2, 4, 8, 8)):
        before = c[max(i - 1, 0)]
        total += 9 * before * c[i] + c[i] + 9 * c[i] * before + before  # down and up again
        total += n * block(c[i], c[i]) + n * block(2 * c[i], c[i])
    n = 1024
    total += 2 * (2 * n + 4 * (n * n + n))  # attention, and then cross-attention
    total += 2 * (2 * n + (n * n + n) + (4096 * 2 * n + 2 * n) + (n * n + n))
    with torch.device("meta"):
        counted = sum(p.numel() for p in models.NETWORKS["imagen-64-256"].build().parameters())
    assert counted == total == models.NETWORKS["imagen-64-256"].parameters
    assert counted / 600e6 == pytest.approx(1, abs=0.04)  # the paper's figure leaves the embedding of the text open


# Videos --------------------------------------------------------------------------------------------------------------

VIDEO = normal(2, 1, 3, 8, 8)


@pytest.mark.parametrize("changes", [{}, {"transformer": 1, "head_channels": 8}, {"lean": True}, {"resample": "outer"}])
def test_a_new_video_network_sees_each_frame_apart(changes: dict[str, Any]) -> None:
    net, image = small(dims=3, temporal="transformer", **changes).double(), small(**changes).double()
    assert torch.equal(net(VIDEO, T, context=CONTEXT), torch.zeros_like(VIDEO))
    with torch.no_grad():
        own = image.state_dict()
        randomized(image)
        net.load_state_dict(image.state_dict(), strict=False)  # the layers along the frames stay silent
    assert own.keys() < net.state_dict().keys()
    output = net(VIDEO, T, context=CONTEXT)
    for i in range(3):
        torch.testing.assert_close(output[:, :, i], image(VIDEO[:, :, i], T, context=CONTEXT))
    output = randomized(net)(VIDEO, T, context=CONTEXT)
    changed = VIDEO.clone()
    changed[:, :, 2] += 1
    assert (net(changed, T, context=CONTEXT) - output)[:, :, 0].abs().amax() > 1e-6  # now the frames see each other
    torch.testing.assert_close(net(VIDEO[1:], T[1:], context=CONTEXT[1:]), output[1:])
    output.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    assert net(VIDEO[:, :, :1], T, context=CONTEXT).shape == (2, 1, 1, 8, 8)


# Transformers of image and text -------------------------------------------------------------------------------------

MMDITS: dict[str, dict[str, Any]] = {
    "sines": {"single": 0},
    "sines, normalized, dual": {"qk_norm": True, "dual": (0,)},
    "rotary": {"rotary": (2, 2, 4), "single": 2, "qk_norm": True, "guidance": True},
}
each_mmdit = pytest.mark.parametrize("name", MMDITS)
IMAGE, TOKENS, VECTOR = normal(2, 3, 6, 8), normal(2, 4, 5, seed=4), normal(2, 7, seed=5)


def mmdit(name: str, **changes: Any) -> tuple[MMDiT, dict[str, Tensor]]:
    """A small network and its conditions."""
    sizes = {"width": 16, "depth": 2, "heads": 2, "pooled": 7, "largest": 6, "base": 4}
    net = MMDiT(3, 2, 5, **sizes | MMDITS[name] | changes)
    scale = {"guidance": torch.tensor([2.0, 5.0])} if net.config["guidance"] else {}
    return net.double(), {"context": TOKENS, "pooled": VECTOR, **scale}


@each_mmdit
def test_a_new_mmdit_says_nothing_and_every_weight_learns(name: str) -> None:
    net, told = mmdit(name)
    assert torch.equal(net(IMAGE, T, **told), torch.zeros_like(IMAGE))
    output = randomized(net)(IMAGE, T, **told)
    assert output.shape == IMAGE.shape
    torch.testing.assert_close(net(IMAGE[1:], T[1:], **{k: v[1:] for k, v in told.items()}), output[1:])
    output.square().sum().backward()
    silent = {name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() < 1e-12}
    # The last tokens of the text are attended to and attend to nothing, but the published networks have their queries' norm.
    assert silent <= {"doubles.1.text.joint.q_norm.weight"}
    for key, value in told.items():
        assert (net(IMAGE, T, **told | {key: value.flip(0)}) - output).abs().amax() > 1e-6, key
    assert MMDiT(**net.config).config == net.config


@each_mmdit
def test_the_text_is_a_set_whose_masked_tokens_are_none(name: str) -> None:
    net, told = mmdit(name)
    randomized(net)
    output = net(IMAGE, T, **told)
    torch.testing.assert_close(net(IMAGE, T, **told | {"context": TOKENS[:, [2, 0, 3, 1]]}), output)
    mask = torch.tensor([[True, False, True, False]] * 2)
    short = net(IMAGE, T, **told | {"context": TOKENS[:, [0, 2]]})
    torch.testing.assert_close(net(IMAGE, T, **told, context_mask=mask), short)
    assert (short - output).abs().amax() > 1e-6
    assert torch.isfinite(net(IMAGE, T, **told, context_mask=torch.zeros(2, 4, dtype=torch.bool))).all()


def test_rotary_positions_see_differences_alone() -> None:
    q, k, places = normal(1, 1, 6, 8), normal(1, 1, 6, 8, seed=1), normal(6, 3, seed=2)

    def products(shift: float) -> Tensor:
        turn = [part.double() for part in rotations(places + shift, (2, 2, 4))]
        return rotate(q, *turn) @ rotate(k, *turn).mT

    torch.testing.assert_close(products(0.0), products(3.0), rtol=0, atol=1e-5)
    assert (products(0.0) - q @ k.mT).abs().amax() > 0.1
    turn = [part.double() for part in rotations(places, (2, 2, 4))]
    torch.testing.assert_close(rotate(q, *turn).norm(dim=3), q.norm(dim=3))  # each pair is turned
    still = [part.double() for part in rotations(torch.zeros(6, 3), (2, 2, 4))]
    assert torch.equal(rotate(q, *still), q)


def test_added_positions_of_a_small_image_are_in_the_middle_of_the_largest() -> None:
    net, _ = mmdit("sines")
    whole = net._positions(6, 6, IMAGE).reshape(6, 6, 16)
    for rows, columns, top, left in ((2, 4, 2, 1), (3, 5, 1, 0), (6, 1, 0, 2)):
        part = net._positions(rows, columns, IMAGE).reshape(rows, columns, 16)
        assert torch.equal(part, whole[top : top + rows, left : left + columns])
    # Scaled by base / largest: the last patch of the largest image is where (6 - 1) * 4 / 6 is.
    torch.testing.assert_close(whole[5, 5].float(), sines(torch.tensor([[5, 5]]) * (4 / 6), 16)[0])
    assert torch.equal(grid(2, 3).int(), torch.cartesian_prod(torch.arange(2), torch.arange(3)).int())


def test_rotary_networks_take_images_of_any_size() -> None:
    net, told = mmdit("rotary")
    randomized(net)
    for height, width in ((2, 2), (2, 10), (16, 4)):
        assert net(normal(2, 3, height, width), T, **told).shape == (2, 3, height, width)


# The prior of unCLIP --------------------------------------------------------------------------------------------------

EMBEDDED, TEXT, PROMPT = normal(2, 6), normal(2, 4, 5, seed=1), normal(2, 7, seed=2)


def prior(**changes: Any) -> EmbeddingPrior:
    return EmbeddingPrior(6, 5, 4, **{"pooled": 7, "width": 8, "depth": 2, "heads": 2} | changes).double()


def test_a_new_prior_says_nothing_and_every_weight_learns() -> None:
    net = prior()
    assert torch.equal(net(EMBEDDED, T, TEXT, PROMPT), torch.zeros_like(EMBEDDED))
    output = randomized(net)(EMBEDDED, T, TEXT, PROMPT)
    torch.testing.assert_close(net(EMBEDDED[1:], T[1:], TEXT[1:], PROMPT[1:]), output[1:])
    output.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    for changed in ((EMBEDDED.flip(0), TEXT, PROMPT), (EMBEDDED, TEXT.flip(0), PROMPT), (EMBEDDED, TEXT, PROMPT.flip(0))):
        assert (net(changed[0], T, *changed[1:]) - output).abs().amax() > 1e-6
    assert torch.equal(net.denormalized(EMBEDDED), EMBEDDED)
    assert EmbeddingPrior(**net.config).config == net.config


def test_a_prior_looks_back_and_not_ahead() -> None:
    net, seen = randomized(prior()), []
    net.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    later = TEXT.clone()
    later[:, 2:] += 1
    for text in (TEXT, later):
        net(EMBEDDED, T, text, PROMPT)
    one, other = seen[0], seen[2]  # all tokens after the last block
    assert torch.equal(one[:, :2], other[:, :2]) and (one[:, 2:] - other[:, 2:]).abs().amax((0, 2)).min() > 1e-6
    masked = [net(EMBEDDED, T, text, PROMPT, torch.tensor([[True, True, False, False]] * 2)) for text in (TEXT, later)]
    assert torch.equal(*masked)


@pytest.mark.parametrize("kind", ["mmdit", "prior"])
def test_checkpoints_build_the_network_again(kind: str, tmp_path: Path) -> None:
    net, told = mmdit("rotary") if kind == "mmdit" else (prior(), {"context": TEXT, "pooled": PROMPT})
    model = scoresde.ScoreModel(randomized(net), scoresde.RectifiedFlow(), "velocity").eval()
    scoresde.save(model, tmp_path / "model")
    x = IMAGE if kind == "mmdit" else EMBEDDED
    loaded, t = scoresde.load(tmp_path / "model").double(), torch.tensor([0.2, 0.9])
    torch.testing.assert_close(loaded.x0(x, t, **told), model.x0(x, t, **told))


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(blocks=(1, 2, 3)), r"got blocks=\[1, 2, 3\] for 2 multipliers; expected one number for each"),
        (lambda: small(heads=(1,)), r"got heads=\[1\] for 2 multipliers"),
        (lambda: small(transformer=-1), "transformer=-1, .* expected whole numbers of at least 0"),
        (lambda: small(blocks=(0, 1)), r"blocks=\[0, 1\], .* expected positive sizes"),
        (lambda: small(resample="outer", input_pyramid="skip"), "resample='outer' with pyramids; expected 'none' for both"),
        (lambda: small(resample="outer", attention=()), "a context for a network without attention"),
        (lambda: small(transformer=1, heads=3), "heads=3 .* expected heads of equal size"),
        (lambda: mmdit("sines", width=18), "width=18 with 2 heads; expected a multiple of 4"),
        (lambda: mmdit("sines", depth=0), "depth=0; expected a positive number"),
        (lambda: mmdit("sines", single=-1), "single=-1, pooled=7; expected at least 0"),
        (
            lambda: mmdit("rotary", rotary=(2, 2, 2)),
            r"rotary=\[2, 2, 2\] for heads of 8 features; expected three even numbers",
        ),
        (lambda: mmdit("sines", dual=(2,)), r"dual blocks \[2\] of 2; expected numbers from 0 to 1"),
        (lambda: mmdit("sines")[0](IMAGE, T, pooled=VECTOR), "got no context for an MMDiT; pass context="),
        (
            lambda: mmdit("sines")[0](IMAGE[:, :2], T, TOKENS, VECTOR),
            r"expected \(batch, 3, height, width\), both sizes mult",
        ),
        (lambda: mmdit("sines")[0](IMAGE[:, :, 1:], T, TOKENS, VECTOR), "both sizes multiples of 2"),
        (lambda: mmdit("sines")[0](IMAGE, T, TOKENS[:1], VECTOR), r"expected \(2, tokens, 5\), one sequence per sample"),
        (lambda: mmdit("sines")[0](normal(2, 3, 2, 14), T, TOKENS, VECTOR), "1 by 7 patches, for a network with largest=6"),
        (lambda: small(temporal="attention"), "temporal='attention' with dims=2; expected dims=3"),
        (lambda: small(temporal="yes", dims=3), "got temporal='yes'; expected one of 'none', 'attention'"),
        (
            lambda: small(dims=3, temporal="attention").double()(X, T, context=CONTEXT),
            "expected \\(batch, 1, frames, height, width\\), each axis but the frames a multiple",
        ),
        (lambda: prior(depth=0), "depth=0; expected a positive number"),
        (lambda: prior(width=9), "got 9 time features; expected an even number"),
        (lambda: prior()(EMBEDDED, T, TEXT), r"got no pooled in a prior; expected pooled=.. of shape \(2, 7\)"),
        (lambda: prior()(EMBEDDED, T, TEXT[:, :3], PROMPT), r"shape \(2, 3, 5\) for context .* of shape \(2, 4, 5\)"),
        (lambda: TokenBlock(8, 3), "got 3 heads for tokens of 8 features"),
        (
            lambda: small().double()(X, T, context=CONTEXT, context_mask=torch.ones(2, 4, dtype=torch.bool)),
            r"context_mask of shape \(2, 4\) .*; expected booleans of shape \(2, 3\)",
        ),
        (
            lambda: small().double()(X, T, context=CONTEXT, context_mask=torch.ones(2, 3)),
            "dtype torch.float32; expected bool",
        ),
        (lambda: small(context=None).double()(X, T, context_mask=torch.ones(2, 3)), "a context_mask without a context"),
        (lambda: small(pooled=3).double()(X, T, context=CONTEXT), "got no pooled vector .* pass pooled="),
        (lambda: small(context=None).double()(X, T, pooled=normal(2, 3)), "got a pooled vector .* build the network with"),
        (
            lambda: small(context=None, pooled=3).double()(X, T, pooled=normal(2, 4)),
            r"pooled vectors of shape \(2, 4\); expected \(2, 3\)",
        ),
        (lambda: small(context=None, guidance=True).double()(X, T), "got no guidance scale .* pass guidance="),
        (lambda: small(context=None).double()(X, T, guidance=torch.ones(2)), "got a guidance scale .* guidance=True"),
    ],
)
def test_what_does_not_fit_is_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
