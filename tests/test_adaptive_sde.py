"""Adaptive steps for the reverse SDE: the path of the noise, the published algorithm, errors, moments, counts."""

from __future__ import annotations

import math

import pytest
import torch
from support import finite_start, generator, model_on, rms
from torch import Tensor

from scoresde import EDM, VE, VP, RectifiedFlow, ScoreModel, sample, solvers
from scoresde.problems import GaussianMixture
from scoresde.sde import GaussianSDE
from scoresde.solvers import BrownianNoise, FreshNoise, Path, gotta_go_fast, make_path
from scoresde.solvers.adaptive import reverse_sde
from scoresde.solvers.adaptive.reverse_sde import _Path

F64 = torch.float64


class OneGenerator(FreshNoise):
    """A generator for the whole batch, to draw many samples at once."""

    def __init__(self) -> None:
        self.generator = generator(3)

    def normal(self, out: Tensor) -> Tensor:
        return out.normal_(generator=self.generator)


def test_the_noise_of_rejected_attempts_is_that_of_one_brownian_path() -> None:
    """Attempts to 3, 1 and 2, the second accepted, then from 1 to 3 again, and beyond: W has covariance min(s, t)."""
    n = 20_000
    zero = torch.zeros(n, dtype=F64)
    path = _Path(OneGenerator(), torch.zeros(n, 1, dtype=F64), zero)
    to_3, to_1, to_2 = (math.sqrt(v) * path(zero, zero + v) for v in (3, 1, 2))
    again = to_1 + math.sqrt(2) * path(zero + 1, zero + 3)
    torch.testing.assert_close(again, to_3, rtol=1e-12, atol=1e-12)
    to_5 = to_1 + 2 * path(zero + 1, zero + 5)
    times = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=F64)
    wanted = torch.minimum(times[:, None], times)
    got = torch.cat([to_1, to_2, to_3, to_5], 1)
    deviation = ((wanted**2 + times[:, None] * times) / n).sqrt()
    assert bool(((got.T.cov() - wanted).abs() < 4 * deviation).all())
    assert path(zero + 5, zero + 5).eq(0).all(), "a sample that has arrived goes nowhere"
    assert len(path.lam) <= 3, "what lies behind is forgotten"


