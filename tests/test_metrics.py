"""The distances of samples: against SciPy, closed forms and the laws they satisfy; the classifier by its accuracy."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats
from scipy.spatial.distance import pdist
from sklearn.metrics import pairwise

from scoresde.data import load_digits, split
from scoresde.metrics import (
    _samples,
    energy_distance,
    frechet_distance,
    gaussian_frechet_distance,
    median_distance,
    mmd,
    sliced_wasserstein,
    sliced_wasserstein_estimate,
    train_classifier,
    wasserstein,
    wasserstein_estimate,
)
from scoresde.problems import gaussian

SIZES, SEEDS = st.integers(2, 40), st.integers(0, 2**31)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(seed=0):
    return torch.Generator().manual_seed(seed)


def covariance(seed, d, rank=None):
    a = draw(seed, d, rank or d)
    return a @ a.T / d


@given(SIZES, SIZES, SEEDS)
def test_energy_distance_on_a_line_is_that_of_scipy(n, m, seed):
    x, y = draw(seed, n, 1), 0.5 + 2 * draw(seed + 1, m, 1)
    # SciPy's is the root of the biased estimate, which compares each sample with itself too.
    surplus = sum(np.abs(z - z.T).sum() / (len(z) ** 2 * (len(z) - 1)) for z in (x.numpy(), y.numpy()))
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2 - surplus
    assert energy_distance(x, y).item() == pytest.approx(expected, abs=1e-12)


@given(SIZES, SIZES, st.integers(1, 5), SEEDS)
def test_energy_distance_is_its_definition_in_any_chunks(n, m, d, seed):
    x, y = draw(seed, n, d), draw(seed + 1, m, d) + 1

    def mean(a, b, pairs):
        return sum(np.linalg.norm(u - v) for u in a.numpy() for v in b.numpy()) / pairs

    expected = 2 * mean(x, y, n * m) - mean(x, x, n * (n - 1)) - mean(y, y, m * (m - 1))
    assert energy_distance(x, y).item() == pytest.approx(expected, abs=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_samples, "CHUNK", 7)
        assert energy_distance(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_energy_distance_is_unbiased_and_tells_distributions_apart():
    # Of N(0, 1) and N(1, 1) in one dimension E|Z| is known in closed form for each of the three differences.
    def mean_abs(mu, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * s**2)) + mu * math.erf(mu / (s * math.sqrt(2)))

    exact = 2 * mean_abs(1, math.sqrt(2)) - 2 * mean_abs(0, math.sqrt(2))
    for shift, expected in ((0, 0.0), (1, exact)):
        runs = torch.stack([energy_distance(draw(2 * i, 10, 1), draw(2 * i + 1, 15, 1) + shift) for i in range(500)])
        assert abs(runs.mean() - expected) < 4 * runs.std() / math.sqrt(len(runs))


def of_roots(c_x, c_y):
    """What rounding may make of Frechet's distance: an eigenvalue of zero comes out as d eps |C|, and counts by its root.

    Each of d singular values of the product of two roots then errs by the error of one times the norm of the other.
    """
    d, sizes = len(c_x), torch.linalg.matrix_norm(torch.stack([c_x, c_y]), 2)
    return 4 * d * math.sqrt(d * torch.finfo(torch.float64).eps * float(sizes.prod())) + 1e-13 * float(sizes.sum())


@given(st.integers(1, 6), SEEDS)
def test_frechet_distance_of_gaussians_is_that_of_sqrtm(d, seed):
    mean_x, mean_y, c_x, c_y = draw(seed, d), draw(seed + 1, d), covariance(seed + 2, d), covariance(seed + 3, d)
    root = np.atleast_2d(linalg.sqrtm(c_x.numpy() @ c_y.numpy()))
    expected = ((mean_x - mean_y) ** 2).sum() + (c_x + c_y).trace() - 2 * np.trace(root).real
    # The root of a product loses half of the digits where it is nearly singular, on the side of the reference.
    bound = 4 * of_roots(c_x, c_y)
    assert gaussian_frechet_distance(mean_x, c_x, mean_y, c_y).item() == pytest.approx(expected.item(), abs=bound)


@given(st.integers(1, 6), st.integers(1, 6), SEEDS)
def test_frechet_distance_of_commuting_gaussians_has_a_closed_form(d, rank, seed):
    rotation = torch.linalg.qr(draw(seed, d, d)).Q
    e_x, e_y = draw(seed + 1, 2, d) ** 2
    e_x[rank:] = 0  # singular covariances too
    c_x, c_y = (rotation @ torch.diag(e) @ rotation.T for e in (e_x, e_y))
    mean = draw(seed + 2, d)
    expected = (mean**2).sum() + ((e_x.sqrt() - e_y.sqrt()) ** 2).sum()
    distance = gaussian_frechet_distance(mean, c_x, torch.zeros(d), c_y)
    torch.testing.assert_close(distance, expected, rtol=1e-10, atol=of_roots(c_x, c_y))


@given(st.integers(1, 5), SEEDS)
def test_frechet_distance_of_samples_uses_their_moments(d, seed):
    x, y = draw(seed, 20, d), draw(seed + 1, 30, d) @ draw(seed + 2, d, d) + 1
    moments = [(z.numpy().mean(0), np.cov(z.numpy(), rowvar=False).reshape(d, d)) for z in (x, y)]
    expected = gaussian_frechet_distance(*(torch.from_numpy(v) for pair in moments for v in pair))
    torch.testing.assert_close(frechet_distance(x, y), expected, rtol=1e-9, atol=1e-9)


def test_frechet_distance_falls_to_zero_with_more_samples(rng):
    problem = gaussian(4)

    def bias(n):
        pairs = [(problem.sample(n, rng), problem.sample(n, rng)) for _ in range(100)]
        return torch.stack([frechet_distance(x, y) for x, y in pairs]).mean()

    order = torch.log10(bias(100) / bias(1000)).item()
    assert order == pytest.approx(1, abs=0.15)  # the bias falls as 1 / n


@given(SIZES, SIZES, SEEDS)
def test_sliced_wasserstein_on_a_line_is_that_of_scipy(n, m, seed):
    x, y = draw(seed, n, 1).round(decimals=1), 0.5 + 2 * draw(seed + 1, m, 1).round(decimals=1)  # with ties
    expected = stats.wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y, 3, generator=directions()).item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(2, 6), st.integers(1, 3), SEEDS)
def test_wasserstein_is_the_best_of_all_permutations(n, d, seed):
    x, y = draw(seed, n, d), draw(seed + 1, n, d)
    best = min(float((x - y[list(order)]).square().sum()) for order in itertools.permutations(range(n))) / n
    found = wasserstein_estimate(x, y)
    assert wasserstein(x, y).item() == found.value == pytest.approx(math.sqrt(best), abs=1e-12)
    assert wasserstein(x, x[torch.randperm(n, generator=directions())]).item() == 0


@given(st.integers(2, 60), SEEDS)
def test_wasserstein_on_a_line_pairs_in_order(n, seed):
    x, y = draw(seed, n, 1), 3 * draw(seed + 1, n, 1)
    assert wasserstein(x, y).item() == pytest.approx(float((x.sort(0).values - y.sort(0).values).square().mean().sqrt()))


def test_wasserstein_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="of one size"):
        wasserstein(torch.zeros(3, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="at most 4,096"):
        wasserstein(torch.zeros(5000, 1), torch.zeros(5000, 1))


@given(SIZES, st.integers(1, 5), SEEDS)
def test_sliced_wasserstein_of_a_translation_is_its_mean_length_on_the_directions(n, d, seed):
    x, shift = draw(seed, n, d), draw(seed + 1, d)
    u = torch.randn(50, d, generator=directions(5), dtype=torch.float64)
    expected = (u @ shift / u.norm(dim=1)).abs().mean()
    distance = sliced_wasserstein(x, x + shift, 50, generator=directions(5))
    torch.testing.assert_close(distance, expected, rtol=1e-10, atol=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_samples, "CHUNK", 1)
        chunked = sliced_wasserstein(x, x + shift, 50, generator=directions(5))
    torch.testing.assert_close(chunked, distance)


@given(SIZES, SIZES, st.integers(1, 5), SEEDS)
def test_mmd_is_that_of_the_kernels_of_scikit_learn_in_any_chunks(n, m, d, seed):
    x, y, widths = draw(seed, n, d), draw(seed + 1, m, d) + 0.5, [0.5, 2.0]
    kernels = {
        "gaussian": lambda a, b: sum(pairwise.rbf_kernel(a, b, gamma=0.5 / h**2) for h in widths),
        "polynomial": lambda a, b: pairwise.polynomial_kernel(a, b, degree=3, gamma=1 / d, coef0=1),
    }
    for name, kernel in kernels.items():
        k_xx, k_yy, k_xy = (kernel(a.numpy(), b.numpy()) for a, b in ((x, x), (y, y), (x, y)))
        within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (k_xx, k_yy))
        expected = pytest.approx(within - 2 * k_xy.mean(), rel=1e-9, abs=1e-9)
        assert mmd(x, y, name, widths if name == "gaussian" else None).item() == expected
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_samples, "CHUNK", 7)
            assert mmd(x, y, name, widths if name == "gaussian" else None).item() == expected


@given(st.integers(2, 100), SEEDS)
def test_the_default_width_is_the_median_distance_within_the_second_set(n, seed):
    y = draw(seed, n, 2)
    # Of an even number of distances the lower of the two in the middle.
    width = np.quantile(pdist(y.numpy()), 0.5, method="inverted_cdf")
    assert median_distance(y) == pytest.approx(width)
    x = draw(seed + 1, 5, 2)
    torch.testing.assert_close(mmd(x, y), mmd(x, y, widths=[width]))


DISTANCES = {
    "mmd": lambda x, y: mmd(x, y, widths=[1.0]),
    "energy": energy_distance,
    "frechet": frechet_distance,
    "sliced": lambda x, y: sliced_wasserstein(x, y, 16, generator=directions()),
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@given(SIZES, SIZES, SEEDS)
def test_distances_are_symmetric_and_blind_to_order_shape_and_origin(distance, n, m, seed):
    x, y = draw(seed, n, 2, 3), draw(seed + 1, m, 2, 3) + 0.5
    expected = distance(x, y)
    assert expected.shape == () and expected.dtype == torch.float64
    shuffled = x[torch.randperm(n, generator=directions(seed))]
    # A few samples have a singular covariance. Mean discrepancies are differences of sums of numbers up to one.
    bound = of_roots(*(z.flatten(1).T.cov() for z in (x, y))) if distance is frechet_distance else 1e-10
    for same in (distance(y, x), distance(shuffled, y), distance(x.flatten(1), y.flatten(1)), distance(x - 3, y - 3)):
        torch.testing.assert_close(same, expected, rtol=1e-9, atol=bound)
    torch.testing.assert_close(distance(x.float(), y.float()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distance", [energy_distance, frechet_distance, DISTANCES["sliced"]])
def test_distances_scale_as_they_should(distance):
    x, y = draw(0, 10, 3), draw(1, 12, 3) + 1
    power = 2 if distance is frechet_distance else 1
    torch.testing.assert_close(distance(3 * x, 3 * y), 3**power * distance(x, y))


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((1, 2), (5, 2)), ((5, 2), (5, 1, 2))])
def test_samples_that_do_not_fit_are_refused(distance, shapes):
    with pytest.raises(ValueError, match=r"expected .* the same event and at least two samples each"):
        distance(*(torch.zeros(s) for s in shapes))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="at least one event dimension"):
        energy_distance(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="got projections=0; expected at least 1"):
        sliced_wasserstein(torch.zeros(3, 1), torch.zeros(3, 1), 0, generator=directions())
    x = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="got kernel='cubic'; expected 'gaussian' or 'polynomial'"):
        mmd(x, x, "cubic")
    with pytest.raises(ValueError, match=r"got widths=\[1\.0\] for the polynomial kernel; expected none"):
        mmd(x, x, "polynomial", [1.0])
    with pytest.raises(ValueError, match=r"got widths=\[0\.0\]; expected positive numbers"):
        mmd(x, x)
    images = torch.zeros(4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"got images of shape \(4, 8, 8\)"):
        train_classifier(images[:, 0], torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels of shape \(3,\)"):
        train_classifier(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got labels of dtype torch\.float32 from 0"):
        train_classifier(images, torch.zeros(4))
    with pytest.raises(ValueError, match="got epochs=0"):
        train_classifier(images, torch.zeros(4, dtype=torch.int64), epochs=0)


def test_classifier_reads_held_out_digits_and_its_features_order_damage():
    images, labels = load_digits()
    training, held_out = split(len(images))
    before = torch.get_rng_state()
    model = train_classifier(images[training], labels[training])
    assert torch.equal(torch.get_rng_state(), before)
    accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).double().mean()
    assert accuracy > 0.97  # measured: 0.989 to 0.992 over three seeds
    real, others = images[held_out], images[training[: len(held_out)]]
    noise = draw(0, *real.shape).float()

    def distance(z):
        return frechet_distance(model.features(z), model.features(real)).item()

    damaged = [distance(real + s * noise) for s in (0.0, 0.1, 0.2, 0.5, 1.0)]
    assert damaged == sorted(damaged)
    assert damaged[0] == pytest.approx(0, abs=1e-6)
    assert damaged[-1] > 10 * distance(others)


def test_classifier_depends_on_its_seed_alone():
    images, labels = load_digits()
    models = [train_classifier(images[:100], labels[:100], seed=s, epochs=1) for s in (0, 0, 1)]
    a, b, c = (m.features(images[:5]) for m in models)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.gpu
@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_distances_on_the_device_of_the_samples(distance):
    x, y = draw(0, 100, 4), draw(1, 120, 4) + 1
    result = distance(x.cuda(), y.cuda())
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), distance(x, y), rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_classifier_on_the_device_of_the_images():
    images, labels = load_digits()
    model = train_classifier(images[:100].cuda(), labels[:100].cuda(), epochs=1)
    assert model.features(images[:5].cuda()).device.type == "cuda"


@pytest.mark.parametrize("d", [1, 2, 5])
def test_one_projection_is_scipys_distance_on_one_line(d):
    """And its interval has no part for the spread over directions, of which one alone tells nothing."""
    g = torch.Generator().manual_seed(4)
    x, y = torch.randn(40, d, generator=g, dtype=torch.float64), 1 + torch.randn(70, d, generator=g, dtype=torch.float64)
    found = sliced_wasserstein(x, y, 1, generator=torch.Generator().manual_seed(5))
    line = torch.randn(1, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)[0]
    line = line / line.norm()
    assert float(found) == pytest.approx(stats.wasserstein_distance((x @ line).numpy(), (y @ line).numpy()), rel=1e-12)
    whole = sliced_wasserstein_estimate(x, y, 1, generator=torch.Generator().manual_seed(5))
    assert math.isfinite(whole.low) and math.isfinite(whole.high) and whole.low < whole.value < whole.high
    assert whole.value == pytest.approx(float(found), rel=1e-12)
