"""Learned dequantization: q is a density, its bound is the probability of the grid's points but for a divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from support import divided, generator
from torch import Tensor, nn

from scoresde import DDPM, VE, VP, ScoreModel, discretize
from scoresde.models import MLP
from scoresde.objectives import (
    DSM,
    AdaptiveTimes,
    Hybrid,
    ImplicitScoreMatching,
    LabelDropout,
    LearnedDequantization,
    LogisticNoise,
    Objective,
    VariationalBound,
    bits_per_dim,
)
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.training import CheckpointError, Trainer, load_companion, report

D = torch.float64
WIDTH = 0.5
LIKELIHOOD = DSM("likelihood", "likelihood")
INNER: list[Objective] = [LIKELIHOOD, DSM("likelihood", "uniform", noise="antithetic"), VariationalBound("upper")]
each_inner = pytest.mark.parametrize("inner", INNER, ids=lambda o: type(o).__name__)


class Table(nn.Module):
    """Parameters of its own for each point of the grid and each number: rows of mu and s."""

    def __init__(self, rows: Any, first: float = 0.0) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.as_tensor(rows, dtype=D).clone())
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        index = ((x[:, 0] - self.first) / WIDTH).round().long()
        return self.rows[index]


def constant(*row: float) -> LogisticNoise:
    """The same q everywhere, not to be trained."""
    return LogisticNoise(Table([row] * 21, first=-10 * WIDTH)).requires_grad_(False)


def problem() -> GaussianMixture:
    """Modes narrower than a cell."""
    return GaussianMixture([[-0.8], [0.7]], torch.tensor([0.05, 0.02]), [0.4, 0.6])


def probability(x: Tensor) -> Tensor:
    """P(x) of the cells of that, from the distribution function."""
    ends = x.numpy()[:, 0, None] + np.array([-WIDTH / 2, WIDTH / 2])
    cdf = 0.4 * stats.norm.cdf(ends, -0.8, math.sqrt(0.05)) + 0.6 * stats.norm.cdf(ends, 0.7, math.sqrt(0.02))
    return torch.from_numpy(np.diff(cdf)[:, 0])


def model_for(inner: Objective, p: Any) -> ScoreModel:
    """The exact model, under a chain for the variational bound."""
    exact: ScoreModel = p.model(discretize(VP(t_min=1e-5), 500) if isinstance(inner, VariationalBound) else VP(t_min=1e-5))
    return exact


LOGITS = torch.linspace(-30, 30, 6001, dtype=D)


def integral(f: Callable[[Tensor], Tensor]) -> Tensor:
    """Over u in (0, 1), by the trapezoidal rule in logit u, which converges exponentially."""
    u = torch.sigmoid(LOGITS)
    return torch.trapezoid(f(u[:, None]) * u * (1 - u), LOGITS)


# The density --------------------------------------------------------------------------------------------------------


def anywhere(test: Callable[..., None]) -> Callable[..., None]:
    """Any location and scale, the ends of their ranges always among them."""
    drawn = given(mu=st.floats(-3, 3), s=st.floats(-1.5, 0.7), other=st.floats(-2, 2))(test)
    for mu, s in itertools.product((-3.0, 3.0), (-1.5, 0.6875, 0.7)):
        drawn = example(mu=mu, s=s, other=2.0)(drawn)
    return drawn


def within(location: float, log_scale: float) -> float:
    """The mass that a logistic distribution of logit u has in the range of LOGITS: the tails are as heavy as exp(-z)."""
    law = stats.logistic(location, math.exp(log_scale))
    return float(law.cdf(30.0) - law.cdf(-30.0))


@anywhere
@settings(max_examples=10, deadline=None)
def test_q_integrates_to_one(mu: float, s: float, other: float) -> None:
    """One, less what lies beyond the range of integration; the rest is rounding in 1 - u, whose part at logit z is 1e-16 e^z
    of a density of e^(-(z - 3) / 2) at most: 1e-8 in all."""
    q = constant(mu, s)
    total = float(integral(lambda u: q.log_prob(u, torch.zeros_like(u)).exp()))
    assert total == pytest.approx(within(mu, s), abs=3e-8) and total == pytest.approx(1, abs=3e-6)
    plane, z = constant(mu, other, s, 0.3), LOGITS[::20]
    u = torch.cartesian_prod(torch.sigmoid(z), torch.sigmoid(z))
    density = plane.log_prob(u, torch.zeros_like(u)).exp() * (u * (1 - u)).prod(1)
    total = float(torch.trapezoid(torch.trapezoid(density.reshape(len(z), -1), z), z))
    assert total == pytest.approx(within(mu, s) * within(other, 0.3), abs=3e-7)


@anywhere
@settings(max_examples=10, deadline=None)
def test_samples_follow_q_and_know_their_density(mu: float, s: float, other: float) -> None:
    q, x = constant(mu, other, s, 0.3), torch.zeros(2000, 2, dtype=D)
    u, log_q = q(x, torch.rand(2000, 2, generator=generator(4), dtype=D))
    torch.testing.assert_close(log_q, q.log_prob(u, x), rtol=1e-5, atol=1e-5)
    for i, (location, log_scale) in enumerate([(mu, s), (other, 0.3)]):
        cdf = stats.logistic(location, math.exp(log_scale)).cdf
        assert stats.kstest(torch.logit(u[:, i]).numpy(), cdf).pvalue > 1e-3


def test_a_network_of_zeros_is_uniform_dequantization() -> None:
    r = torch.rand(100, 1, generator=generator(), dtype=D)
    u, log_q = constant(0, 0)(torch.zeros(100, 1, dtype=D), r)
    torch.testing.assert_close(u, r)
    torch.testing.assert_close(log_q, torch.zeros(100, dtype=D))


def test_each_pixel_has_a_density_of_its_own() -> None:
    q = LogisticNoise(nn.Conv2d(3, 6, 3, padding=1).double()).requires_grad_(False)
    x, u = torch.rand(2, 2, 3, 4, 4, generator=generator(), dtype=D)
    location, log_scale = q.net(x).chunk(2, 1)
    each = stats.logistic(location.numpy(), log_scale.exp().numpy()).logpdf(torch.logit(u).numpy())
    expected = torch.from_numpy(each) - (u * (1 - u)).log()
    torch.testing.assert_close(q.log_prob(u, x), expected.sum((1, 2, 3)))


# The bound ----------------------------------------------------------------------------------------------------------


@given(cell=st.integers(-3, 3), mu=st.floats(-1.5, 1.5), s=st.floats(-1.0, 0.3))
@settings(max_examples=10, deadline=None)
def test_the_gap_is_the_divergence_of_q_from_the_posterior(cell: int, mu: float, s: float) -> None:
    p, q, x = problem(), constant(mu, s), torch.full((1, 1), cell * WIDTH, dtype=D)
    log_posterior = lambda u: p.log_prob(x + WIDTH * (u - 0.5)) + math.log(WIDTH) - probability(x).log()  # noqa: E731

    def integrand(u: Tensor) -> Tensor:
        log_q = q.log_prob(u, x.expand(len(u), 1))
        return log_q.exp() * (log_q - log_posterior(u))

    divergence = float(integral(integrand))
    bits = bits_per_dim(p.log_prob, x.expand(20000, 1), WIDTH, generator(), q)
    expected = (divergence - math.log(float(probability(x)))) / math.log(2)
    assert divergence >= 0
    assert abs(float(bits.mean()) - expected) < 5 * float(bits.std()) / math.sqrt(20000)


POINTS = torch.arange(-3, 4, dtype=D)[:, None] * WIDTH


def bound(p: GaussianMixture, row: Any, x: Tensor) -> float:
    """The bound in nats of one point under q of these mu and s, by quadrature."""
    q = constant(*row)

    def integrand(u: Tensor) -> Tensor:
        log_q = q.log_prob(u, x.expand(len(u), 1))
        return log_q.exp() * (log_q - p.log_prob(x + WIDTH * (u - 0.5)))

    return float(integral(integrand)) - math.log(WIDTH)


@cache
def bounds() -> tuple[Tensor, Tensor, Tensor]:
    """-log P of each point, and its bound under uniform u and under the best q of the family, in nats."""
    p = problem()
    truth, uniform, best = (torch.empty(len(POINTS), dtype=D) for _ in range(3))
    for i, x in enumerate(POINTS[:, None]):
        truth[i] = -probability(x).log()
        uniform[i] = bound(p, (0.0, 0.0), x)
        best[i] = optimize.minimize(lambda row, x=x: bound(p, row, x), [0.0, 0.0], method="Nelder-Mead").fun
    return truth, uniform, best


def test_the_best_q_is_tighter_than_uniform_and_never_below_the_truth() -> None:
    truth, uniform, best = bounds()
    assert bool((truth <= best + 1e-6).all()) and bool((best < uniform - 1e-3).all())


@pytest.mark.parametrize("inner", [LIKELIHOOD, VariationalBound("upper")], ids=lambda o: type(o).__name__)
def test_training_q_alone_approaches_the_best_of_its_family(inner: Objective) -> None:
    p, (truth, uniform, best) = problem(), bounds()
    q = LogisticNoise(Table(torch.zeros(len(POINTS), 2), first=float(POINTS[0])))
    objective, model, draw = LearnedDequantization(inner, q, WIDTH), model_for(inner, p), generator(1)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.05, betas=(0.9, 0.99))
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        loss, _ = objective(model, POINTS.repeat(64, 1), draw)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    reached = torch.tensor([bound(p, q.net.rows[i].tolist(), x) for i, x in enumerate(POINTS[:, None])])
    assert bool((reached >= truth - 1e-6).all())
    assert float((reached - best).mean()) < 0.1 * float((uniform - best).mean())
    assert bool((reached < uniform).all())


class Fixed(nn.Module):
    """A q that returns one u, and an entropy."""

    def __init__(self, u: float, log_q: float) -> None:
        super().__init__()
        self.u, self.log_q = u, log_q

    def forward(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, self.u), torch.full_like(x[:, 0], self.log_q)


@pytest.mark.parametrize("sde", [VP(t_min=1e-7), VE(1e-4, 2.0)], ids=["VP", "VE"])
@given(a=st.floats(0.1, 0.9), b=st.floats(0.1, 0.9), entropy=st.floats(-2, 2))
@settings(max_examples=5, deadline=None)
def test_the_loss_is_the_bound_up_to_a_constant(sde: Any, a: float, b: float, entropy: float) -> None:
    """Of N(m, v) with its exact score: -log p(y), and what the prior N(0, sigma^2) costs on the way there."""
    m, v, width = 0.3, 0.49, 3.0
    z, w = np.polynomial.hermite_e.hermegauss(4)  # the loss is a polynomial of degree 2 in the noise
    n = 4000
    u = (torch.arange(n, dtype=D) + 0.5) / n
    t, importance = LIKELIHOOD.distribution.at(u, sde)
    model = Gaussian([m], v).model(sde)

    def loss(at: float, log_q: float) -> float:
        objective = LearnedDequantization(LIKELIHOOD, Fixed(at, log_q), width)
        total = 0.0
        for node, weight in zip(z, w / math.sqrt(2 * math.pi), strict=True):
            x = torch.zeros(n, 1, dtype=D)
            found = objective.at(model, x, t, torch.full_like(x, node), uniform=torch.zeros_like(x))
            total += float(weight * (importance * found).mean())
        return total * 0.5 * (sde.span[1] - sde.span[0])

    def expected(at: float) -> float:
        y = width * (at - 0.5)
        alpha, sigma = float(sde.alpha(sde.span[1])), float(sde.sigma(sde.span[1]))
        variance = alpha**2 * v + sigma**2
        of_p = -0.5 * ((alpha * (y - m)) ** 2 + sigma**2) / variance
        of_prior = 0.5 * ((alpha * y) ** 2 + sigma**2) / sigma**2
        return 0.5 * (y - m) ** 2 / v + of_p + of_prior

    assert loss(a, entropy) - loss(b, 0.0) == pytest.approx(expected(a) - expected(b) + entropy, abs=2e-3)


def test_on_a_chain_it_is_the_whole_variational_bound() -> None:
    chain, inner = DDPM.linear(20, 1e-3, 0.3), VariationalBound("upper")
    model, x = Gaussian([0.2, -0.1], 0.7).model(chain), torch.tensor([[0.5, 0.0], [-1.0, 0.5]], dtype=D)
    objective = LearnedDequantization(inner, Fixed(0.8, 1.7), WIDTH)
    noise, found = generator(3), torch.zeros(2, dtype=D)
    for k in range(1, 21):
        t, eps = torch.full((2,), k / 20, dtype=D), torch.randn(2, 2, generator=noise, dtype=D)
        found += objective.at(model, x, t, eps, uniform=torch.zeros_like(x)) / 20
    bits = inner.total(model, x + WIDTH * 0.3, generator(3)) + 1.7 / (2 * math.log(2))
    torch.testing.assert_close(found, bits)


@each_inner
def test_gradients_of_q_are_central_differences(inner: Objective) -> None:
    model = model_for(inner, problem())
    x, r = POINTS, torch.rand(POINTS.shape, generator=generator(2), dtype=D)
    t = (torch.arange(1, len(x) + 1, dtype=D) * 71).clamp(max=500) / 500
    eps = torch.randn(x.shape, generator=generator(3), dtype=D)

    def loss(rows: Tensor) -> Tensor:
        q = LogisticNoise(Table(rows, first=float(POINTS[0])))
        del q.net.rows
        q.net.rows = rows
        return LearnedDequantization(inner, q, WIDTH).at(model, x, t, eps, uniform=r)

    rows = 0.3 * torch.randn(len(x), 2, generator=generator(4), dtype=D)
    assert torch.autograd.gradcheck(loss, (rows.requires_grad_(),), rtol=1e-4)


# Along with the network ---------------------------------------------------------------------------------------------


def noise(width: int = 8) -> LogisticNoise:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LogisticNoise(nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 2)))


def trainer(q: LogisticNoise, steps: int, wrap: bool = False, **arguments: Any) -> Trainer:
    x = (problem().sample(256, generator(), dtype=torch.float32) / WIDTH).round() * WIDTH
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreModel(MLP(1, hidden=(16,)), VP(t_min=1e-5))
    objective: Objective = LearnedDequantization(LIKELIHOOD, q, WIDTH)
    if wrap:
        objective = LabelDropout(objective, {"label": 3})
    usual: dict[str, Any] = {"batch_size": 32, "progress": False, "averages": [0.9, "power-0.1"], "warmup": 2, "lr": 1e-2}
    made = Trainer(model, x, objective, **divided(usual | arguments))
    made.run(steps)
    return made


def test_q_is_trained_averaged_stored_and_resumed(tmp_path: Path) -> None:
    whole, first, second = noise(), noise(), noise()
    before = noise().state_dict()
    once = trainer(whole, 8)
    trainer(first, 5, out=tmp_path / "model.safetensors")
    again = trainer(second, 8, out=tmp_path / "model.safetensors")
    for name, value in whole.state_dict().items():
        assert not torch.equal(value, before[name])
        assert torch.equal(value, second.state_dict()[name])
    for name, average in once.companions.items():
        for key, value in average.state_dict().items():
            assert torch.equal(value, again.companions[name].state_dict()[key])
            stored = load_companion(tmp_path / "model.safetensors", noise(), ema=name)
            assert torch.equal(value, stored.state_dict()[key])
    last = load_companion(tmp_path / "model.safetensors", noise(), ema=False)
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), whole.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"has in another shape net\.0\.bias"):
        load_companion(tmp_path / "model.safetensors", noise(4))


def test_the_average_of_q_is_that_of_its_formula() -> None:
    seen = []
    q = noise()
    made = trainer(q, 1)
    for step in range(1, 7):
        made.run(step)
        seen.append(q.net[0].weight.detach().clone())
    expected = seen[0]
    for step, value in enumerate(seen[1:], start=2):
        expected = torch.lerp(value, expected, made.averages["exponential-0.9"].beta(step))
    torch.testing.assert_close(made.companions["exponential-0.9"].net[0].weight, expected)


@pytest.mark.slow
@torch.no_grad()
def test_trained_together_the_network_is_likelier_on_what_q_makes_of_the_grid() -> None:
    with torch.enable_grad():
        made = trainer(noise(), 500, batch_size=64)
    model, q = made.averaged["exponential-0.9"], made.companions["exponential-0.9"]
    points = POINTS.float()[torch.multinomial(probability(POINTS), 20000, True, generator=generator())]

    def loss(noise: nn.Module) -> Tensor:
        return LearnedDequantization(LIKELIHOOD, noise, WIDTH)(model, points, generator(5))[0]

    gain = loss(constant(0.0, 0.0)) - loss(q)
    assert float(gain.mean()) > 5 * float(gain.std()) / math.sqrt(len(gain))


def test_other_objectives_hand_it_on_and_the_report_measures_the_grid() -> None:
    q = noise()
    assert LabelDropout(LearnedDequantization(LIKELIHOOD, q, 1.0), {"label": 1}).companion is q
    assert not list(DSM().companion.parameters())
    model, data = ScoreModel(MLP(1, hidden=(8,)), VP(t_min=1e-5)), torch.zeros(16, 1)
    learned = report(model, data, objective=LearnedDequantization(LIKELIHOOD, q, 1.0), samples=64)
    assert torch.equal(learned.loss, report(model, data, objective=LIKELIHOOD, samples=64).loss)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LearnedDequantization(DSM("ddpm"), noise(), 1.0), ValueError, "expected a bound of the likelihood"),
        (lambda: LearnedDequantization(Hybrid(), noise(), 1.0), ValueError, "VariationalBound\\(\\) without levels"),
        (lambda: LearnedDequantization(VariationalBound(levels=256), noise(), 1.0), ValueError, "without levels"),
        (lambda: LearnedDequantization(ImplicitScoreMatching("likelihood"), noise(), 1.0), ValueError, "a bound of the"),
        (lambda: LearnedDequantization(DSM("likelihood", "lognormal"), noise(), 1.0), ValueError, "a bound of the"),
        (
            lambda: LearnedDequantization(DSM("likelihood", AdaptiveTimes("lognormal")), noise(), 1.0),
            ValueError,
            "a bound of the likelihood",
        ),
        (lambda: LearnedDequantization(LIKELIHOOD, noise(), 0.0), ValueError, "expected the positive distance"),
        (lambda: LearnedDequantization(LIKELIHOOD, lambda x, r: r, 1.0), TypeError, "got a function for the noise"),
        (lambda: LogisticNoise(nn.Linear(2, 2))(torch.zeros(3, 2), torch.zeros(3, 2)), ValueError, r"channels, \(3, 4\)"),
        (lambda: bits_per_dim(torch.sum, torch.zeros(3), 1.0, generator()), ValueError, "write scalars as"),
        (lambda: bits_per_dim(torch.sum, torch.zeros(3, 1), -1.0, generator()), ValueError, "the positive distance"),
        (lambda: bits_per_dim(torch.sum, torch.zeros(3, 1), 1.0, generator(), samples=0), ValueError, "got samples=0"),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
