"""Score models at both ends of time, where alpha or sigma is zero, against mpmath on Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import mpmath as mp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES
from torch import Tensor

from scoresde import DDPM, EDM, CosineVP, RectifiedFlow, ScoreModel, discretize
from scoresde.score import PREDICTIONS
from scoresde.score.predictions import Parametrization
from scoresde.sde import GaussianSDE

F64 = torch.float64
MEAN, STD, SIGMA_DATA = 0.7, 0.4, 0.5
CPU = torch.device("cpu")
ENDS: dict[str, GaussianSDE] = {
    **SDES,
    "zero terminal": DDPM.linear(20, 1e-3, 0.3).rescale_zero_terminal_snr().sde(),
    "chain to zero": discretize(RectifiedFlow(), 8).sde(),
}
AT_ALPHA_ZERO = {"x0", "v", "velocity", "edm"}  # eps and the score say nothing of the data there


def exact(alpha: mp.mpf, sigma: mp.mpf, x: float) -> dict[str, mp.mpf]:
    """What is known of data N(MEAN, STD^2) given x, and the output of a perfect network of every kind, in 40 digits."""
    mean, std, d = mp.mpf(MEAN), mp.mpf(STD), mp.mpf(SIGMA_DATA)
    variance = alpha**2 * std**2 + sigma**2
    score = -(x - alpha * mean) / variance
    eps, x0 = -sigma * score, mean + alpha * std**2 * (x - alpha * mean) / variance
    r = mp.sqrt(alpha**2 * d**2 + sigma**2)
    # Karras et al., 2022, equation (7) in x = alpha xhat, solved for F, which falls to zero with sigma.
    edm = (x0 - d**2 * alpha * x / r**2) * r / (sigma * d) if sigma else mp.mpf(0)
    return {
        "eps": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "velocity": eps - x0,
        "score": score,
        "edm": edm,
    }


def scales(sde: GaussianSDE, t: float) -> tuple[mp.mpf, mp.mpf]:
    return mp.mpf(sde.alpha(t).item()), mp.mpf(sde.sigma(t).item())


def perfect(sde: GaussianSDE, kind: str, x: Tensor, t: float) -> ScoreModel:
    with mp.workdps(40):
        outputs = [float(exact(*scales(sde, t), value)[kind]) for value in x.flatten().tolist()]
    output = torch.tensor(outputs, dtype=F64).reshape(x.shape)
    return ScoreModel(lambda y, s: output.to(y.dtype).clone(), sde, kind, sigma_data=SIGMA_DATA)


@pytest.mark.parametrize("end", ["data", "t_min", "t_max", "near t_max"])
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", ENDS)
def test_every_prediction_gives_the_data_at_both_ends_of_time(name: str, kind: str, end: str) -> None:
    """``x0`` and ``at`` alike; where sigma = 0 the data are x / alpha, where alpha = 0 their mean is all that is known."""
    sde = ENDS[name]
    low, high = sde.span
    t = {"data": 0.0 if name != "EDM" else low, "t_min": low, "t_max": high, "near t_max": high * (1 - 1e-9)}[end]
    alpha, sigma = scales(sde, t)
    if alpha == 0 and kind not in AT_ALPHA_ZERO:
        pytest.skip("the data do not follow from the noise where alpha = 0")
    x = torch.tensor([[0.3], [-1.1], [2.0]], dtype=F64) * max(1.0, float(sigma))
    wanted = [[float(exact(alpha, sigma, value)["x0"])] for value in x.flatten().tolist()]
    model = perfect(sde, kind, x, t)
    # What a network's rounding is multiplied by: the coefficients themselves.
    c = model.coefficients(t)
    size = 1 + sum(abs(float(v)) for v in c.x0) * (1 + float(x.abs().max()) + float(model(x, t).abs().max()))
    for got in (model.x0(x, t), model.at(torch.tensor([t], dtype=F64), device=CPU, dtype=F64)[0](x)):
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=F64), rtol=0, atol=4e-15 * size)
    if alpha == 0:
        assert wanted == [[MEAN]] * 3
    if sigma == 0:
        torch.testing.assert_close(torch.tensor(wanted, dtype=F64), x / float(alpha), rtol=1e-15, atol=0)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity", "score", "edm"])
@pytest.mark.parametrize("name", ENDS)
def test_noise_and_v_where_there_is_no_signal_or_no_noise(name: str, kind: str) -> None:
    sde = ENDS[name]
    x = torch.tensor([[0.3], [-1.1]], dtype=F64)
    for t in (0.0, sde.span[1]):
        alpha, sigma = scales(sde, t)
        able = {"v", "velocity", "edm"} | ({"eps", "score"} if sigma == 0 else {"x0"})
        if (alpha != 0 and sigma != 0) or kind not in able:
            continue
        wanted = [exact(alpha, sigma, value) for value in x.flatten().tolist()]
        model = perfect(sde, kind, x, t)
        for quantity in ("eps", "v"):
            got = getattr(model, quantity)(x, t)
            torch.testing.assert_close(got, torch.tensor([[float(w[quantity])] for w in wanted], dtype=F64))


@pytest.mark.parametrize("sde", [EDM(), RectifiedFlow(), CosineVP()], ids=repr)
def test_the_noise_level_that_an_edm_network_is_told_is_a_quarter_of_its_logarithm_and_at_most_ten(sde: Any) -> None:
    """Finite where alpha = 0, and the same from every way to ask."""
    seen: list[float] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    low, high = sde.span
    model, x = ScoreModel(net, sde, "edm"), torch.zeros(1, 1, dtype=F64)
    for t in (low, 0.5 * high, high * (1 - 1e-15), high):
        seen.clear()
        model.x0(x, t)
        model(x, t)
        model.at(torch.tensor([t], dtype=F64), device=CPU, dtype=F64)[0](x)
        alpha, sigma = (float(f(t)) for f in (sde.alpha, sde.sigma))
        wanted = 10.0 if alpha == 0 else min(10.0, 0.25 * math.log(sigma / alpha))
        assert seen == pytest.approx([wanted] * 3, rel=1e-12)
    if float(sde.alpha(high)) == 0:
        assert seen == [10.0] * 3


def test_bound_times_are_those_of_single_calls() -> None:
    """Several times at once, in their order, each with coefficients of its own."""
    sde = RectifiedFlow()
    times = torch.tensor([1.0, 0.6, 0.1], dtype=F64)
    x = torch.tensor([[0.4], [0.9]], dtype=F64)
    model = ScoreModel(lambda y, t: torch.sin(3 * y + t[:, None]), sde, "v")
    for one, t in zip(model.at(times, device=CPU, dtype=F64), times.tolist(), strict=True):
        torch.testing.assert_close(one(x), model.x0(x, t), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("net", [torch.nn.Linear(3, 3), lambda x, t: x], ids=["module", "function"])
def test_a_model_is_shown_in_a_line(net: Any) -> None:
    shown = repr(ScoreModel(net, DDPM(), "v"))
    assert len(shown) < 160 and "predicts='v'" in shown and "1000" in shown
    assert ("12 parameters" in shown) == isinstance(net, torch.nn.Module)


def test_a_schedule_that_does_not_fall_is_refused_with_the_model() -> None:
    """A reader's own SDE has no constructor of ours: the model is where it comes in."""

    class Backwards(GaussianSDE):
        @property
        def span(self) -> tuple[float, float]:
            return 0.01, 0.99

        def log_alpha(self, t: Any) -> Tensor:
            return torch.log(self.check_time(t))

        def log_sigma(self, t: Any) -> Tensor:
            return torch.log1p(-self.check_time(t))

    with pytest.raises(ValueError, match=r"got a schedule of Backwards .* here it is the other way round"):
        ScoreModel(lambda x, t: x, Backwards())


