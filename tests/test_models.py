"""Networks: laws of their features, their conditioning and their layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scoresde.models import MLP, DiT, UNet
from scoresde.models.blocks import ResidualBlock
from scoresde.models.embedding import TimeFeatures
from scoresde.models.layers import modulate
from scoresde.models.resample import Resample

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda **k: MLP(6, hidden=(16, 24), time_features=8, **k), (2, 3)),
    "unet": (lambda **k: UNet(2, 8, (1, 2), blocks=1, **k), (2, 4, 6)),
    "unet, early label": (
        lambda **k: UNet(1, 8, (1, 2), dims=1, early_label=True, resample="conv", adaptive=False, time="positional", **k),
        (1, 6),
    ),
    "unet, lean": (lambda **k: UNet(2, 8, (1, 2), lean=True, **k), (2, 4, 6)),
    "unet, lean, one level": (lambda **k: UNet(1, 8, (1,), lean=True, attention=(), **k), (1, 3, 5)),
    "dit": (lambda dropout=0.0, **k: DiT(2, (4, 6), width=8, depth=2, heads=2, **k), (2, 4, 6)),
}
each_network = pytest.mark.parametrize(("make", "event"), NETWORKS.values(), ids=list(NETWORKS))


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """All weights drawn anew, so that no layer is silent."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net.eval()


def batch(event: tuple[int, ...], n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *event, generator=generator, dtype=torch.float64)
    return x, torch.rand(n, generator=generator, dtype=torch.float64)


@each_network
def test_starts_by_saying_nothing(make: Any, event: tuple[int, ...]) -> None:
    x, t = batch(event)
    assert torch.equal(make()(x.float(), t.float()), torch.zeros_like(x.float()))


@each_network
def test_each_sample_depends_on_itself_alone(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=3)), batch(event)
    label = torch.tensor([0, 2, 1, 1])
    together = net(x, t, label=label)
    for i in range(len(x)):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], label=label[i : i + 1]), together[i : i + 1])


@each_network
def test_depends_on_time_and_label(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=2)), batch(event)
    outputs = [net(x, t), net(x, t + 0.1), net(x, t, label=torch.zeros(4).long()), net(x, t, label=torch.ones(4).long())]
    for i, a in enumerate(outputs):
        assert all((a - b).abs().amax() > 1e-4 for b in outputs[:i])


@each_network
def test_every_parameter_is_trained(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=4)), batch(event)
    net(x, t, label=torch.arange(4)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if not (p.grad is not None and p.grad.abs().sum() > 0)] == []


@each_network
@given(scale=st.floats(1e-3, 1e4))
@settings(max_examples=10, deadline=None)
def test_time_scale_is_a_unit(make: Any, event: tuple[int, ...], scale: float) -> None:
    x, t = batch(event)
    a, b = randomized(make()), randomized(make(time_scale=scale))
    torch.testing.assert_close(b(x, t * scale), a(x, t), rtol=1e-3, atol=1e-3)


@each_network
def test_config_builds_the_same_network(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=2, time_scale=7.0, dropout=0.1)), batch(event)
    twin = type(net)(**net.config).double()
    twin.load_state_dict(net.state_dict())
    assert twin.config == net.config
    assert torch.equal(twin.eval()(x, t), net(x, t))


@each_network
def test_no_label_is_the_one_after_the_last(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=3)), batch(event)
    assert torch.equal(net(x, t, label=torch.full((4,), 3)), net(x, t))
    needing = randomized(make(num_classes=3, unconditional=False))
    with pytest.raises(ValueError, match=r"needs one; pass label=.., integers from 0 to 2, or build it with unconditional"):
        needing(x, t)
    with pytest.raises(ValueError, match="label 3 for a network of 3 classes"):
        needing(x, t, label=torch.full((4,), 3))
    (row,) = {p.numel() - q.numel() for p, q in zip(net.parameters(), needing.parameters(), strict=True)} - {0}
    assert row == net.embedding.label.weight.shape[1]  # type: ignore[union-attr]


