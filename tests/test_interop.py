"""Solvers in loops that belong to others equal `sample`, and k-diffusion's own samplers where the rules coincide."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from peers import k_diffusion_sampling
from scipy.stats import kstest
from support import covering, finite_start, generator, mixture, mostly_slow
from torch import Tensor, nn

import scoresde
from scoresde import DDPM, EDM, VE, VP, RectifiedFlow, ScoreModel, interop, sample, solvers
from scoresde.interop import AskTell, EstimatedPosterior, calibration, fit_posterior, k_diffusion_sampler
from scoresde.score import PREDICTIONS
from scoresde.solvers import SOLVERS, FreshNoise, Path, RowSolver, make_path

F64 = torch.float64
ROWS = {name: solver for name in SOLVERS if isinstance(solver := solvers.get(name), RowSolver)}
OTHERS = [name for name in SOLVERS if name not in ROWS]
WITHOUT_NOISE = [name for name, solver in ROWS.items() if not solver.stochastic]
ON = {"VP": VP(), "VE": VE(), "RectifiedFlow": RectifiedFlow(t_max=0.99)}


def start(sde: Any, n: int = 5) -> Tensor:
    return float(sde.sigma(finite_start(sde))) * torch.randn(n, 2, generator=generator(3), dtype=F64)


def answered(run: AskTell, model: ScoreModel) -> Tensor:
    while (question := run.ask()) is not None:
        run.tell(model.x0(question.x, question.point.t))
    return run.x


# The loop turned inside out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sde"), covering(ROWS, ON))
def test_asking_and_telling_is_sampling(name: str, sde: str) -> None:
    model = mixture().model(ON[sde])
    x, path = start(model.sde), make_path(model.sde, "lam", 7)
    expected = sample(model, x, ROWS[name], path=path, seed=range(5), progress=False)
    run = AskTell(ROWS[name], path, x, FreshNoise(range(5), "cpu"))
    assert torch.equal(answered(run, model), expected.x)
    assert run.ask() is None
    with pytest.raises(RuntimeError, match="after the end"):
        run.tell(x)


class Net(nn.Module):
    """A smooth network of fixed weights, of one output or two."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(0.4 * torch.randn(2, 2 * outputs, generator=generator(1), dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ self.w + torch.atan(t)[:, None])


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_an_output_of_any_prediction_may_be_told(predicts: str) -> None:
    model = ScoreModel(Net(), VP(), predicts, sigma_data=0.7)
    x, path = start(VP()), make_path(VP(), "lam", 6)
    run = AskTell(ROWS["dpmpp-3m"], path, x, predicts=predicts, sigma_data=0.7)
    while (question := run.ask()) is not None:
        run.tell(model(question.x, torch.tensor(question.point.t, dtype=F64)))
    torch.testing.assert_close(run.x, sample(model, x, "dpmpp-3m", path=path, progress=False).x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ddpm: variance='learned'", "dpmpp-2m"])
def test_an_output_with_a_learned_variance_may_be_told(name: str) -> None:
    model, solver = ScoreModel(Net(2), DDPM.linear(50), learned_variance=True), solvers.get(name)
    x, path = start(model.sde), make_path(model.sde, "trailing", 6)
    run = AskTell(solver, path, x, FreshNoise(range(5), "cpu"), predicts="eps")
    while (question := run.ask()) is not None:
        t = torch.tensor(question.point.t, dtype=F64)
        run.tell(model.net(question.x, (50 * t - 1).round().expand(5)))
    expected = sample(model, x, solver, path=path, seed=range(5), progress=False).x
    torch.testing.assert_close(run.x, expected, rtol=1e-10, atol=1e-10)
    if "learned" in name:
        with pytest.raises(ValueError, match="without a learned variance"):
            AskTell(solver, path, x, FreshNoise(range(5), "cpu"), predicts="eps").tell(x)


class Halving(ScoreModel):
    """A linear data prediction."""

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return 0.5 * x


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_a_state_that_is_changed_on_the_way_is_the_state(name: str) -> None:
    """Scaling the start of a linear model scales the end, whoever scales, and at whichever state without a history."""
    model = Halving(None, VP())
    x, path = start(VP()), make_path(VP(), "lam", 5)
    run = AskTell(ROWS[name], path, x)
    question, scaled = run.ask(), 3 * x
    assert question is not None and question.step == 0
    if torch.equal(question.x, x):  # no update precedes the first evaluation
        run.tell(model.x0(scaled, question.point.t), scaled)
        torch.testing.assert_close(answered(run, model), 3 * answered(AskTell(ROWS[name], path, x), model))


def test_a_paused_run_can_be_copied() -> None:
    model, x = mixture().model(VP()), start(VP())
    run = AskTell(ROWS["dpmpp-3m"], make_path(VP(), "lam", 6), x)
    for _ in range(3):
        question = run.ask()
        assert question is not None and run.ask() == question
        run.tell(model.x0(question.x, question.point.t))
    other = copy.deepcopy(run)
    assert torch.equal(answered(run, model), answered(other, model))


@pytest.mark.parametrize("name", OTHERS)
def test_a_solver_without_rows_is_refused_where_evaluations_are_listed(name: str) -> None:
    with pytest.raises(ValueError, match="chooses its own steps"):
        AskTell(solvers.get(name), make_path(VP(), "lam", 5), start(VP()))


@pytest.mark.parametrize("shape", [(5, 3), (4, 2), (5,)])
def test_an_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    run = AskTell(ROWS["ddim"], make_path(VP(), "lam", 5), start(VP()))
    with pytest.raises(ValueError, match="expected the same shape"):
        run.tell(torch.zeros(shape, dtype=F64))


# k-diffusion ----------------------------------------------------------------------------------------------------------

SIGMAS = torch.tensor([20.0, 7.0, 3.0, 1.2, 0.5, 0.2, 0.05, 0.0], dtype=F64)


def denoise(y: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
    assert sigma.shape == (len(y),)
    return mixture().model(EDM(1e-6, 80.0)).x0(y, sigma) + shift


@pytest.mark.parametrize("name", mostly_slow(SOLVERS, [*list(ROWS)[::4], "rk45"]))
def test_a_sampler_of_k_diffusion_is_sampling_with_sigma_as_time(name: str) -> None:
    x = 20 * torch.randn(5, 2, generator=generator(3), dtype=F64)
    solver, sde = solvers.get(name), EDM(5e-5, 20.0)
    drawn = FreshNoise(range(5), "cpu")
    found = k_diffusion_sampler(name)(
        denoise, x, SIGMAS, {"shift": 0.1}, None, True, noise_sampler=lambda a, b: drawn.normal(0 * x)
    )

    class Shifted(scoresde.score.Wrapper):
        def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return super().x0(x, t) + 0.1

    expected = sample(
        Shifted(mixture().model(sde)), x, solver, path=Path.from_times(sde, SIGMAS), seed=range(5), progress=False
    )
    if name.startswith("torchsde") or name == "gotta-go-fast":  # they draw their noise from the seeds by other means
        assert found.shape == x.shape and bool(torch.isfinite(found).all())
    else:
        torch.testing.assert_close(found, expected.x, rtol=1e-8, atol=1e-8)


COINCIDE = {
    "sample_euler": "euler",
    "sample_heun": "heun: clock='rho'",
    "sample_dpm_2": "dpm-2",
    "sample_lms": "lms",
    "sample_dpmpp_2m": "dpmpp-2m: finish='same'",
    "sample_euler_ancestral": "euler-a",
    "sample_dpm_2_ancestral": "dpm2-a",
    "sample_dpmpp_2s_ancestral": "dpmpp-2s-a",
}


@pytest.mark.parametrize("theirs", COINCIDE)
def test_a_rule_of_k_diffusion_gives_its_numbers_in_its_signature(theirs: str) -> None:
    peer, ours = getattr(k_diffusion_sampling(), theirs), k_diffusion_sampler(COINCIDE[theirs])
    x = 20 * torch.randn(5, 2, generator=generator(3), dtype=F64)
    levels = SIGMAS[:-1] if theirs == "sample_lms" else SIGMAS  # theirs goes to zero by its multistep rule too
    calls: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    found = {}
    for who, sampler in (("ours", ours), ("theirs", peer)):
        drawn = generator(4)
        noise = {"noise_sampler": lambda a, b, g=drawn: torch.randn(5, 2, generator=g, dtype=F64)}
        noise = noise if "noise_sampler" in inspect.signature(peer).parameters else {}
        found[who] = sampler(denoise, x, levels, {"shift": 0.1}, calls[who].append, True, **noise)
    torch.testing.assert_close(found["ours"], found["theirs"], rtol=0, atol=1e-9)
    assert len(calls["ours"]) == len(calls["theirs"]) == len(levels) - 1
    for a, b in zip(calls["ours"], calls["theirs"], strict=True):
        assert a["i"] == b["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-9)


def test_the_arguments_of_a_sampler_are_those_of_k_diffusion() -> None:
    ours = list(inspect.signature(k_diffusion_sampler("heun")).parameters)
    theirs = list(inspect.signature(k_diffusion_sampling().sample_dpmpp_2m_sde).parameters)
    assert ours[:6] == theirs[:6] and set(ours[6:]) <= set(theirs)


def test_a_sampler_draws_from_the_generator_of_torch_as_k_diffusion_does() -> None:
    x, sampler = 20 * torch.ones(4, 2), k_diffusion_sampler("euler-a")
    found = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(sampler(denoise, x, SIGMAS.float(), disable=True))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 0.0, 0.0], [1.0, math.nan, 0.0], [[1.0, 0.0]], [0.5, 1.0, 0.0], [1.0, 1.0, 0.0]]
)
def test_levels_that_are_no_levels_are_refused(sigmas: list[Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        k_diffusion_sampler("ddim")(denoise, torch.ones(2, 2, dtype=F64), torch.tensor(sigmas), disable=True)


def test_levels_may_end_above_zero_and_a_sampler_may_be_interrupted() -> None:
    x = 20 * torch.ones(4, 2, dtype=F64)
    found = k_diffusion_sampler("dpmpp-3m")(denoise, x, SIGMAS[:-1], disable=True)
    sde = EDM(1e-4, 20.0)
    expected = sample(mixture().model(sde), x, "dpmpp-3m", path=Path.from_times(sde, SIGMAS[:-1], "stop"), progress=False)
    torch.testing.assert_close(found, expected.x, rtol=1e-10, atol=1e-10)

    def stop(told: dict[str, Any]) -> None:
        if told["i"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        k_diffusion_sampler("dpmpp-3m")(denoise, x, SIGMAS, callback=stop, disable=True)
    with pytest.raises(TypeError, match="name or a solver object"):
        k_diffusion_sampler(3)  # type: ignore[arg-type]


# Posteriors -----------------------------------------------------------------------------------------------------------

A = torch.tensor([[1.0, 0.4], [0.0, 0.8], [-0.5, 0.3]], dtype=F64)
STD = 0.5
COVARIANCE = torch.linalg.inv(torch.eye(2, dtype=F64) + A.T @ A / STD**2)  # of N(0, I) given y = A theta + N(0, STD^2 I)


class Exact(ScoreModel):
    """The conditional score of the linear-Gaussian problem, its posterior widened by a factor and shifted."""

    def __init__(self, widened: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(None, VP())
        self.covariance, self.shift = widened**2 * COVARIANCE, shift

    @property
    def dtype(self) -> torch.dtype:
        return F64

    def x0(self, x: Tensor, t: Any, observation: Tensor) -> Tensor:
        mean = observation @ A / STD**2 @ COVARIANCE + self.shift
        # The solver may ask at one time, or at one for each sample.
        alpha, sigma = (torch.as_tensor(f(t)).reshape(-1, 1, 1) for f in (self.sde.alpha, self.sde.sigma))
        gain = alpha * self.covariance @ torch.linalg.inv(alpha**2 * self.covariance + sigma**2 * torch.eye(2, dtype=F64))
        return mean + (gain @ (x - alpha[..., 0] * mean)[..., None])[..., 0]


def simulated(n: int) -> tuple[Tensor, Tensor]:
    theta = torch.randn(n, 2, generator=generator(1), dtype=F64)
    return theta, theta @ A.T + STD * torch.randn(n, 3, generator=generator(2), dtype=F64)


def test_an_exact_posterior_is_drawn_and_has_its_density() -> None:
    y = torch.tensor([0.4, -1.0, 0.7], dtype=F64)
    posterior, mean = EstimatedPosterior(Exact(), 2).given(y), y @ A / STD**2 @ COVARIANCE
    theta = posterior.sample((2000,), steps=40, path="lam")
    whitened = (theta - mean) @ torch.linalg.inv(torch.linalg.cholesky(COVARIANCE)).T
    for column in whitened.T:
        assert kstest(column.numpy(), "norm").pvalue > 1e-3
    truth = torch.distributions.MultivariateNormal(mean, COVARIANCE).log_prob(theta[:50])
    torch.testing.assert_close(posterior.log_prob(theta[:50]), truth, rtol=0, atol=0.05)


def test_center_and_scale_are_an_affine_map_of_the_parameters() -> None:
    y, center, scale = torch.zeros(3, dtype=F64), torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([3.0, 0.5], dtype=F64)
    plain, mapped = EstimatedPosterior(Exact(), 2, y), EstimatedPosterior(Exact(), 2, y, center, scale)
    theta = plain.sample((4, 3))
    assert theta.shape == (4, 3, 2)
    torch.testing.assert_close(mapped.sample((4, 3)), center + scale * theta)
    theta = theta.flatten(0, 1)
    torch.testing.assert_close(mapped.log_prob(center + scale * theta), plain.log_prob(theta) - scale.log().sum())


@pytest.mark.parametrize(
    ("widened", "shift", "calibrated"), [(1.0, 0.0, True), (1.5, 0.0, False), (0.7, 0.0, False), (1.0, 0.3, False)]
)
def test_ranks_are_uniform_for_the_posterior_alone(widened: float, shift: float, calibrated: bool) -> None:
    theta, y = simulated(600)
    found = calibration(EstimatedPosterior(Exact(widened, shift), 2), theta, y, 59, steps=12)
    assert found.ranks.shape == (600, 2) and int(found.ranks.min()) >= 0 and int(found.ranks.max()) <= 59
    assert int(found.counts().sum()) == 1200
    p = found.p_values()
    assert bool((p > 0.01).all()) if calibrated else bool((p < 1e-4).all())
    assert len(found.figure(["one", "two"]).axes) == 2


def test_ranks_do_not_depend_on_the_number_of_samples_drawn_at_once() -> None:
    theta, y = simulated(40)
    one, other = (calibration(EstimatedPosterior(Exact(), 2), theta, y, 19, batch_size=n, steps=8) for n in (760, 100_000))
    assert torch.equal(one.ranks, other.ranks)


@pytest.mark.slow
def test_a_fitted_posterior_is_that_of_the_linear_gaussian_problem() -> None:
    theta, y = simulated(20_000)
    posterior = fit_posterior(theta, y, steps=3000, batch_size=512, progress=False)
    held_out = simulated(20_400)[0][20_000:], simulated(20_400)[1][20_000:]
    for seen in y[:5]:
        drawn, mean = posterior.sample((4000,), observation=seen.float()).double(), seen @ A / STD**2 @ COVARIANCE
        std = COVARIANCE.diagonal().sqrt()
        assert bool(((drawn.mean(0) - mean).abs() < 0.15 * std).all())
        assert bool(((drawn.std(0) / std - 1).abs() < 0.15).all())
    assert bool((calibration(posterior, *held_out, draws=59).p_values() > 1e-3).all())


def test_what_a_posterior_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(ValueError, match="got no observation"):
        EstimatedPosterior(Exact(), 2).sample((3,))
    with pytest.raises(TypeError, match="expected a ScoreModel"):
        EstimatedPosterior(nn.Linear(2, 2), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one n of at least 2"):
        fit_posterior(torch.zeros(3, 2), torch.zeros(4, 2), steps=1)
    with pytest.raises(ValueError, match="and n of them"):
        calibration(EstimatedPosterior(Exact(), 2), torch.zeros(3, 2), torch.zeros(4, 3))


def test_the_room_needs_no_other_package_until_a_scheduler_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scoresde.interop.scheduler", None)
    with pytest.raises(ModuleNotFoundError):
        interop.diffusers_scheduler("heun")
