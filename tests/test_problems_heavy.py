"""Scale mixtures and the funnel: quadrature against mpmath and SciPy."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from support import mostly_slow

from scoresde import EDM, VP
from scoresde.problems import Funnel, GaussianMixture, ScaleMixture, funnel, laplace, student_t
from tests.support import generator

mp.mp.dps = 25
RADII = [0.0, 1e-9, 1e-3, 0.3, 1.0, 5.0, 30.0, 100.0]


def directions(d, radii, seed=0):
    x = torch.randn(len(radii), d, generator=generator(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x) * torch.tensor(radii, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("d", "df"), [(1, 1.0), (2, 1.0), (1, 3.0), (2, 3.0), (2, 10.0), (8, 5.0), (64, 3.0), (500, 30.0), (3, 0.5)]
)
def test_student_t_has_the_density_of_scipy(d, df):
    x = directions(d, [*RADII, 1e4, 1e6])
    unit = (df - 2) / df if df > 2 else 1.0
    expected = stats.multivariate_t(np.zeros(d), unit * np.eye(d), df).logpdf(x.numpy())
    torch.testing.assert_close(student_t(d, df).log_prob(x), torch.from_numpy(expected), rtol=1e-14, atol=1e-12)


def test_student_t_has_unit_variance_where_it_has_one():
    identity = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(student_t(2, 5.0).covariance, identity, rtol=1e-9, atol=0)
    torch.testing.assert_close(student_t(2, 3.0).covariance, identity, rtol=1e-6, atol=0)


def test_laplace_has_its_density_in_every_coordinate():
    x = directions(3, RADII)
    expected = (-math.sqrt(2) * x.abs() - 0.5 * math.log(2)).sum(1)
    torch.testing.assert_close(laplace(3).log_prob(x), expected, rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(laplace(3).covariance, torch.eye(3, dtype=torch.float64), rtol=1e-12, atol=0)


def integrals(density, variance, square, d, alpha):
    """Density, precision and gain of a scale mixture by mpmath: integrals over log s against N(x; 0, v I)."""
    points = [-30, -20, -15, -12, *range(-10, 13), 16, 20, 25]

    def weight(u):
        v = variance(mp.exp(2 * u))
        return density(u) * mp.exp(-square / (2 * v)) * (2 * mp.pi * v) ** (-mp.mpf(d) / 2)

    total = mp.quad(weight, points)
    precision = mp.quad(lambda u: weight(u) / variance(mp.exp(2 * u)), points) / total
    gain = mp.quad(lambda u: weight(u) * alpha * mp.exp(2 * u) / variance(mp.exp(2 * u)), points) / total
    return mp.log(total), precision, gain


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["laplace", "student_t"])
@pytest.mark.parametrize(("t", "radius"), [(0.02, 0.01), (0.02, 6.0), (0.3, 1.0), (0.7, 3.0), (0.7, 8.0)])
def test_noised_scale_mixtures_are_the_integrals_of_mpmath(kind, t, radius):
    sde = VP()
    alpha, sigma = mp.mpf(sde.alpha(t).item()), mp.mpf(sde.sigma(t).item())
    if kind == "laplace":
        problem, d = laplace(1), 1

        def density(u):
            return 2 * mp.exp(2 * u - mp.exp(2 * u))
    else:
        problem, d, df, unit = student_t(3, 3.0), 3, 3, mp.mpf(1) / 3

        def density(u):
            g = df * unit * mp.exp(-2 * u)
            return 2 * g ** (mp.mpf(df) / 2) * mp.exp(-g / 2) / (2 ** (mp.mpf(df) / 2) * mp.gamma(mp.mpf(df) / 2))

    x = directions(d, [radius], 1)
    square = mp.fsum(mp.mpf(v) ** 2 for v in x[0].tolist())
    log_prob, precision, gain = integrals(density, lambda s2: alpha**2 * s2 + sigma**2, square, d, alpha)
    assert problem.log_prob(x, sde, t).item() == pytest.approx(float(log_prob), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(problem.score(x, sde, t), -float(precision) * x, rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.x0(x, sde, t), float(gain) * x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("independent", [False, True])
def test_a_scale_mixture_is_the_mixture_of_its_nodes(independent):
    scales, weights = torch.tensor([[0.3, 1.0, 2.5], [0.2, 0.5, 0.3]], dtype=torch.float64)
    problem = ScaleMixture(scales, weights, (2, 1), independent)
    if independent:  # every pair of nodes is a component
        pairs = torch.cartesian_prod(scales**2, scales**2)[:, :, None]
        of_nodes = GaussianMixture(torch.zeros(9, 2, 1), pairs, torch.outer(weights, weights).flatten())
    else:
        of_nodes = GaussianMixture(torch.zeros(3, 2, 1), scales**2, weights)
    x = 2 * torch.randn(20, 2, 1, generator=generator(), dtype=torch.float64)
    for method in ("log_prob", "score", "x0", "eps"):
        found, expected = (getattr(p, method)(x, EDM(), 0.4) for p in (problem, of_nodes))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(problem.covariance, of_nodes.covariance)


@pytest.mark.parametrize(
    ("draw", "exact"),
    [
        (lambda g: student_t(1, 3.0).sample(20_000, g), stats.t(3, scale=math.sqrt(1 / 3))),
        (lambda g: laplace(1).sample(20_000, g), stats.laplace(scale=math.sqrt(0.5))),
        (lambda g: student_t(5, 4.0).sample(20_000, g).norm(dim=1) ** 2 / 5 * 2, stats.f(5, 4)),
        (lambda g: laplace(4).sample(5_000, g), stats.laplace(scale=math.sqrt(0.5))),
        (lambda g: funnel(3).sample(20_000, g)[:, 0], stats.norm()),
    ],
)
def test_samples_have_the_distribution_of_scipy(draw, exact):
    assert stats.kstest(draw(generator(4)).double().flatten().numpy(), exact.cdf).pvalue > 1e-3


def test_the_funnel_has_its_density():
    p = Funnel(3, spread=3.0)
    x = p.sample(200, generator(2), torch.float64)
    scale = torch.exp(1.5 * x[:, 0] - 2.25)
    parts = [stats.norm.logpdf(x[:, 0]), *(stats.norm.logpdf(x[:, i], scale=scale) for i in (1, 2))]
    torch.testing.assert_close(p.log_prob(x), torch.from_numpy(sum(parts)), rtol=1e-12, atol=1e-12)


def noised_funnel(p, x, alpha, sigma):
    """Log-density, score of the first two coordinates and E[u | x] by mpmath, from the definition: integrals over u."""
    alpha, sigma, spread = mp.mpf(alpha), mp.mpf(sigma), mp.mpf(p.spread)
    first, square = mp.mpf(x[0]), mp.fsum(mp.mpf(v) ** 2 for v in x[1:])
    middle, width = alpha * first / (alpha**2 + sigma**2), sigma / mp.sqrt(alpha**2 + sigma**2)

    def weight(u):
        v = alpha**2 * mp.exp(spread * u - spread**2 / 2) + sigma**2
        kernel = mp.npdf(u) * mp.npdf(first, alpha * u, sigma) * mp.exp(-square / (2 * v))
        return kernel * (2 * mp.pi * v) ** (-mp.mpf(p.d - 1) / 2), v

    points = [middle + width * k for k in range(-12, 13, 2)]
    total = mp.quad(lambda u: weight(u)[0], points)
    u = mp.quad(lambda u: u * weight(u)[0], points) / total
    precision = mp.quad(lambda u: weight(u)[0] / weight(u)[1], points) / total
    return [float(v) for v in (mp.log(total), (alpha * u - first) / sigma**2, -precision * mp.mpf(x[1]), u)]


@pytest.mark.parametrize(("d", "spread"), [(2, 2.0), (10, 3.0), (3, 0.5)])
@pytest.mark.parametrize("t", mostly_slow([0.02, 0.3, 0.6], {0.3}))
def test_the_noised_funnel_is_the_integral_of_mpmath(d, spread, t):
    p, sde = Funnel(d, spread), VP()
    x0 = p.sample(1, generator(8), torch.float64)
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=generator(9), dtype=torch.float64))
    found = torch.stack([p.log_prob(x, sde, t), *p.score(x, sde, t)[:, :2].T, p.x0(x, sde, t)[:, 0]], 1)
    expected = [noised_funnel(p, row, sde.alpha(t).item(), sde.sigma(t).item()) for row in x.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


@settings(max_examples=25)
@example(40, 3.0, -0.5, 0)  # many coordinates tell u so sharply that its steps must be short
@given(st.integers(2, 40), st.floats(0.3, 4.0), st.floats(-8, 8), st.integers(0, 2**31))
def test_the_funnel_does_not_depend_on_its_nodes(d, spread, log_ratio, seed):
    p, fine = Funnel(d, spread), Funnel(d, spread)
    y = torch.arange(-20, 20, 0.3 * p._exact.nodes.diff()[0].item(), dtype=torch.float64)
    fine._store(type(p._exact)(y, (-0.5 * y**2).log_softmax(0)))
    sde, t = EDM(), EDM().time(torch.tensor(log_ratio, dtype=torch.float64))
    x0 = p.sample(500, generator(seed), torch.float64)
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=generator(seed + 1), dtype=torch.float64))
    for method in ("log_prob", "eps", "x0"):
        found, expected = (getattr(q, method)(x, sde, t) for q in (p, fine))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: ScaleMixture([1.0, -1.0], [1.0, 1.0], (2,)), r"got scales of shape \(2,\); expected at least one positive"),
        (lambda: ScaleMixture([1.0], [1.0, 1.0], (2,)), r"got weights \[1.0, 1.0\] for 1 components"),
        (lambda: ScaleMixture([1.0], [1.0], ()), r"got event=\(\); expected .* write scalars as \(1,\)"),
        (lambda: student_t(2, df=0.0), "got df=0.0; expected a finite number of degrees of freedom"),
        (lambda: laplace(0), "got d=0; expected a whole number"),
        (lambda: funnel(1), "got d=1; expected a whole number of at least 2"),
        (lambda: Funnel(2, spread=-1.0), "got spread=-1.0; expected a finite number > 0"),
    ],
)
def test_bad_input_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
