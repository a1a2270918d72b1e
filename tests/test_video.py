"""Videos: the network that is factorised into space and time, moving digits, given frames, files."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import scoresde
from scoresde import VP, CosineVP, ScoreModel, data, plots, problems, systems
from scoresde.analysis import Moments, law
from scoresde.inverse import TMPD, ReconstructionGuidance, replacement
from scoresde.models import SuperResolution, UNet
from scoresde.models.temporal import Frames, TimeAttention, offset_buckets
from scoresde.objectives import NoisedLow, SuperResolved, downsampled
from scoresde.solvers import sample_seeds


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


# Given frames on a separable Gaussian process ---------------------------------------------------------------------------

EVENT = (1, 3, 2, 2)
PROCESS = problems.gaussian_process(EVENT, (0.0, 3.0, 1.5, 1.5))
FIRST = torch.tensor([[[1.0, 0.5], [-0.5, 1.5]]], dtype=torch.float64)[:, None]  # (1, 1, 2, 2): one frame
QUIET: dict[str, Any] = {"progress": False}
DIGITS = data.open("digits")


def missing(known: list[int]) -> Moments:
    """The law of a whole video given frames of FIRST, by the kriging of the time axis alone: the covariance is a product."""
    time = torch.tensor([[math.exp(-abs(i - j) / 3) for j in range(3)] for i in range(3)], dtype=torch.float64)
    place = torch.cartesian_prod(*[torch.arange(2, dtype=torch.float64)] * 2)
    space = torch.exp(-(place[:, None] - place).abs().sum(-1) / 1.5)
    gain = time[:, known] @ torch.linalg.inv(time[known][:, known])
    mean = gain @ FIRST.flatten().expand(len(known), 4)
    return Moments(mean.flatten(), torch.kron(time - gain @ time[known], space))


@pytest.mark.parametrize("known", [[0], [2], [0, 2]])
def test_the_conditionals_of_frames_are_the_kriging_of_the_time_axis(known: list[int]) -> None:
    seen = systems.given_frames(FIRST.expand(1, len(known), 2, 2), known, 3)
    exact = PROCESS.posterior(seen.operator, seen.y, 0.0)
    assert Moments.of(exact).distance(missing(known)) < 1e-12


def test_samples_of_a_video_have_the_law_of_the_process() -> None:
    found = law(PROCESS.model(CosineVP()), EVENT, "dpmpp-3m", 40)
    assert found.wasserstein(Moments.of(PROCESS)) < 1e-2  # and an eighth of that with twice the steps


def test_methods_by_their_distance_to_the_missing_frames() -> None:
    """Prediction from one frame: replacement stays away however many steps; guidance is nearer; TMPD converges."""
    model, seen = PROCESS.model(CosineVP()), systems.given_frames(FIRST, [0], 3)
    found = {
        "replacement, 10": law(model, EVENT, replacement(seen, "ddim"), 10),
        "replacement, 20": law(model, EVENT, replacement(seen, "ddim"), 20),
        "weight 1": law(ReconstructionGuidance(model, seen), EVENT, "dpmpp-2m", 20),
        "weight 4": law(ReconstructionGuidance(model, seen, 4.0), EVENT, "dpmpp-2m", 20),
        "exact": law(TMPD(model, seen), EVENT, "dpmpp-2m", 40),
    }
    wanted = {"replacement, 10": 1.338, "replacement, 20": 1.236, "weight 1": 0.952, "weight 4": 0.279, "exact": 0.011}
    far = {name: end.wasserstein(missing([0])) for name, end in found.items()}
    assert far == pytest.approx(wanted, rel=0.05)


def test_reconstruction_guidance_by_its_definition() -> None:
    """Minus w alpha / 2 times the gradient, in the missing frames alone, of the squared residual."""
    sde = VP()
    seen, x = systems.given_frames(FIRST, [1], 3), normal(2, *EVENT).requires_grad_()
    m = PROCESS.model(sde).x0(x, 0.4)
    residual = (m[:, :, 1] - FIRST[:, 0]).square().sum()
    (gradient,) = torch.autograd.grad(residual, x)
    expected = (m - 2.5 * sde.alpha(0.4) / 2 * gradient).detach()
    expected[:, :, 1] = FIRST[:, 0]
    torch.testing.assert_close(ReconstructionGuidance(PROCESS.model(sde), seen, 2.5).x0(x.detach(), 0.4), expected)


@pytest.mark.parametrize("by", ["tmpd", "reconstruction", "replacement", "ddnm"])
def test_given_frames_stay_and_samples_depend_on_their_seed(by: str) -> None:
    model, two = PROCESS.model(VP()), torch.stack([FIRST, -FIRST])
    how = {"by": by, "steps": 30, **QUIET}
    found = systems.predict_frames(model, two, 3, dtype=torch.float64, **how).x
    assert float((found[:, :, :1] - two).abs().max()) < 2e-2
    alone = systems.predict_frames(model, two[1:], 3, dtype=torch.float64, seed=sample_seeds(0, 2)[1:], **how).x
    torch.testing.assert_close(alone[0], found[1])
    between = systems.interpolate_frames(model, torch.cat([FIRST, -FIRST], 1), 3, 2, dtype=torch.float64, **how).x
    assert float((between[:, :, [0, -1]] - torch.cat([FIRST, -FIRST], 1)).abs().max()) < 2e-2


def test_frames_go_where_they_are_said_to_be() -> None:
    frames = normal(2, 3, 2, 4, 4)
    seen = systems.given_frames(frames, [-1, 1], 5)
    placed = seen.operator.adjoint(seen.y)
    assert torch.equal(placed[:, :, [4, 1]], frames) and float(placed[:, :, [0, 2, 3]].abs().max()) == 0


def test_a_markov_chain_of_frames_is_extended_exactly() -> None:
    """An exponential kernel is a Markov chain: windows of 3 that see one frame give the law of 7 frames."""
    short, long = (problems.gaussian_process((1, n, 1, 1), (0, 3.0, 0, 0)) for n in (3, 7))
    n = 1500
    start = long.sample(n, torch.Generator().manual_seed(5), torch.float64)[:, :, :1]
    found = systems.extend(short.model(CosineVP()), start, 7, 3, by="tmpd", steps=20, dtype=torch.float64, **QUIET)
    assert torch.equal(found[:, :, :1], start)
    x = found.flatten(1)
    assert float((x.T.cov() - long.covariance).abs().max()) < 5 * math.sqrt(2 / n)  # of 5 standard errors
    assert float(x.mean(0).abs().max()) < 5 / math.sqrt(n)
    how = {"by": "tmpd", "steps": 20, "seed": sample_seeds(0, 5)[3:], "dtype": torch.float64, **QUIET}
    again = systems.extend(short.model(CosineVP()), start[3:5], 7, 3, **how)
    torch.testing.assert_close(again, found[3:5])


def test_images_are_stacked_after_the_videos() -> None:
    videos, images = data.moving_digits(n=5, frames=3, size=8), data.open("digits")
    both = systems.WithImages(videos, images)
    x, told = both.batch(torch.tensor([6, 2, 5]))
    assert len(both) == 5 + 1797 // 3 and told["still"].tolist() == [True, False, True]
    assert torch.equal(x[1], videos.samples([2])[0])
    assert torch.equal(x[0, 0], images.samples([3, 4, 5])[:, 0]) and torch.equal(x[2, 0], images.samples([0, 1, 2])[:, 0])
    last, _ = both.batch(torch.tensor([len(both) - 1]))
    assert torch.equal(last[0, 0, -1], images.samples([1796])[0, 0])


def test_videos_and_images_train_one_network() -> None:
    both = systems.WithImages(data.moving_digits(n=6, frames=3, size=8), data.Arrays(DIGITS.samples(range(9))))
    model = ScoreModel(UNet(1, 8, (1, 2), dims=3, temporal="attention", lean=True, blocks=1), VP(), "v")
    fitted = scoresde.fit(model, both, steps=3, batch_size=8, **QUIET)
    assert all(math.isfinite(loss) for _, loss in fitted.history)
    one = scoresde.sample(fitted.model, (2, 1, 1, 8, 8), steps=2, **QUIET).x  # an image is a video of one frame
    assert bool(torch.isfinite(one).all())


@pytest.mark.slow
@pytest.mark.parametrize("factor", [(2, 1, 1), (1, 2, 2), 2])
def test_cascades_enlarge_videos_in_time_and_in_space(factor: Any) -> None:
    videos = data.moving_digits(n=4, frames=4, size=8, digits=2)
    small = {"width": 8, "multipliers": [1, 2], "blocks": 1, "lean": True}
    inside = {**small, "dims": 3, "temporal": "attention"}
    axes = torch.tensor([4, 8, 8]) // torch.tensor(factor)
    sde = VP()
    base, above = ScoreModel(UNet(1, **inside), sde, "v"), ScoreModel(SuperResolution(1, inside), sde, "v")
    systems.train_stage(above, videos, 1, factor, NoisedLow(0.5, sde), steps=1, batch_size=4, **QUIET)
    stages = [
        systems.CascadeStage(base, (1, *axes.tolist()), steps=2),
        systems.CascadeStage(above, videos.event, NoisedLow(0.5, sde), steps=2),
    ]
    drawn = systems.Cascade(stages).draw(2, levels=0.1, **QUIET)
    assert [run.x.shape[1:] for run in drawn] == [(1, *axes.tolist()), (1, 4, 8, 8)]


def test_frames_are_averaged_in_time_or_in_space() -> None:
    x = normal(2, 1, 4, 8, 6)
    torch.testing.assert_close(downsampled(x, (2, 1, 1)), 0.5 * (x[:, :, ::2] + x[:, :, 1::2]))
    torch.testing.assert_close(downsampled(downsampled(x, (2, 1, 1)), (1, 2, 2)), downsampled(x, 2))
    assert systems.Resized(x, (2, 1, 3)).event == (1, 2, 8, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: systems.given_frames(FIRST, [3], 3), "frame 3 of a video of 3 frames; expected numbers from 0 to 2"),
        (lambda: systems.given_frames(FIRST, [-4], 3), "frame -4 of a video of 3 frames"),
        (lambda: systems.given_frames(FIRST, [0, 1], 3), r"got 1 frames at \[0, 1\]"),
        (lambda: systems.given_frames(FIRST.expand(1, 2, 2, 2), [0, -3], 3), "a place of its own for each frame"),
        (lambda: systems.given_frames(FIRST[0], [0], 3), r"expected \(channels, frames, height, width\)"),
        (
            lambda: systems.predict_frames(PROCESS.model(VP()), FIRST.expand(1, 3, 2, 2), 3),
            "3 frames to continue to a video of 3",
        ),
        (
            lambda: systems.predict_frames(PROCESS.model(VP()), FIRST, 3, by="replacment"),
            "did you mean 'replacement'|replacment",
        ),
        (lambda: systems.predict_frames(PROCESS.model(VP()), FIRST, 3, by="replacement", solver="ddim"), "a solver beside"),
        (
            lambda: systems.predict_frames(PROCESS.model(VP()), FIRST.expand(2, 1, 1, 2, 2), 3, 5),
            "2 measurements for 5 samples",
        ),
        (lambda: systems.extend(PROCESS.model(VP()), FIRST, 9, 3), r"expected \(batch, channels, frames"),
        (lambda: systems.extend(PROCESS.model(VP()), FIRST[None], 9, 3, 2), "1 frames to extend to 9"),
        (lambda: systems.extend(PROCESS.model(VP()), FIRST[None], 9, 3, 3), "an overlap shorter than a window"),
        (lambda: systems.extend(PROCESS.model(VP()), FIRST[None], 1, 3), "more frames in total than are given"),
        (lambda: systems.from_images(UNet(1, 8, (1,), dims=1)), "expected one of images"),
        (lambda: systems.WithImages(data.moving_digits(size=9, n=2), DIGITS), r"shape \(1, 8, 8\) for videos"),
        (
            lambda: systems.WithImages(data.moving_digits(n=1, size=8, frames=1800), DIGITS),
            "1797 images for videos",
        ),
        (lambda: downsampled(torch.zeros(1, 1, 4, 4), (2, 2, 2)), "samples with 2 axes"),
        (lambda: SuperResolved("v", (1, 1)), "at least 2, or one for each axis"),
        (lambda: systems.Resized(torch.zeros(2, 1, 3, 4), (2, 1)), "multiples of 2, not 3"),
        (lambda: problems.gaussian_process((1, 3), (1.0,)), r"got lengths=\(1.0,\) for samples of shape \(1, 3\)"),
        (lambda: problems.gaussian_process((3,), (-1.0,)), "a correlation length of at least 0"),
        (lambda: problems.gaussian_process((3,), (1.0,), "cubic"), "kernel='cubic'; expected one of 'exponential'"),
        (lambda: problems.gaussian_process((3,), (1.0,), std=0.0), "std=0.0"),
        (lambda: ReconstructionGuidance(PROCESS.model(VP()), systems.given_frames(FIRST, [0], 3), -1.0), "weight=-1.0"),
    ],
)
def test_refusals_of_the_systems(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Files ---------------------------------------------------------------------------------------------------------------


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_arrays_of_videos_are_cut_into_clips(tmp_path: Path) -> None:
    x = pixels(3, 7, 6, 4)
    np.savez(tmp_path / "grey.npz", x=x)
    np.save(tmp_path / "last.npy", np.repeat(x[..., None], 3, -1))
    np.save(tmp_path / "second.npy", np.repeat(x[:, None], 3, 1))
    grey = data.open_videos(tmp_path / "grey.npz", 3)
    assert grey.event == (1, 3, 6, 4) and len(grey) == 6
    assert torch.equal(grey.samples([3])[0, 0], torch.from_numpy(x[1, 3:6]).float() / 127.5 - 1)
    last, second = (data.open_videos(tmp_path / f"{name}.npy", 3) for name in ("last", "second"))
    assert torch.equal(last.tensor(), second.tensor()) and torch.equal(last.tensor()[:, :1], grey.tensor())
    dense = data.open_videos(tmp_path / "grey.npz", 3, stride=1)
    assert len(dense) == 15 and torch.equal(dense.samples([1])[0, :, :2], grey.samples([0])[0, :, 1:])
    assert len({v.fingerprint() for v in (grey, dense, last)}) == 3


def test_folders_of_frames_are_videos_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    x = pixels(2, 11, 4, 4)
    for i, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        for j in range(11):
            Image.fromarray(x[i, j]).save(tmp_path / name / f"{j}.png")
    videos = data.open_videos(tmp_path, 11)
    expected = torch.from_numpy(x[::-1].copy()).float() / 127.5 - 1  # a before b, 10.png after 9.png
    assert torch.equal(videos.tensor()[:, 0], expected)
    assert data.open_videos(tmp_path / "a", 4, size=2).event == (1, 4, 2, 2)
    assert len(data.open_videos(tmp_path / "a", 4)) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_is_written_and_read_again(channels: int, tmp_path: Path) -> None:
    x = torch.tensor([-1.0, 1.0])[torch.randint(2, (channels, 5, 6, 8), generator=torch.Generator().manual_seed(0))]
    plots.save_video(x, tmp_path / "one.gif", scale=1)
    found = data.open_videos(tmp_path / "one.gif", 5)
    ink = -x if channels == 1 else x  # dark on light
    assert found.event == (channels, 5, 6, 8) and torch.equal(found.samples([0])[0], ink)
    plots.save_video(x.flip(1), tmp_path / "two.gif", scale=1)
    both = data.open_videos(tmp_path, 5)
    assert len(both) == 2 and torch.equal(both.samples([1])[0], ink.flip(1))


def test_videos_are_shown_in_a_grid_and_in_tensorboard(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    x = data.moving_digits(n=6, frames=4, size=10).tensor()
    plots.save_video(x, tmp_path / "grid.gif", columns=3, scale=2)
    grid = data.open_videos(tmp_path / "grid.gif", 4).samples([0])[0, :1]
    assert grid.shape == (1, 4, 2 * (2 * 11 - 1), 2 * (3 * 11 - 1))
    corner = -x[0, 0, :, 0, 0]
    assert float((grid[0, :, 0, 0] - corner).abs().max()) < 0.05  # a GIF has 256 colours
    with SummaryWriter(str(tmp_path / "log")) as writer:
        plots.log_video(writer, "samples", x, 7)
    events = event_accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    (image,) = events.Images("samples")
    assert image.step == 7 and image.encoded_image_string[:6] == b"GIF89a"


def test_mp4_needs_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = data.moving_digits(n=2, frames=4, size=8).tensor()
    if importlib.util.find_spec("imageio_ffmpeg"):
        plots.save_video(x, tmp_path / "a.mp4")
        assert (tmp_path / "a.mp4").stat().st_size > 100
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "imageio" in name else real(name))
    with pytest.raises(ValueError, match=r"no encoder of MP4 is installed; .*\.gif, or pip install 'scoresde\[video\]'"):
        plots.save_video(x, tmp_path / "b.mp4")


def test_bad_files_get_a_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", pixels(3, 4))
    np.save(tmp_path / "wide.npy", np.full((1, 2, 4, 4), 3.0))
    np.save(tmp_path / "five.npy", pixels(2, 5, 5, 5, 5))
    np.save(tmp_path / "good.npy", pixels(2, 5, 4, 4))
    (tmp_path / "broken.gif").write_bytes(b"GIF89a" + bytes(20))
    for name, size in (("small", 4), ("large", 6)):
        (tmp_path / "gifs").mkdir(exist_ok=True)
        plots.save_video(torch.zeros(1, 2, size, size), tmp_path / "gifs" / f"{name}.gif", scale=1)
    (tmp_path / "empty").mkdir()
    for name, frames, message in (
        ("none", 2, "found no .*none"),
        ("flat.npy", 2, r"shape \(3, 4\) .* expected videos"),
        ("wide.npy", 2, r"not in \[-1, 1\]"),
        ("five.npy", 2, "expected 1, 3 or 4 channels"),
        ("good.npy", 6, "at most 5 frames to cut into clips of 6; .*frames=5 or fewer"),
        ("good.npy", 0, "frames"),
        ("broken.gif", 2, "cannot read the GIF"),
        ("gifs", 2, "the GIFs differ in height x width"),
        ("empty", 2, "found 0 GIFs and 0 other images"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open_videos(tmp_path / name, frames)
    with pytest.raises(ValueError, match="only folders of images are resized"):
        data.open_videos(tmp_path / "good.npy", 2, size=2)
    with pytest.raises(ValueError, match="allow more: limit="):
        data.open_videos(tmp_path / "gifs" / "small.gif", 2, limit=40)
    x = torch.zeros(2, 1, 3, 4, 4)
    for call, message in (
        (lambda: plots.save_video(x, tmp_path / "a.avi"), "ends with .gif, .mp4 or .html"),
        (lambda: plots.save_video(x[:, :, 0, 0], tmp_path / "a.gif"), r"videos of shape \(2, 1, 4\)"),
        (lambda: plots.save_video(x, tmp_path / "a.gif", fps=0), "fps=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
