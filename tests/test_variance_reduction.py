"""What makes training less noisy changes no mean, and the measured variance of the gradient; other score matching."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import generator, mixture
from torch import Tensor, nn

from scoresde import VE, VP, RectifiedFlow, ScoreModel
from scoresde.models import MLP
from scoresde.objectives import (
    DSM,
    NOISES,
    WEIGHTINGS,
    AdaptiveTimes,
    ImplicitScoreMatching,
    LabelDropout,
    Objective,
    Times,
    UniformTimes,
    dequantize,
    min_snr,
    p2,
    sigmoid,
)
from scoresde.problems import GaussianMixture
from scoresde.score import PREDICTIONS
from scoresde.sde import GaussianSDE

D = torch.float64
SDES = [VP(), VE(sigma_max=10.0), RectifiedFlow(t_max=0.97)]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)


def quadrature(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal distribution."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(z, dtype=D), torch.tensor(w / math.sqrt(2 * math.pi), dtype=D)


def line() -> tuple[GaussianMixture, Tensor, Tensor, Tensor]:
    """A mixture on the line, and a quadrature over its data and the noise: x_0, eps and weights."""
    problem = GaussianMixture([[-0.8], [0.7]], torch.tensor([0.25, 0.36]), [0.4, 0.6])
    z, w = quadrature(48)
    x0 = torch.cat([-0.8 + 0.5 * z, 0.7 + 0.6 * z])
    weights = torch.cat([0.4 * w, 0.6 * w])
    return problem, x0.repeat_interleave(48)[:, None], z.repeat(96)[:, None], weights.repeat_interleave(48) * w.repeat(96)


def gradient(loss: Callable[[ScoreModel], Tensor], sde: GaussianSDE, predicts: str = "eps", d: int = 1) -> Tensor:
    """Of a mean loss with respect to the three parameters of a smooth network."""
    theta = torch.tensor([0.4, -0.7, 0.3], dtype=D, requires_grad=True)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return theta[0] * x + torch.tanh(theta[1] * x + 0.2 * x.sum(1, keepdim=True)) + theta[2]

    (found,) = torch.autograd.grad(loss(ScoreModel(net, sde, predicts)), theta)
    return found


# The same mean ---------------------------------------------------------------------------------------------------


@each_sde
@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("noise", NOISES[1:])
@given(u=st.floats(0.05, 0.9), weighting=st.sampled_from(sorted(WEIGHTINGS)))
@settings(max_examples=3, deadline=None)
def test_loss_and_gradient_keep_their_means(sde: GaussianSDE, predicts: str, noise: str, u: float, weighting: str) -> None:
    _, x0, eps, weights = line()
    t = torch.full((len(x0),), sde.span[1] * u, dtype=D)

    def mean(kind: str) -> Callable[[ScoreModel], Tensor]:
        return lambda model: (weights * DSM(weighting, noise=kind).at(model, x0, t, eps)).sum()

    one, other = (gradient(mean(kind), sde, predicts) for kind in ("fresh", noise))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    model = ScoreModel(lambda x, t: torch.tanh(x), sde, predicts)
    torch.testing.assert_close(mean(noise)(model), mean("fresh")(model), rtol=1e-4, atol=1e-9)


@each_sde
@pytest.mark.parametrize("predicts", ["eps", "v", "edm"])
@pytest.mark.parametrize("noise", NOISES[1:])
def test_where_there_is_little_noise_the_gradient_has_little(sde: GaussianSDE, predicts: str, noise: str) -> None:
    """By quadrature, per sample: what is left of the gradient's variance is little more than that over the data."""
    _, x0, eps, weights = line()

    def variance(kind: str, t: Tensor) -> float:
        def losses(theta: Tensor) -> Tensor:
            model = ScoreModel(lambda x, s: torch.tanh(theta * x + 0.3), sde, predicts)
            return DSM(noise=kind).at(model, x0, t, eps)

        slope = torch.func.jacfwd(losses)(torch.tensor(0.4, dtype=D))
        mean = (weights * slope).sum()
        return float((weights * (slope - mean) ** 2).sum())

    times = [torch.full((len(x0),), float(sde.time(-math.log(rho))), dtype=D) for rho in (0.06, 0.03)]
    ratios = [variance(noise, t) / variance("fresh", t) for t in times]
    assert max(ratios) < 0.15, ratios