def test_each_sample_has_its_own_place_on_its_own_path() -> None:
    noise = FreshNoise([1, 2], torch.device("cpu"))
    path = _Path(noise, torch.zeros(2, 3, dtype=F64), torch.tensor([0.0, 10.0], dtype=F64))
    first = path(torch.tensor([0.0, 10.0], dtype=F64), torch.tensor([4.0, 11.0], dtype=F64))
    alone = _Path(FreshNoise([2], torch.device("cpu")), torch.zeros(1, 3, dtype=F64), torch.tensor([10.0], dtype=F64))
    wanted = alone(torch.tensor([10.0], dtype=F64), torch.tensor([11.0], dtype=F64))
    assert torch.equal(first[1:], wanted)
    # The first is rejected, the second goes on.
    second = path(torch.tensor([0.0, 11.0], dtype=F64), torch.tensor([1.0, 12.0], dtype=F64))
    assert torch.equal(second[1:], alone(torch.tensor([11.0], dtype=F64), torch.tensor([12.0], dtype=F64)))


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=repr)
def test_it_is_the_published_algorithm(sde: GaussianSDE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithm 1 for one sample in f, g and the score, written out by hand, on the same path.

    The path is smooth, since on a Brownian one rounding in the time of a step moves the noise by its root.
    """
    model, x = model_on(sde), torch.randn(1, 2, generator=generator(4), dtype=F64) * float(sde.sigma(sde.span[1]))

    def draw(u: Tensor, v: Tensor) -> Tensor:
        rates = torch.tensor([5.0, 7.0], dtype=F64)
        out = 0.6 * ((rates * v[:, None]).sin() - (rates * u[:, None]).sin()) / (v - u).sqrt()[:, None]
        return out.nan_to_num()

    monkeypatch.setattr(reverse_sde, "_source", lambda noise, x, start: draw)
    rtol, atol, start, end = 0.05, 0.0078, x, 0.01

    def drift(y: Tensor, at: float) -> Tensor:
        f = sde.d_alpha(at) / sde.alpha(at)
        return f * y - sde.diffusion_squared(at) * model.score(y, at)

    def by_hand(first: float) -> tuple[Tensor, list[int]]:
        """The end, and how many attempts were accepted and rejected, from a first step of ``first`` times the usual."""
        x, t, before, attempts = start, sde.span[1], start, [0, 0]
        h = first * 0.01 * (t - end)
        while t - end > 1e-9:
            h = min(h, t - end)
            z = draw(sde.lam(t)[None], sde.lam(t - h)[None])
            g, g_end = (float(sde.diffusion_squared(at).sqrt()) for at in (t, t - h))
            low = x - h * drift(x, t) + math.sqrt(h) * g * z
            other = x - h * drift(low, t - h) + math.sqrt(h) * g_end * z
            high = (low + other) / 2
            delta = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
            error = float(((low - high) / delta).norm() / math.sqrt(x.numel()))
            attempts[error > 1] += 1
            if error <= 1:
                x, t, before = high, t - h, low
            h = 0.9 * h * error**-0.9
        return x, attempts

    wanted, attempts = by_hand(1.0)
    # Each step's length follows from the error of the one before, so that rounding errors grow along the way: by 1e8 from
    # EDM's 80 on. Ends of runs that start an ulp or two apart lie as far from each other as two right programs' ends do.
    spread = max(float((by_hand(1 + k * 2.0**-52)[0] - wanted).abs().max()) for k in (-2, -1, 1, 2))
    got = sample(model, start, gotta_go_fast(rtol), path=[sde.span[1], end], progress=False)
    assert [int(got.info["accepted"]), int(got.info["rejected"])] == attempts and min(attempts) > 0
    assert float((got.x - wanted).abs().max()) < 100 * spread + 1e-12 < 1e-4, spread


@pytest.mark.parametrize("sde", [VP(), pytest.param(VE(), marks=pytest.mark.slow), RectifiedFlow()], ids=repr)
@pytest.mark.slow
def test_the_strong_error_follows_the_tolerance(sde: GaussianSDE) -> None:
    """Against many steps of another solver on the same Brownian path."""
    t, n = finite_start(sde), 4
    fine = make_path(sde, "lam", 1000, t_max=t, t_min=0.05 * t, end="stop")
    noise = BrownianNoise(range(n), torch.device("cpu"), fine, kernels=(0.0,))
    model = model_on(sde)
    x = torch.randn(n, 2, generator=generator(5), dtype=F64) * fine.points[0].sigma
    truth = sample(model, x, "sde-dpmpp-2m", path=fine, noise=noise, progress=False).x
    errors = []
    for tolerance in (0.5, 0.01):
        method, ends = gotta_go_fast(tolerance, tolerance), [fine.times[0], fine.times[-1]]
        errors.append(rms(sample(model, x, method, path=ends, noise=noise, progress=False).x - truth))
    assert errors[0] > 4 * errors[1] and errors[1] < 0.1 * rms(truth), (errors, rms(truth))


def test_the_moments_are_right_in_the_limit() -> None:
    """Gaussian data, fresh noise: within Monte Carlo error at a small tolerance, well outside it at a large one."""
    one = torch.ones(1, dtype=F64)
    model, n = GaussianMixture(0.8 * one[None], 0.25 * one, one).model(VP()), 4000
    end = Path.from_times(VP(), [1.0, 0.1]).points[-1]
    mean, variance = 0.8 * end.alpha, 0.25 * end.alpha**2 + end.sigma**2
    found = {}
    for tolerance in (2.0, 0.1):
        method = gotta_go_fast(tolerance, tolerance)
        x = sample(model, (n, 1), method, path=[1.0, 0.1], seed=1, dtype=F64, progress=False).x
        found[tolerance] = abs(float(x.mean()) - mean) / math.sqrt(variance / n), abs(float(x.var()) / variance - 1)
    assert found[0.1][0] < 4 and found[0.1][1] < 4 * math.sqrt(2 / n) + 0.02, found
    assert found[2.0][1] > 4 * math.sqrt(2 / n) + 0.02, found


def test_evaluations_are_counted_and_a_rejection_costs_one() -> None:
    calls = []
    base = model_on(VP())
    model = ScoreModel(lambda x, t: calls.append(t) or base.eps(x, t), VP())  # type: ignore[func-returns-value]
    got = sample(model, (1, 2), "gotta-go-fast", path=[1.0, 0.1], seed=2, progress=False)
    accepted, rejected = int(got.info["accepted"]), int(got.info["rejected"])
    assert got.evaluations == len(calls) == 2 * accepted + rejected and rejected > 0


@pytest.mark.parametrize("event", [(2,), (3, 4, 4)])
def test_each_sample_is_independent_of_its_batch(event: tuple[int, ...]) -> None:
    model = ScoreModel(lambda x, t: torch.tanh(x) * VP().sigma(t).reshape(-1, *([1] * len(event))).to(x), VP())
    x = torch.randn(4, *event, generator=generator()) * torch.tensor([0.1, 1, 3, 10]).reshape(-1, *([1] * len(event)))
    both = sample(model, x, "gotta-go-fast", 6, seed=[5, 6, 7, 8], progress=False)
    for i in range(4):
        alone = sample(model, x[i : i + 1], "gotta-go-fast", 6, seed=[5 + i], progress=False)
        assert torch.equal(alone.x[0], both.x[i])
        for key in ("accepted", "rejected"):
            assert alone.info[key][0] == both.info[key][i]
    assert len(set(both.info["accepted"].tolist())) > 1, "each has steps of its own"


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="expected rtol >= 0 and atol > 0"):
        gotta_go_fast(atol=0)
    with pytest.raises(ValueError, match="for the probability flow take bs3 or dopri5"):
        gotta_go_fast(eta=0)
    with pytest.raises(ArithmeticError, match="Check that the network is finite"):
        sample(ScoreModel(lambda x, t: x * torch.nan, VP()), (2, 2), "gotta-go-fast", progress=False)
    with pytest.raises(ValueError, match="makes no rows"):
        sample(model_on(VP()), (2, 2), solvers.get("gotta-go-fast"), driver="fast", progress=False)
