"""Videos: the network that is factorised into space and time, moving digits, given frames, files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import data
from scoresde.models import UNet
from scoresde.models.temporal import Frames, TimeAttention, offset_buckets


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network in float64 with no weight at zero, so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.double().parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net


# The network ---------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lean": {"lean": True},
    "context": {"context": 5, "transformer": 1, "resample": "outer"},
    "labels": {"num_classes": 3, "fir": True, "rescale": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
X, T = normal(2, 1, 3, 8, 8), torch.tensor([0.3, 0.8], dtype=torch.float64)


def networks(kind: str) -> tuple[UNet, UNet, dict[str, Tensor]]:
    """A network of videos with random weights, that of images with the same weights, and their conditions."""
    made = KINDS[kind] | {"blocks": 1, "attention": (0, 1)}
    video, image = UNet(1, 8, (1, 2), dims=3, temporal="attention", **made), UNet(1, 8, (1, 2), **made)
    randomized(video)
    image.double().load_state_dict({name: v for name, v in video.state_dict().items() if name in image.state_dict()})
    told = {"context": normal(2, 4, 5)} if "context" in made else {}
    return video, image, told | ({"label": torch.tensor([2, 0])} if "num_classes" in made else {})


@each_kind
def test_with_one_frame_it_is_the_network_of_images_bit_for_bit(kind: str) -> None:
    video, image, told = networks(kind)
    assert torch.equal(video(X[:, :, :1], T, **told)[:, :, 0], image(X[:, :, 0], T, **told))


@each_kind
def test_still_frames_are_images_and_no_other_frame_sees_them(kind: str) -> None:
    video, image, told = networks(kind)
    images = torch.stack([image(X[:, :, i], T, **told) for i in range(3)], 2)
    found = video(X, T, still=torch.tensor([False, True]), **told)
    torch.testing.assert_close(found[1], images[1])
    assert (found[0] - images[0]).abs().amax() > 1e-6
    torch.testing.assert_close(video(X, T, still=torch.tensor([[0, 0, 1], [1, 0, 1]]), **told)[:, :, 2], images[:, :, 2])
    two = video(X, T, still=torch.tensor([0, 0, 1]).expand(2, 3), **told)
    torch.testing.assert_close(two[:, :, :2], video(X[:, :, :2], T, **told))  # the third frame might as well be absent
    alone = video(X, T, still=torch.tensor([1, 0, 1]).expand(2, 3), **told)
    torch.testing.assert_close(alone, images)  # a single frame among images is an image


@each_kind
def test_every_weight_of_the_network_of_videos_is_used(kind: str) -> None:
    video, _, told = networks(kind)
    video(X, T, **told).square().sum().backward()
    assert [name for name, p in video.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 17])
def test_any_number_of_frames(frames: int) -> None:
    video, _, _ = networks("lean")
    assert video(normal(1, 1, frames, 8, 8), T[:1]).shape == (1, 1, frames, 8, 8)


def test_attention_over_time_depends_on_offsets_alone() -> None:
    layer = next(part for part in networks("lean")[0].modules() if isinstance(part, TimeAttention))
    buckets = offset_buckets(300)
    for k in range(-299, 300):
        assert len(buckets.diagonal(k).unique()) == 1  # a Toeplitz matrix
    first, column = buckets[0], buckets[:, 0]
    assert first[:8].tolist() == [0, *range(17, 24)] and column[:8].tolist() == list(range(8))
    assert bool((first.diff()[1:] >= 0).all()) and int(first[-1]) == 31 and int(column[-1]) == 15
    assert (int(first[90]), int(first[91]), int(column[90]), int(column[91])) == (30, 31, 14, 15)  # 8 * 16**(7/8) = 90.5
    assert layer.offsets.shape[1] == 32
    shared = torch.cat([first, column]).unique()
    assert shared.tolist() == [i for i in range(32) if i != 16]  # each is used, but for an offset of zero to the right


def test_attention_over_time_by_the_definition() -> None:
    """One head, one point: softmax of the products and the biases, written out."""
    net = UNet(1, 4, (1,), dims=3, temporal="attention", heads=1, blocks=1, group_size=4)
    layer = next(part for part in randomized(net).modules() if isinstance(part, TimeAttention))
    x = normal(5, 4, 1, 1)
    h = layer.norm(x)[:, :, 0, 0]
    q, k, v = layer.qkv(h).chunk(3, 1)
    logits = q @ k.T / 2 + torch.tensor(
        [[float(layer.offsets[0, (j - i) + 16 if j > i else i - j].detach()) for j in range(5)] for i in range(5)],
        dtype=torch.float64,
    )
    expected = x[:, :, 0, 0] + layer.output(logits.softmax(1) @ v)
    torch.testing.assert_close(layer(x, Frames(5))[:, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: networks("lean")[0](X, T, still=torch.zeros(2, 2, dtype=torch.bool)),
            r"still of shape \(2, 2\) .*\(2, 3\)",
        ),
        (lambda: networks("lean")[0](X, T, still=torch.zeros(2)), "dtype torch.float32; expected booleans"),
        (lambda: networks("lean")[1](X[:, :, 0], T, still=torch.ones(2)), "still for a network with temporal='none'"),
        (lambda: networks("lean")[0](X[:, :, 0], T), r"expected \(batch, 1, frames, height, width\)"),
    ],
)
def test_refusals_of_the_network(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Moving digits -------------------------------------------------------------------------------------------------------


def test_moving_digits_depend_on_the_seed_and_their_number_alone() -> None:
    some, more = (data.moving_digits(n=n, frames=4, size=14, digits=2, seed=3) for n in (4, 9))
    assert torch.equal(some.samples([3, 1]), more.samples([3, 1]))
    assert not torch.equal(data.moving_digits(n=4, frames=4, size=14, digits=2, seed=4).samples([1]), some.samples([1]))
    assert some.fingerprint() != more.fingerprint()
    assert some.event == (1, 4, 14, 14) and float(more.tensor().min()) == -1 and float(more.tensor().max()) <= 1


@pytest.mark.parametrize("speed", [0.0, 0.7, 5.0, 40.0])
def test_digits_move_at_a_constant_speed_and_stay_inside(speed: float) -> None:
    videos = data.moving_digits(n=20, frames=12, size=13, digits=2, speed=speed)
    for i in range(20):
        places = videos.tracks(i).places
        assert bool((places >= 0).all() and (places <= 5 + 1e-9).all())
        steps = places.diff(dim=1).norm(dim=2)
        assert bool((steps <= speed + 1e-9).all())
        inside = ((places[:, :-1] - speed > 0) & (places[:, :-1] + speed < 5)).all(2)  # where no border is in reach
        torch.testing.assert_close(steps[inside], torch.full_like(steps[inside], speed))


def test_a_digit_at_whole_pixels_is_the_image_itself() -> None:
    images = data.open("digits")
    video = data.moving_digits(images, n=3, frames=2, size=8)  # no room to move
    chosen = video.tracks(1).chosen
    assert torch.equal(video.samples([1])[0, 0], images.samples(chosen)[:, 0].expand(2, 8, 8))
    assert video.labels is not None and int(video.labels[1]) == int(images.labels[chosen[0]])  # type: ignore[index]


def test_the_ink_of_a_digit_moves_with_its_place() -> None:
    videos = data.moving_digits(n=4, frames=6, size=20, speed=1.3)
    pixel = torch.arange(20, dtype=torch.float64)
    for i in range(4):
        ink = 0.5 * (videos.samples([i])[0, 0].double() + 1)
        total = ink.sum((1, 2))
        torch.testing.assert_close(total, total[:1].expand(6), rtol=1e-5, atol=1e-5)
        centre = torch.stack([(ink.sum(2) @ pixel), (ink.sum(1) @ pixel)], 1) / total[:, None]
        torch.testing.assert_close(centre.diff(dim=0), videos.tracks(i).places[0].diff(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 7}, r"images of shape \(1, 8, 8\) for frames of 7 x 7; .* size=8 or more"),
        ({"frames": 0}, "frames"),
        ({"digits": 0}, "digits"),
        ({"n": 1.5}, "n"),
        ({"speed": -1.0}, "speed=-1.0"),
        ({"speed": float("nan")}, "speed=nan"),
    ],
)
def test_refusals_of_moving_digits(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.moving_digits(**changes)
