"""The heart of the library: closed-form marginals against the discrete chains, step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, generator, slopes

from scoresde import DDPM, NCSN, VE, VP, CosineVP, GaussianChain, RectifiedFlow, SubVP, discretize, solvers
from scoresde.sde.chain import Chain
from scoresde.sde.gaussian import derivative
from scoresde.solvers import Path, Row

F64 = torch.float64

betas = st.lists(st.floats(1e-6, 0.95), min_size=1, max_size=60)
sigmas = st.lists(st.floats(1e-3, 2.0), min_size=1, max_size=60).map(lambda d: torch.tensor(d, dtype=F64).cumsum(0))


@st.composite
def gaussian_chains(draw: st.DrawFn) -> GaussianChain:
    n = draw(st.integers(1, 40))
    falls = torch.tensor(draw(st.lists(st.floats(1e-3, 0.5), min_size=n, max_size=n)), dtype=F64)
    scales = torch.tensor(draw(st.lists(st.floats(-0.3, 0.1), min_size=n, max_size=n)), dtype=F64)
    log_alpha = scales.cumsum(0)
    lam = 4 - falls.cumsum(0)
    return GaussianChain(log_alpha, log_alpha - lam)


chains = st.one_of(betas.map(DDPM), sigmas.map(NCSN), gaussian_chains())
data = st.lists(st.floats(-5, 5), min_size=1, max_size=4)


@given(chain=chains, x0=data)
def test_recursion_of_mean_and_variance_equals_the_closed_form(chain: Chain, x0: list[float]) -> None:
    mean = torch.tensor([x0], dtype=F64)
    start, variance = mean, torch.zeros((), dtype=F64)
    for k in range(1, len(chain) + 1):
        mean, std = chain.transition(mean, k)
        variance = chain.scale[k - 1] ** 2 * variance + std**2
        closed_mean, closed_std = chain.marginal(start, k)
        torch.testing.assert_close(mean, closed_mean, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(variance, closed_std**2, rtol=1e-11, atol=1e-13)


@given(chain=chains, x0=st.floats(-3, 3), x=st.floats(-3, 3))
def test_posterior_is_bayes_rule_on_the_joint_gaussian(chain: Chain, x0: float, x: float) -> None:
    """(x_{k-1}, x_k) given x_0 is jointly Gaussian; conditioning on x_k is linear algebra."""
    for k in {1, (len(chain) + 1) // 2, len(chain)}:
        a, v = chain.scale[k - 1].item(), chain.variance[k - 1].item()
        alpha, sigma2 = (chain.alpha[k - 2].item(), chain.sigma[k - 2].item() ** 2) if k > 1 else (1.0, 0.0)
        covariance = torch.tensor([[sigma2, a * sigma2], [a * sigma2, a * a * sigma2 + v]], dtype=F64)
        gain = covariance[0, 1] / covariance[1, 1]
        wanted_mean = alpha * x0 + gain * (x - a * alpha * x0)
        wanted_variance = covariance[0, 0] - gain * covariance[1, 0]
        point, origin = torch.tensor([[x]], dtype=F64), torch.tensor([[x0]], dtype=F64)
        mean, std = chain.posterior(point, origin, k)
        torch.testing.assert_close(mean.squeeze(), wanted_mean, rtol=1e-9, atol=1e-9)
        # The subtraction on the reference's side loses digits, not the closed form's.
        torch.testing.assert_close(std**2, wanted_variance, rtol=1e-7, atol=1e-12)


@given(chain=chains, w=st.floats(0.05, 0.95))
def test_posterior_variances_are_ordered_and_interpolate_in_the_logarithm(chain: Chain, w: float) -> None:
    lower, upper, between = (chain.posterior_variance(c) for c in ("lower", "upper", w))
    torch.testing.assert_close(upper, chain.variance)
    noisier = torch.cat([torch.ones(1, dtype=torch.bool), chain.sigma.diff() >= 0])
    assert lower[0] == 0 and bool((lower <= upper * (1 + 1e-12))[noisier].all())
    if len(chain) > 1:
        torch.testing.assert_close(between[1:].log(), w * upper[1:].log() + (1 - w) * lower[1:].log())
        assert between[0] > 0  # the first takes the second's lower variance
    torch.testing.assert_close(chain.posterior_variance(1.0), upper)


@pytest.mark.parametrize("name", SDES)
@given(n=st.integers(2, 300))
def test_exact_discretization_has_the_marginals_of_the_sde(name: str, n: int) -> None:
    sde = SDES[name]
    chain = discretize(sde, n)
    t = torch.arange(1, n + 1, dtype=F64) / n * sde.span[1]
    if name == "VE":
        t = torch.arange(n, dtype=F64) / (n - 1)
    if name == "EDM":
        t = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), n, dtype=F64) ** 7
    assert len(chain) == n
    torch.testing.assert_close(chain.alpha, sde.alpha(t), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chain.sigma, sde.sigma(t), rtol=1e-10, atol=1e-12)
    kind = {"VP": DDPM, "CosineVP": DDPM, "VE": NCSN, "EDM": NCSN}.get(name, GaussianChain)
    assert type(chain) is kind


def test_published_discretization_converges_at_first_order() -> None:
    sde = VP()
    errors = []
    for n in (250, 500, 1000, 2000, 4000):
        t = torch.arange(1, n + 1, dtype=F64) / n
        errors.append((discretize(sde, n, "published").alpha - sde.alpha(t)).abs().max().item())
    assert errors[-1] < 2e-3
    assert all(abs(slope - 1) < 0.05 for slope in slopes(errors)), slopes(errors)


def test_published_discretizations_are_the_papers_own() -> None:
    torch.testing.assert_close(discretize(VP(), 1000, "published").variance, torch.linspace(1e-4, 0.02, 1000, dtype=F64))
    torch.testing.assert_close(DDPM.linear().variance, torch.linspace(1e-4, 0.02, 1000, dtype=F64))
    levels = discretize(VE(), 7, "published").sigma
    torch.testing.assert_close(levels[1:] / levels[:-1], torch.full((6,), 5000 ** (1 / 6), dtype=F64))
    # improved DDPM: beta_k = min(1 - abar(k/n) / abar((k-1)/n), 0.999) with abar = cos^2
    n, s = 100, 0.008
    abar = [math.cos((k / n + s) / (1 + s) * math.pi / 2) ** 2 for k in range(n + 1)]
    wanted = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(abar)]
    torch.testing.assert_close(discretize(CosineVP(), n, "published").variance, torch.tensor(wanted, dtype=F64))


@given(chain=chains)
def test_chain_to_sde_to_chain_is_the_identity(chain: Chain) -> None:
    sde = chain.sde()
    n = len(chain)
    t = torch.arange(1, n + 1, dtype=F64) / n
    torch.testing.assert_close(sde.log_alpha(t), chain.log_alpha, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(sde.log_sigma(t), chain.log_sigma, rtol=1e-10, atol=1e-11)
    back = discretize(sde, n)
    torch.testing.assert_close(back.scale, chain.scale, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(back.variance, chain.variance, rtol=1e-8, atol=1e-13)
    between = torch.linspace(0, 1, 5 * n + 1, dtype=F64)
    assert bool((sde.lam(between).diff() < 0).all())
    torch.testing.assert_close(sde.time(sde.lam(between[1:])), between[1:], rtol=0, atol=1e-9)


ENDED = [DDPM.linear(40), DDPM([0.1, 0.3, 1.0]), NCSN.geometric(9), discretize(SubVP(), 20), discretize(RectifiedFlow(), 20)]


@pytest.mark.parametrize("chain", ENDED, ids=lambda c: type(c).__name__)
def test_the_time_of_a_lam_is_the_inverse_with_its_gradient_on_every_step(chain: Chain) -> None:
    sde = chain.sde()
    t = torch.linspace(0, 1, 7 * len(chain) + 3, dtype=F64)[1:-1]
    slope = derivative(sde.lam, t)
    lam = sde.lam(t).requires_grad_()
    found = sde.time(lam)
    torch.testing.assert_close(found.detach(), t, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), lam)
    torch.testing.assert_close(gradient, 1 / slope, rtol=1e-7, atol=1e-12)
    assert float(sde.time(float(sde.lam(0.5)))) == pytest.approx(0.5, abs=1e-9)
    assert float(sde.time(-1e4)) == 1.0 and float(sde.time(60.0)) == pytest.approx(0, abs=1e-6)


def test_zero_terminal_signal_to_noise() -> None:
    chain = DDPM([0.1, 0.5, 1.0])
    assert chain.alpha[-1] == 0 and chain.sigma[-1] == 1
    sde = chain.sde()
    assert sde.alpha(1.0).item() == 0 and sde.sigma(1.0).item() == 1
    torch.testing.assert_close(sde.alpha(5 / 6), 0.5 * chain.alpha[1])
    assert torch.equal(discretize(sde, 3).alpha[-1:], torch.zeros(1, dtype=F64))


@pytest.mark.parametrize("chain", [DDPM.linear(50, 1e-3, 0.2), NCSN.geometric(20, 0.1, 3), discretize(SubVP(), 30)])
def test_a_simulated_chain_agrees_with_the_closed_form_within_its_monte_carlo_error(chain: Chain) -> None:
    n, g = 200_000, generator(3)
    x = x0 = torch.full((n, 1), 1.5, dtype=F64)
    for k in range(1, len(chain) + 1):
        mean, std = chain.transition(x, k)
        x = mean + std * torch.randn(n, 1, generator=g, dtype=F64)
    mean, std = chain.marginal(x0[:1], len(chain))
    z_mean = (x.mean() - mean.squeeze()) / (std / math.sqrt(n))
    z_variance = (x.var() / std**2 - 1) / math.sqrt(2 / (n - 1))
    assert abs(z_mean) < 4 and abs(z_variance) < 4


def single_rows(solver: solvers.RowSolver, chain: Chain) -> list[tuple[int, Row]]:
    """The rows of a solver between the points of a chain, with the step k from which each leads to k - 1."""
    n = len(chain)
    path = Path.from_times(chain.sde(), torch.arange(n, 0, -1, dtype=F64) / n)
    return [(n - i, row) for i, row in enumerate(solver.rows(path)) if isinstance(row, Row)]


def in_x_and_eps(row: Row, alpha: float, sigma: float) -> tuple[float, float]:
    """The factors of x and of eps in a one-evaluation row, with m = (x - sigma eps) / alpha."""
    of_x = row.a + row.w[0] * (row.p + row.q / alpha)
    return of_x, -row.w[0] * row.q * sigma / alpha


@given(schedule=st.lists(st.floats(1e-5, 0.7), min_size=2, max_size=30))
def test_ancestral_on_a_vp_chain_is_the_update_of_ddpm(schedule: list[float]) -> None:
    chain = DDPM(schedule)
    for variance, wanted_variance in (("lower", chain.posterior_variance("lower")), ("upper", chain.betas)):
        for k, row in single_rows(solvers.ancestral(variance), chain):
            beta, abar = chain.betas[k - 1].item(), (1 - chain.betas[:k]).prod().item()
            of_x, of_eps = in_x_and_eps(row, chain.alpha[k - 1].item(), chain.sigma[k - 1].item())
            assert of_x == pytest.approx(1 / math.sqrt(1 - beta), rel=1e-9)
            assert of_eps == pytest.approx(-beta / math.sqrt(1 - abar) / math.sqrt(1 - beta), rel=1e-7)
            assert sum(row.s) == pytest.approx(math.sqrt(wanted_variance[k - 1].item()), rel=1e-7)


@given(levels=sigmas.filter(lambda s: len(s) > 1))
def test_ancestral_on_a_ve_chain_is_the_update_of_ncsn(levels: torch.Tensor) -> None:
    """x + (sigma_k^2 - sigma_{k-1}^2) score + sqrt(sigma_{k-1}^2 (sigma_k^2 - sigma_{k-1}^2) / sigma_k^2) z."""
    for k, row in single_rows(solvers.ncsn(), NCSN(levels)):
        here, below = levels[k - 1].item(), levels[k - 2].item()
        step = here**2 - below**2
        of_x, of_eps = in_x_and_eps(row, 1.0, here)
        assert of_x == pytest.approx(1, rel=1e-9)
        assert of_eps == pytest.approx(-step / here, rel=1e-6)  # score = -eps / sigma
        assert sum(row.s) == pytest.approx(math.sqrt(below**2 * step / here**2), rel=1e-6)


def test_reverse_diffusion_agrees_with_ancestral_to_second_order_in_beta() -> None:
    """Both updates of one step, in x and eps, as beta goes to zero at a fixed level of noise."""
    differences = []
    for beta in (0.08, 0.04, 0.02, 0.01):
        chain = DDPM([0.5, beta])
        pairs = []
        for solver in (solvers.ancestral("upper"), solvers.reverse_diffusion()):
            _, row = single_rows(solver, chain)[0]
            pairs.append((*in_x_and_eps(row, chain.alpha[1].item(), chain.sigma[1].item()), sum(row.s)))
        assert pairs[0][2] == pytest.approx(pairs[1][2])  # the same noise
        differences.append(max(abs(a - b) for a, b in zip(*pairs, strict=True)))
    assert all(abs(slope - 2) < 0.15 for slope in slopes(differences)), slopes(differences)


def test_batched_steps_and_index() -> None:
    chain = DDPM.linear(10)
    x0 = torch.randn(3, 2, 2, generator=generator())
    k = torch.tensor([1, 5, 10])
    mean, std = chain.marginal(x0, k)
    for i in range(3):
        one_mean, one_std = chain.marginal(x0[i : i + 1], int(k[i]))
        torch.testing.assert_close(mean[i], one_mean[0])
        torch.testing.assert_close(std[i].squeeze(), one_std.float())
    torch.testing.assert_close(chain.index(torch.tensor([0.1, 1.0], dtype=F64)), torch.tensor([0.0, 9.0], dtype=F64))
    torch.testing.assert_close(chain.perturb(x0, k, torch.ones_like(x0)) - mean, std.expand_as(x0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: DDPM([]), "expected a non-empty vector"),
        (lambda: DDPM([0.1, 1.2]), "expected 0 < beta < 1"),
        (lambda: DDPM([1.0, 0.2]), "1 for the last alone"),
        (lambda: discretize(VP(), 5, "published"), "take more steps"),
        (lambda: DDPM([0.5, 1e-20]), r"signal-to-noise ratio does not fall from step 1 to step 2"),
        (lambda: DDPM([math.nan, 0.5]), "expected 0 < beta < 1"),
        (lambda: DDPM(["a"]), "got betas that are no numbers"),  # type: ignore[list-item]
        (lambda: DDPM([[0.1, 0.2]]), "expected a non-empty vector"),  # type: ignore[list-item]
        (lambda: DDPM([0.5]).rescale_zero_terminal_snr(), "got a chain of one step"),
        (lambda: NCSN([1.0, math.inf]), "all finite"),
        (lambda: GaussianChain([-math.inf, -math.inf], [0.0, 0.0]), "that are not finite"),
        (lambda: GaussianChain([math.inf, 0.0], [0.0, 0.0]), "that are not finite"),
        (lambda: GaussianChain([0.0, -1.0], [-math.inf, 0.0]), "that are not finite"),
        (lambda: DDPM.linear(4).marginal(torch.zeros(1, 1), 0), "got step 0; the steps of this chain are"),
        (lambda: DDPM.linear(4).marginal(torch.zeros(1, 1), 2.0), "got step 2.0; the steps of this chain are"),  # type: ignore[arg-type]
        (lambda: DDPM.linear(4).posterior_variance(1.5), "expected 'lower', 'upper' or a number"),
        (lambda: DDPM.linear(4).posterior_variance(-0.1), "expected 'lower', 'upper' or a number"),
        (lambda: DDPM.linear(2.0), "got n=2.0; expected a whole number of at least 1"),  # type: ignore[arg-type]
        (lambda: NCSN([1.0, 0.5]), "expected 0 < sigma_1 < sigma_2"),
        (lambda: GaussianChain([0.0, 0.0], [0.0, -1.0]), "signal-to-noise ratio does not fall"),
        (lambda: GaussianChain([0.0], [0.0, 1.0]), "expected as many"),
        (lambda: discretize(VP(), 0), "expected a whole number of at least 1"),
        (lambda: discretize(VP(), 3, "exakt"), "expected 'exact' or 'published'"),
        (lambda: discretize(SubVP(), 3, "published"), "has no published chain"),
        (lambda: DDPM.linear(4).marginal(torch.zeros(1, 1), 5), "the steps of this chain are the whole numbers 1 to 4"),
        (lambda: DDPM.linear(4).posterior_variance("middle"), "expected 'lower', 'upper' or a number"),
    ],
)
def test_bad_input(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_ddpm_has_the_betas_of_ho_et_al_unless_it_is_given_others() -> None:
    torch.testing.assert_close(DDPM().betas, torch.linspace(1e-4, 0.02, 1000, dtype=F64), rtol=1e-15, atol=0)


@given(schedule=st.lists(st.floats(1e-5, 0.7), min_size=2, max_size=60))
def test_rescaling_leaves_no_signal_at_the_end_and_the_first_step_as_it_is(schedule: list[float]) -> None:
    """Against algorithm 1 of Lin et al. as printed: alphas_bar_sqrt -= its last, then times its first / (first - last)."""
    roots = (1 - torch.tensor(schedule, dtype=F64)).cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    scaled = (roots - last) * first / (first - last)
    bars = scaled**2
    wanted = 1 - torch.cat([bars[:1], bars[1:] / bars[:-1]])
    chain = DDPM(schedule).rescale_zero_terminal_snr()
    # 1 - (1 - beta) loses digits on the side of the reference
    torch.testing.assert_close(chain.betas, wanted, rtol=1e-9, atol=1e-12)
    assert float(chain.betas[-1]) == 1 and float(chain.alpha[-1]) == 0 and float(chain.sigma[-1]) == 1
    assert float(chain.alpha[0]) == pytest.approx(float(roots[0]), rel=1e-12)
    again = chain.rescale_zero_terminal_snr()
    torch.testing.assert_close(again.betas, chain.betas, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", [0.0, "lower"])
@given(chain=chains)
def test_the_lower_end_of_the_interpolated_variance_is_the_posteriors(variance: float | str, chain: Chain) -> None:
    """Zero at the first step, also as the number 0: only what lies strictly between takes the second's there."""
    before = torch.cat([torch.zeros(1, dtype=F64), chain.sigma[:-1] ** 2])
    torch.testing.assert_close(chain.posterior_variance(variance), before * chain.variance / chain.sigma**2)
    assert float(chain.posterior_variance(variance)[0]) == 0


