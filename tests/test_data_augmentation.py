"""Augmentation that does not leak: exact transformations of images, descriptions that are zero for none, rates of each."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.data import Augmentation


def numbers(**chosen):
    """One transformation, zero but for ``a0=..`` to ``a7=..``."""
    a = torch.zeros(1, 8, dtype=torch.float64)
    for name, value in chosen.items():
        a[0, int(name[1])] = value
    return a


def rotation(angle):
    """From x towards y."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


IMAGE = 0.9 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDENTITY = Augmentation(p=0)


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        (numbers(a0=1), IMAGE.flip(-1)),
        (numbers(a1=1), IMAGE.flip(-2)),
        (numbers(a3=math.pi / 2), IMAGE.rot90(1, (-2, -1))),  # y points down: from y towards x is anticlockwise
        (numbers(a3=math.pi), IMAGE.flip(-1, -2)),
        (numbers(a0=1, a3=math.pi / 2), IMAGE.flip(-1).rot90(1, (-2, -1))),
    ],
)
def test_flips_and_quarter_turns_move_pixels(a, expected):
    assert torch.allclose(IDENTITY.apply(IMAGE, a), expected, atol=1e-6)


def test_shifts_are_eighths_of_the_image_to_the_right_and_down():
    moved = IDENTITY.apply(IMAGE, numbers(a6=1, a7=-2))
    assert torch.allclose(moved[..., :12, 2:], IMAGE[..., 4:, :14], atol=1e-6)


@given(st.integers(0, 2**31), st.sampled_from([(40, 40), (36, 48)]))
def test_the_whole_transformation_is_the_product_of_its_parts(seed, shape):
    """A ramp shows at each point where it came from, but for a tenth of a pixel: torch's bicubic kernel bends it so much."""
    height, width = shape
    a = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.4
    a[:, :2] = (a[:, :2] > 0).double()
    flips, scale, turn, along, stretch, shift = a[0, :2].numpy(), *a[0, 2:6].tolist(), a[0, 6:].numpy() * 0.2
    a[0, 6:] *= 0.2
    s = 2**0.2
    linear = np.diag(1 - 2 * flips) * s**scale
    linear = rotation(along) @ np.diag([s**stretch, s**-stretch]) @ rotation(along).T @ rotation(-turn) @ linear
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    points = np.stack([x, y], -1)
    came_from = (points - shift * [width / 8, height / 8]) @ np.linalg.inv(linear).T
    slope = np.array([0.013, -0.007])
    ramp = torch.from_numpy(points @ slope)[None, None]
    moved = IDENTITY.apply(ramp, a)[0, 0].numpy()
    inside = (np.abs(came_from) < np.array([width, height]) / 2 - 3).all(-1)
    assert inside.sum() > 100
    assert np.abs(moved - came_from @ slope)[inside].max() < 0.1 * np.abs(slope).sum()


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_images_left_alone_are_unchanged_and_described_by_zeros_and_no_others(seed, p):
    augmentation = Augmentation(p, mirror=0.5)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(20, 1, 8, 8, generator=generator) * 2 - 1
    a = augmentation.draw(20, generator)
    y, described = augmentation.apply(x, a), augmentation.describe(a)
    alone = (a[:, [0, 1, 2, 3, 5, 6, 7]] == 0).all(1)  # a direction without a stretch is none
    assert torch.equal((described == 0).all(1), alone)
    still = (a == 0).all(1)
    assert torch.equal(y[still], x[still])
    assert y.abs().max() <= 1
    expected = torch.stack([a[:, 3].cos() - 1, a[:, 3].sin(), a[:, 5] * a[:, 4].cos(), a[:, 5] * a[:, 4].sin()], 1)
    assert torch.allclose(described[:, 3:7], expected.float(), atol=1e-6)


def test_each_transformation_comes_as_often_as_it_should():
    n, p = 40_000, 0.3
    a = Augmentation(p).draw(n, torch.Generator().manual_seed(0))
    rates = (a != 0).double().mean(0)
    expected = torch.tensor([0.5, p / 2, *[p] * 6], dtype=torch.float64)
    assert (rates - expected).abs().max() < 4 * 0.5 / n**0.5
    assert torch.equal((a[:, 4] != 0), (a[:, 5] != 0)) and torch.equal((a[:, 6] != 0), (a[:, 7] != 0))
    normal, angles = a[:, [2, 5, 6, 7]], a[:, 3:5]
    for column, variance in [*[(c, 1.0) for c in normal.T], *[(c, math.pi**2 / 3) for c in angles.T]]:
        some = column[column != 0]
        assert abs(some.mean()) < 4 * (variance / len(some)) ** 0.5
        assert abs(some.var() / variance - 1) < 4 * (2 / len(some)) ** 0.5
    assert angles.abs().max() <= math.pi


def test_what_is_drawn_is_a_function_of_the_generator_and_rows_can_be_shared():
    augmentation = Augmentation(0.5)
    x = torch.rand(6, 1, 8, 8)
    whole, given = augmentation(x, torch.Generator().manual_seed(3))
    a = augmentation.draw(6, torch.Generator().manual_seed(3))
    halves = torch.cat([augmentation.apply(x[:3], a[:3]), augmentation.apply(x[3:], a[3:])])
    assert torch.allclose(whole, halves, atol=1e-6)
    assert torch.equal(given["augment"], augmentation.describe(a)) and given["augment"].shape == (6, Augmentation.size)


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ValueError, match=r"got p=1.5 .* expected probabilities between 0 and 1"):
        Augmentation(1.5)
    with pytest.raises(ValueError, match=r"got samples of shape \(3, 2\) .* expected images of shape \(n, c, h, w\)"):
        Augmentation()(torch.zeros(3, 2), torch.Generator())
