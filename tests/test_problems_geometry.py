"""The shapes in the plane: radii, angles, squares and symmetries, from their formulas and scikit-learn's, in exact numbers.

Every shape is centred and scaled to unit variance, the smoothing included, on average over its two axes. Where the variance
of the unscaled shape is known in closed form, so is the place of every point.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import make_swiss_roll

from scoresde.problems import checkerboard, grid, moons, pinwheel, ring, rings, spiral, spirals, swiss_roll

SHAPES = (rings, checkerboard, swiss_roll, spirals, pinwheel)
stds = st.floats(0, 0.9)
KINDS = pytest.mark.parametrize("kind", [int, np.int64])


def polar(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.hypot(points[:, 0], points[:, 1]), np.arctan2(points[:, 1], points[:, 0])


def same_set(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sets of points in the plane are equal to rounding, in any order."""
    distances = np.linalg.norm(a[:, None] - b, axis=2)
    return len(a) == len(b) and bool((distances.min(0) < 1e-9).all() and (distances.min(1) < 1e-9).all())


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


@pytest.mark.parametrize("shape", SHAPES)
@given(std=stds)
def test_every_shape_is_centred_and_of_unit_variance(shape: Any, std: float) -> None:
    problem = shape(std=std)
    assert problem.std == std and problem.event == (2,)
    assert problem.mean.abs().max() < 1e-12
    assert float(problem.covariance.trace()) == pytest.approx(2, rel=1e-12)
    assert len({tuple(p) for p in problem.data.tolist()}) == len(problem.data), "no point is there twice"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("std", [1.0, 2.0, -0.1, math.nan])
def test_a_smoothing_that_leaves_no_room_for_the_shape_is_refused(shape: Any, std: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= std < 1, because the whole shape has unit variance"):
        shape(std=std)


@KINDS
@given(count=st.integers(1, 6), points=st.integers(2, 30), std=stds)
def test_rings_are_circles_equally_far_apart_and_equally_dense(kind: Any, count: int, points: int, std: float) -> None:
    """Radii i s with s^2 n (n + 1) / 2 = 2 (1 - std^2), which makes the variance one; i times ``points`` on the i-th."""
    data = rings(kind(count), kind(points), std).data.numpy()
    radius, angle = polar(data)
    unit = math.sqrt(4 * (1 - std**2) / (count * (count + 1)))
    at = Counter(np.round(radius / unit, 6))
    assert at == {float(i): i * points for i in range(1, count + 1)}
    for i in range(1, count + 1):
        on = np.sort(angle[np.abs(radius / unit - i) < 0.5])
        np.testing.assert_allclose(np.diff(on), 2 * math.pi / (i * points), rtol=1e-7)
        # half a part from the axis on, so that no two rings have points on one ray from it
        assert np.abs(on).min() == pytest.approx(math.pi / (i * points), rel=1e-7)


@KINDS
@given(side=st.integers(1, 4).map(lambda k: 2 * k), points=st.integers(1, 8), std=stds)
def test_a_checkerboard_fills_every_other_square_with_a_lattice(kind: Any, side: int, points: int, std: float) -> None:
    """Either axis runs through side x points equidistant places: their variance is (side^2 - 1 / points^2) / 12 squares."""
    data = checkerboard(kind(side), kind(points), std).data.numpy()
    square = math.sqrt((1 - std**2) * 12 / (side**2 - 1 / points**2))
    places = (data / square + side / 2) * points - 0.5  # 0, 1, .. side x points - 1
    np.testing.assert_allclose(places, np.round(places), atol=1e-8)
    whole = np.round(places).astype(int)
    assert whole.min() == 0 and whole.max() == side * points - 1
    squares = Counter(map(tuple, whole // points))
    assert squares == {s: points**2 for s in itertools.product(range(side), repeat=2) if sum(s) % 2 == 0}
    assert len(data) == side**2 * points**2 // 2


def test_an_odd_board_has_its_corners_filled() -> None:
    data = checkerboard(3, 1, 0.0).data.numpy()
    corners = data[np.abs(data).min(1) > 1e-9]
    assert len(data) == 5 and len(corners) == 4 and same_set(corners, corners * [1, -1])


def curve_up_to_scale(data: np.ndarray, curve: np.ndarray) -> None:
    """``data`` are ``curve`` shifted and scaled by one positive number: neither turned nor mirrored nor stretched."""
    centred = curve - curve.mean(0)
    scale = (data * centred).sum() / (centred**2).sum()
    assert scale > 0
    np.testing.assert_allclose(data, scale * centred, atol=1e-12)


@KINDS
@given(points=st.integers(10, 200), turns=st.floats(0.5, 3), std=stds)
def test_the_swiss_roll_is_scikit_learns_seen_from_its_end(kind: Any, points: int, turns: float, std: float) -> None:
    """(t cos t, t sin t) for t from 3 pi / 2 on, evenly; scikit-learn's t goes one and a half turns, to 9 pi / 2."""
    theirs, t = make_swiss_roll(50, random_state=0)
    np.testing.assert_allclose(theirs[:, [0, 2]], np.stack([t * np.cos(t), t * np.sin(t)], 1), atol=1e-12)
    assert 1.5 * math.pi < t.min() < 1.8 * math.pi and 4.2 * math.pi < t.max() < 4.5 * math.pi
    angle = 1.5 * math.pi + 2 * math.pi * turns * (np.arange(points) + 0.5) / points
    curve = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1)
    curve_up_to_scale(swiss_roll(kind(points), turns, std).data.numpy(), curve)


def test_the_swiss_roll_turns_one_and_a_half_times_unless_it_is_told_otherwise() -> None:
    data = swiss_roll().data.numpy()
    angle = np.linspace(1.5 * math.pi, 4.5 * math.pi, 2 * 160 + 1)[1::2]
    curve_up_to_scale(data, np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1))


@KINDS
@given(points=st.integers(2, 150), turns=st.floats(0.3, 3), std=stds)
def test_spirals_are_two_archimedean_arms_opposite_to_one_another(kind: Any, points: int, turns: float, std: float) -> None:
    """The radius grows with the angle from zero to 2 sqrt(1 - std^2), whose square is evenly covered."""
    data = spirals(kind(points), turns, std).data.numpy()
    arm, other = data[:points], data[points:]
    np.testing.assert_allclose(other, -arm, atol=1e-12)
    radius, angle = polar(arm)
    np.testing.assert_allclose(radius**2 / (4 * (1 - std**2)), (np.arange(points) + 0.5) / points, rtol=1e-9)
    wanted = 2 * math.pi * turns * radius / (2 * math.sqrt(1 - std**2))
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(1j * wanted), atol=1e-9)