@each_network
def test_training_draws_nothing_but_dropout(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=3)).train(), batch(event)
    label, state = torch.tensor([0, 1, 2, 3]), torch.get_rng_state()
    assert torch.equal(net(x, t, label=label), net.eval()(x, t, label=label))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "event"),
    [
        (lambda: MLP(2), (2,)),
        (lambda: UNet(1), (1, 8, 8)),
        (lambda: UNet(1, lean=True), (1, 8, 8)),
        (lambda: DiT(1, 8, depth=1), (1, 8, 8)),
    ],
    ids=["mlp", "unet", "unet, lean", "dit"],
)
def test_defaults_see_the_times_of_an_sde(make: Any, event: tuple[int, ...]) -> None:
    # Times in [0, 1] a hundredth apart: in what an untrained network embeds, against times far apart, and in the output.
    net, x = make().double(), torch.randn(1, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, t, far = (torch.tensor([t], dtype=torch.float64) for t in (0.31, 0.3, 0.8))
    embed = net.embedding
    assert (embed(t) - embed(near)).norm() > 0.2 * (embed(t) - embed(far)).norm() > 0
    randomized(net)
    assert (net(x, t) - net(x, near)).norm() > 0.05 * net(x, t).norm()


@given(st.floats(-50, 50), st.integers(2, 8).map(lambda k: 2 * k))
@settings(deadline=None)
def test_features_are_those_of_the_formula(t: float, n: int) -> None:
    features = TimeFeatures(n)(torch.tensor([t], dtype=torch.float64))[0].tolist()
    cycles = [2 ** (-3 + 9 * k / max(n // 2 - 1, 1)) for k in range(n // 2)]
    expected = [math.cos(2 * math.pi * f * t) for f in cycles] + [math.sin(2 * math.pi * f * t) for f in cycles]
    assert features == pytest.approx(expected, abs=2e-2 if abs(t) > 1 else 5e-4)  # frequencies are kept in float32


def test_features_tell_close_times_apart() -> None:
    # A step of a chain of 1000, addressed by its index, and the least times of a continuous model.
    for scale, t in ((1000.0, torch.arange(1000.0)), (1.0, torch.linspace(1e-3, 1, 1000))):
        features = TimeFeatures(64, time_scale=scale)(t)
        assert (features.diff(dim=0).norm(dim=1) > 0.2).all()


@given(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3))
@settings(deadline=None)
def test_modulation_is_by_channel(channels: int, shape: list[int]) -> None:
    h, both = torch.randn(2, channels, *shape), torch.randn(2, 2 * channels)
    expected = torch.stack(
        [torch.stack([h[i, c] * (1 + both[i, c]) + both[i, channels + c] for c in range(channels)]) for i in range(2)]
    )
    torch.testing.assert_close(modulate(h, both), expected)


@pytest.mark.parametrize("lean", [False, True])
def test_unet_sees_the_whole_image(lean: bool) -> None:
    net = randomized(UNet(1, 8, (1, 2, 2), blocks=1, lean=lean))
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    net(x, torch.tensor([0.3], dtype=torch.float64))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad.abs() > 0).all()


def test_lean_unet_uses_every_channel_it_joins() -> None:
    net = randomized(UNet(1, 8, (1, 2, 2), lean=True))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net(x, torch.tensor([0.3, 0.6], dtype=torch.float64)).square().sum().backward()
    merges = [m for name, m in net.named_modules() if name.endswith("merge") and isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in merges] == [8, 32, 32, 32, 32, 24, 16]
    for merge in merges:
        assert merge.weight.grad is not None
        assert (merge.weight.grad.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("fir", [False, True])
def test_lean_unet_has_blocks_alone_and_changes_the_resolution_without_weights(fir: bool) -> None:
    net = UNet(1, 8, (1, 2, 2), lean=True, blocks=3, fir=fir)
    changes = [level.resample for level in (*net.down, *net.up) if level.resample is not None]
    assert len(changes) == 4 and all(isinstance(m, Resample) and m.fir == fir for m in changes)
    assert not [p for m in changes for p in m.parameters()] and not list(net.middle.parameters())
    assert len([m for m in net.modules() if isinstance(m, ResidualBlock)]) == 2 * 3 * 3


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("skip", [False, True])
def test_silent_blocks_leave_the_skip_connections_of_a_lean_unet(dims: int, skip: bool) -> None:
    net = randomized(UNet(2, 8, (1, 1), dims=dims, lean=True, attention=()))
    for name, p in net.named_parameters():
        if ".conv2." in name or ".merge." in name:
            nn.init.zeros_(p)
        if name.endswith("merge.weight"):  # of what came from below, and of the skip connection
            p.data[:, 8 * skip : 8 * skip + 8] = torch.eye(8).reshape(8, 8, *[1] * dims)
    x = torch.randn(3, 2, *[4] * dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = net.stem(x)
    for axis in range(2, 2 + dims) if not skip else ():  # the mean of two neighbours, then each of them twice
        h = h.unflatten(axis, (2, 2)).mean(axis + 1).repeat_interleave(2, axis)
    torch.testing.assert_close(net(x, torch.zeros(3).double()), net.output(nn.functional.silu(net.norm(h))))


def test_lean_unet_has_about_half_the_arithmetic() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for lean in (True, False):
        net = UNet(3, lean=lean)
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, 8, 8), torch.zeros(1))
        counts.append(counter.get_total_flops())
    assert 0.4 < counts[0] / counts[1] < 0.6


@given(levels=st.integers(1, 4), level=st.integers(0, 3), lean=st.booleans())
@settings(max_examples=12, deadline=None)
def test_levels_with_attention_may_be_counted_from_the_lowest(levels: int, level: int, lean: bool) -> None:
    level %= levels
    with torch.device("meta"):
        first, second = (UNet(1, 8, [1] * levels, lean=lean, attention=[i]) for i in (level, level - levels))
    assert first.config == second.config
    at = {name.split(".")[1] for name, m in first.down.named_parameters(prefix="down") if ".attention." in name}
    assert at == {str(level)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(0), "expected positive sizes"),
        (lambda: MLP(2, hidden=()), "expected positive sizes"),
        (lambda: MLP(2)(torch.ones(1, 3), torch.ones(1)), "3 components a sample, for an MLP of 2"),
        (lambda: MLP(2)(torch.ones(1, 2), torch.ones(1, 1)), "expected one time per sample, shape"),
        (lambda: MLP(2)(torch.ones(1, 2), torch.ones(1), label=torch.ones(1).long()), "build it with num_classes"),
        (lambda: MLP(2, num_classes=2)(torch.ones(1, 2), torch.ones(1), label=torch.ones(1)), "expected integers of"),
        (lambda: MLP(2, num_classes=0), "num_classes=0; expected at least 1"),
        (lambda: UNet(1)(torch.ones(1, 1, 8, 6), torch.ones(1)), "each axis a multiple of 4: pad the samples"),
        (lambda: UNet(1)(torch.ones(1, 3, 8, 8), torch.ones(1)), r"expected \(batch, 1, height, width\)"),
        (lambda: UNet(1)(torch.ones(1, 64), torch.ones(1)), r"expected \(batch, 1, height, width\)"),
        (lambda: UNet(1, multipliers=()), "at least one level"),
        (lambda: UNet(1, lean=True, attention=(), context=3), "a context for a network without attention"),
        (lambda: TimeFeatures(3), "expected an even number"),
        (lambda: TimeFeatures(4, time_scale=0.0), "expected a number other than 0, by which times are divided"),
    ],
)
def test_bad_input(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
