"""Forward SDEs: closed forms against mpmath, derived quantities against autograd and SciPy."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from support import SDES, generator

from scoresde import DDPM, EDM, NCSN, VE, VP, CosineVP, FunctionSDE, GaussianChain, GeneralSDE, RectifiedFlow, SubVP
from scoresde.sde import Chain, GaussianSDE
from scoresde.sde.gaussian import derivative

F64 = torch.float64


def reference(name: str, t: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    """alpha and sigma straight from the papers' formulas, in 60 digits."""
    if name in ("VP", "SubVP"):
        alpha = mpmath.exp(-t * mpmath.mpf(0.1) / 2 - t**2 * (20 - mpmath.mpf(0.1)) / 4)
        return alpha, mpmath.sqrt(1 - alpha**2) if name == "VP" else 1 - alpha**2
    if name == "CosineVP":
        s = mpmath.mpf(0.008)
        f = [mpmath.cos((u + s) / (1 + s) * mpmath.pi / 2) for u in (t, mpmath.mpf(0))]
        return f[0] / f[1], mpmath.sqrt(1 - (f[0] / f[1]) ** 2)
    if name == "VE":
        return mpmath.mpf(1), mpmath.mpf(0.01) * (mpmath.mpf(50) / mpmath.mpf(0.01)) ** t
    if name == "EDM":
        return mpmath.mpf(1), t
    if name == "RectifiedFlow":
        return 1 - t, t
    return mpmath.exp(-(t**2) / 2), t * mpmath.exp(mpmath.mpf(0.3) * t)


@pytest.mark.parametrize("name", SDES)
def test_marginals_agree_with_mpmath_at_both_ends_of_time(name: str) -> None:
    sde = SDES[name]
    high = sde.span[1]
    times = [1e-12, 1e-9, 1e-6, 1e-3, 0.01, 0.3, 0.49, 0.5, 0.51, 0.9, 1 - 1e-6, 1 - 1e-9, 1 - 2.0**-40]
    with mpmath.workdps(60):
        for t in (u * high for u in times):
            alpha, sigma = reference(name, mpmath.mpf(t))
            wanted = {"log_alpha": mpmath.log(alpha), "log_sigma": mpmath.log(sigma), "lam": mpmath.log(alpha / sigma)}
            for quantity, value in wanted.items():
                got = getattr(sde, quantity)(t).item()
                assert abs(got - value) <= 1e-12 * max(1, abs(value)), (quantity, t)
            # log alpha itself vanishes at the data: there it is good to relative precision.
            assert abs(sde.log_alpha(t).item() - mpmath.log(alpha)) <= 1e-12 * abs(mpmath.log(alpha)) + 1e-30


@pytest.mark.parametrize("name", SDES)
def test_ends_of_time_are_exact(name: str) -> None:
    sde = SDES[name]
    if name not in ("VE", "EDM"):
        assert sde.alpha(0.0).item() == 1 and sde.sigma(0.0).item() == 0
    if name in ("CosineVP", "RectifiedFlow"):
        assert sde.alpha(1.0).item() == 0 and abs(sde.sigma(1.0).item() - 1) < 1e-15
        for rate in (sde.d_alpha(1.0), sde.d_log_sigma(1.0)):
            assert math.isfinite(rate.item())
    for quantity in (sde.d_log_alpha, sde.diffusion_squared):
        assert not math.isnan(quantity(sde.span[1]).item())
    assert math.isfinite(sde.prior_std)


def interior(name: str) -> torch.Tensor:
    low, high = SDES[name].span
    return torch.linspace(max(low, 1e-3), high * 0.999, 41, dtype=F64)


