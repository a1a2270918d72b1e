"""Problems made of data: the empirical distribution against brute force, low rank against full matrices, and fits."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import EDM, VP
from scoresde.data import load_digits as load_digits
from scoresde.problems import Empirical, GaussianMixture, LowRankMixture, ppca_digits, ppca_mixture, random_mixture
from scoresde.problems import digits as digits_problem
from tests.support import SDES, generator

EVENTS = st.sampled_from([(1,), (2,), (3,), (2, 2), (1, 2, 3)])


def same(problem, other, x, sde, t, tolerance=1e-9):
    for method in ("log_prob", "score", "x0", "eps", "v"):
        found, expected = (getattr(p, method)(x, sde, t) for p in (problem, other))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(EVENTS, st.integers(1, 30), st.floats(0, 1), st.integers(1, 50), st.integers(0, 2**31), st.sampled_from(list(SDES)))
def test_the_empirical_distribution_is_a_mixture_of_its_points(event, n, std, chunk, seed, name):
    g, sde = generator(seed), SDES[name]
    data = torch.randn(n, *event, generator=g, dtype=torch.float64)
    t = sde.time(torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64))
    x = sde.perturb(data[:1].expand(3, *event), t, torch.randn(3, *event, generator=g, dtype=torch.float64))
    problem, brute_force = Empirical(data, std, chunk=chunk), GaussianMixture(data, std**2)
    same(problem, brute_force, x, sde, t)
    torch.testing.assert_close(problem.mean, brute_force.mean)
    torch.testing.assert_close(problem.covariance, brute_force.covariance)


def test_single_precision_finds_the_neighbours_where_float32_distances_would_not():
    # Two nearby images of 3072 pixels, a little noise: squares of 3000 must be told apart to 1e-5.
    data = torch.randn(2, 3072, generator=generator(1))
    data[1] = data[0]
    data[1, 0] += 0.03
    sigma, problem = 0.03, Empirical(data)
    x = data[:1] + sigma * torch.randn(64, 3072, generator=generator(2))
    exact = problem.x0(x.double(), EDM(), sigma)
    weight = (exact[:, 0] - data[0, 0]) / (data[1, 0] - data[0, 0])
    by_differences = torch.softmax(-((x.double()[:, None] - data.double()) ** 2).sum(2) / (2 * sigma**2), 1)[:, 1]
    torch.testing.assert_close(weight, by_differences, rtol=0, atol=1e-5)
    assert weight.min() < 0.3 and weight.max() > 0.7  # both matter
    torch.testing.assert_close(problem.x0(x, EDM(), sigma).double(), exact, rtol=0, atol=1e-6)


def test_the_flow_of_points_ends_on_the_nearest():
    data = load_digits()[0]
    problem = Empirical(data, chunk=10_000)
    x = data[:5] + 0.01 * torch.randn(5, 1, 8, 8, generator=generator(3))
    torch.testing.assert_close(problem.x0(x, EDM(), 0.01), data[:5], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the data have no density"):
        problem.log_prob(x)
    sampled = problem.sample(50, generator(4))
    assert (torch.cdist(sampled.flatten(1), data.flatten(1)).amin(1) < 1e-3).all()


def test_data_keep_their_dtype_and_integers_become_floats():
    assert digits_problem().data.dtype == torch.float32
    assert Empirical([[1, 2], [3, 4]]).data.dtype == torch.float64


def random_low_rank(event, components, rank, seed):
    g, d = generator(seed), math.prod(event)
    means = torch.randn(components, *event, generator=g, dtype=torch.float64)
    factors = torch.randn(components, d, min(rank, d), generator=g, dtype=torch.float64)
    noise, weights = torch.rand(2, components, generator=g, dtype=torch.float64) + 0.05
    return LowRankMixture(means, factors, noise, weights)


def as_full(problem):
    d = problem.event.numel()
    noise = problem._exact.noise[:, None, None] * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(problem.means, problem.factors @ problem.factors.mT + noise, problem.weights)


@given(EVENTS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from(list(SDES)))
def test_low_rank_mixtures_are_mixtures(event, components, rank, seed, name):
    problem, sde = random_low_rank(event, components, rank, seed), SDES[name]
    full, t = as_full(problem), sde.time(torch.tensor([-2.0, 0.0, 1.0, 4.0], dtype=torch.float64))
    x0 = problem.sample(4, generator(seed), torch.float64)
    same(
        problem, full, sde.perturb(x0, t, torch.randn(x0.shape, generator=generator(seed + 1), dtype=torch.float64)), sde, t
    )
    torch.testing.assert_close(problem.log_prob(x0), full.log_prob(x0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(problem.mean, full.mean)
    torch.testing.assert_close(problem.covariance, full.covariance)


def test_low_rank_without_noise_is_degenerate_and_allowed():
    v = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3
    problem = LowRankMixture(torch.zeros(1, 3), v[None, :, None], 0.0)
    x = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    alpha, sigma = VP().alpha(0.2), VP().sigma(0.2)
    expected = alpha / (alpha**2 + sigma**2) * torch.outer(x @ v, v)
    torch.testing.assert_close(problem.x0(x, VP(), 0.2), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="the data have no density, because a covariance is singular"):
        problem.log_prob(x)


@pytest.mark.parametrize("d", [2, 3, 10, 4096])
def test_random_mixtures_of_every_size_have_mean_variance_one(d):
    problem = random_mixture(d, modes=6, seed=d)
    x = problem.sample(20_000 if d <= 10 else 400, generator(5), torch.float64)
    assert (x - problem.mean).pow(2).mean().item() == pytest.approx(1, abs=0.1)
    if d <= 10:
        assert problem.covariance.trace().item() == pytest.approx(d, rel=1e-12)
        assert random_mixture(d, modes=6, seed=d).fingerprint() == problem.fingerprint()
        assert random_mixture(d, modes=6, seed=d + 1).fingerprint() != problem.fingerprint()


def test_many_dimensions_are_exact():
    # Against the same Gaussian in its own basis, at noise far below what float32 could resolve.
    d, problem = 4096, random_mixture(4096, modes=2, rank=4)
    x0, t = problem.sample(3, generator(6), torch.float64), 1e-3
    x = EDM().perturb(x0, t, torch.randn(3, d, generator=generator(7), dtype=torch.float64))
    k = torch.cdist(x, problem.means).argmin(1)  # the component that made it: they are far apart
    basis, singular, _ = torch.linalg.svd(problem.factors[k], full_matrices=False)
    y = x - problem.means[k]
    z = torch.einsum("bdr,bd->br", basis, y)
    across, noise = y - torch.einsum("bdr,br->bd", basis, z), problem.noise + t**2
    expected = -across / noise - torch.einsum("bdr,br->bd", basis, z / (singular**2 + noise))
    torch.testing.assert_close(problem.score(x, EDM(), t), expected, rtol=1e-9, atol=1e-9)


def test_one_mode_is_the_probabilistic_pca_of_scikit_learn():
    from sklearn.decomposition import PCA

    x = torch.randn(300, 6, generator=generator(8), dtype=torch.float64) @ torch.randn(6, 6, generator=generator(9)).double()
    fitted, pca = ppca_mixture(x, modes=1, rank=2, iterations=0), PCA(2).fit(x.numpy())
    # scikit-learn divides by n - 1 where maximum likelihood divides by n.
    torch.testing.assert_close(fitted.covariance, torch.from_numpy(pca.get_covariance()) * 299 / 300, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fitted.mean, x.mean(0))


def test_every_iteration_raises_the_likelihood():
    x = load_digits()[0][:600]
    fits = [ppca_mixture(x, modes=4, rank=3, iterations=i) for i in range(5)]
    likelihoods = [fit.log_prob(x.double()).mean().item() for fit in fits]
    assert all(a < b for a, b in itertools.pairwise(likelihoods)), likelihoods


def test_a_planted_mixture_is_found():
    planted = random_mixture(8, modes=3, rank=2, seed=4)
    x = planted.sample(6000, generator(10), torch.float64)
    fitted = ppca_mixture(x, modes=3, rank=2, iterations=40)
    order = torch.cdist(planted.means, fitted.means).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(fitted.weights[order], planted.weights, rtol=0, atol=0.03)
    torch.testing.assert_close(fitted.noise[order], planted.noise.expand(3), rtol=0.05, atol=0)
    held_out = planted.sample(6000, generator(11), torch.float64)
    assert (planted.log_prob(held_out) - fitted.log_prob(held_out)).mean().abs() < 0.05


def test_fitted_digits_have_the_moments_of_the_digits():
    # Maximisation keeps the mean of the data, and their total variance but for what it replaced by the floor.
    data = load_digits()[0].flatten(1).double()
    problem = ppca_digits()
    torch.testing.assert_close(problem.mean.flatten(), data.mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(problem.covariance.trace(), data.var(0, correction=0).sum(), rtol=1e-3, atol=0)


POINTS = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Empirical(torch.zeros(3)), r"got data of shape \(3,\); expected \(n, \*event\)"),
        (lambda: Empirical(torch.zeros(0, 2)), "with at least one sample"),
        (lambda: Empirical(POINTS * math.nan), "got data with values that are not finite"),
        (lambda: Empirical(POINTS, -1.0), r"got std=-1.0; expected a finite standard deviation >= 0"),
        (lambda: Empirical(POINTS, chunk=0), "got chunk=0; expected a whole number of at least 1"),
        (lambda: LowRankMixture(POINTS[0], POINTS, 1.0), r"got means of shape \(2,\); expected \(components, \*event\)"),
        (lambda: LowRankMixture(POINTS, POINTS, 1.0), r"got factors of shape \(3, 2\) .* expected \(3, 2, rank\)"),
        (lambda: LowRankMixture(POINTS, torch.zeros(3, 2, 3), 1.0), "with a rank from 1 to 2"),
        (lambda: LowRankMixture(POINTS, torch.zeros(3, 2, 1), -1.0), "got noise -1.0; expected a variance >= 0"),
        (lambda: random_mixture(1), "got d=1; expected a whole number of at least 2"),
        (lambda: ppca_mixture(POINTS, modes=4, rank=1), "modes=4 and rank=1; expected .* at most n modes"),
        (lambda: ppca_mixture(POINTS, modes=1, rank=2), "a rank from 1 to 1"),
        (lambda: ppca_mixture(POINTS, modes=1, rank=1), "got data that are all the same"),
    ],
)
def test_bad_input_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