scale = st.floats(0.05, 3)


@pytest.mark.parametrize("kind", PREDICTIONS)
@given(alpha=scale, sigma=scale, sigma_data=st.floats(0.2, 2), x0=st.floats(-2, 2), eps=st.floats(-2, 2))
def test_the_target_is_the_output_that_is_converted_to_the_data_and_the_noise(
    kind: str, alpha: float, sigma: float, sigma_data: float, x0: float, eps: float
) -> None:
    """Also the one that is derived where a reader's own prediction states none: it is the same as that of the paper."""
    a, s = torch.tensor([alpha, sigma], dtype=F64)
    known = PREDICTIONS[kind]
    derived = Parametrization(known.coefficients).factors(a, s, sigma_data)
    c, x = known.coefficients(a, s, sigma_data), alpha * x0 + sigma * eps
    for of_x0, of_eps in (known.factors(a, s, sigma_data), derived):
        output = float(of_x0) * x0 + float(of_eps) * eps
        # numbers up to 9 / 0.05 stand in the conversions, and their squares in the derivation
        assert float(c.x0[0]) * x + float(c.x0[1]) * output == pytest.approx(x0, abs=1e-9)
        assert float(c.eps[0]) * x + float(c.eps[1]) * output == pytest.approx(eps, abs=1e-9)
