"""Editing: partial noising, temperature and mixed latents, against their closed forms on Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, generator, mixture, model_on, rms
from torch import Tensor

from scoresde import EDM, VP, GeneralSDE, RectifiedFlow, ScoreModel, sample
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sampling import Tempered, combine, decode, encode, interpolate, latents, sdedit, slerp
from scoresde.sde import GaussianSDE
from scoresde.solvers import FreshNoise, sample_seeds

F64 = torch.float64
MEAN, VARIANCE = torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([0.8, 0.1], dtype=F64)
DATA = Gaussian(MEAN, VARIANCE.diag())


def numbers(sde: GaussianSDE, t: float) -> tuple[float, float]:
    return float(sde.alpha(t)), float(sde.sigma(t))


# Partial noising ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_sdedit_along_the_flow_is_the_closed_form_path_by_path(sde: GaussianSDE, lam: float) -> None:
    t = float(sde.time(lam))
    x = DATA.sample(5, generator(), dtype=F64)
    found = sdedit(DATA.model(sde), x, t, "dpm-3", 25, seed=4, end="stop").x
    eps = FreshNoise(sample_seeds(4, 5), "cpu").normal(torch.empty_like(x))
    (a, s), (b, r) = numbers(sde, t), numbers(sde, sde.span[0])
    gain = ((b**2 * VARIANCE + r**2) / (a**2 * VARIANCE + s**2)).sqrt()
    truth = b * MEAN + gain * (a * x + s * eps - a * MEAN)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow()], ids=repr)
def test_sdedit_by_the_reverse_sde_draws_from_the_posterior(sde: GaussianSDE) -> None:
    """The law in the docstring: mean and variance of the edits of one image."""
    t, n = float(sde.time(0.0)), 20_000
    x = torch.tensor([[1.5, -0.2]], dtype=F64)
    found = sdedit(DATA.model(sde), x.expand(n, 2), t, "sde-dpmpp-2m", 60).x
    a, s = numbers(sde, t)
    gain = a * VARIANCE / (a**2 * VARIANCE + s**2)
    mean = MEAN + gain * a * (x[0] - MEAN)
    variance = VARIANCE - gain * a * VARIANCE + gain**2 * s**2
    # Five standard errors, and the discretization of 60 steps.
    assert ((found.mean(0) - mean).abs() < 5 * (variance / n).sqrt() + 2e-3).all()
    assert ((found.var(0) / variance - 1).abs() < 5 * (2 / n) ** 0.5 + 2e-2).all()


def test_sdedit_goes_from_the_data_to_samples_with_the_level() -> None:
    model, x = model_on(VP()), mixture().sample(200, generator(), dtype=F64)
    moved = [rms(sdedit(model, x, float(VP().time(lam))).x - x) for lam in (4.0, 1.0, -1.0, -4.0)]
    assert moved[0] < 0.05 and moved == sorted(moved)
    fresh = sdedit(model, x, 1.0, seed=9).x
    assert (fresh.mean(0) - mixture().mean).abs().max() < 5 * (mixture().covariance.diag().max() / 200) ** 0.5
    one, two = sdedit(model, x, 0.5, "ddpm", seed=3).x, sdedit(model, x, 0.5, "ddpm", seed=sample_seeds(3, 200)).x
    assert torch.equal(one, two)
    part = sdedit(model, x[5:7], 0.5, "ddpm", seed=sample_seeds(3, 200)[5:7]).x
    torch.testing.assert_close(part, one[5:7])


# Temperature and truncation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.25, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_a_tempered_gaussian_is_the_gaussian_of_that_temperature(sde: GaussianSDE, temperature: float) -> None:
    """Its predictions are those of N(mu, tau C) at every level of noise that both know."""
    tempered = Tempered(DATA.model(sde), temperature)
    wide = Gaussian(MEAN, temperature * VARIANCE.diag()).model(sde)
    low, high = float(sde.lam(sde.span[1])), float(sde.lam(sde.span[0]))
    low = max(low, -4.0) + abs(math.log(temperature))
    high = min(high, 4.0) - abs(math.log(temperature))
    for lam in torch.linspace(low, high, 7, dtype=F64):
        t = float(sde.time(lam))
        x = torch.randn(4, 2, generator=generator(), dtype=F64) * float(sde.sigma(t))
        torch.testing.assert_close(tempered.x0(x, t), wide.x0(x, t), rtol=1e-6, atol=1e-6)
        times = torch.full((4,), t, dtype=F64)
        torch.testing.assert_close(tempered.score(x, times), wide.score(x, times), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "sde-dpmpp-2m"])
def test_samples_at_a_temperature_have_its_variance(solver: str) -> None:
    n = 20_000
    for temperature in (0.3, 2.0):
        x = sample(Tempered(DATA.model(EDM()), temperature), (n, 2), solver, 40, dtype=F64, progress=False).x
        assert ((x.mean(0) - MEAN).abs() < 5 * (temperature * VARIANCE / n).sqrt() + 2e-3).all()
        assert ((x.var(0) / (temperature * VARIANCE) - 1).abs() < 5 * (2 / n) ** 0.5 + 2e-2).all()


@pytest.mark.parametrize(
    ("solver", "path", "weight", "variance"), [("heun", "karras", 0.87, 0.111), ("sde-dpmpp-2m", "lam", 0.896, 0.052)]
)
def test_the_bias_of_the_temperature_on_a_mixture_is_the_one_stated(
    solver: str, path: str, weight: float, variance: float
) -> None:
    n, apart = 4000, GaussianMixture([[-4.0], [4.0]], 0.25, [0.3, 0.7])
    x = sample(Tempered(apart.model(EDM()), 0.2), (n, 1), solver, 60, path, dtype=F64, progress=False).x
    assert abs(float((x > 0).double().mean()) - weight) < 5 * (weight * (1 - weight) / n) ** 0.5
    assert float(x[x > 0].var()) == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow()], ids=repr)
def test_latents_at_a_temperature_decode_to_the_law_of_it(sde: GaussianSDE) -> None:
    """Path by path: the flow on Gaussian data is linear, so that the deviation from the image of zero is scaled."""
    model = DATA.model(sde)
    cold, warm = (decode(model, latents(model, (6, 2), temperature=t, dtype=F64)).x for t in (0.25, 1.0))
    zero = decode(model, latents(model, (6, 2), temperature=0.0, dtype=F64)).x
    torch.testing.assert_close(cold - zero, 0.5 * (warm - zero), rtol=1e-6, atol=1e-9)
    a, s = numbers(sde, sde.span[0])
    b, r = numbers(sde, sde.span[1])
    gain = ((a**2 * VARIANCE + s**2) / (b**2 * VARIANCE + r**2)).sqrt()
    torch.testing.assert_close(zero[0], a * MEAN - gain * b * MEAN, rtol=1e-4, atol=1e-5)


def test_latents_of_the_prior_are_the_starts_of_sampling() -> None:
    for sde in (VP(), EDM()):
        model = model_on(sde)
        z = latents(model, (5, 2), seed=7)
        torch.testing.assert_close(sample(model, (5, 2), seed=7, progress=False).x, sample(model, z, progress=False).x)


@pytest.mark.parametrize("bound", [0.3, 1.0, 2.5, 8.0])
def test_truncated_latents_have_the_truncated_law(bound: float) -> None:
    from scipy.stats import kstest, truncnorm

    model = model_on(EDM())
    z = latents(model, (20_000, 1), truncation=bound, dtype=F64) / EDM().prior_std
    assert float(z.abs().max()) <= bound
    assert kstest(z[:, 0].numpy(), truncnorm(-bound, bound).cdf).pvalue > 1e-3
    order = latents(model, (20_000, 1), dtype=F64).argsort(0)
    assert bool((z[order[:, 0]].diff(dim=0) >= 0).all()), "one latent for one seed, whatever the bound"


# Interpolation and arithmetic -----------------------------------------------------------------------------------------


@given(w=st.floats(0, 1), angle=st.floats(1e-12, 3.1), r=st.floats(0.1, 10), s=st.floats(0.1, 10))
def test_slerp_turns_evenly_and_keeps_the_norm(w: float, angle: float, r: float, s: float) -> None:
    a = torch.tensor([[r, 0.0, 0.0]], dtype=F64)
    b = s * torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=F64)
    found = slerp(a, b, w)
    norm = r ** (1 - w) * s**w
    truth = norm * torch.tensor([[math.cos(w * angle), math.sin(w * angle), 0.0]], dtype=F64)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9 * norm)
    torch.testing.assert_close(slerp(b, a, 1 - w), found, rtol=1e-9, atol=1e-9 * norm)


def test_slerp_takes_a_weight_for_each_sample_and_images() -> None:
    a, b = torch.randn(2, 3, 1, 4, 4, generator=generator())
    w = torch.tensor([0.0, 0.5, 1.0])
    found = slerp(a, b, w)
    torch.testing.assert_close(found[0], a[0])
    torch.testing.assert_close(found[2], b[2])
    torch.testing.assert_close(found[1], slerp(a[1:2], b[1:2], 0.5)[0])
    torch.testing.assert_close(slerp(a, a, 0.3), a)


@given(weights=st.lists(st.floats(-3, 3).filter(lambda w: abs(w) > 1e-2), min_size=1, max_size=4))
def test_combined_draws_of_the_prior_are_draws_of_the_prior(weights: list[float]) -> None:
    """The map of the stacked draws is orthonormal: its rows have norm one, and so the law is kept exactly."""
    basis = torch.eye(len(weights), dtype=F64)
    row = combine([basis[i : i + 1] for i in range(len(weights))], weights)
    assert float(row.norm()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(row / row[0, 0], torch.tensor([weights], dtype=F64) / weights[0])


def test_interpolations_start_and_end_at_the_data_and_pass_through_likely_points() -> None:
    model = model_on(VP())
    x = mixture().sample(60, generator(), dtype=F64)
    between = interpolate(model, x[:30], x[30:], [0.0, 0.3, 0.7, 1.0], "rk4", 30)
    torch.testing.assert_close(between[0], x[:30], rtol=0, atol=1e-3)
    torch.testing.assert_close(between[-1], x[30:], rtol=0, atol=1e-3)
    log_prob = mixture().log_prob(between.reshape(-1, 2))
    assert float(log_prob.min()) > float(mixture().log_prob(x).min()) - 2


def test_interpolation_on_gaussian_data_is_the_closed_form() -> None:
    sde, x = VP(), DATA.sample(4, generator(), dtype=F64)
    a, s = numbers(sde, sde.span[0])
    b, r = numbers(sde, 1.0)
    gain = ((b**2 * VARIANCE + r**2) / (a**2 * VARIANCE + s**2)).sqrt()
    z = b * MEAN + gain * (x - a * MEAN)
    middle = a * MEAN + (slerp(z[:2], z[2:], 0.4) - b * MEAN) / gain
    torch.testing.assert_close(interpolate(DATA.model(sde), x[:2], x[2:], [0.4], "rk4", 60)[0], middle, rtol=0, atol=1e-5)


def test_a_class_is_translated_through_its_latent() -> None:
    """Two Gaussian classes: encoded under one and decoded under the other, each quantile is kept (Su et al., 2022)."""

    class Classes(ScoreModel):
        def x0(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
            one, other = (Gaussian([m], [[v]]).model(self.sde).x0(x, t) for m, v in ((0.0, 1.0), (3.0, 0.25)))
            return torch.where(conditions["label"][:, None] == 1, other, one)

    model, x = Classes(None, VP()), torch.tensor([[-1.0], [0.5]], dtype=F64)
    z = encode(model, x, "heun", 30, conditions={"label": 0}).x
    found = decode(model, z, "heun", 30, end="denoise", conditions={"label": 1}).x
    # alpha_T = 0.0066 carries the difference of the means into the latents.
    torch.testing.assert_close(found, 3 + 0.5 * x, rtol=0, atol=0.02)


# Refusals -------------------------------------------------------------------------------------------------------------

OU = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: math.sqrt(2) * torch.ones_like(x), t_max=3.0)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m, x: sdedit(m, x, 1.5), ValueError, "got t=1.5 .* above t_min=0.001 and up to 1 on VP"),
        (lambda m, x: sdedit(m, x, 0.001), ValueError, "expected a time above t_min"),
        (lambda m, x: sdedit(m, x, math.nan), ValueError, "got t=nan"),
        (lambda m, x: sdedit(m, x, 0.2, t_min=0.3), ValueError, "above t_min=0.3"),
        (lambda m, x: sdedit(m, x[:0], 0.5), ValueError, "got 0 samples"),
        (lambda m, x: sdedit(m, x / 0, 0.5), ValueError, "not finite"),
        (lambda m, x: sdedit(m, x, 0.5, path=[0.5, 0.1]), ValueError, "expected a spacing such as 'lam'"),
        (lambda m, x: sdedit(m, x, 0.5, seed=[1]), ValueError, "expected one per sample"),
        (lambda m, x: sdedit(m, x, 0.5, keep=[0.7]), ValueError, "got keep=0.7, outside the path"),
        (lambda m, x: sdedit(ScoreModel(lambda x, t: x, OU), x, 0.5), ValueError, "expected a model on a GaussianSDE"),
        (lambda m, x: sdedit(3, x, 0.5), TypeError, r"ScoreModel\(net, sde\) makes one"),
        (lambda m, x: latents(m, (2, 2), temperature=-1), ValueError, "got temperature=-1"),
        (lambda m, x: latents(m, (2, 2), temperature=math.nan), ValueError, "got temperature=nan"),
        (lambda m, x: latents(m, (2, 2), truncation=0), ValueError, "got truncation=0"),
        (lambda m, x: latents(m, (2,)), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m, x: latents(m, x), ValueError, r"expected \(batch, \*event\)"),
        (lambda m, x: Tempered(m, 0.0), ValueError, "got temperature=0.0"),
        (lambda m, x: Tempered(ScoreModel(lambda x, t: x, OU), 0.5), ValueError, "no level of noise to shift"),
        (lambda m, x: slerp(x, x[:1], 0.5), ValueError, "expected the same"),
        (lambda m, x: slerp(x, 0 * x, 0.5), ValueError, "no direction"),
        (lambda m, x: slerp(x, -x, 0.5), ValueError, "opposite directions"),
        (lambda m, x: combine([], []), ValueError, "got 0 latents"),
        (lambda m, x: combine([x, x[:1]], [1, 1]), ValueError, "expected latents of one shape"),
        (lambda m, x: combine([x, x], [1]), ValueError, "a finite weight for each"),
        (lambda m, x: combine([x, x], [0, 0]), ValueError, "not all zero"),
        (lambda m, x: interpolate(m, x, x[:1]), ValueError, "expected one shape"),
        (lambda m, x: interpolate(m, x, x, []), ValueError, "at least one weight"),
        (lambda m, x: interpolate(m, x, x * math.nan), ValueError, "not finite"),
        (lambda m, x: interpolate(m, x, x, solver="ddpm"), ValueError, "which draws noise"),
    ],
)
def test_bad_input(call: Callable[[ScoreModel, Tensor], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(model_on(VP()), mixture().sample(3, generator(), dtype=F64))


def test_edits_run_by_every_kind_of_solver() -> None:
    model, x = model_on(VP()), mixture().sample(3, generator(), dtype=F64)
    for name in ("ddpm", "euler-a", "edm", "dopri5", "gotta-go-fast", "pc", "restart", "rk45"):
        assert sdedit(model, x, 0.4, name, 6).x.shape == x.shape
