"""The analytic distributions: every formula against autograd, SciPy, quadrature or the Fokker-Planck equation."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from scoresde import DDPM, EDM, NCSN, VE, VP, CosineVP, FunctionSDE, RectifiedFlow, SubVP, discretize
from scoresde.problems import Gaussian, GaussianMixture, gaussian, grid, moons, ring, textures
from scoresde.sde.chain import ChainSDE

SDES = {
    "VP": VP(),
    "SubVP": SubVP(),
    "CosineVP": CosineVP(),
    "VE": VE(),
    "EDM": EDM(),
    "RectifiedFlow": RectifiedFlow(),
    "FunctionSDE": FunctionSDE(lambda t: -t, lambda t: torch.log(2 * t)),
    "DDPM": DDPM.linear(10, 1e-2, 0.5).sde(),
    "NCSN": NCSN.geometric(10).sde(),
    "RectifiedFlow chain": discretize(RectifiedFlow(), 10).sde(),
}
KINDS = ["one variance", "isotropic", "diagonal", "full"]


def make(kind, event, components, seed):
    """A random mixture whose deviations lie between about 0.1 and 2."""
    g = torch.Generator().manual_seed(seed)
    d = math.prod(event)
    means = 2 * torch.randn(components, *event, generator=g, dtype=torch.float64)
    weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.1
    shapes = {"one variance": (), "isotropic": (components,), "diagonal": (components, *event), "full": (components, d)}
    covariances = 10 ** (2.5 * torch.rand(shapes[kind], generator=g, dtype=torch.float64) - 2)
    if kind == "full":
        rotation = torch.linalg.qr(torch.randn(components, d, d, generator=g, dtype=torch.float64)).Q
        covariances = rotation @ torch.diag_embed(covariances) @ rotation.mT
        covariances = 0.5 * (covariances + covariances.mT)
    return GaussianMixture(means, covariances, weights)


def matrices(problem):
    """The covariances as matrices, from the arguments alone."""
    c, (k, d) = problem.covariances, problem.means.flatten(1).shape
    if c.shape == (k, d, d) and d > 1:
        return c
    return torch.diag_embed((c.reshape(k, d) if c.shape == problem.means.shape else c.reshape(-1, 1)).expand(k, d))


@st.composite
def problems(draw, kinds=KINDS):
    event = draw(st.sampled_from([(1,), (2,), (3,), (2, 2), (1, 2, 3)]))
    return make(draw(st.sampled_from(kinds)), event, draw(st.integers(1, 4)), draw(st.integers(0, 2**31)))


@st.composite
def cases(draw, ends=True):
    """A problem, an SDE, times of shape () or (batch,), and noised data at these times."""
    problem, sde, seed = draw(problems()), draw(st.sampled_from(list(SDES.values()))), draw(st.integers(0, 2**31))
    n = draw(st.integers(1, 4))
    fraction = st.floats(0.0, 1.0) if ends else st.floats(0.05, 0.95)
    passed = draw(st.one_of(fraction, st.lists(fraction, min_size=n, max_size=n)))
    t = sde.span[0] + (sde.span[1] - sde.span[0]) * torch.tensor(passed, dtype=torch.float64)
    t = t.clamp(max=sde.span[1])
    g = torch.Generator().manual_seed(seed)
    x0 = problem.sample(n, g, torch.float64)
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=g, dtype=torch.float64))
    return problem, sde, t, x


def columns(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


@given(cases())
def test_score_is_the_gradient_of_the_log_density(case):
    problem, sde, t, x = case
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(problem.log_prob(x, sde, t).sum(), x)
    torch.testing.assert_close(problem.score(x, sde, t), gradient, rtol=1e-9, atol=1e-9)


@given(problems())
def test_score_at_time_zero_is_that_of_the_data(problem):
    x = problem.sample(5, torch.Generator().manual_seed(0), torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(problem.log_prob(x).sum(), x)
    for sde in (VP(), RectifiedFlow(), EDM(), DDPM.linear(10).sde()):
        assert float(sde.sigma(0.0)) == 0
        torch.testing.assert_close(problem.score(x, sde, 0.0), gradient, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(problem.x0(x, sde, 0.0), x, rtol=1e-12, atol=1e-12)
        assert not problem.eps(x, sde, 0.0).any()


@given(cases())
def test_density_is_that_of_scipy(case):
    problem, sde, t, x = case
    alpha, sigma = (c.expand(len(x)).numpy() for c in (sde.alpha(t), sde.sigma(t)))
    points, means, covariances = x.flatten(1).numpy(), problem.means.flatten(1).numpy(), matrices(problem).numpy()

    def log_density(i, a, s):
        parts = [
            math.log(w) + stats.multivariate_normal.logpdf(points[i], a * m, a**2 * c + s**2 * np.eye(len(m)))
            for w, m, c in zip(problem.weights.numpy(), means, covariances, strict=True)
        ]
        return np.logaddexp.reduce(parts)

    noised = torch.tensor([log_density(i, alpha[i], sigma[i]) for i in range(len(x))], dtype=torch.float64)
    torch.testing.assert_close(problem.log_prob(x, sde, t), noised, rtol=1e-9, atol=1e-9)
    if bool((x.abs() < 10).all()):
        clean = torch.tensor([log_density(i, 1.0, 0.0) for i in range(len(x))], dtype=torch.float64)
        torch.testing.assert_close(problem.log_prob(x), clean, rtol=1e-8, atol=1e-8)


@given(cases())
def test_predictions_and_score_are_one_another(case):
    problem, sde, t, x = case
    alpha, sigma = columns(sde.alpha(t), x), columns(sde.sigma(t), x)
    x0, eps, score = problem.x0(x, sde, t), problem.eps(x, sde, t), problem.score(x, sde, t)
    scale = float(x.abs().max()) + 1
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=0, atol=1e-13 * scale)
    torch.testing.assert_close(alpha * x0, x + sigma**2 * score, rtol=0, atol=1e-12 * scale)  # Tweedie's formula
    torch.testing.assert_close(eps, -sigma * score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.v(x, sde, t), alpha * eps - sigma * x0, rtol=1e-12, atol=1e-12 * scale)


@given(
    st.sampled_from(list(SDES.values())),
    st.integers(1, 3),
    st.integers(0, 2**31),
    st.floats(0.3, 3.0),
    st.floats(-3, 3),
)
def test_predictions_are_the_posterior_means_of_quadrature(sde, components, seed, noise, start):
    problem = make("isotropic", (1,), components, seed)
    t = sde.time(torch.tensor(-math.log(noise), dtype=torch.float64))  # where sigma / alpha = noise
    alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
    x = alpha * start
    means, std = problem.means[:, 0].numpy(), problem.covariances.sqrt().numpy()
    grid = np.linspace(-20, 20, 20001)  # the narrowest deviation, 0.1, is 50 intervals
    prior = sum(w * stats.norm.pdf(grid, m, s) for w, m, s in zip(problem.weights.numpy(), means, std, strict=True))
    posterior = prior * stats.norm.pdf(x, alpha * grid, sigma)
    total = integrate.simpson(posterior, x=grid)
    x0 = integrate.simpson(posterior * grid, x=grid) / total
    eps = integrate.simpson(posterior * (x - alpha * grid) / sigma, x=grid) / total
    point = torch.tensor([[x]], dtype=torch.float64)
    assert problem.x0(point, sde, t).item() == pytest.approx(x0, rel=1e-8, abs=1e-8)
    assert problem.eps(point, sde, t).item() == pytest.approx(eps, rel=1e-8, abs=1e-8)
    assert problem.log_prob(point, sde, t).item() == pytest.approx(math.log(total), rel=1e-8, abs=1e-8)


@given(cases(ends=False))
def test_density_satisfies_the_fokker_planck_equation(case):
    # In logarithms: d log p / dt = -f (d + x . s) + g^2 / 2 (div s + |s|^2), with f, g of the SDE and s = grad log p.
    problem, sde, t, x = case
    t = t.expand(len(x)).clone()
    if isinstance(sde, ChainSDE):
        n = len(sde.chain)
        t = ((n * t).floor() + 0.5) / n  # away from the steps, where the coefficients of a chain's SDE jump

    def log_prob(x, t):
        return problem.log_prob(x[None], sde, t[None])[0]

    _, rate = torch.func.jvp(lambda t: problem.log_prob(x, sde, t), (t,), (torch.ones_like(t),))
    score = torch.func.vmap(torch.func.grad(log_prob))(x, t).flatten(1)
    d = score.shape[1]
    hessian = torch.func.vmap(torch.func.hessian(log_prob))(x, t).reshape(len(x), d, d)
    f, g2 = sde.d_log_alpha(t), sde.diffusion_squared(t)
    transport = f * (d + (x.flatten(1) * score).sum(1))
    spread = 0.5 * g2 * (hessian.diagonal(dim1=1, dim2=2).sum(1) + (score**2).sum(1))
    size = float((transport.abs() + 0.5 * g2 * (score**2).sum(1) + rate.abs()).max()) + 1
    torch.testing.assert_close(rate, spread - transport, rtol=1e-8, atol=1e-9 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_that_are_claimed(kind, rng):
    problem = make(kind, (1, 2, 3), 3, 7)
    n = 50_000
    x = problem.sample(n, rng, torch.float64).flatten(1)
    error = x.std(0) / math.sqrt(n)
    assert ((x.mean(0) - problem.mean.flatten()).abs() < 5 * error).all()
    centred = x - problem.mean.flatten()
    products = torch.einsum("ni,nj->nij", centred, centred)
    assert ((products.mean(0) - problem.covariance).abs() < 5 * products.std(0) / math.sqrt(n)).all()
    # By the law of total covariance, from the arguments alone.
    means, w = problem.means.flatten(1), problem.weights
    second = torch.einsum("k,kij->ij", w, matrices(problem)) + torch.einsum("k,ki,kj->ij", w, means, means)
    torch.testing.assert_close(problem.covariance, second - torch.outer(w @ means, w @ means))


def test_samples_depend_on_the_generator_alone(generator):
    before = torch.get_rng_state()
    a, b = (moons().sample(50, generator(3), dtype) for dtype in (torch.float64, None))
    assert a.dtype == torch.float64 and b.dtype == torch.float32
    assert torch.equal(a.float(), b)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_equal_covariances_in_any_form_are_equal(kind):
    problem = make(kind, (2, 2), 3, 1)
    full = GaussianMixture(problem.means, matrices(problem), problem.weights)
    x = torch.randn(5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for method in (problem.x0, problem.eps, problem.score, problem.log_prob):
        expected = getattr(full, method.__name__)(x, VP(), 0.4)
        torch.testing.assert_close(method(x, VP(), 0.4), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(problem.covariance, full.covariance)


def test_a_gaussian_is_a_linear_problem():
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    problem, sde, t = Gaussian(mean, covariance), SubVP(), 0.3
    x = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    total = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    expected = -torch.linalg.solve(total, (x - alpha * mean)[0])
    torch.testing.assert_close(problem.score(x, sde, t)[0], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.covariance, covariance)
    for form in (0.5, [0.5, 0.5]):
        torch.testing.assert_close(Gaussian(mean, form).covariance, 0.5 * torch.eye(2, dtype=torch.float64))


def test_model_of_a_chain_is_addressed_by_time():
    chain, problem = DDPM.linear(20, 1e-2, 0.3), ring()
    x = torch.ones(2, 2, dtype=torch.float64)
    for t in (0.05, 0.5, 1.0):
        torch.testing.assert_close(problem.model(chain).x0(x, t), problem.x0(x, chain.sde(), t))


@pytest.mark.parametrize("sde", [CosineVP(), RectifiedFlow()], ids=["CosineVP", "RectifiedFlow"])
def test_pure_noise_predicts_the_mean(sde):
    problem = make("full", (3,), 3, 5)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(sde.alpha(1.0)) == 0
    torch.testing.assert_close(problem.x0(x, sde, 1.0), problem.mean.expand(4, 3), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(problem.eps(x, sde, 1.0), x, rtol=1e-13, atol=0)


def test_a_mixture_of_points_predicts_their_softmax():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    problem = GaussianMixture(points, 0.0)
    x, sde = torch.tensor([[0.4, 0.3], [0.9, 1.0]], dtype=torch.float64), EDM()
    weights = torch.softmax(-(torch.cdist(x, points) ** 2) / (2 * 0.5**2), 1)
    torch.testing.assert_close(problem.x0(x, sde, 0.5), weights @ points, rtol=1e-13, atol=0)
    torch.testing.assert_close(problem.x0(x, sde, 0.01), points[:2], rtol=0, atol=1e-12)  # the nearest ones
    with pytest.raises(ValueError, match="the data have no density, because a covariance is singular"):
        problem.log_prob(x)


def test_rank_deficient_covariances_are_allowed():
    v = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3
    problem = Gaussian(torch.zeros(3), torch.outer(v, v))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = VP().alpha(0.2), VP().sigma(0.2)
    expected = alpha / (alpha**2 + sigma**2) * torch.outer(x @ v, v)
    torch.testing.assert_close(problem.x0(x, VP(), 0.2), expected, rtol=1e-12, atol=1e-14)


@given(cases())
def test_each_sample_has_its_own_time(case):
    problem, sde, t, x = case
    together = problem.x0(x, sde, t)
    for i, s in enumerate(t.expand(len(x))):
        torch.testing.assert_close(problem.x0(x[i : i + 1], sde, s)[0], together[i], rtol=1e-10, atol=1e-12)


def test_function_transforms_and_modes_compose():
    problem, sde = moons(), VP()
    x = torch.tensor([[0.1, 0.2], [1.0, -0.4]], dtype=torch.float16).double()
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)

    def score(x, t):
        return problem.score(x[None], sde, t)[0]

    mapped = torch.func.vmap(score)(x, t)
    torch.testing.assert_close(mapped, problem.score(x, sde, t))
    jacobian = torch.func.vmap(torch.func.jacrev(score))(x, t)
    torch.testing.assert_close(jacobian, torch.func.vmap(torch.func.jacfwd(score))(x, t))
    torch.testing.assert_close(jacobian, jacobian.mT)  # a gradient's Jacobian is symmetric
    # Tables made under a transform, or in inference mode, serve plain calls, gradients and copies afterwards.
    torch.func.grad(lambda x: problem.log_prob(x, sde, 0.3).sum())(x.bfloat16())
    with torch.inference_mode():
        fresh = moons()
        fresh.x0(x.float(), sde, 0.3)
    y = x.float().requires_grad_()
    fresh.x0(y, sde, 0.3).sum().backward()
    assert torch.isfinite(y.grad).all()
    for other in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert torch.equal(other.x0(x, sde, 0.3), problem.x0(x, sde, 0.3))
    model = pickle.loads(pickle.dumps(problem.model(sde)))
    torch.testing.assert_close(model.x0(x, 0.3), problem.x0(x, sde, 0.3))


def test_half_precision_is_computed_in_single():
    problem = textures()
    x = problem.sample(3, torch.Generator().manual_seed(0), torch.bfloat16)
    for result, exact in (
        (problem.x0(x, VP(), 0.5), problem.x0(x.float(), VP(), 0.5)),
        (problem.log_prob(x), problem.log_prob(x.float())),
    ):
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, exact.bfloat16())


def test_sizes_of_named_problems():
    eigenvalues = torch.linalg.eigvalsh(gaussian(10, condition=50.0).covariance)
    assert (eigenvalues[-1] / eigenvalues[0]).item() == pytest.approx(50)
    assert eigenvalues.mean().item() == pytest.approx(1)
    assert ring(5, radius=2.0).means.norm(dim=1).tolist() == pytest.approx([2.0] * 5)
    assert len(grid(4).means) == 16
    assert torch.allclose(textures(4, 3).covariances.diagonal(dim1=1, dim2=2), torch.ones(3, 16, dtype=torch.float64))
    assert repr(textures()) == "GaussianMixture(components=4, event=(1, 8, 8))"


POINTS = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: GaussianMixture(torch.zeros(3), 1.0), r"got means of shape \(3,\); expected \(components, \*event\)"),
        (lambda: GaussianMixture(torch.zeros(0, 2), 1.0), "with at least one component"),
        (lambda: GaussianMixture(POINTS * math.nan, 1.0), "got means with values that are not finite"),
        (lambda: GaussianMixture(POINTS, 1.0, [0.5, 0.5]), r"got weights \[0.5, 0.5\] for 3 components"),
        (lambda: GaussianMixture(POINTS, 1.0, [1.0, 1.0, -1.0]), "expected one non-negative number each"),
        (lambda: GaussianMixture(POINTS, 1.0, [0.0, 0.0, 0.0]), "not all zero"),
        (
            lambda: GaussianMixture(POINTS, torch.ones(2)),
            r"got covariances of shape \(2,\) for means of shape \(3, 2\)",
        ),
        (lambda: GaussianMixture(POINTS, -1.0), "got a covariance with the negative variance -1"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "expected positive semi-definite covariances"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "a covariance matrix which is not symmetric"),
        (lambda: ring().score(torch.zeros(1, 3), VP(), 0.5), r"got x of shape \(1, 3\); expected \('batch', 2\)"),
        (lambda: ring().score(torch.zeros(2), VP(), 0.5), "at least one event dimension"),
        (lambda: ring().x0(torch.zeros(2, 2), VP(), torch.zeros(3)), "expected one time, shape"),
        (lambda: ring().x0(torch.zeros(2, 2), VP(), 1.5), "got time 1.5; VP is defined for"),
        (lambda: ring().log_prob(torch.zeros(2, 2), VP()), "expected both .* or neither"),
        (lambda: ring().sample(0, torch.Generator()), "got n=0; expected a whole number of at least 1"),
    ],
)
def test_bad_input_is_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