@pytest.mark.parametrize("w", [0.3, 1.0])
def test_one_step_has_no_second_to_take_its_lower_variance_from(w: float) -> None:
    chain = DDPM([0.3])
    wanted = chain.variance if w == 1 else torch.zeros(1, dtype=F64)
    torch.testing.assert_close(chain.posterior_variance(w), wanted)


def test_numpy_integers_are_integers() -> None:
    five = np.int64(5)
    for sde in (VP(), SubVP(), VE()):
        for one, other in ((discretize(sde, five), discretize(sde, 5)), (NCSN.geometric(five), NCSN.geometric(5))):
            assert len(one) == 5 and torch.equal(one.log_sigma, other.log_sigma)
    chain, x = DDPM.linear(five), torch.ones(2, 3)
    for k in (np.int64(2), np.int32(2)):
        for got, wanted in zip(chain.marginal(x, k), chain.marginal(x, 2), strict=True):
            assert torch.equal(got, wanted)
    assert len(discretize(VP(), np.int64(30), "published")) == 30


@pytest.mark.parametrize("chain", [DDPM(), NCSN.geometric(), discretize(SubVP(), 1000)], ids=lambda c: type(c).__name__)
def test_a_chain_is_shown_in_a_line(chain: Chain) -> None:
    assert len(repr(chain)) < 120 and "1000" in repr(chain) and repr(chain).startswith(f"{type(chain).__name__}(")
    assert len(chain._repr_markdown_()) < 120 and "1000 steps" in chain._repr_markdown_()


def test_a_short_chain_is_shown_as_what_makes_it_again() -> None:
    for chain in (DDPM([0.1, 0.25]), NCSN([0.5, 2.0]), GaussianChain([0.0, -1.0], [-1.0, 0.0])):
        again = eval(repr(chain))
        assert torch.equal(again.log_alpha, chain.log_alpha) and torch.equal(again.log_sigma, chain.log_sigma)