@pytest.mark.parametrize("name", SDES)
def test_rates_are_derivatives_of_the_marginals(name: str) -> None:
    sde, t = SDES[name], interior(name).requires_grad_()
    (d_log_alpha,) = torch.autograd.grad(sde.log_alpha(t).sum() + 0 * t.sum(), t)
    (d_log_sigma,) = torch.autograd.grad(sde.log_sigma(t).sum(), t)
    (d_alpha,) = torch.autograd.grad(sde.alpha(t).sum() + 0 * t.sum(), t)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(sde.d_log_alpha(t), d_log_alpha, **close)
    torch.testing.assert_close(sde.d_log_sigma(t), d_log_sigma, **close)
    torch.testing.assert_close(sde.d_alpha(t), d_alpha, **close)
    torch.testing.assert_close(
        sde.diffusion_squared(t), -2 * sde.sigma(t) ** 2 * (d_log_alpha - d_log_sigma), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("name", SDES)
@given(fraction=st.floats(1e-6, 0.999))
def test_time_inverts_lam(name: str, fraction: float) -> None:
    sde = SDES[name]
    t = torch.tensor(sde.span[1] * fraction, dtype=F64)
    assert abs(sde.time(sde.lam(t)) - t).item() <= 1e-12 * sde.span[1]


@pytest.mark.parametrize("name", SDES)
def test_time_is_differentiable(name: str) -> None:
    sde = SDES[name]
    t = interior(name)[5:-5]
    lam = sde.lam(t).detach().requires_grad_()
    (slope,) = torch.autograd.grad(sde.time(lam).sum(), lam)
    wanted = -2 * sde.sigma(t) ** 2 / sde.diffusion_squared(t)
    torch.testing.assert_close(slope, wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", SDES)
@settings(max_examples=10)  # an integration each, and the equations are linear in the moments
@given(mean=st.floats(-3, 3), std=st.floats(0.1, 3))
def test_marginals_solve_the_moment_equations_of_the_sde(name: str, mean: float, std: float) -> None:
    """dm/dt = f m and dv/dt = 2 f v + g^2, integrated by SciPy from one interior time to another."""
    sde = SDES[name]
    start, end = 0.2 * sde.span[1], 0.8 * sde.span[1]

    def moments(t: float) -> list[float]:
        alpha, sigma = sde.alpha(t).item(), sde.sigma(t).item()
        return [alpha * mean, alpha**2 * std**2 + sigma**2]

    def slope(t: float, y: list[float]) -> list[float]:
        f, g2 = sde.d_log_alpha(t).item(), sde.diffusion_squared(t).item()
        return [f * y[0], 2 * f * y[1] + g2]

    got = solve_ivp(slope, (start, end), moments(start), rtol=1e-9, atol=1e-12, method="DOP853").y[:, -1]
    assert got == pytest.approx(moments(end), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_reverse_keeps_the_variance_of_gaussian_data(name: str, eta: float) -> None:
    """With drift b x and diffusion c backwards in time, dv/dt = 2 b v - c^2 must be the forward dv/dt."""
    sde, std = SDES[name], 0.7
    x = torch.ones(1, 1, dtype=F64)
    for t in interior(name)[::8]:
        variance = sde.alpha(t) ** 2 * std**2 + sde.sigma(t) ** 2
        reverse = sde.reverse(lambda y, s, v=variance: -y / v, eta)
        backward = 2 * reverse.drift(x, t) * variance - reverse.diffusion(x, t) ** 2
        forward = 2 * sde.d_log_alpha(t) * variance + sde.diffusion_squared(t)
        torch.testing.assert_close(backward.squeeze(), forward, rtol=1e-10, atol=1e-10)


def test_reverse_of_a_state_dependent_diffusion_is_at_rest_in_its_stationary_law() -> None:
    """A process in equilibrium looks the same in both directions, so its probability flow stands still.

    dx = -x dt + sqrt(1 + x^2) dw has the stationary density (1 + x^2)^-2, since (g^2 p)' = 2 f p.
    """
    sde = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: torch.sqrt(1 + x**2))
    x = torch.linspace(-3, 3, 13, dtype=F64)[:, None]
    flow = sde.probability_flow(lambda y, t: -4 * y / (1 + y**2))
    assert flow.drift(x, 0.3).abs().max() < 1e-14
    reverse = sde.reverse(lambda y, t: -4 * y / (1 + y**2))
    torch.testing.assert_close(reverse.drift(x, 0.3), -sde.drift(x, 0.3))


@pytest.mark.parametrize("name", SDES)
def test_transforms_and_shapes(name: str) -> None:
    sde, t = SDES[name], interior(name)[10:14]
    batched = torch.func.vmap(torch.func.grad(lambda s: sde.lam(s)))(t)
    torch.testing.assert_close(batched, -sde.diffusion_squared(t) / (2 * sde.sigma(t) ** 2), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.func.vmap(sde.time)(sde.lam(t)), t, rtol=0, atol=1e-11)
    for event in [(3,), (2, 5), (1, 4, 4)]:
        x0 = torch.randn(4, *event, generator=generator())
        eps = torch.randn(4, *event, generator=generator(1))
        x = sde.perturb(x0, t.float(), eps)
        assert x.dtype == torch.float32 and x.shape == x0.shape
        one_by_one = torch.stack([sde.perturb(x0[i : i + 1], float(t[i]), eps[i : i + 1])[0] for i in range(4)])
        torch.testing.assert_close(x, one_by_one, rtol=2e-5, atol=2e-5)
        assert sde.drift(x, t.float()).shape == sde.reverse(lambda y, s: -y).drift(x, t.float()).shape == x.shape


@pytest.mark.parametrize("name", SDES)
def test_prior(name: str) -> None:
    sde = SDES[name]
    x = sde.prior((4, 3, 2), generator=generator(), dtype=F64)
    again = sde.prior((4, 3, 2), generator=generator(), dtype=F64)
    assert torch.equal(x, again)
    wanted = torch.distributions.Normal(0.0, sde.prior_std).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x), wanted)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: VP(beta_min=0.0), "expected 0 < beta_min <= beta_max"),
        (lambda: SubVP(beta_min=3, beta_max=1), "expected 0 < beta_min <= beta_max"),
        (lambda: VE(sigma_min=2, sigma_max=1), "expected 0 < sigma_min < sigma_max"),
        (lambda: EDM(sigma_min=2, sigma_max=1), "expected 0 < sigma_min < sigma_max"),
        (lambda: EDM(sigma_max=math.inf), "expected 0 < sigma_min < sigma_max"),
        (lambda: VE(sigma_max=math.inf), "expected 0 < sigma_min < sigma_max"),
        (lambda: VP(beta_max=math.nan), "expected 0 < beta_min <= beta_max"),
        (lambda: VP(beta_max=math.inf), "expected 0 < beta_min <= beta_max"),
        (lambda: VP(t_min=0.5, t_max=0.5), "expected 0 <= t_min < t_max, both finite"),
        (lambda: VP(t_min=-0.5), "expected 0 <= t_min < t_max, both finite"),
        (lambda: VP(t_max=math.inf), "expected 0 <= t_min < t_max, both finite"),
        (
            lambda: VP(0.1, 20.0, t_max=1000.0),
            "beta_max=20 and t_max=1000, where alpha is zero in float64",
        ),
        (lambda: SubVP(beta_max=1e5), "from SubVP, which float64 cannot hold"),
        (lambda: FunctionSDE(lambda t: 0 * t, lambda t: 800 * t), "got sigma = exp.* which float64 cannot hold"),
        (
            lambda: FunctionSDE(torch.log, lambda t: torch.log1p(-t)),
            "time 0 is the data and t_max the noise, here it is the",
        ),
        (lambda: FunctionSDE(lambda t: 0 * t, lambda t: torch.sin(9 * t)), r"got a schedule .* lam to fall|to fall with t$"),
        (lambda: FunctionSDE(lambda t: 0 * t, lambda t: t.clamp(max=0.5)), "to fall with t$"),
        (lambda: FunctionSDE(lambda t: 0 * t, lambda t: t.clamp(min=0.9)), "to fall with t$"),
        (lambda: FunctionSDE(lambda t: 0 * t, lambda t: torch.log(t - 0.5)), "whose lam goes from nan"),
        (lambda: CosineVP(s=0), "expected s > 0"),
        (lambda: RectifiedFlow(t_max=2.0), "expected t_max <= 1"),
        (lambda: GeneralSDE(f=lambda x, t: x, g=lambda x, t: x, t_max=-1.0), "expected t_min < t_max"),
        (lambda: VP().alpha(1.5), "got time 1.5; VP is defined for 0 <= t <= 1"),
        (lambda: VP().alpha(-0.1), "VP is defined for 0 <= t"),
        (lambda: VP().reverse(lambda x, t: x, eta=-1), "expected a number >= 0"),
        (lambda: VP().perturb(torch.zeros(2, 3), 0.5, torch.zeros(2, 2)), "expected the same"),
        (lambda: VP().marginal(torch.zeros(2, 3), torch.zeros(3)), "one per sample"),
        (lambda: FunctionSDE(torch.zeros_like, torch.log).config(), "cannot be written to a checkpoint"),
    ],
)
def test_bad_input(build: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()  # type: ignore[operator]


def test_every_affine_sde_is_in_the_table() -> None:
    def leaves(cls: type) -> set[type]:
        below = cls.__subclasses__()
        return set().union(*(leaves(c) for c in below)) if below else {cls}

    from scoresde.sde.chain import ChainSDE

    ours = {
        cls for cls in leaves(GaussianSDE) if cls.__module__.startswith("scoresde.sde.")
    }  # tests define some of their own
    assert ours - {ChainSDE} == {type(sde) for sde in SDES.values()}


@pytest.mark.parametrize("kind", [VP, SubVP])
@given(t_max=st.floats(0.01, 3.0), fraction=st.floats(1e-6, 1.0))
def test_a_span_of_linear_rates_is_a_part_of_one_process(kind: type[VP], t_max: float, fraction: float) -> None:
    """``t_max`` says where sampling starts, and changes nothing before that: the rates are those at t = 0 and t = 1."""
    short, whole = kind(t_min=1e-3 * t_max, t_max=t_max), kind(t_max=max(1.0, t_max))
    for quantity in ("log_alpha", "log_sigma", "lam", "beta", "d_log_alpha", "diffusion_squared"):
        at = fraction * t_max
        assert float(getattr(short, quantity)(at)) == float(getattr(whole, quantity)(at))
    assert float(kind(t_max=1.5).beta(1.0)) == pytest.approx(20, rel=1e-15)


@pytest.mark.parametrize("kind", [VP, SubVP])
@given(n=st.integers(200, 100_000))
def test_the_betas_of_steps_are_refused_and_what_is_advised_works(kind: type[VP], n: int) -> None:
    with pytest.raises(ValueError, match=rf"rates at t = 0 and t = 1; .*: {kind.__name__}\(0\.1, 20\) .* DDPM\.linear\(n"):
        kind(0.1 / n, 20 / n, t_max=n)
    betas = DDPM.linear(n, 0.1 / n, 20 / n)
    assert float(kind(0.1, 20).log_alpha(1.0)) == pytest.approx(float(betas.log_alpha[-1]), rel=25 / n)


@pytest.mark.parametrize("name", SDES)
def test_every_schedule_falls_and_the_same_one_backwards_is_refused(name: str) -> None:
    sde = SDES[name]
    sde.check_schedule()
    low, high = sde.span
    for wrong in (
        lambda: FunctionSDE(lambda t: sde.log_alpha(high - t), lambda t: sde.log_sigma(high - t), t_max=0.999 * high),
        lambda: FunctionSDE(sde.log_sigma, sde.log_alpha, t_min=max(low, 1e-3 * high), t_max=0.999 * high),  # swapped
    ):
        with pytest.raises(ValueError, match="expected lam = log_alpha - log_sigma to fall with t: time 0 is the data"):
            wrong()


# Slopes --------------------------------------------------------------------------------------------------------------

CHAINS = {
    "ddpm": DDPM([0.1, 0.3, 0.5]),
    "to zero": DDPM([0.3, 0.5, 1.0]),
    "ncsn": NCSN([0.1, 0.5, 4.0]),
    "general": GaussianChain([0.9, 0.7, 0.2], [0.3, 0.8, 1.5]),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_the_slopes_of_a_chain_are_those_of_its_logarithms(chain: Chain) -> None:
    sde = chain.sde()
    t = torch.tensor([0.05, 0.3, 0.4, 0.6, 0.7, 0.99], dtype=torch.float64)
    for function, slope in ((sde.log_alpha, sde.d_log_alpha), (sde.log_sigma, sde.d_log_sigma)):
        wanted = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
        torch.testing.assert_close(slope(t), wanted, rtol=1e-12, atol=1e-12)
    squared = torch.func.jvp(lambda t: (2 * sde.log_sigma(t)).exp(), (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(
        sde.diffusion_squared(t), squared - 2 * (2 * sde.log_sigma(t)).exp() * sde.d_log_alpha(t), rtol=1e-12, atol=1e-12
    )


def test_a_derivative_is_that_under_every_transform() -> None:
    t = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    rate = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def function(t: torch.Tensor) -> torch.Tensor:  # at 0 the branch that is not taken has an infinite slope
        return torch.where(t > 0.1, t.clamp(min=0).sqrt(), t**2)

    wanted = torch.tensor([0.0, 0.5 / 0.3**0.5, 0.5 / 2**0.5], dtype=torch.float64)
    torch.testing.assert_close(derivative(function, t), wanted)
    assert derivative(lambda t: torch.ones_like(t), t).tolist() == [0, 0, 0]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(derivative(torch.sin, t), t.cos())
    assert not derivative(torch.sin, t).requires_grad
    (second,) = torch.autograd.grad(derivative(torch.sin, t.requires_grad_()).sum(), t)
    torch.testing.assert_close(second, -t.sin())
    (of_rate,) = torch.autograd.grad(derivative(lambda t: torch.sin(rate * t), t.detach()).sum(), rate)
    t = t.detach()
    torch.testing.assert_close(of_rate, (torch.cos(3 * t) - 3 * t * torch.sin(3 * t)).sum())
    torch.testing.assert_close(torch.func.vmap(lambda t: derivative(torch.sin, t))(t), t.cos())
    torch.testing.assert_close(torch.func.grad(lambda t: derivative(torch.sin, t).sum())(t), -t.sin())
    torch.testing.assert_close(derivative(lambda t: derivative(torch.sin, t), t), -t.sin())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(t, torch.ones_like(t))
        found = torch.autograd.forward_ad.unpack_dual(derivative(torch.sin, dual)).tangent
    torch.testing.assert_close(found, -t.sin())
