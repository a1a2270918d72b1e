"""Students against exact truths: composed steps, consistency functions and flow maps of Gaussians, straight pairs."""

from __future__ import annotations

import copy
import math
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from support import SDES, covering, generator, mixture, mostly_slow
from torch import Tensor, nn

import scoresde
from scoresde import EDM, VP, RectifiedFlow, ScoreModel, compare, guidance, models, sample, solvers
from scoresde.problems import GaussianMixture
from scoresde.score import Transformed, Wrapper
from scoresde.sde import GaussianSDE
from scoresde.solvers import Path, make_path
from scoresde.training import CheckpointError, Files, Method, Trainer, load, save
from scoresde.tuning.students import Consistency, GridTimes, Progressive, Reflow, Shortcut, pairs
from scoresde.tuning.students.distillation import jump, marginal

F64 = torch.float64
MEAN, STD = 0.7, 0.4


def gaussian(sde: GaussianSDE) -> ScoreModel:
    return GaussianMixture(
        torch.full((1, 2), MEAN, dtype=F64), torch.tensor([STD**2], dtype=F64), torch.ones(1, dtype=F64)
    ).model(sde)


def states(sde: GaussianSDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Data of the Gaussian, noise, and both together at the times ``t``."""
    x0, eps = (torch.randn(len(t), 2, generator=generator(i), dtype=F64) for i in (0, 1))
    x0 = MEAN + STD * x0
    return x0, eps, sde.perturb(x0, t, eps)


class ExactJumps(ScoreModel):
    """The flow map of N(MEAN, STD^2): x_s = alpha_s MEAN + (x - alpha_t MEAN) spread_s / spread_t."""

    class Takes(nn.Module):
        jumps = True

    def __init__(self, sde: GaussianSDE) -> None:
        super().__init__(self.Takes(), sde, "v", time=lambda t: t)

    def _map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (a_t, s_t), (a_s, s_s) = ([c[:, None] for c in marginal(self.sde, time)] for time in (t, s))
        spread = ((a_s * STD) ** 2 + s_s**2) / ((a_t * STD) ** 2 + s_t**2)
        return a_s * MEAN + (x - a_t * MEAN) * spread.sqrt()

    def x0(self, x: Tensor, t: Any, to: Tensor | None = None, **conditions: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=F64).expand(len(x))
        if to is None or bool((to == t).all()):
            return gaussian(self.sde).x0(x, t)
        (a_t, s_t), (a_s, s_s) = ([c[:, None] for c in marginal(self.sde, time)] for time in (t, to.to(F64)))
        return (self._map(x, t, to.to(F64)) - s_s / s_t * x) / (a_s - a_t * s_s / s_t)


class ExactConsistency(ExactJumps):
    """The jump to the data from everywhere, as a model that is told no ends."""

    jumps = False

    def __init__(self, sde: GaussianSDE, wrong: float = 0.0) -> None:
        super().__init__(sde)
        self.wrong = wrong

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=F64).expand(len(x))
        return self._map(x, t, torch.zeros_like(t)) + self.wrong * torch.sin(self.sde.lam(t))[:, None]


# The solver -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
def test_the_solver_of_students_is_ddim_on_other_models(name: str) -> None:
    model = mixture().model(SDES[name])
    path = make_path(model.sde, "straight", 5)
    x = model.sde.perturb(torch.zeros(6, 2, dtype=F64), path.times[0], torch.randn(6, 2, generator=generator(), dtype=F64))
    both = [sample(model, x, solver, path=path, progress=False) for solver in ("student", "ddim")]
    assert both[0].evaluations == both[1].evaluations == 5
    torch.testing.assert_close(both[0].x, both[1].x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "steps"), covering(SDES, [1, 2, 4]))
def test_a_student_that_jumps_exactly_is_exact_in_any_number_of_steps(name: str, steps: int) -> None:
    model, sde = ExactJumps(SDES[name]), SDES[name]
    start = torch.full((6,), sde.span[1], dtype=F64)
    x = states(sde, start)[2]
    expected = model._map(x, start, torch.zeros(6, dtype=F64))
    for driver in ("fast", "readable", "differentiable"):
        found = sample(model, x, "student", steps, "straight", driver=driver, progress=False)
        assert found.evaluations == steps
        torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)
    for wrapped in (Wrapper(model), Transformed(model, lambda m, t: m), guidance.ClassifierFree(model, 1.0, {"label": 0})):
        found = sample(wrapped, x, "student", steps, "straight", conditions={"label": 1}, progress=False)
        torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(sample(model, x, "ddim", steps, "straight", progress=False).x, expected, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("kind", [ExactJumps, ExactConsistency])
def test_noise_that_is_drawn_anew_keeps_the_law_of_exact_jumps(kind: Any, gamma: float) -> None:
    if kind is ExactConsistency and gamma < 1:
        return  # it jumps to the data alone
    model = kind(VP())
    x = states(VP(), torch.full((4000,), 1.0, dtype=F64))[2]
    found = sample(model, x, f"student: gamma={gamma}", 3, "straight", progress=False)
    assert found.evaluations == 3
    for column in ((found.x - MEAN) / STD).T:
        assert kstest(column.numpy(), "norm").pvalue > 1e-3


def test_jumps_are_refused_where_they_would_not_be_told_their_ends() -> None:
    model = ExactJumps(VP())
    x = torch.ones(2, 2, dtype=F64)
    with pytest.raises(ValueError, match="take driver='fast'"):
        sample(model, x, "student", 3, driver="parallel", progress=False)
    times = torch.tensor([1.0, 0.5, 0.1], dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="detach"):
        sample(model, x, "student", path=times, driver="differentiable", progress=False)
    for gamma in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="from 0"):
            solvers.student(gamma)
    with pytest.raises(ValueError, match="jumps=True"):
        models.MLP(2)(torch.ones(1, 2), torch.ones(1), to=torch.ones(1))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_the_straight_path_is_even_in_the_time_of_rectified_flow_down_to_the_data(name: str, steps: int) -> None:
    sde = SDES[name]
    path = make_path(sde, "straight", steps)
    u = torch.tensor([p.sigma / (p.alpha + p.sigma) for p in path.points], dtype=F64)
    torch.testing.assert_close(u, u[0] * (1 - torch.arange(steps + 1, dtype=F64) / steps), rtol=1e-9, atol=1e-12)


# Progressive distillation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_target_of_progressive_distillation_is_two_steps_of_ddim(name: str, steps: int) -> None:
    teacher = mixture().model(SDES[name])
    objective = Progressive(steps=steps, teacher=teacher)
    whole, fine = (make_path(teacher.sde, "straight", n) for n in (steps, 2 * steps))
    for i in range(steps):
        t = torch.full((6,), whole.times[i], dtype=F64)
        x = teacher.sde.perturb(
            mixture().sample(6, generator(2), dtype=F64), t, torch.randn(6, 2, generator=generator(), dtype=F64)
        )
        two = sample(teacher, x, "ddim", path=Path(teacher.sde, fine.points[2 * i : 2 * i + 3]), progress=False).x
        start, end = (tuple(torch.full((6,), c, dtype=F64) for c in (p.alpha, p.sigma)) for p in whole.points[i : i + 2])
        torch.testing.assert_close(jump(x, objective.target(x, t), start, end), two, rtol=1e-9, atol=1e-9)
        one = sample(
            Fixed(objective.target(x, t), teacher.sde),
            x,
            "student",
            path=Path(teacher.sde, whole.points[i : i + 2]),
            progress=False,
        )
        torch.testing.assert_close(one.x, two, rtol=1e-9, atol=1e-9)


class Fixed(ScoreModel):
    """A data prediction that is given."""

    def __init__(self, m: Tensor, sde: GaussianSDE) -> None:
        super().__init__(None, sde, "x0")
        self.m = m

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return self.m


def test_progressive_distillation_trains_at_the_starts_of_its_steps_alone() -> None:
    times = GridTimes(4)
    t, weight = times.at(torch.rand(1000, generator=generator(), dtype=F64), VP())
    assert set(t.tolist()) == set(make_path(VP(), "straight", 4).times[:-1]) and bool((weight == 1).all())
    with pytest.raises(ValueError, match="expected the model to distill"):
        Progressive(steps=4)
    with pytest.raises(ValueError, match="expected fewer steps"):
        Progressive(steps=2000, teacher=gaussian(EDM(0.01, 20.0))).target(torch.ones(1, 2, dtype=F64), torch.ones(1))


# Consistency ----------------------------------------------------------------------------------------------------------

SPREAD = {"VP": VP(), "EDM": EDM(), "RectifiedFlow": RectifiedFlow(t_max=0.999)}


@pytest.mark.parametrize("name", SPREAD)
def test_the_consistency_function_is_where_the_loss_is_least(name: str) -> None:
    """Its loss is that of the teacher's steps: a local error of third order, squared."""
    sde = SPREAD[name]
    losses = []
    for n in (40, 80, 160):
        grid = torch.tensor(make_path(sde, "straight", n).times[:-1], dtype=F64)
        x0, eps, _ = states(sde, grid)
        objective = Consistency(steps=n, teacher=gaussian(sde))
        losses.append(objective.at(ExactConsistency(sde), x0, grid, eps).mean())
        assert losses[-1] < 0.1 * objective.at(ExactConsistency(sde, wrong=0.1), x0, grid, eps).mean()
    assert losses[1] < 0.2 * losses[0] and losses[2] < 0.2 * losses[1]


def test_the_exact_consistency_function_is_that_of_the_issue() -> None:
    """mu + (x - mu) sqrt((s^2 + e^2) / (s^2 + t^2)) under VE, for small e."""
    x, t = torch.randn(5, 2, generator=generator(), dtype=F64), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0], dtype=F64)
    expected = MEAN + (x - MEAN) * (STD**2 / (STD**2 + t**2)).sqrt()[:, None]
    torch.testing.assert_close(ExactConsistency(EDM()).x0(x, t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_distilled_consistency_function_of_a_gaussian_is_within_one_percent() -> None:
    sde = EDM(0.002, 80.0)
    student = ScoreModel(models.MLP(2, hidden=(64, 64), time_scale=2.0, time_features=8), sde, "edm", sigma_data=STD)
    data = MEAN + STD * torch.randn(4096, 2, generator=generator())
    method = Method(batch_size=1024, lr=3e-3, schedule="cosine-9000", ema=0.999)
    trainer = Trainer(student, data, Consistency(steps=60, teacher=gaussian(sde)), method=method, progress=False)
    trainer.run(9000)
    for t in (0.01, 0.1, 0.5, 2.0, 10.0, 80.0):
        time = torch.full((512,), t, dtype=F64)
        x = states(sde, time)[2]
        with torch.no_grad():
            found = trainer.sampled.x0(x.float(), time).double()
        error = (found - ExactConsistency(sde).x0(x, time)).square().mean().sqrt()
        assert float(error) < 0.01 * math.hypot(MEAN, STD)


def test_consistency_training_compares_the_same_data_with_the_same_noise() -> None:
    sde, grid = VP(), make_path(VP(), "straight", 5).times
    student = ExactConsistency(sde, wrong=0.3)
    t, s = (torch.full((6,), time, dtype=F64) for time in grid[1:3])
    x0, eps, x = states(sde, t)
    difference = student.x0(x, t) - student.x0(sde.perturb(x0, s, eps), s)
    weight = scoresde.objectives.WEIGHTINGS["edm"].function(sde, t, 0.5)
    torch.testing.assert_close(Consistency(steps=5).at(student, x0, t, eps), weight * difference.square().mean(1))
    last = torch.full((6,), grid[-2], dtype=F64)
    x0, eps, x = states(sde, last)
    weight = scoresde.objectives.WEIGHTINGS["edm"].function(sde, last, 0.5)
    torch.testing.assert_close(
        Consistency(steps=5).at(student, x0, last, eps), weight * (student.x0(x, last) - x0).square().mean(1)
    )


# Reflow ---------------------------------------------------------------------------------------------------------------


class Straight(ScoreModel):
    """The velocity eps - x_0 of the pairs x_0 = MEAN + STD eps on their straight lines."""

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=F64).reshape(-1, 1)
        return MEAN + STD * (x - (1 - t) * MEAN) / ((1 - t) * STD + t)


@pytest.mark.parametrize("name", mostly_slow(["VP", "VE", "EDM", "RectifiedFlow"], ["VP", "EDM"]))
def test_reflow_of_a_gaussian_is_exact_in_one_step(name: str) -> None:
    teacher = gaussian(SDES[name])
    solver = "velocity-3" if name == "RectifiedFlow" else "dpmpp-3m"
    x0, noise = pairs(teacher, (64, 2), solver, 400, dtype=F64, end="flow")
    std = torch.tensor(STD, dtype=F64)
    if name in (
        "VE",
        "EDM",
    ):  # whose prior misses the data's mean and variance: the pairs are those of the flow all the same
        sigma = float(teacher.sde.sigma(teacher.sde.span[1]))
        exact = MEAN + (noise * sigma - MEAN) * STD / math.hypot(STD, sigma)
        torch.testing.assert_close(x0, exact, rtol=0, atol=2e-3)
        return
    torch.testing.assert_close(x0, MEAN + std * noise, rtol=0, atol=5e-3)
    student = Straight(None, RectifiedFlow(), "velocity")
    x0 = MEAN + STD * noise
    t = torch.rand(64, generator=generator(), dtype=F64)
    assert float(Reflow().at(student, x0, t, torch.zeros_like(noise), noise=noise).max()) < 1e-20
    for solver in ("student", "velocity-1", "ddim"):
        torch.testing.assert_close(sample(student, noise, solver, 1, progress=False).x, x0, rtol=0, atol=1e-12)


def test_pairs_need_a_function_of_the_start_and_reflow_needs_pairs() -> None:
    teacher = gaussian(VP())
    with pytest.raises(ValueError, match="deterministic"):
        pairs(teacher, (4, 2), "euler-a")
    for noise in (None, torch.ones(3, 2)):
        with pytest.raises(ValueError, match=r"x0, noise = pairs\(\.\.\)"):
            Reflow().at(Straight(None, RectifiedFlow()), torch.ones(4, 2), torch.ones(4), torch.ones(4, 2), noise=noise)
    one, other = (pairs(teacher, (n, 2), steps=10, seed=3) for n in (4, 6))
    assert torch.equal(one[0], other[0][:4]) and torch.equal(one[1], other[1][:4])


# Flow maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
def test_the_flow_map_is_its_own_target(name: str) -> None:
    sde, model = SDES[name], ExactJumps(SDES[name])
    t = torch.linspace(0.1, 0.95, 8, dtype=F64) * sde.span[1]
    _, _, x = states(sde, t)
    for part in (0.0, 0.3, 0.9):
        s = part * t
        torch.testing.assert_close(Shortcut().target(model, x, t, s), model.x0(x, t, to=s), rtol=1e-7, atol=1e-7)


def test_a_share_of_the_samples_learns_long_jumps_and_the_rest_the_data() -> None:
    sde, model = VP(), ExactJumps(VP())
    objective = Shortcut(share=0.4)
    drawn = objective.draws(torch.zeros(10_000, 2), generator())
    assert abs(float(drawn["long"].double().mean()) - 0.4) < 0.02 and bool(
        ((drawn["ends"] >= 0) & (drawn["ends"] < 1)).all()
    )
    t = torch.linspace(0.1, 0.9, 8, dtype=F64)
    x0, eps, _ = states(sde, t)
    long = torch.tensor([True, False] * 4)
    loss = objective.at(model, x0, t, eps, long=long, ends=torch.full((8,), 0.5, dtype=F64))
    assert float(loss[long].max()) < 1e-12  # an exact flow map satisfies the composition
    torch.testing.assert_close(loss[~long], scoresde.objectives.DSM("velocity").at(model, x0, t, eps)[~long])
    taught = Shortcut(share=0.4, teacher=gaussian(sde)).at(
        model, x0, t, eps, long=long, ends=torch.full((8,), 0.5, dtype=F64)
    )
    assert float(taught.max()) < 1e-12
    with pytest.raises(ValueError, match="jumps=True"):
        objective.at(gaussian(sde), x0, t, eps)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Shortcut(share=share)


# Training -------------------------------------------------------------------------------------------------------------


def teacher_on(sde: GaussianSDE) -> ScoreModel:
    return ScoreModel(models.MLP(2, hidden=(16,)), sde, "v")


def objectives(teacher: ScoreModel) -> dict[str, Any]:
    return {
        "progressive": Progressive(steps=2, teacher=teacher),
        "distillation": Consistency(steps=8, teacher=teacher),
        "training": Consistency(steps=8),
        "shortcut": Shortcut(),
        "reflow": Reflow(),
    }


@pytest.mark.parametrize("kind", mostly_slow(objectives(teacher_on(VP())), ["progressive", "shortcut", "reflow"]))
def test_a_student_is_trained_saved_resumed_loaded_and_sampled_like_every_model(kind: str, tmp_path: FilePath) -> None:
    torch.manual_seed(0)
    teacher = teacher_on(VP())
    x0, noise = pairs(teacher, (64, 2), steps=5)
    conditions = {"noise": noise} if kind == "reflow" else {}
    files = Files(tmp_path / "model.safetensors", log=False)

    def trained(steps: int, taught: ScoreModel = teacher, where: Files | None = files) -> Trainer:
        torch.manual_seed(1)
        student = ScoreModel(models.MLP(2, hidden=(16,), jumps=kind == "shortcut"), VP(), "v")
        method = Method(batch_size=16)
        trainer = Trainer(
            student, x0, objectives(taught)[kind], method=method, files=where, conditions=conditions, progress=False
        )
        trainer.run(steps)
        return trainer

    trained(3)
    resumed, whole = trained(6), trained(6, where=Files(None, log=False))
    for a, b in zip(resumed.sampled.state_dict().values(), whole.sampled.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    solver = "student: gamma=1.0" if kind[0] == "t" or "con" in kind or kind == "distillation" else "student"
    loaded = load(tmp_path / "model.safetensors")
    for model in (loaded, resumed.sampled):
        found = sample(model, (5, 2), solver, 2, "straight", progress=False)
        assert found.evaluations == 2 and bool(torch.isfinite(found.x).all())
    assert torch.equal(found.x, sample(loaded, (5, 2), solver, 2, "straight", progress=False).x)
    save(loaded, tmp_path / "again.safetensors")
    assert torch.equal(load(tmp_path / "again.safetensors").net.output.weight, loaded.net.output.weight)
    if kind in ("progressive", "distillation"):
        other = copy.deepcopy(teacher)
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        with pytest.raises(CheckpointError, match="another training"):
            trained(7, other)


def test_a_teacher_is_a_score_model_on_the_same_sde() -> None:
    with pytest.raises(TypeError, match="expected a ScoreModel"):
        Consistency(teacher=nn.Linear(2, 2))  # type: ignore[arg-type]
    student = ScoreModel(models.MLP(2, hidden=(8,), jumps=True), RectifiedFlow(), "v")
    args = torch.ones(3, 2), torch.full((3,), 0.5), torch.ones(3, 2)
    for objective in (
        Progressive(steps=2, teacher=gaussian(VP())),
        Consistency(teacher=gaussian(VP())),
        Shortcut(teacher=gaussian(VP())),
    ):
        with pytest.raises(ValueError, match="expected one SDE"):
            objective.at(student, *args)
    with pytest.raises(ValueError, match="predicts 'x0'"):
        Consistency().at(ScoreModel(models.MLP(2, hidden=(8,)), VP(), "x0"), *args)
    for steps in (0, 1, 2.5):
        with pytest.raises((ValueError, TypeError)):
            Consistency(steps=steps)  # type: ignore[arg-type]


def test_students_and_teacher_are_compared_at_few_evaluations() -> None:
    exact, teacher = ExactJumps(VP()), gaussian(VP())
    truth = MEAN + STD * torch.randn(128, 2, generator=generator(5), dtype=F64)
    found = compare(
        {"teacher": teacher, "student": exact},
        ["student"],
        [1, 2, 4],
        "straight",
        metrics=["sliced-wasserstein"],
        n=128,
        shape=(2,),
        truth=truth,
        end="denoise",
        progress=False,
    )
    values = {(r.problem, r.evaluations): r.value for r in found.records}
    assert set(values) == {(who, n) for who in ("teacher", "student") for n in (1, 2, 4)}
    assert values["student", 1] < 0.5 * values["teacher", 1]  # one step of the teacher is the mean of the data
    assert values["student", 2] < values["teacher", 2]
