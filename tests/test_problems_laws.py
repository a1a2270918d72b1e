"""What every named problem obeys, under every SDE: a new one is tested by being added to PROBLEMS."""

import copy
import math
import pickle
from functools import cache

import numpy as np
import pytest
import torch

from scoresde import VP, RectifiedFlow
from scoresde.problems import (
    PROBLEMS,
    Empirical,
    ScaleMixture,
    funnel,
    gaussian,
    grid,
    laplace,
    moons,
    ppca_mixture,
    random_mixture,
    ring,
    spiral,
    student_t,
    textures,
)
from tests.support import SDES, generator

PLANE = sorted(set(PROBLEMS) - {"textures", "random", "digits", "ppca_digits"})
IMAGES = {"digits", "ppca_digits"}
HEAVY = {"student_t", "laplace", "funnel"}


@cache
def problem(name):
    return PROBLEMS[name]()


def noised(name, sde, t, n, seed=0):
    """Samples in float64 at the times ``t``."""
    x0 = problem(name).sample(n, generator(seed), torch.float64)
    return sde.perturb(x0, t, torch.randn(x0.shape, generator=generator(seed + 1), dtype=torch.float64))


def times(sde, n, low=0.02, high=0.98):
    """``n`` times, spread over the span."""
    start, end = sde.span
    return start + (end - start) * torch.linspace(low, high, n, dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_score_is_the_gradient_of_the_log_density(name, sde):
    t = times(sde, 6)
    x = noised(name, sde, t, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(problem(name).log_prob(x, sde, t).sum(), x)
    torch.testing.assert_close(problem(name).score(x, sde, t), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_predictions_and_score_are_one_another(name, sde):
    t = times(sde, 6)
    x = noised(name, sde, t, 6)
    shape = (-1, *[1] * (x.ndim - 1))
    alpha, sigma, size = sde.alpha(t).reshape(shape), sde.sigma(t).reshape(shape), float(x.abs().max()) + 1
    p = problem(name)
    x0, eps = p.x0(x, sde, t), p.eps(x, sde, t)
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=0, atol=1e-12 * size)
    torch.testing.assert_close(eps, -sigma * p.score(x, sde, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.v(x, sde, t), alpha * eps - sigma * x0, rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize("name", PROBLEMS)
def test_density_satisfies_the_fokker_planck_equation(name):
    # In logarithms: d log p / dt = -f (d + x . s) + g^2 / 2 (div s + |s|^2), with f, g of the SDE and s = grad log p.
    p, sde = problem(name), VP()
    t = times(sde, 3, 0.1, 0.7)
    x = noised(name, sde, t, 3)
    d = x[0].numel()

    def log_prob(x, t):
        return p.log_prob(x[None], sde, t[None])[0]

    _, rate = torch.func.jvp(lambda t: p.log_prob(x, sde, t), (t,), (torch.ones_like(t),))
    score = p.score(x, sde, t).flatten(1)
    hessian = torch.func.vmap(torch.func.hessian(log_prob))(x, t).reshape(3, d, d)
    f, g2 = sde.d_log_alpha(t), sde.diffusion_squared(t)
    transport = f * (d + (x.flatten(1) * score).sum(1))
    spread = 0.5 * g2 * (hessian.diagonal(dim1=1, dim2=2).sum(1) + (score**2).sum(1))
    size = float((transport.abs() + 0.5 * g2 * (score**2).sum(1)).max()) + 1
    torch.testing.assert_close(rate, spread - transport, rtol=1e-8, atol=1e-9 * size)


@pytest.mark.parametrize("name", PLANE)
def test_noising_further_gives_the_later_density(name):
    # p_t(x) = integral of p_s(y) N(x; a y, b^2 I), by the trapezoidal rule, which is exact for densities that are blurred.
    sde, s, t = VP(), 0.12, 0.3
    a = (sde.alpha(t) / sde.alpha(s)).item()
    b2 = (sde.sigma(t) ** 2 - a**2 * sde.sigma(s) ** 2).item()
    axis = torch.linspace(-10, 10, 101, dtype=torch.float64)  # s blurs two intervals
    y = torch.cartesian_prod(axis, axis)
    x = noised(name, sde, t, 40)
    x = x[x.abs().amax(1) < 2.5]  # whose kernel is inside the grid
    kernel = torch.exp(-(torch.cdist(x, a * y) ** 2) / (2 * b2)) / (2 * math.pi * b2)
    later = kernel @ problem(name).log_prob(y, sde, s).exp() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(problem(name).log_prob(x, sde, t), later.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(PLANE) - HEAVY - {"gaussian"}))
def test_density_integrates_to_one(name):
    axis = torch.linspace(-3.5, 3.5, 176, dtype=torch.float64)  # the narrowest deviation, 0.06, is 1.5 intervals
    points = torch.cartesian_prod(axis, axis)
    mass = problem(name).log_prob(points).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_samples_have_the_density_that_is_claimed(name):
    # Stein's identity E[x s^T] = -I determines p by its score s; so does E[s] = 0 the place of a symmetric one.
    sde, t, n = VP(), 0.15, 4000
    x = noised(name, sde, t, n, seed=20).flatten(1)
    score = problem(name).score(x.reshape(n, *problem(name).event), sde, t).flatten(1)
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    for i in range(x.shape[1]):
        for values, expected in ((score[:, i], 0.0), (x * score[:, i, None], -identity[i])):
            standard = values.std(0) / math.sqrt(n)
            assert ((values.mean(0) - expected).abs() < 5.5 * standard).all()


@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - HEAVY))
def test_samples_have_the_moments_that_are_claimed(name):
    n = 20_000
    x = problem(name).sample(n, generator(3), torch.float64).flatten(1)
    assert ((x.mean(0) - problem(name).mean.flatten()).abs() < 5.5 * x.std(0) / math.sqrt(n)).all()
    centred = x - problem(name).mean.flatten()
    # The fourth moments of a product, without forming d x d matrices for every sample.
    covariance, square = centred.T @ centred / n, (centred**2).T @ centred**2 / n
    standard = (square - covariance**2).clamp(min=0).sqrt() / math.sqrt(n)
    assert ((covariance - problem(name).covariance).abs() < 5.5 * standard + 1e-12).all()


@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - IMAGES - {"measured"}))
def test_problems_that_are_no_images_have_about_unit_variance(name):
    variance = problem(name).covariance.diagonal()
    assert ((variance > 0.6) & (variance < 1.6)).all()
    assert variance.mean().item() == pytest.approx(1, abs=0.1)
    assert problem(name).mean.abs().max() < 0.5