@KINDS
@given(arms=st.integers(2, 8), points=st.integers(2, 16), std=stds)
def test_a_pinwheel_has_equal_blades_which_widen_and_bend(kind: Any, arms: int, points: int, std: float) -> None:
    """Radii from 1/4 to 5/4; at each, a blade is half a radian wide, and lags by 1.2 radians for each unit of radius."""
    data = pinwheel(kind(arms), kind(points), std).data.numpy()
    rows, columns = points, points // 2
    assert len(data) == arms * rows * columns
    assert same_set(turned(data, 2 * math.pi / arms), data)
    middles = 0.25 + (np.arange(rows) + 0.5) / rows
    unit = math.sqrt(2 * (1 - std**2) / (middles**2).mean())
    first = data[: rows * columns].reshape(rows, columns, 2)
    for r, row in zip(middles, first, strict=True):
        radius, angle = polar(row)
        np.testing.assert_allclose(radius, unit * r, rtol=1e-9)
        wanted = 0.5 * ((np.arange(columns) + 0.5) / columns - 0.5) - 1.2 * r
        np.testing.assert_allclose(np.exp(1j * angle), np.exp(1j * wanted), atol=1e-9)


# Mixtures -------------------------------------------------------------------------------------------------------------


@KINDS
@given(modes=st.integers(1, 12), radius=st.floats(0.1, 5), std=st.floats(0.01, 1))
def test_a_ring_has_its_modes_evenly_on_a_circle(kind: Any, modes: int, radius: float, std: float) -> None:
    problem = ring(kind(modes), radius, std)
    r, angle = polar(problem.means.numpy())
    np.testing.assert_allclose(r, radius, rtol=1e-12)
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(2j * math.pi * np.arange(modes) / modes), atol=1e-12)
    np.testing.assert_allclose(problem.covariances.numpy(), std**2, rtol=1e-12)


@KINDS
@given(side=st.integers(1, 6), spacing=st.floats(0.1, 3))
def test_a_grid_is_square_and_centred(kind: Any, side: int, spacing: float) -> None:
    axis = spacing * (np.arange(side) - (side - 1) / 2)
    wanted = np.array(list(itertools.product(axis, axis)))
    np.testing.assert_allclose(grid(kind(side), spacing).means.numpy(), wanted, atol=1e-12)


def test_the_moons_are_half_circles_about_two_centres_and_one_another_turned() -> None:
    """Of radius one, the upper about (-1/2, -1/4) and the lower about (1/2, 1/4), before the axes are scaled."""
    scale = np.array([1.14, 1.94])
    means = moons().means.numpy() / scale
    upper, lower = means[:8], means[8:]
    np.testing.assert_allclose(lower, -upper, atol=1e-12)
    radius, angle = polar(upper - [-0.5, -0.25])
    np.testing.assert_allclose(radius, 1, rtol=1e-12)
    np.testing.assert_allclose(angle, math.pi * (np.arange(8) + 0.5) / 8, rtol=1e-12)
    for a, covariance in zip(angle, moons().covariances.numpy()[:8] / np.outer(scale, scale), strict=True):
        across, along = np.array([math.cos(a), math.sin(a)]), np.array([-math.sin(a), math.cos(a)])
        assert across @ covariance @ across == pytest.approx(0.08**2, rel=1e-9)
        assert along @ covariance @ along == pytest.approx((math.pi / 16) ** 2, rel=1e-9)
        assert abs(across @ covariance @ along) < 1e-12


def test_the_spiral_of_a_mixture_is_archimedean_and_evenly_spread_over_its_disc() -> None:
    radius, angle = polar(spiral(48, 1.5).means.numpy())
    np.testing.assert_allclose((radius / 2) ** 2, (np.arange(48) + 0.5) / 48, rtol=1e-12)
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(2j * math.pi * 1.5 * radius / 2), atol=1e-12)
