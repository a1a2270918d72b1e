"""Score models: conversions between predictions, in float64 against algebra and in float32 against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, covering, generator, mixture
from torch import Tensor

from scoresde import DDPM, EDM, VP, GeneralSDE, RectifiedFlow, ScoreModel
from scoresde.score import PREDICTIONS
from scoresde.sde import GaussianSDE

F64 = torch.float64


def native(kind: str, sde: GaussianSDE, x0: Tensor, eps: Tensor, t: float, sigma_data: float = 0.5) -> Tensor:
    """What a perfect network of each kind returns, from the definitions in the papers."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    if kind == "edm":  # F = (D - c_skip xhat) / c_out with Karras et al.'s table 1, xhat = x / alpha
        rho = sigma / alpha
        c_skip = sigma_data**2 / (rho**2 + sigma_data**2)
        c_out = rho * sigma_data / torch.sqrt(rho**2 + sigma_data**2)
        return (x0 - c_skip * (x0 + rho * eps)) / c_out
    return {
        "eps": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "velocity": eps - x0,
        "score": -eps / sigma,
    }[kind]


@pytest.mark.parametrize(("name", "kind"), covering(SDES, PREDICTIONS, 2))
@given(fraction=st.floats(0.02, 0.95), seed=st.integers(0, 99))
def test_every_quantity_follows_from_every_prediction(name: str, kind: str, fraction: float, seed: int) -> None:
    sde = SDES[name]
    t = sde.span[1] * fraction
    x0, eps = torch.randn(2, 3, 4, generator=generator(seed), dtype=F64)
    x = sde.perturb(x0, t, eps)
    model = ScoreModel(lambda y, s: native(kind, sde, x0, eps, t), sde, kind)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    # Division by a small alpha or sigma multiplies the rounding of x: allow for it, and for no more.
    slack = 1e-13 * (1 + sigma / alpha + alpha / sigma) * (1 + sigma + 1 / sigma)
    for got, wanted in [
        (model.x0(x, t), x0),
        (model.eps(x, t), eps),
        (model.score(x, t), -eps / sigma),
        (model.v(x, t), alpha * eps - sigma * x0),
    ]:
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=float(slack) * 10)
    bound = model.at(torch.tensor([t], dtype=F64), device=x.device, dtype=x.dtype)[0]
    torch.testing.assert_close(bound(x), model.x0(x, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["v", "velocity", "edm"])
@pytest.mark.parametrize("name", SDES)
def test_stable_kinds_lose_nothing_in_float32_where_alpha_or_sigma_is_tiny(name: str, kind: str) -> None:
    """Both x0 and eps of the exact model of a mixture, from float32 outputs, against float64: measured, then bounded."""
    sde, problem = SDES[name], mixture()
    low, high = sde.span
    g = generator(1)
    for t in (low + 1e-6, 0.01 * high, 0.5 * high, 0.99 * high, high * (1 - 1e-7)):
        x0 = problem.sample(256, g, dtype=F64)
        x = sde.perturb(x0, t, torch.randn(256, 2, generator=g, dtype=F64)).float()
        exact_x0, exact_eps = problem.x0(x.double(), sde, t), problem.eps(x.double(), sde, t)
        output = native(kind, sde, exact_x0, exact_eps, t).float()
        model = ScoreModel(lambda y, s, n=output: n, sde, kind)
        scale = 1 + x.abs().max() / sde.alpha(t).clamp(min=0.1)
        assert (model.x0(x, t) - exact_x0).abs().max() < 2e-6 * scale, t
        assert (model.eps(x, t) - exact_eps).abs().max() < 2e-6 * scale, t


def test_alpha_zero_and_sigma_zero_are_finite_for_the_kinds_that_can_carry_them() -> None:
    x = torch.ones(1, 2)
    for kind in ("v", "velocity", "edm"):
        model = ScoreModel(lambda y, s: 0.5 * torch.ones_like(y), RectifiedFlow(), kind, time=lambda t: t)
        for t in (0.0, 1.0):
            assert bool(torch.isfinite(model.x0(x, t)).all() and torch.isfinite(model.eps(x, t)).all()), (kind, t)


def test_edm_preconditioning_is_that_of_the_paper() -> None:
    """c_in, c_noise, c_skip and c_out of table 1."""
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen["x"], seen["t"] = x, t
        return torch.ones_like(x)

    x = torch.full((1, 1), 3.0, dtype=F64)
    denoised = ScoreModel(net, EDM(), "edm", sigma_data=0.5).x0(x, 2.0)
    root = (2.0**2 + 0.5**2) ** 0.5
    assert seen["x"].item() == pytest.approx(3 / root)
    assert seen["t"].item() == pytest.approx(torch.tensor(2.0, dtype=F64).log().item() / 4)
    assert denoised.item() == pytest.approx(0.25 / root**2 * 3 + 2 * 0.5 / root)


def test_a_discrete_network_is_addressed_by_its_step() -> None:
    chain = DDPM.linear(1000)
    seen: list[float] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    model = ScoreModel(net, chain)
    model.eps(torch.zeros(2, 1), torch.tensor([0.001, 1.0]))
    model.at(torch.tensor([0.5]), device=torch.device("cpu"), dtype=torch.float32)[0](torch.zeros(1, 1))
    assert seen == pytest.approx([0, 999, 499], abs=1e-4)
    torch.testing.assert_close(model.sde.alpha(0.5), chain.alpha[499])


def test_conditions_reach_the_network_and_gradients_flow() -> None:
    weight = torch.nn.Linear(2, 2)
    model = ScoreModel(lambda x, t, label: weight(x) * label, VP())
    x = torch.ones(3, 2, requires_grad=True)
    model.score(x, torch.full((3,), 0.5), label=2.0).sum().backward()
    assert x.grad is not None and weight.weight.grad is not None
    assert torch.equal(model.eps(x, 0.5, label=2.0), 2 * weight(x))


def test_bad_input() -> None:
    model = ScoreModel(lambda x, t: x, VP())
    with pytest.raises(ValueError, match="did you mean 'eps'"):
        ScoreModel(lambda x, t: x, VP(), "epsilon")
    with pytest.raises(TypeError, match="got str for the SDE of a score model"):
        ScoreModel(lambda x, t: x, "vp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no alpha and sigma to convert it with; expected predicts='score'"):
        ScoreModel(lambda x, t: x, GeneralSDE(f=lambda x, t: x, g=lambda x, t: x), "eps")
    with pytest.raises(ValueError, match="expected a positive number"):
        ScoreModel(lambda x, t: x, VP(), sigma_data=0)
    with pytest.raises(ValueError, match="one per sample"):
        model.score(torch.ones(4, 2), torch.ones(3))
    with pytest.raises(ValueError, match="write scalars as"):
        model.score(torch.ones(4), 0.5)
    with pytest.raises(ValueError, match=r"the network returned shape \(4, 1\)"):
        ScoreModel(lambda x, t: x[:, :1], VP()).score(torch.ones(4, 2), 0.5)
    with pytest.raises(ValueError, match="got time 2"):
        model.score(torch.ones(4, 2), 2.0)
