"""Networks: laws of their features, their conditioning and their layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scoresde.models import MLP, DiffusionUNet, DiT, UNet
from scoresde.models.layers import Embedding, TimeFeatures, modulate
from scoresde.models.unet import _Attention

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda **k: MLP(6, hidden=(16, 24), time_features=8, **k), (2, 3)),
    "unet": (lambda **k: UNet(2, 8, (1, 2), time_features=8, **k), (2, 4, 6)),
    "diffusion unet": (lambda **k: DiffusionUNet(2, 8, (1, 2), blocks=1, adaptive=True, **k), (2, 4, 6)),
    "diffusion unet, early label": (
        lambda **k: DiffusionUNet(1, 8, (1, 2), dims=1, early_label=True, resample="conv", **k),
        (1, 6),
    ),
    "dit": (lambda dropout=0.0, **k: DiT(2, (4, 6), width=8, depth=2, heads=2, **k), (2, 4, 6)),
    "unet, one level": (lambda **k: UNet(1, 8, (1,), blocks=2, attention=0, time_features=8, **k), (1, 3, 5)),
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
    net, (x, t) = randomized(make(num_classes=2, time_scale=7.0, dropout=0.1, label_dropout=0.2)), batch(event)
    twin = type(net)(**net.config).double()
    twin.load_state_dict(net.state_dict())
    assert twin.config == net.config
    assert torch.equal(twin.eval()(x, t), net(x, t))


@each_network
def test_hidden_label_is_no_label(make: Any, event: tuple[int, ...]) -> None:
    net, (x, t) = randomized(make(num_classes=3, label_dropout=1.0)), batch(event)
    label = torch.tensor([0, 1, 2, 0])
    assert torch.equal(net.train()(x, t, label=label), net(x, t))
    assert not torch.equal(net.eval()(x, t, label=label), net(x, t))


@given(st.floats(-50, 50), st.integers(1, 8).map(lambda k: 2 * k))
@settings(deadline=None)
def test_features_are_those_of_the_formula(t: float, n: int) -> None:
    features = TimeFeatures(n)(torch.tensor([t], dtype=torch.float64))[0].tolist()
    cycles = [2 ** (-3 + 9 * k / max(n // 2 - 1, 1)) for k in range(n // 2)]
    expected = [math.cos(2 * math.pi * f * t) for f in cycles] + [math.sin(2 * math.pi * f * t) for f in cycles]
    assert features == pytest.approx(expected, abs=2e-2 if abs(t) > 1 else 5e-4)  # frequencies are kept in float32


def test_features_tell_close_times_apart() -> None:
    # A step of a chain of 1000, addressed by its index, and the least times of a continuous model.
    for scale, t in ((1000.0, torch.arange(1000.0)), (1.0, torch.linspace(1e-3, 1, 1000))):
        features = TimeFeatures(64, scale)(t)
        assert (features.diff(dim=0).norm(dim=1) > 0.2).all()


@given(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3))
@settings(deadline=None)
def test_modulation_is_by_channel(channels: int, shape: list[int]) -> None:
    h, both = torch.randn(2, channels, *shape), torch.randn(2, 2 * channels)
    expected = torch.stack(
        [torch.stack([h[i, c] * (1 + both[i, c]) + both[i, channels + c] for c in range(channels)]) for i in range(2)]
    )
    torch.testing.assert_close(modulate(h, both), expected)


def test_attention_is_the_softmax_of_products() -> None:
    attention = randomized(_Attention(8, heads=2))
    x = torch.randn(3, 8, 2, 3, dtype=torch.float64)
    qkv = attention.qkv(attention.norm(x)).reshape(3, 3, 2, 4, 6)  # (batch, qkv, heads, channels, pixels)
    q, k, v = qkv.unbind(1)
    weights = torch.einsum("bhcp,bhcq->bhpq", q / 2, k).softmax(-1)
    h = torch.einsum("bhpq,bhcq->bhcp", weights, v).reshape(3, 8, 2, 3)
    torch.testing.assert_close(attention(x), x + attention.output(h))


def test_unet_sees_the_whole_image() -> None:
    net = randomized(UNet(1, 8, (1, 2, 2), time_features=8))
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    net(x, torch.tensor([0.3], dtype=torch.float64))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad.abs() > 0).all()


def test_unet_uses_every_channel_it_joins() -> None:
    net = randomized(UNet(1, 8, (1, 2, 2), blocks=2, time_features=8))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net(x, torch.tensor([0.3, 0.6], dtype=torch.float64)).square().sum().backward()
    merges = [m for name, m in net.named_modules() if name.endswith("merge") and isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in merges] == [8, 32, 32, 32, 32, 24, 16]
    for merge in merges:
        assert merge.weight.grad is not None
        assert (merge.weight.grad.abs().sum((0, 2, 3)) > 0).all()


def test_unet_for_digits_is_small() -> None:
    for net in (UNet(1), UNet(1, 16, (1, 3, 6))):
        assert 5e5 < sum(p.numel() for p in net.parameters()) < 1e6


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
        (lambda: UNet(1)(torch.ones(1, 1, 8, 6), torch.ones(1)), "multiples of 4, for 3 levels: pad the images"),
        (lambda: UNet(1)(torch.ones(1, 3, 8, 8), torch.ones(1)), r"expected \(batch, 1, height, width\)"),
        (lambda: UNet(1)(torch.ones(1, 64), torch.ones(1)), r"expected \(batch, 1, height, width\)"),
        (lambda: UNet(1, multipliers=()), "at least one level"),
        (lambda: TimeFeatures(3), "expected an even number"),
        (lambda: TimeFeatures(4, time_scale=0.0), "expected a positive number: 1 for times"),
        (lambda: Embedding(4, 4, 1.0, 2, 1.5), "expected a probability"),
    ],
)
def test_bad_input(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