@each_sde
@pytest.mark.parametrize("weighting", ["ddpm", "edm", "min-snr"])
def test_implicit_and_denoising_score_matching_have_the_same_gradient(sde: GaussianSDE, weighting: str) -> None:
    """On a mixture, by quadrature; and the losses differ by the same constant for every network."""
    _, x0, eps, weights = line()
    for u in (0.4, 0.8):
        t = torch.full((len(x0),), sde.span[1] * u, dtype=D)
        losses = [DSM(weighting), ImplicitScoreMatching(weighting)]
        means = [lambda model, loss=loss, t=t: (weights * loss.at(model, x0, t, eps)).sum() for loss in losses]
        one, other = (gradient(mean, sde) for mean in means)
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@each_sde
def test_the_true_score_minimises_implicit_score_matching(sde: GaussianSDE) -> None:
    problem, x0, eps, weights = line()
    t = torch.full((len(x0),), 0.6 * sde.span[1], dtype=D)
    exact = problem.model(sde)
    for bend in (lambda x: x, torch.sin, torch.ones_like):

        def expected(shift: Tensor, bend: Callable[[Tensor], Tensor] = bend) -> Tensor:
            model = ScoreModel(lambda x, s: exact.eps(x, t) + shift * bend(x), sde)
            return (weights * ImplicitScoreMatching().at(model, x0, t, eps)).sum()

        zero = torch.zeros((), dtype=D, requires_grad=True)
        (slope,) = torch.autograd.grad(expected(zero), zero)
        assert abs(slope) < 1e-6
        assert expected(zero + 0.1) > expected(zero) < expected(zero - 0.1)


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
@pytest.mark.parametrize("trace", ["hutchinson", "sliced"])
def test_probes_estimate_the_exact_loss_without_bias(trace: str, probes: str) -> None:
    """Over all sign vectors exactly; Gaussian probes to their standard error."""
    sde, d = VP(), 3
    x0, eps = torch.randn(2, 1, d, generator=generator(), dtype=D)
    t = torch.tensor([0.3], dtype=D)
    loss = ImplicitScoreMatching(trace=trace, probes=probes, projections=40_000)
    if probes == "rademacher":
        signs = torch.tensor([-1.0, 1.0], dtype=D)
        directions = torch.cartesian_prod(signs, signs, signs)[:, None]
    else:
        directions = loss.draws(x0.expand(1, d), generator(2))["directions"][:2000]

    def value(given: Tensor | None) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def mean(model: ScoreModel) -> Tensor:
            kept.append(loss.at(model, x0, t, eps, directions=given).sum())
            return kept[0]

        return gradient(mean, sde, d=d), kept[0].detach()

    tolerance = 1e-10 if probes == "rademacher" else 0.15
    for one, other in zip(value(directions), value(None), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_probes_are_what_they_are_called() -> None:
    x0 = torch.zeros(4, 3, dtype=D)
    signs = ImplicitScoreMatching(trace="sliced", projections=500).draws(x0, generator())["directions"]
    assert signs.shape == (500, 4, 3) and bool((signs.abs() == 1).all()) and abs(float(signs.mean())) < 0.05
    normal = ImplicitScoreMatching(trace="sliced", probes="gaussian", projections=500).draws(x0, generator())["directions"]
    assert float(normal.square().mean()) == pytest.approx(1, abs=0.1) and float(normal.pow(4).mean()) > 2
    assert ImplicitScoreMatching().draws(x0, generator()) == {}


@given(uniform=st.floats(0, 1), bins=st.integers(1, 20), seed=st.integers(0, 99))
@settings(deadline=None)
def test_adaptive_times_are_unbiased_whatever_they_learned(uniform: float, bins: int, seed: int) -> None:
    times = AdaptiveTimes(UniformTimes(), bins=bins, memory=2, uniform=uniform)
    sde, draws = VP(), generator(seed)
    for _ in range(40):
        u = torch.rand(50, generator=draws, dtype=D)
        times.observe(u, 1 + 10 * times.at(u, sde)[0] ** 2)
    assert float(times.probabilities.sum()) == pytest.approx(1)
    n = 100_000
    t, weight = times.at((torch.arange(n, dtype=D) + 0.5) / n, sde)
    low, high = sde.span
    for power in range(3):
        x = ((t - low) / (high - low)) ** power
        assert float((weight * x).mean()) == pytest.approx(1 / (power + 1), rel=2e-3)
    if bool((times.seen >= 2).all()) and uniform < 0.5 and bins > 3:
        assert times.probabilities[-1] > times.probabilities[0], "losses grow with t, and so does attention"


def test_adaptive_times_keep_the_newest_losses() -> None:
    times = AdaptiveTimes("uniform", bins=1, memory=3)
    times.observe(torch.zeros(5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert sorted(times.history[0].tolist()) == [3, 4, 5]
    times.observe(torch.zeros(2), torch.tensor([6.0, 7.0]))
    assert sorted(times.history[0].tolist()) == [5, 6, 7]
    loss = DSM(times=times)
    loss(ScoreModel(lambda x, t: 0 * x, VP()), torch.zeros(4, 2), generator())
    assert int(times.seen[0]) == 11


# Measured --------------------------------------------------------------------------------------------------------


def network() -> ScoreModel:
    """A small network after a little training on the mixture in the plane, on VP."""
    torch.manual_seed(0)
    model = ScoreModel(MLP(2, (32, 32)), VP())
    optimizer, draws = torch.optim.Adam(model.parameters(), 3e-3), generator(1)
    for _ in range(300):
        optimizer.zero_grad()
        DSM()(model, mixture().sample(128, draws, torch.float32), draws)[0].mean().backward()
        optimizer.step()
    return model


def spread(objective: Objective, model: ScoreModel, rounds: int = 300, batch: int = 32) -> float:
    """The variance of the gradient of a batch's mean loss, summed over the parameters."""
    draws, squares = generator(2), 0.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    mean = torch.zeros(sum(p.numel() for p in parameters), dtype=D)
    for _ in range(rounds):
        x0 = mixture().sample(batch, draws, torch.float32)
        loss = objective(model, x0, draws)[0].mean()
        found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        mean += found / rounds
        squares += float(found.square().sum()) / rounds
    return squares - float(mean.square().sum())


@dataclass(frozen=True)
class Early(Times):
    """Uniform up to t = 0.05, where there is little noise."""

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        return 1e-3 + 0.049 * u, torch.ones_like(u)


@pytest.mark.slow
def test_each_reduces_the_variance_of_the_gradient() -> None:
    """The ratios of the table in the documentation, to the plain estimate with as many data; with room for their noise."""
    model = network()

    def ratio(bound: float, weighting: str, plain: str | Times, **better: Any) -> tuple[float, float]:
        one = DSM(weighting, plain, stratified=False)
        other = DSM(weighting, **{"times": plain, "stratified": False, **better})
        if isinstance(other.times, AdaptiveTimes):
            spread(other, model, rounds=150)  # to learn
        return spread(other, model) / spread(one, model), bound

    adaptive = {"bins": 50, "memory": 20, "power": 0.5}
    measured = {
        "stratified": ratio(1.0, "ddpm", "uniform", stratified=True),
        "antithetic": ratio(0.6, "ddpm", "uniform", noise="antithetic"),
        "antithetic, little noise": ratio(0.25, "ddpm", Early(), noise="antithetic"),
        "control": ratio(1.0, "ddpm", "uniform", noise="control"),
        "control, little noise": ratio(0.3, "ddpm", Early(), noise="control"),
        "importance": ratio(0.4, "likelihood", "uniform", times="likelihood"),
        "adaptive": ratio(0.85, "ddpm", "uniform", times=AdaptiveTimes("uniform", **adaptive)),  # type: ignore[arg-type]
        "adaptive, likelihood": ratio(0.4, "likelihood", "uniform", times=AdaptiveTimes("uniform", **adaptive)),  # type: ignore[arg-type]
    }
    assert all(found < bound for found, bound in measured.values()), measured


@pytest.mark.parametrize("trace", ["hutchinson", "sliced"])
def test_more_probes_and_the_exact_norm_are_less_noisy(trace: str) -> None:
    """The variance over probes falls as one over their number, and that of the sliced norm is added to it."""
    model = ScoreModel(
        lambda x, t: torch.sin(x @ torch.tensor([[1.0, 0.6, 0.2], [0.6, 1.0, -0.5], [0.2, -0.5, 1.0]], dtype=D)), VP()
    )
    x0, eps = torch.randn(2, 1, 3, generator=generator(), dtype=D).expand(2, 4000, 3)
    t = torch.full((4000,), 0.3, dtype=D)

    def variance(kind: str, projections: int) -> float:
        loss = ImplicitScoreMatching(trace=kind, probes="gaussian", projections=projections)
        return float(loss.at(model, x0, t, eps, **loss.draws(x0, generator(4))).detach().var())

    assert variance(trace, 1) / variance(trace, 4) == pytest.approx(4, rel=0.25)
    assert variance("hutchinson", 1) < variance("sliced", 1)


# Conditions and data -------------------------------------------------------------------------------------------


def test_dropped_labels_are_null_and_the_others_themselves() -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor, label: Tensor, picture: Tensor) -> Tensor:
        seen.append(torch.cat([label[:, None].double(), picture], 1))
        return x * label[:, None]

    n = 4000
    loss = LabelDropout(DSM("v"), {"label": 7, "picture": torch.tensor([5.0, 6.0])}, probability=0.2)
    picture = torch.randn(n, 2, generator=generator(), dtype=D)
    label = torch.arange(n) % 7
    x0 = torch.randn(n, 3, generator=generator(3), dtype=D)
    value, t = loss(ScoreModel(net, VP(), "v"), x0, generator(), label=label, picture=picture)
    dropped = seen[0][:, 0] == 7
    assert abs(float(dropped.double().mean()) - 0.2) < 0.03
    assert bool((seen[0][dropped, 1:] == torch.tensor([5.0, 6.0])).all()), "together"
    assert torch.equal(seen[0][~dropped, 1:], picture[~dropped])
    assert torch.equal(seen[0][~dropped, 0], label[~dropped].double())
    # The loss of each is the inner one with what the network got, and without randomness nothing is dropped.
    eps = torch.randn(n, 3, generator=generator(), dtype=D)
    model = ScoreModel(net, VP(), "v")
    given = {"label": label, "picture": picture}
    assert torch.equal(loss.at(model, x0, t, eps, **given), DSM("v").at(model, x0, t, eps, **given))
    assert value.shape == (n,) and loss.weight.name == "v"


def test_networks_take_the_number_of_their_classes_for_a_hidden_label() -> None:
    model = ScoreModel(MLP(2, (16,), num_classes=3), VP(), "v")
    for p in model.parameters():
        nn.init.normal_(p, generator=generator())
    x0, eps = (torch.randn(6, 2, generator=generator(i)) for i in (1, 2))
    t, label = torch.linspace(0.1, 0.9, 6), torch.arange(6) % 3
    dropped = torch.tensor([True, False] * 3)
    loss = LabelDropout("v", {"label": 3}).at(model, x0, t, eps, label=label, dropped=dropped)
    with_label, without = DSM("v").at(model, x0, t, eps, label=label), DSM("v").at(model, x0, t, eps)
    torch.testing.assert_close(loss, torch.where(dropped, without, with_label))
    assert bool(((with_label - without).abs() > 1e-3).all())


def test_dequantized_data_bound_the_probability_of_the_grid() -> None:
    """P(x) is the integral of the density over a cell; by Jensen, log P exceeds the mean of log p there, and by little."""
    width, points = 0.25, torch.arange(-12, 13, dtype=D)[:, None] * 0.25
    problem = mixture_on_the_line()
    many = dequantize(points.repeat_interleave(4000, 0), width, generator())
    assert float((many - points.repeat_interleave(4000, 0)).abs().max()) <= width / 2
    density = problem.log_prob(many).reshape(len(points), -1)
    log_p = density.exp().mean(1).log() + math.log(width)
    bound = density.mean(1) + math.log(width)
    assert bool((bound <= log_p).all()) and float(log_p.exp().sum()) == pytest.approx(1, rel=1e-2)
    assert float((log_p - bound).max()) > 1e-3, "and not equal"


def mixture_on_the_line() -> GaussianMixture:
    return line()[0]


def test_weightings_have_their_arguments() -> None:
    t = torch.linspace(0.05, 0.95, 9, dtype=D)
    sde, snr = VP(), (2 * VP().lam(t)).exp()
    torch.testing.assert_close(min_snr(2.0).function(sde, t, 0.5) * snr, snr.clamp(max=2.0))
    torch.testing.assert_close(p2(0.5, 3.0).function(sde, t, 0.5), (3 + snr) ** -0.5)
    likelihood = WEIGHTINGS["likelihood"].function(sde, t, 0.5)
    torch.testing.assert_close(sigmoid(-1.0).function(sde, t, 0.5), likelihood * torch.sigmoid(-1 - snr.log()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DSM(noise="antitetic"), "got noise='antitetic'; expected one of fresh, antithetic, control"),
        (lambda: ImplicitScoreMatching(trace="full"), "got trace='full'; expected 'exact', 'hutchinson' or 'sliced'"),
        (lambda: ImplicitScoreMatching(probes="cauchy"), "expected 'rademacher' or 'gaussian'"),
        (lambda: ImplicitScoreMatching(projections=0), "at least one projection"),
        (lambda: ImplicitScoreMatching("ddmp"), "did you mean 'ddpm'"),
        (lambda: AdaptiveTimes(bins=0), "expected at least one bin"),
        (lambda: AdaptiveTimes("unifrom"), "did you mean 'uniform'"),
        (lambda: LabelDropout(null={}), "as {'label': 10}"),
        (lambda: LabelDropout("ddmp", {"label": 1}), "got objective 'ddmp'; .* did you mean 'ddpm'"),
        (lambda: LabelDropout(null={"label": 1}, probability=2), "a number between 0 and 1"),
        (
            lambda: LabelDropout(null={"label": 1})(ScoreModel(nn.Identity(), VP()), torch.ones(2, 2), torch.Generator()),
            "got no condition label, which label dropout is to replace",
        ),
        (lambda: dequantize(torch.ones(2, 2), 0.0, torch.Generator()), "expected the positive distance"),
        (lambda: dequantize(torch.ones(2, 2).long(), 1.0, torch.Generator()), "use x.float"),
        (lambda: min_snr(0.0), "got gamma=0.0; expected positive numbers"),
        (lambda: p2(k=0.0), "expected positive numbers"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
