"""The front door: what sample() promises, and what it says when it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support import generator, mixture, model_on, mostly_slow, rms

from scoresde import DDPM, EDM, VP, GeneralSDE, NonFiniteError, RectifiedFlow, ScoreModel, sample, solvers
from scoresde.metrics import energy_distance
from scoresde.solvers import Path, make_path

F64 = torch.float64


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(), DDPM.linear(200, 1e-3, 0.1).sde()], ids=repr)
@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "heun", "ddpm"])
def test_samples_have_the_distribution_of_the_data(solver: str, sde: VP) -> None:
    problem = mixture()
    got = sample(problem.model(sde), (2000, 2), solver, 60, "lam", seed=1, progress=False).x.double()
    exact = problem.sample(2000, generator(2), dtype=F64)
    # The unbiased energy distance of two samples of 2,000 from this law has a standard deviation of about 1e-3.
    assert abs(float(energy_distance(got, exact))) < 0.01


def test_seeds_make_samples_reproducible_and_are_reported() -> None:
    model, before = model_on(VP()), torch.random.get_rng_state()
    one, two = (sample(model, (4, 2), "ddpm", 5, "t", seed=7, progress=False) for _ in range(2))
    assert torch.equal(one.x, two.x) and one.seeds == two.seeds and len(set(one.seeds)) == 4
    fresh = [sample(model, (2, 2), "ddim", 2, seed=None, progress=False).seeds for _ in range(2)]
    assert fresh[0] != fresh[1]
    sample(model, (4, 2), "pc", 5, "t", progress=False)
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is not touched"


def test_a_start_tensor_is_the_start_and_stays_as_it_is() -> None:
    model, x = model_on(VP()), torch.randn(3, 2, generator=generator(), dtype=F64)
    kept = x.clone()
    whole = sample(model, x, "ddim", path=[1.0, 0.6, 0.2], progress=False)
    half = sample(model, x, "ddim", path=[1.0, 0.6], progress=False)
    rest = sample(model, half.x, "ddim", path=[0.6, 0.2], progress=False)
    assert torch.equal(x, kept) and whole.x.dtype == F64
    torch.testing.assert_close(rest.x, whole.x)
    assert whole.times == (1.0, 0.6, 0.2)


def test_the_callback_sees_every_state_and_keeps_them() -> None:
    model, seen = model_on(VP()), []
    samples = sample(model, (2, 2), "dpm-2", 4, "lam", callback=seen.append, progress=False)
    assert [s.step for s in seen] == [1, 2, 3, 4]
    assert tuple(s.point.t for s in seen) == samples.times[1:]
    assert torch.equal(seen[-1].x, samples.x) and not torch.equal(seen[0].x, seen[1].x)
    again = sample(model, (2, 2), "dpm-2", 4, "lam", progress=False)
    assert torch.equal(again.x, samples.x) and again.evaluations == samples.evaluations == 7


def test_the_transform_is_applied_to_each_data_prediction() -> None:
    model, times = model_on(VP()), []

    def clip(m: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return m.clamp(-0.1, 0.1)

    clipped = sample(model, (50, 2), "dpmpp-2m", 6, transform=clip, progress=False)
    assert clipped.x.abs().max() <= 0.1 and len(times) == clipped.evaluations == 6
    for solver in ("rk45", "torchsde-euler"):
        assert sample(model, (5, 2), solver, 6, "t", transform=clip, progress=False).x.abs().max() <= 0.1


def test_networks_are_sampled_in_evaluation_mode_and_left_as_they_were() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.9))
    net[0].eval()
    model = ScoreModel(lambda x, t: net(x), VP())
    model.net = Wrapped(net)
    one, two = (sample(model, (8, 2), "ddim", 3, progress=False).x for _ in range(2))
    assert torch.equal(one, two) and not one.requires_grad
    assert net[1].training and not net[0].training


class Wrapped(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_conditions_reach_the_network() -> None:
    model = ScoreModel(lambda x, t, shift: torch.zeros_like(x) + shift, VP(), "x0")
    shift = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for solver in ("ddim", "dpm-2", "rk45"):
        assert torch.allclose(sample(model, (2, 2), solver, 3, conditions={"shift": shift}, progress=False).x, shift)


def test_dtype_and_device_of_the_start() -> None:
    assert sample(model_on(VP()), (2, 2), steps=2, progress=False).x.dtype == torch.float32
    assert sample(model_on(VP()), (2, 2), steps=2, dtype=F64, progress=False).x.dtype == F64


@pytest.mark.parametrize("event", [(3,), (1, 4, 4), (2, 3, 2, 2)])
def test_any_event_shape(event: tuple[int, ...]) -> None:
    model = ScoreModel(lambda x, t: x * VP().sigma(t).reshape(-1, *([1] * len(event))).to(x), VP())
    for solver in solvers.SOLVERS:
        x = sample(model, (2, *event), solver, 3, "t", progress=False).x
        assert x.shape == (2, *event) and bool(torch.isfinite(x).all())


def test_a_non_finite_state_names_the_step_and_keeps_the_last_finite_one() -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t[:, None] < 0.5, torch.nan, 0.0) * x

    model, path = ScoreModel(net, VP()), Path.from_times(VP(), [1.0, 0.8, 0.45, 0.2, 0.0])
    for callback in (None, lambda state: None):
        with pytest.raises(NonFiniteError, match=r"in step 3 of solver 'ddim', on the way to t=0\.2") as caught:
            sample(model, (4, 2), "ddim", path=path, callback=callback, progress=False)
        assert caught.value.step == 3 and bool(torch.isfinite(caught.value.last_finite).all())
        wanted = sample(model, (4, 2), "ddim", path=[1.0, 0.8, 0.45], progress=False).x
        torch.testing.assert_close(caught.value.last_finite, wanted)


@pytest.mark.parametrize("given", [False, True], ids=["seed", "noise"])
def test_the_step_that_failed_is_found_with_the_same_noise(given: bool) -> None:
    """A network that fails where its own, random, state goes: the second run must go there too."""
    model = ScoreModel(lambda x, t: torch.where(x[:, :1].abs() > 1.0, torch.nan, 0.9) * x, VP())
    path, found = make_path(VP(), "quadratic", 30), 0
    for seed in range(20):
        failures = []
        for callback in (lambda state: None, None):
            source = {"noise": solvers.FreshNoise([seed], "cpu")} if given else {"seed": seed}
            try:
                sample(model, (1, 2), "ddpm", path=path, callback=callback, progress=False, **source)
            except NonFiniteError as error:
                failures.append(error)
        if failures:
            watched, blind = failures
            assert watched.step == blind.step and torch.equal(watched.last_finite, blind.last_finite)
            found += watched.step > 1
    assert found > 3


def test_progress_bar_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    sample(model_on(VP()), (2, 2), "dpm-2", 5)
    assert "dpm-2" in capsys.readouterr().err
    sample(model_on(VP()), (2, 2), "dpm-2", 5, progress=False)
    assert capsys.readouterr().err == ""


# An SDE without marginals ----------------------------------------------------------------------------------


def ornstein_uhlenbeck() -> tuple[GeneralSDE, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """dx = -x dt + sqrt(2) dw from N(1, 0.25): Gaussian, so that the truth is known."""
    sde = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: math.sqrt(2) * torch.ones_like(x), t_max=3.0)

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        decay = torch.exp(-t)
        return -(x - decay) / (0.25 * decay**2 + 1 - decay**2)

    return sde, score


@pytest.mark.parametrize(
    "solver",
    mostly_slow(
        ["euler-maruyama", "heun", "torchsde-euler", "torchsde-milstein", "torchsde-srk", "rk45"],
        {"euler-maruyama", "heun", "torchsde-euler", "rk45"},
    ),
)
def test_general_sdes_are_sampled(solver: str) -> None:
    sde, score = ornstein_uhlenbeck()
    reverse = sde.probability_flow(score) if solver == "rk45" else sde.reverse(score)
    n = 400 if solver.startswith("torchsde") else 4000  # one Brownian interval per sample is slow
    got = sample(reverse, (n, 1), solver, 60, "t", dtype=F64, progress=False).x
    error = 4 * 0.5 / n**0.5 + 0.04  # Monte Carlo and discretization
    assert abs(float(got.mean()) - 1) < error and abs(float(got.std()) - 0.5) < error


def test_general_orders() -> None:
    """Euler 1 and Heun 2 on the flow of a state-dependent diffusion, against SciPy; Heun with noise is weakly consistent."""
    sde = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: torch.sqrt(1 + x**2), t_max=1.0)
    flow = sde.probability_flow(lambda x, t: -2 * x / (1 + x**2))  # not at rest: another score than the stationary one
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    tight = solvers.rk45(1e-11, 1e-12, "DOP853")
    truth = sample(flow, x, tight, 1, "t", progress=False).x
    errors = [rms(sample(flow, x, "heun", n, "t", progress=False).x - truth) for n in (40, 80)]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.1
    x = torch.full((4000, 1), 0.5, dtype=F64)
    noisy = sde.reverse(lambda y, t: -4 * y / (1 + y**2))
    moments = [
        (float(e.mean()), float(e.clamp(-5, 5).var()))
        for e in (
            sample(noisy, x, "heun", 100, "t", progress=False).x,
            sample(noisy, x, "euler-maruyama", 400, "t", seed=5, progress=False).x,
        )
    ]
    assert moments[0] == pytest.approx(moments[1], abs=0.09)


# Errors ----------------------------------------------------------------------------------------------------

OU, OU_SCORE = ornstein_uhlenbeck()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m: sample(m, (4, 2), "dpm2m"), ValueError, "did you mean"),
        (lambda m: sample(m, (4, 2), 3), TypeError, "expected a name or a solver object"),
        (lambda m: sample(m, (4, 2), steps=0), ValueError, "got steps=0"),
        (lambda m: sample(m, (4,)), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m: sample(m, (0, 2)), ValueError, "positive whole numbers"),
        (lambda m: sample(m, 4), ValueError, r"got shape 4; expected \(batch, \*event\)"),
        (lambda m: sample(m, "42"), ValueError, r"got shape 42; expected \(batch, \*event\)"),
        (lambda m: sample(m, (4, 2.0)), ValueError, r"got shape \(4, 2.0\)"),
        (lambda m: sample(m, (4, 2), dtype="float64"), ValueError, "got dtype='float64'.* such as torch.float64"),
        (lambda m: sample(m, (4, 2), dtype=torch.int64), ValueError, "expected a dtype of floating-point numbers"),
        (lambda m: sample(m, (4, 2), dtype=torch.complex64), ValueError, "expected a dtype of floating-point numbers"),
        (lambda m: sample(m, (4, 2), device="cuda:99"), ValueError, "got the device 'cuda:99', which is not there"),
        (lambda m: sample(m, torch.zeros(4, 2), device="gpu"), ValueError, "got the device 'gpu', which is not there"),
        (lambda m: sample(m, (4, 2), device="meta"), ValueError, "meta tensors hold no values"),
        (lambda m: sample(m, torch.zeros(4)), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m: sample(m, torch.zeros(4, 2, dtype=torch.int64)), ValueError, "expected a floating point tensor"),
        (lambda m: sample(m, (4, 2), path="lamda"), ValueError, "did you mean 'lam'"),
        (lambda m: sample(m, (4, 2), path=[0.5, 0.1]), ValueError, "while the prior is at t=1"),
        (lambda m: sample(m, (4, 2), t_max=0.5), ValueError, "expected a start tensor noised to that time"),
        (lambda m: sample(m, (4, 2), seed=[1, 2]), ValueError, "expected one per sample"),
        (lambda m: sample(lambda x, t: x, (4, 2)), TypeError, r"ScoreModel\(net, sde\) makes one"),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "ddim"), ValueError, "needs the marginals"),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "pc"), ValueError, "needs the marginals"),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "rk45"), ValueError, "integrates the probability flow"),
        (lambda m: sample(OU.probability_flow(OU_SCORE), (4, 2), "torchsde-srk"), ValueError, "needs noise"),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "heun", path="karras"), ValueError, "without marginals"),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "heun", end="flow"), ValueError, "got end for an SDE without"),
        (
            lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "heun", transform=lambda m, t: m),
            ValueError,
            "got transform for an SDE without marginals",
        ),
        (
            lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "heun", noise=solvers.FreshNoise([1, 2, 3, 4], "cpu")),
            ValueError,
            "got noise for an SDE without marginals",
        ),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "heun", steps=0), ValueError, "got steps=0"),
        (lambda m: sample(OU.reverse(OU_SCORE), (4, 2), "heun", path=[0.0, 1.0]), ValueError, "expected falling times"),
    ],
)
def test_bad_input(call: Callable[[ScoreModel], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(model_on(VP()))


def test_a_path_object_is_used_as_it_is() -> None:
    path = make_path(VP(), "karras", 7)
    assert sample(model_on(VP()), (2, 2), steps=99, path=path, progress=False).times == path.times