@pytest.mark.parametrize("name", PROBLEMS)
def test_predictions_are_stable_where_there_is_all_noise_or_none(name):
    p, sde = problem(name), RectifiedFlow()
    x = p.sample(8, generator(5), torch.float64)
    assert float(sde.alpha(1.0)) == 0 == float(sde.sigma(0.0))
    torch.testing.assert_close(p.x0(x, sde, 0.0), x, rtol=0, atol=1e-11)
    assert not p.eps(x, sde, 0.0).any()
    torch.testing.assert_close(p.x0(x, sde, 1.0), p.mean.expand_as(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(p.eps(x, sde, 1.0), x, rtol=1e-12, atol=1e-12)
    # Continuous there: differences fall with the distance from the end, until rounding errors take over.
    for end, sign in ((0.0, 1), (1.0, -1)):
        near = [(p.v(x, sde, end + sign * h) - p.v(x, sde, end)).abs().max().item() for h in (1e-6, 1e-9)]
        assert near[0] < 1e-3 and near[1] < 1e-2 * near[0] + 1e-11


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_model_is_accurate_in_float32_at_both_ends_of_time(name, sde):
    # Data are of size one and so is noise. Measured: at most 2e-6.
    p, n = problem(name), 16
    model = p.model(sde)
    x0 = p.sample(n, generator(6), torch.float64)
    noise = torch.randn(x0.shape, generator=generator(7), dtype=torch.float64)
    size = 1 + x0.abs().max().item()
    for t in sde.span:
        x = sde.perturb(x0, t, noise).float()
        of_v = math.hypot(sde.alpha(t), sde.sigma(t))
        for kind, unit in (("x0", 1.0), ("eps", 1.0), ("v", of_v)):
            predict, exact = getattr(model, kind), getattr(p, kind)(x.double(), sde, t)
            assert getattr(p, kind)(x, sde, t).dtype == torch.float32
            torch.testing.assert_close(predict(x, t).double(), exact, rtol=0, atol=5e-6 * unit * size)
            torch.testing.assert_close(predict(x.double(), t), exact, rtol=0, atol=1e-12 * unit * size)
        if t > sde.span[0]:
            of_model, exact = model.score(x, t).double(), p.score(x.double(), sde, t)
            torch.testing.assert_close(of_model, exact, rtol=1e-5, atol=5e-6 * size / float(sde.sigma(t)))


@pytest.mark.parametrize("name", PROBLEMS)
def test_samples_depend_on_the_generator_alone(name):
    before = torch.get_rng_state()
    a, b = (problem(name).sample(50, generator(3), dtype) for dtype in (torch.float64, None))
    assert a.dtype == torch.float64 and b.dtype == torch.float32
    assert torch.equal(a.float(), b)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fingerprint_is_of_the_distribution():
    prints = {name: problem(name).fingerprint() for name in PROBLEMS}
    assert len(set(prints.values())) == len(PROBLEMS)
    for name, expected in prints.items():
        p = problem(name)
        p.x0(torch.zeros(1, *p.event), VP(), 0.5)  # what a call keeps for later is no part of it
        for other in (p, copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
            assert other.fingerprint() == expected
    assert ring(radius=1.4).fingerprint() != ring(radius=1.4 + 1e-15).fingerprint()


@pytest.mark.parametrize("name", PROBLEMS)
def test_bad_input_is_refused(name):
    p = problem(name)
    wrong = torch.zeros(2, 5, *p.event)
    with pytest.raises(ValueError, match=r"got x of shape .*; expected \('batch', .*the samples of "):
        p.x0(wrong, VP(), 0.5)
    with pytest.raises(ValueError, match=r"expected both .* or neither"):
        p.log_prob(wrong, VP())
    with pytest.raises(ValueError, match="got n=0; expected a whole number of at least 1"):
        p.sample(0, generator())
    with pytest.raises(ValueError, match=r"got time 1.5; VP is defined for"):
        p.score(torch.zeros(2, *p.event), VP(), 1.5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PROBLEMS)
def test_results_are_on_the_device_of_the_input(name):
    p, sde = problem(name), VP()
    x = p.sample(8, torch.Generator("cuda").manual_seed(0), torch.float64)
    assert x.device.type == "cuda"
    for t in (0.3, torch.linspace(0.1, 0.9, 8, device="cuda")):
        on_host = p.x0(x.cpu(), sde, t.cpu() if isinstance(t, torch.Tensor) else t)
        torch.testing.assert_close(p.x0(x, sde, t).cpu(), on_host, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(p.model(sde).x0(x, t).cpu(), on_host, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_kind_of_integer_is_a_number_of_samples(name, kind):
    assert torch.equal(problem(name).sample(kind(5), generator(3)), problem(name).sample(5, generator(3)))
    with pytest.raises(ValueError, match=r"got n=5.0; expected a whole number of at least 1"):
        problem(name).sample(5.0, generator(3))


def test_every_kind_of_integer_is_a_size():
    three = np.int64(3)
    made = (gaussian(three), textures(three, three), random_mixture(three, three), student_t(three), laplace(three))
    for p in (*made, funnel(three), ScaleMixture([1.0], [1.0], (three,)), Empirical(torch.eye(3), chunk=three)):
        assert p.event[-1] == 3 and p.sample(2, generator()).shape == (2, *p.event)
    assert ppca_mixture(torch.randn(20, 3, generator=generator()), three, np.int64(1)).means.shape == (3, 3)
    for make in (ring, grid, spiral, moons, gaussian, textures, student_t, laplace, funnel, random_mixture):
        with pytest.raises(ValueError, match=r"got (modes|side|size|d)=2.5; expected a whole number of at least"):
            make(2.5)
