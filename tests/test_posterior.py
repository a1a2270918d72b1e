"""Posteriors of problems given a linear measurement: Bayes' rule, limits of the noise, and independent references."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from scoresde import VE, VP, problems
from scoresde.inverse import Grayscale, Mask, Matrix, Radon, observe
from scoresde.inverse.operators import phase_retrieval
from scoresde.problems import Empirical, Gaussian, GaussianMixture, LowRankMixture


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PRIORS = {
    "gaussian": lambda: problems.gaussian(3),
    "diagonal": lambda: Gaussian(draw(4), draw(4, seed=1) ** 2),
    "ring": problems.ring,
    "moons": problems.moons,
    "textures": lambda: problems.textures(4),
    "diagonals": lambda: GaussianMixture(draw(3, 2, 3), draw(3, 2, 3, seed=1) ** 2 + 0.1, [0.2, 0.5, 0.3]),
    "random": lambda: problems.random_mixture(12, 5),
    "ppca": lambda: LowRankMixture(draw(3, 6), draw(3, 6, 2, seed=1), [0.1, 0.5, 0.2], [0.2, 0.5, 0.3]),
    "checkerboard": problems.checkerboard,
    "smoothed points": lambda: Empirical(draw(7, 5), 0.3, torch.arange(1.0, 8.0)),
}


def matrix_for(prior: problems.Problem, rows: int, seed: int = 3) -> Tensor:
    return draw(rows, prior.event.numel(), seed=seed)


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 20.0])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("name", PRIORS)
def test_it_is_bayes_rule(name, rows, sigma):
    prior = PRIORS[name]()
    matrix = matrix_for(prior, rows)
    truth = prior.sample(1, generator(1), torch.float64)
    y = matrix @ truth[0].flatten() + sigma * draw(rows, seed=4)
    posterior = prior.posterior(matrix, y, sigma)
    x = torch.cat([posterior.sample(3, generator(2), torch.float64), truth, prior.sample(2, generator(3), torch.float64)])
    residual = x.flatten(1) @ matrix.T - y
    log_likelihood = -0.5 * (residual / sigma).square().sum(1) - rows * math.log(sigma * math.sqrt(2 * math.pi))
    expected = prior.log_prob(x) + log_likelihood - posterior.given.log_evidence
    tolerance = 1e-9 + 1e-12 * log_likelihood.abs()  # far out, where a likelihood is -1e7, differences of such numbers
    assert bool(((posterior.log_prob(x) - expected).abs() <= tolerance).all())


@pytest.mark.parametrize("name", ["ring", "moons"])
def test_the_evidence_and_the_moments_are_those_of_a_grid(name):
    prior, matrix, sigma = PRIORS[name](), torch.tensor([[0.7, -0.4]], dtype=torch.float64), 0.4
    posterior = prior.posterior(matrix, [0.5], sigma)
    axis = torch.linspace(-4, 4, 201, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    joint = (prior.log_prob(x) + torch.distributions.Normal(x @ matrix[0], sigma).log_prob(torch.tensor(0.5))).exp()
    joint = joint * (axis[1] - axis[0]) ** 2
    evidence = joint.sum()
    assert posterior.given.log_evidence == pytest.approx(float(evidence.log()), abs=1e-6)
    weights = joint / evidence
    mean = weights @ x
    assert torch.allclose(posterior.mean, mean, atol=1e-6)
    assert torch.allclose(posterior.covariance, torch.einsum("n,ni,nj->ij", weights, x - mean, x - mean), atol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_it_is_a_problem_like_any_other(name):
    prior = PRIORS[name]()
    operator = Matrix(matrix_for(prior, 2), prior.event)
    posterior = prior.posterior(operator, [0.3, -0.2], 0.1)
    assert posterior.event == prior.event and posterior.given.prior is prior and posterior.given.operator is operator
    again = GaussianMixture(posterior.means, posterior.covariances, posterior.weights)
    sde, x = VP(), draw(3, *prior.event, seed=5)
    for t in (0.01, 0.4, 1.0):
        assert torch.allclose(posterior.x0(x, sde, t), again.x0(x, sde, t), atol=1e-8)
        assert torch.allclose(posterior.log_prob(x, sde, t), again.log_prob(x, sde, t), rtol=1e-7)
    n = 20000
    sample = posterior.sample(n, generator(7), torch.float64).flatten(1)
    deviation = posterior.covariance.diagonal().sqrt()
    assert bool(((sample.mean(0) - posterior.mean.flatten()).abs() < 5 * deviation / math.sqrt(n)).all())
    assert isinstance(posterior, Gaussian) == isinstance(prior, Gaussian)
    assert posterior.fingerprint() == prior.posterior(operator.matrix(), [0.3, -0.2], 0.1).fingerprint()
    assert prior.given is None


@pytest.mark.parametrize("name", ["ppca", "random"])
def test_importance_sampling_agrees(name):
    prior, n = PRIORS[name](), 20_000
    matrix = matrix_for(prior, 1) / 3
    posterior = prior.posterior(matrix, [0.6], 0.8)
    x = prior.sample(n, generator(9), torch.float64).flatten(1)
    likelihood = torch.distributions.Normal(x @ matrix[0], 0.8).log_prob(torch.tensor(0.6)).exp()
    error = 5 / math.sqrt(n)
    assert math.exp(posterior.given.log_evidence) == pytest.approx(
        float(likelihood.mean()), abs=error * float(likelihood.std())
    )
    weights = likelihood / likelihood.mean()
    for found, value in [(posterior.mean.flatten(), x), (posterior.covariance, None)]:
        value = (
            x if value is not None else (x - posterior.mean.flatten())[:, :, None] * (x - posterior.mean.flatten())[:, None]
        )
        spread = (weights.reshape(-1, *[1] * (value.ndim - 1)) * (value - found)).std(0)
        assert bool(((weights @ value.flatten(1) / n - found.flatten()).abs() < error * spread.flatten() + 1e-12).all())


@pytest.mark.parametrize("sigma", ["1e-12", "1e-6", "0.01", "1e6"])
def test_variances_keep_their_digits(sigma):
    """A Gaussian of two dimensions in 60 digits; float64 alone would lose a variance of sigma^2 below 1e-16."""
    with mpmath.workdps(60):
        s, c = mpmath.mpf(sigma), mpmath.matrix([[2, 1], [1, 3]])
        row, y = mpmath.matrix([[1, 2]]), mpmath.mpf("0.75")
        evidence = (row * c * row.T)[0] + s**2
        gain = c * row.T / evidence
        mean, covariance = gain * y, c - gain * row * c
        along = (row * covariance * row.T)[0]
        expected = [float(mean[0]), float(mean[1]), float(along), float(covariance[0, 0])]
    posterior = Gaussian([0.0, 0.0], [[2.0, 1.0], [1.0, 3.0]]).posterior([[1.0, 2.0]], [0.75], float(sigma))
    eigenvalues, basis = posterior._exact.eigenvalues[0], posterior._exact.basis[0]
    found = float(((torch.tensor([1.0, 2.0], dtype=torch.float64) @ basis) ** 2 * eigenvalues).sum())
    assert [*posterior.mean.tolist(), float(posterior.covariance[0, 0])] == pytest.approx(
        expected[:2] + expected[3:], rel=1e-12
    )
    # The direction of the small variance is known to 1e-16, which the large variance across it multiplies.
    assert found == pytest.approx(expected[2], rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("name", PRIORS)
def test_without_noise_it_is_the_limit(name):
    prior = PRIORS[name]()
    matrix = matrix_for(prior, 1)
    y = matrix @ prior.sample(1, generator(1), torch.float64)[0].flatten()
    exact, near = prior.posterior(matrix, y, 0.0), prior.posterior(matrix, y, 1e-7)
    assert torch.allclose(exact.mean, near.mean, atol=1e-5) and torch.allclose(exact.covariance, near.covariance, atol=1e-5)
    assert torch.allclose(exact.weights, near.weights, atol=1e-5)
    x = exact.sample(50, generator(4), torch.float64).flatten(1)
    assert torch.allclose(x @ matrix.T, y.expand(50, 1), atol=1e-9)
    assert exact.given.log_evidence == pytest.approx(near.given.log_evidence, abs=1e-4)
    with pytest.raises(ValueError, match="no density"):
        exact.log_prob(torch.zeros(1, *prior.event, dtype=torch.float64))
    m = exact.model(VE()).x0(torch.zeros(2, *prior.event, dtype=torch.float64), 0.5)
    assert torch.allclose(m.flatten(1) @ matrix.T, y.expand(2, 1), atol=1e-8)  # every prediction has the measurement


def test_without_noise_repeated_rows_must_agree():
    prior, matrix = problems.ring(), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert torch.allclose(
        prior.posterior(matrix, [0.5, 1.0], 0.0).covariance,
        prior.posterior(matrix[:1], [0.5], 0.0).covariance,
        atol=1e-12,
    )
    with pytest.raises(ValueError, match="that the data cannot give"):
        prior.posterior(matrix, [0.5, 1.1], 0.0)
    everything = prior.posterior(torch.eye(2), [1.4, 0.1], 0.0)
    assert (
        torch.allclose(everything.mean, torch.tensor([1.4, 0.1]).double())
        and float(everything.covariance.abs().max()) < 1e-30
    )


def test_without_noise_concentrated_components_win_where_they_are_possible():
    prior = GaussianMixture([[0.0, 0.0], [1.0, 0.0]], [[[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    row = torch.tensor([[1.0, 0.0]])
    assert prior.posterior(row, [0.0], 0.0).weights.tolist() == [1.0, 0.0]  # x is 0 for sure in the first
    assert prior.posterior(row, [0.5], 0.0).weights.tolist() == [0.0, 1.0]
    near = prior.posterior(row, [0.0], 1e-8)
    assert torch.allclose(near.weights, torch.tensor([1.0, 0.0]).double(), atol=1e-6)


# Points -----------------------------------------------------------------------------------------------------------------


def test_points_are_reweighted():
    data, matrix = draw(6, 1, 2, 2), draw(2, 4, seed=1)
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6])
    prior, y, sigma = Empirical(data, weights=weights), torch.tensor([0.2, 0.4]), 0.7
    posterior = prior.posterior(matrix, y, sigma)
    likelihood = scipy.stats.norm(y.double(), sigma).pdf(data.flatten(1) @ matrix.T).prod(1)
    joint = weights.numpy() / 21 * likelihood
    assert np.allclose(posterior.weights, joint / joint.sum()) and torch.equal(posterior.data, data)
    assert posterior.given.log_evidence == pytest.approx(math.log(joint.sum()))
    assert np.allclose(posterior.mean.flatten(), (joint / joint.sum()) @ data.flatten(1).numpy())
    as_operator = prior.posterior(Matrix(matrix, (1, 2, 2)), y, sigma)
    assert torch.allclose(as_operator.weights, posterior.weights)


@pytest.mark.parametrize("std", [0.0, 0.2])
@pytest.mark.parametrize("chunk", [1, 7, 2**22])
def test_weighted_points_are_the_mixture_of_their_points(std, chunk):
    data, weights = draw(6, 3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    points, mixture = Empirical(data, std, weights, chunk=chunk), GaussianMixture(data, std**2, weights)
    x, sde = draw(4, 3, seed=2), VP()
    assert torch.allclose(points.mean, mixture.mean) and torch.allclose(points.covariance, mixture.covariance)
    for t in (0.05, 0.5):
        assert torch.allclose(points.log_prob(x, sde, t), mixture.log_prob(x, sde, t))
        assert torch.allclose(points.x0(x, sde, t), mixture.x0(x, sde, t))
        assert torch.allclose(points.score(x, sde, t), mixture.score(x, sde, t))
    found = points.sample(8000, generator(), torch.float64)
    nearest = torch.cdist(found, data).argmin(1).bincount(minlength=6) / 8000
    if not std:
        assert torch.allclose(nearest.double(), mixture.weights, atol=5 * 0.5 / math.sqrt(8000))
    assert Empirical(data, std).fingerprint() != points.fingerprint()


def test_points_without_noise_and_nonlinear():
    data = torch.tensor([[1.0, 0.0], [1.0, 2.0], [-1.0, 2.0]])
    prior = Empirical(data)
    found = prior.posterior(Mask([True, False]), torch.tensor([1.0]), 0.0)
    assert torch.equal(found.data, data[:2]) and found.weights.tolist() == [0.5, 0.5]
    assert found.given.log_evidence == pytest.approx(math.log(2 / 3))
    with pytest.raises(ValueError, match="nearest differs by"):
        prior.posterior(Mask([True, False]), torch.tensor([1.5]), 0.0)
    images = Empirical(draw(5, 1, 4, 4))
    operator = phase_retrieval((1, 4, 4))
    y = operator(images.data[2:3])[0]
    assert torch.equal(images.posterior(operator, y, 0.0).data, images.data[2:3])
    assert images.posterior(operator, y, 1e-3).weights.tolist() == [1.0]


def test_observations_fit():
    prior = problems.textures(4)
    seen = observe(Radon(2, (1, 4, 4)), prior.sample(1, generator())[0], 0.1)
    posterior = prior.posterior(seen.operator, seen.y, seen.sigma)
    assert posterior.covariance.trace() < prior.covariance.trace()


# Refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: problems.ring().posterior([[1.0, 0.0, 0.0]], [1.0], 0.1), "2 columns"),
        (lambda: problems.ring().posterior([1.0, 0.0], [1.0], 0.1), "2 columns"),
        (lambda: problems.ring().posterior([[math.nan, 0.0]], [1.0], 0.1), "finite"),
        (lambda: problems.ring().posterior([[1.0, 0.0]], [1.0, 2.0], 0.1), "one measurement of 1 finite"),
        (lambda: problems.ring().posterior([[1.0, 0.0]], [[1.0], [2.0]], 0.1), "that of one y"),
        (lambda: problems.ring().posterior([[1.0, 0.0]], [math.inf], 0.1), "finite numbers"),
        (lambda: problems.ring().posterior([[1.0, 0.0]], [1.0], -0.1), "at least 0"),
        (lambda: problems.ring().posterior([[1.0, 0.0]], [1.0], math.nan), "at least 0"),
        (lambda: problems.laplace().posterior([[1.0, 0.0]], [1.0], 0.1), "no posterior in closed form"),
        (lambda: problems.funnel().posterior([[1.0, 0.0]], [1.0], 0.1), "no posterior in closed form"),
        (lambda: problems.textures(4).posterior(phase_retrieval((1, 4, 4)), draw(64), 0.1), "not linear"),
        (lambda: problems.textures(4).posterior(Grayscale((3, 4, 4)), draw(16), 0.1), "16 columns"),
        (lambda: Empirical(torch.zeros(20, 2000), 0.1).posterior(torch.zeros(1, 2000), [0.0], 0.1), "std=0"),
        (lambda: Empirical(torch.zeros(2, 2), weights=[1.0, 0.0]), "expected positive weights"),
        (lambda: Empirical(torch.zeros(2, 2), weights=[1.0]), "weights"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "expected" in str(caught.value)


def test_something_else_than_an_operator_is_refused():
    with pytest.raises(TypeError, match="Mask\\(mask\\), or a matrix"):
        problems.ring().posterior("mask", [1.0], 0.1)
