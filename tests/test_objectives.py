"""Denoising score matching: its weightings against their sources, its minimiser, its times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoresde import DDPM, EDM, NCSN, VE, VP, CosineVP, RectifiedFlow, ScoreModel, SubVP, discretize
from scoresde.objectives import (
    DSM,
    OBJECTIVES,
    TIMES,
    WEIGHTINGS,
    LikelihoodTimes,
    LogNormalTimes,
    StepTimes,
    UniformTimes,
    Weighting,
    noised,
    objective,
)
from scoresde.score import PREDICTIONS, target
from scoresde.sde import GaussianSDE

D = torch.float64
SDES: list[GaussianSDE] = [VP(), CosineVP(), SubVP(), VE(), EDM(), RectifiedFlow()]
FINITE: list[GaussianSDE] = [VP(), CosineVP(t_max=0.99), SubVP(), VE(), EDM(), RectifiedFlow(t_max=0.99)]
CHAINS = [DDPM.linear(20, 1e-3, 0.4), NCSN.geometric(20), discretize(RectifiedFlow(), 20)]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
each_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)


def net(x: Tensor, t: Tensor) -> Tensor:
    """Some smooth function of both."""
    return torch.sin(2 * x) + 0.3 * x.roll(1, dims=-1) - 0.2 * torch.cos(t)[:, None]


def draw(seed: int, n: int = 5, d: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, n, d, generator=generator, dtype=D)
    return x0, eps, torch.rand(n, generator=generator, dtype=D)


def inside(sde: GaussianSDE, u: Tensor) -> Tensor:
    """Times away from the ends, at which the textbook's formulas lose digits."""
    low, high = sde.span
    return low + (high - low) * (0.02 + 0.9 * u)


# The published losses, as their papers write them, with the score, the noise or the denoiser of the model.
def published(name: str, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    alpha, sigma = model.sde.alpha(t)[:, None], model.sde.sigma(t)[:, None]
    x = alpha * x0 + sigma * eps
    if name == "ddpm":
        return ((model.eps(x, t) - eps) ** 2).mean(1)
    if name == "edm":
        s, d = sigma / alpha, model.sigma_data
        return ((s**2 + d**2) / (s * d) ** 2 * (model.x0(x, t) - x0) ** 2).mean(1)
    if name == "v":
        return ((model.v(x, t) - (alpha * eps - sigma * x0)) ** 2).mean(1)
    if name == "velocity":
        return ((model.eps(x, t) - model.x0(x, t) - (eps - x0)) ** 2).mean(1)
    snr = (alpha / sigma) ** 2
    if name == "min-snr":
        return (snr.clamp(max=5.0) * (model.x0(x, t) - x0) ** 2).mean(1)
    if name == "x0":
        return ((model.x0(x, t) - x0) ** 2).mean(1)
    if name == "p2":
        return ((model.eps(x, t) - eps) ** 2 / (1 + snr)).mean(1)
    weight = sigma**2 if name == "ncsn" else model.sde.diffusion(x, t) ** 2
    if name == "sigmoid":  # on the likelihood's; log SNR - 2 is the argument
        weight = weight / (1 + snr * math.exp(-2))
    score_of_kernel = -(x - alpha * x0) / sigma**2
    return (weight * (model.score(x, t) - score_of_kernel) ** 2).mean(1)


@each_prediction
@pytest.mark.parametrize("name", WEIGHTINGS)
@given(sde=st.sampled_from(SDES), seed=st.integers(0, 2**32), d=st.floats(0.2, 3.0))
@settings(max_examples=12, deadline=None)
def test_loss_is_that_of_the_papers(sde: GaussianSDE, predicts: str, name: str, seed: int, d: float) -> None:
    x0, eps, u = draw(seed)
    t, model = inside(sde, u), ScoreModel(net, sde, predicts, sigma_data=d)
    torch.testing.assert_close(DSM(name).at(model, x0, t, eps), published(name, model, x0, t, eps), rtol=1e-6, atol=0)


@each_sde
@each_prediction
@given(seed=st.integers(0, 2**32), d=st.floats(0.2, 3.0))
@settings(max_examples=8, deadline=None)
def test_the_target_is_right_about_data_and_noise(sde: GaussianSDE, predicts: str, seed: int, d: float) -> None:
    x0, eps, u = draw(seed)
    t = inside(sde, u)

    def perfect(x: Tensor, _: Tensor) -> Tensor:
        return target(predicts, x0, eps, sde.alpha(t), sde.sigma(t), d)

    model, x = ScoreModel(perfect, sde, predicts, sigma_data=d), noised(sde, x0, t, eps)
    torch.testing.assert_close(model.eps(x, t), eps, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model.x0(x, t), x0, rtol=1e-6, atol=1e-5)
    assert (DSM().at(model, x0, t, eps) == 0).all()


@each_sde
def test_edm_target_has_unit_weight_and_unit_variance(sde: GaussianSDE) -> None:
    d, t = 0.7, inside(sde, torch.linspace(0, 1, 9, dtype=D))
    model = ScoreModel(net, sde, "edm", sigma_data=d)
    weight = WEIGHTINGS["edm"].function(sde, t, d) * model.coefficients(t).x0[1] ** 2
    torch.testing.assert_close(weight, torch.ones_like(t), rtol=1e-12, atol=0)
    one, none = torch.ones(9, 1, dtype=D), torch.zeros(9, 1, dtype=D)
    of_data = target("edm", one, none, sde.alpha(t), sde.sigma(t), d)
    of_noise = target("edm", none, one, sde.alpha(t), sde.sigma(t), d)
    torch.testing.assert_close((d * of_data) ** 2 + of_noise**2, one, rtol=1e-12, atol=0)


@each_sde
@each_prediction
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_float32_is_as_good_as_it_can_be_at_both_ends(sde: GaussianSDE, predicts: str, name: str) -> None:
    # The network's values are those of float64, rounded, so that what is compared is the loss's own arithmetic.
    x0, eps, _ = draw(3)
    low, high = sde.span
    t = torch.tensor([low, low * 1.5, 0.5 * high, high * (1 - 1e-4), high * (1 - 1e-3)], dtype=D)

    def wrong(x: Tensor, _: Tensor) -> Tensor:
        n = target(predicts, x0, eps, sde.alpha(t), sde.sigma(t), 0.5)
        return (n * 1.5).to(x)

    model = ScoreModel(wrong, sde, predicts)
    exact = DSM(name).at(model, x0, t, eps)
    single = DSM(name).at(model, x0.float(), t, eps.float())
    torch.testing.assert_close(single.double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("predicts", ["x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("sde", [RectifiedFlow(), CosineVP()], ids=lambda s: type(s).__name__)
def test_edm_weight_is_finite_without_signal(sde: GaussianSDE, predicts: str) -> None:
    x0, eps, _ = draw(0)
    end, before = torch.ones(5, dtype=D), torch.full((5,), 1 - 1e-9, dtype=D)
    model = ScoreModel(lambda x, t: torch.sin(2 * x), sde, predicts)
    at_end = DSM("edm").at(model, x0, end, eps)
    torch.testing.assert_close(at_end, DSM("edm").at(model, x0, before, eps), rtol=1e-6, atol=0)


# The minimiser -------------------------------------------------------------------------------------------------------


def gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal distribution."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(z, dtype=D), torch.tensor(w / math.sqrt(2 * math.pi), dtype=D)


@pytest.mark.sweep(2)
@each_sde
@pytest.mark.parametrize("name", OBJECTIVES)
@given(predicts=st.sampled_from(sorted(PREDICTIONS)), u=st.floats(0, 1), mean=st.floats(-1, 1), std=st.floats(0.3, 2.0))
@settings(max_examples=6, deadline=None)
def test_on_a_gaussian_the_minimiser_is_the_true_score(
    sde: GaussianSDE, predicts: str, name: str, u: float, mean: float, std: float
) -> None:
    # A network affine in its input contains the true score; the expectation over data and noise is exact.
    z, w = gauss_hermite(5)
    x0, eps = (mean + std * z).repeat_interleave(5)[:, None], z.repeat(5)[:, None]
    weights, t = w.repeat_interleave(5) * w.repeat(5), inside(sde, torch.tensor([u], dtype=D)).expand(25)

    def expected_loss(theta: Tensor) -> Tensor:
        model = ScoreModel(lambda x, _: theta[0] * x + theta[1], sde, predicts)
        loss: Tensor = (weights * objective(name).at(model, x0, t, eps)).sum()
        return loss

    start = torch.zeros(2, dtype=D)
    gradient = torch.func.grad(expected_loss)(start)
    hessian = torch.func.hessian(expected_loss)(start)
    theta = torch.linalg.solve(hessian, -gradient)  # the loss is quadratic: this is its only minimum
    model = ScoreModel(lambda x, _: theta[0] * x + theta[1], sde, predicts)
    x = noised(sde, x0, t, eps)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    true = -(x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    torch.testing.assert_close(sigma * model.score(x, t), sigma * true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sde", [VP(), VE(sigma_max=10.0), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_denoising_and_explicit_score_matching_differ_by_a_constant(sde: GaussianSDE, name: str) -> None:
    # Data of three atoms, so that the expectation over them is a sum and the true score is a softmax.
    atoms, p = torch.tensor([-1.0, 0.2, 1.5], dtype=D), torch.tensor([0.5, 0.2, 0.3], dtype=D)
    z, w = gauss_hermite(120)
    x0, eps = atoms.repeat_interleave(120)[:, None], z.repeat(3)[:, None]
    weights, dsm = p.repeat_interleave(120) * w.repeat(3), objective(name)

    def difference(model: ScoreModel, t: Tensor) -> tuple[float, float]:
        alpha, sigma = sde.alpha(t)[0], sde.sigma(t)[0]
        x = noised(sde, x0, t, eps)
        posterior = (p.log() - 0.5 * ((x - alpha * atoms) / sigma) ** 2).softmax(1)
        eps_true = (x - alpha * (posterior * atoms).sum(1, keepdim=True)) / sigma
        scale = dsm.weight.function(sde, t, 0.5) * (1 if dsm.weight.on == "eps" else (sigma / alpha) ** 2)
        explicit = (weights * scale * ((model.eps(x, t) - eps_true) ** 2)[:, 0]).sum()
        denoising = (weights * dsm.at(model, x0, t, eps)).sum()
        return (denoising - explicit).item(), explicit.item()

    networks = [
        lambda x, t: 0 * x,
        lambda x, t: torch.sin(x),
        lambda x, t: 0.3 * x**2 - 1,
        lambda x, t: x + torch.tanh(x),
    ]
    for u in (0.45, 0.7):
        t = inside(sde, torch.tensor([u], dtype=D)).expand(360)
        pairs = [
            difference(ScoreModel(f, sde, predicts), t)
            for f, predicts in zip(networks, ("eps", "v", "velocity", "edm"), strict=True)
        ]
        constants, explicit = zip(*pairs, strict=True)
        assert constants == pytest.approx([constants[0]] * 4, rel=2e-4)
        assert max(explicit) > 1.5 * min(explicit) > 0  # and not because the models are alike


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [*FINITE, CHAINS[0].sde()], ids=lambda s: type(s).__name__)
def test_importance_sampling_is_unbiased(sde: GaussianSDE) -> None:
    n = 200_000
    u = (torch.arange(n, dtype=D) + 0.5) / n
    t, weight = LikelihoodTimes().at(u, sde)
    low, high = sde.span
    x = (t - low) / (high - low)
    for power in range(4):  # the mean of x^power over uniform times
        assert (weight * x**power).mean().item() == pytest.approx(1 / (power + 1), rel=1e-3)


@pytest.mark.parametrize("sde", FINITE, ids=lambda s: type(s).__name__)
def test_importance_sampling_makes_the_likelihood_weight_a_constant(sde: GaussianSDE) -> None:
    t, weight = LikelihoodTimes().at(torch.linspace(0.001, 0.999, 99, dtype=D), sde)
    low, high = sde.span
    constant = 2 * (sde.lam(low) - sde.lam(high)) / (high - low)
    product = weight * WEIGHTINGS["likelihood"].function(sde, t, 0.5)
    torch.testing.assert_close(product, constant.expand(99), rtol=1e-9, atol=0)
    # The density is that of lam, uniform: equal steps of u are equal steps of lam.
    torch.testing.assert_close(sde.lam(t).diff(), sde.lam(t).diff().mean().expand(98), rtol=1e-6, atol=0)


@each_sde
@given(mean=st.floats(-2, 0.5), std=st.floats(0.5, 1.5))
@settings(max_examples=10, deadline=None)
def test_lognormal_times_have_their_distribution(sde: GaussianSDE, mean: float, std: float) -> None:
    u = torch.linspace(0.0, 1.0, 101, dtype=D)
    t, weight = LogNormalTimes(mean, std).at(u, sde)
    low, high = sde.span
    assert (weight == 1).all()
    assert ((t >= low) & (t <= high)).all() and (t.diff() >= 0).all()
    free = (t > low * 1.001) & (t < high * 0.999)
    quantile = torch.special.ndtr((-sde.lam(t) - mean) / std)
    torch.testing.assert_close(quantile[free], u[free], rtol=1e-7, atol=1e-7)
    assert free.sum() > 50


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: type(c).__name__)
def test_discrete_times_are_the_steps_equally_often(chain: Any) -> None:
    u = (torch.arange(2000, dtype=D) + 0.5) / 2000
    t, _ = StepTimes().at(u, chain.sde())
    k, counts = (t * len(chain)).unique(return_counts=True)
    torch.testing.assert_close(k, torch.arange(1, len(chain) + 1, dtype=D), rtol=1e-12, atol=0)
    assert (counts == 2000 // len(chain)).all()
    assert torch.equal(StepTimes().at(torch.ones(1, dtype=D), chain.sde())[0], torch.ones(1, dtype=D))


def test_automatic_times_follow_the_process() -> None:
    u = torch.linspace(0, 0.999, 50, dtype=D)
    assert torch.equal(TIMES["auto"].at(u, CHAINS[0].sde())[0], StepTimes().at(u, CHAINS[0].sde())[0])
    assert torch.equal(TIMES["auto"].at(u, VP())[0], UniformTimes().at(u, VP())[0])


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_stratified_times_lie_one_in_each_stratum(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    t, _ = UniformTimes().sample(n, VE(), generator=generator)
    offset = t[0]  # strata start where the offset puts them
    assert torch.equal(((t - offset) % 1.0 * n).round().sort().values % n, torch.arange(n, dtype=D))


def test_each_stratified_time_is_uniform_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.stack([UniformTimes().sample(4, VE(), generator=generator)[0] for _ in range(3000)])
    for power in (1, 2):
        error = 1 / math.sqrt(3000 * (1 + power))
        assert ((t**power).mean(0) - 1 / (1 + power)).abs().max() < 4 * error


@pytest.mark.parametrize("stratified", [True, False])
def test_a_call_is_the_loss_at_times_it_reports(stratified: bool) -> None:
    model, x0 = ScoreModel(net, VP(), "v"), torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=D)
    dsm = DSM("likelihood", "likelihood", stratified)
    state = torch.get_rng_state()
    loss, t = dsm(model, x0, torch.Generator().manual_seed(5))
    again, _ = dsm(model, x0, torch.Generator().manual_seed(5))
    assert torch.equal(loss, again)
    assert torch.equal(state, torch.get_rng_state())  # the global generator was not touched
    generator = torch.Generator().manual_seed(5)
    times, importance = dsm.distribution.sample(16, VP(), generator=generator, stratified=stratified)
    eps = torch.randn(16, 3, generator=generator, dtype=D)
    assert torch.equal(t, times)
    torch.testing.assert_close(loss, importance * dsm.at(model, x0, times, eps))


def test_conditions_reach_the_network() -> None:
    def shifted(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return net(x, t) + shift[:, None]

    x0, eps, u = draw(0)
    plain = DSM().at(ScoreModel(net, VP()), x0, u, eps)
    conditional = ScoreModel(shifted, VP())
    assert torch.equal(DSM().at(conditional, x0, u, eps, shift=torch.zeros(5)), plain)
    assert not torch.equal(DSM()(conditional, x0, torch.Generator(), shift=torch.ones(5))[0], plain)


def test_a_weighting_of_ones_own() -> None:
    x0, eps, u = draw(0)
    model = ScoreModel(net, VP(), "v")
    own = DSM(Weighting("tripled", "eps", lambda sde, t, d: 3 * torch.ones_like(t)), UniformTimes())
    torch.testing.assert_close(own.at(model, x0, u, eps), 3 * DSM("ddpm").at(model, x0, u, eps))
    assert repr(own) == repr(DSM(Weighting("tripled", "eps", lambda sde, t, d: t), UniformTimes()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objective("dppm"), "got objective 'dppm'; expected one of .*; did you mean 'ddpm'"),
        (lambda: DSM("likelyhood"), "got weighting 'likelyhood'; .* did you mean 'likelihood'"),
        (lambda: DSM(times="log-normal"), "got distribution of times 'log-normal'; .* did you mean 'lognormal'"),
        (lambda: LogNormalTimes(std=0.0), "expected a positive number"),
        (lambda: Weighting("w", "score", lambda *a: a[1]), "expected 'eps' or 'x0'"),  # type: ignore[arg-type]
        (
            lambda: StepTimes().at(torch.zeros(1), VP()),
            "got discrete times for a model of VP; they belong to a chain: build the model with discretize",
        ),
        (
            lambda: LikelihoodTimes().at(torch.zeros(1, dtype=D), RectifiedFlow()),
            "to -inf over RectifiedFlow's times; .* take a smaller t_max",
        ),
        (lambda: DSM()(ScoreModel(net, VP()), torch.ones(3), torch.Generator()), "write scalars as"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
