"""Tuned solvers: the law that their rows keep, what they refuse, and how the numbers are learned."""

import copy
import importlib
import json
import math
import os
import pickle
import signal

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde import VE, VP, ScoreModel, problems, sample, solvers, tuning
from scoresde.base.identity import digest
from scoresde.models import MLP
from scoresde.score import Conditions, Wrapper
from scoresde.sde import SDES, Chain
from scoresde.solvers import Tuned, TunedSteps, Velocity, make_path, multistep, readable, stencil_rows
from scoresde.solvers.fitted import model_identity
from scoresde.tuning.families import BASES, Family
from scoresde.tuning.least_squares import LeastSquares, minimize

NOTHING = Conditions.of(None, 1)


def on(name: str) -> scoresde.GaussianSDE:
    made = SDES[name]()
    return made.sde() if isinstance(made, Chain) else made


def start_of(sde: scoresde.GaussianSDE) -> float:
    """The end of the SDE's time or, where alpha = 0 there, a time before it."""
    return sde.span[1] if math.isfinite(float(sde.lam(sde.span[1]))) else float(sde.time(-5.0))


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers_of(family: Family, size: float = 0.3, seed: int = 0) -> Tensor:
    return size * drawn(1, family.size, seed)[0]


class Constant(ScoreModel):
    """A model whose data prediction is one point."""

    def __init__(self, point: float, sde: scoresde.GaussianSDE) -> None:
        super().__init__(None, sde, "v")
        self.point = point

    def x0(self, x: Tensor, t: object, **conditions: object) -> Tensor:
        return torch.full_like(x, self.point)


# The law --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_rows_are_exact_for_a_constant_prediction_whatever_the_numbers(name: str, n: int) -> None:
    sde = on(name)
    for t_max in {start_of(sde), sde.span[1]}:
        family = Family(sde, n, t_max, "velocity-3")
        solver = Tuned((family.solver(numbers_of(family)),), any_model=True)
        x = float(sde.sigma(t_max)) * drawn(5, 2)
        states: list[Tensor] = []
        given = {"t_max": t_max, "progress": False, "callback": lambda state, into=states: into.append(state)}
        end = sample(Constant(0.7, sde), x, solver, n, **given).x
        torch.testing.assert_close(end, torch.full_like(x, 0.7), rtol=0, atol=1e-9)
        path = solver.followed(make_path(sde, "lam", n, t_max=t_max))
        noise = (x - float(sde.alpha(t_max)) * 0.7) / float(sde.sigma(t_max))
        for state, point in zip(states, path.points[1:], strict=True):  # the exact flow at every point on the way
            expected = point.alpha * 0.7 + point.sigma * noise
            torch.testing.assert_close(state.x, expected, rtol=1e-9, atol=1e-9 * point.sigma + 1e-12)


@pytest.mark.parametrize("base", ["velocity-2", "velocity-3", "velocity-4"])
def test_without_numbers_the_solver_is_the_multistep_method(base: str) -> None:
    model, x = problems.ring().model(VP()), drawn(6, 2)
    family = Family(VP(), 6, 1.0, base)
    one = family.solver(family.origin)
    assert torch.allclose(torch.diff(VP().lam(torch.tensor(one.times))), torch.diff(VP().lam(torch.tensor(one.times)))[0])
    order = int(base[-1])
    times = [*one.times, VP().span[0]]
    rows = stencil_rows(Velocity(), multistep(order), solvers.Path.from_times(VP(), times, "stop"))
    theirs = [state.x for state in readable(rows, model, x, None)]  # type: ignore[arg-type]
    ours: list[Tensor] = []
    sample(model, x, Tuned((one,), any_model=True), 6, progress=False, callback=lambda state: ours.append(state.x))
    for a, b in zip(ours[:-1], theirs, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_the_methods_converge_on_the_way_to_sigma_zero(base: str) -> None:
    model, x = problems.gaussian().model(VP()), drawn(16, 2)
    errors = []
    for n in (16, 32):
        family = Family(VP(), n, 1.0, base)
        end = family.ends(family.origin[None], model, x, NOTHING)[0]
        exact = scoresde.comparison.flow_end(model, x, make_path(VP(), end="flow"), to="data", tolerance=1e-8).x
        errors.append(float((end - exact).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0] < 0.05


# Many solvers at once -------------------------------------------------------------------------------------------------


def test_copies_are_the_solvers_one_by_one_and_share_only_what_is_equal() -> None:
    model, x = problems.ring().model(VP()), drawn(4, 2)
    family = Family(VP(), 5, 1.0, "velocity-3")
    at = numbers_of(family)
    vectors = at.repeat(family.size + 1, 1)
    vectors[range(1, family.size + 1), range(family.size)] += 0.01
    together = family.ends(vectors, model, x, NOTHING, apart=True)
    torch.testing.assert_close(together, family.ends(vectors, model, x, NOTHING), rtol=0, atol=1e-12)
    one_by_one = torch.stack([family.ends(v[None], model, x, NOTHING)[0] for v in vectors])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-12)
    assert bool(((together[1:] - together[0]).flatten(1).abs().amax(1) > 1e-9).all())  # every number counts


@pytest.mark.parametrize(
    "driver", ["fast", "readable", "differentiable", solvers.Compiled("eager"), solvers.Parallel(window=4)]
)
def test_the_solver_is_the_one_that_was_fitted_on_every_driver(driver: object) -> None:
    model, x = problems.ring().model(VP()), drawn(4, 2)
    family = Family(VP(), 5, 1.0, "velocity-3")
    at = numbers_of(family, 0.1)
    end = sample(model, x, Tuned((family.solver(at),), any_model=True), 5, driver=driver, progress=False).x  # type: ignore[arg-type]
    torch.testing.assert_close(end, family.ends(at[None], model, x, NOTHING)[0], rtol=1e-7, atol=1e-7)


def test_gradients_flow_through_a_tuned_solver() -> None:
    model, x = problems.ring().model(VP()), drawn(2, 2).requires_grad_()
    family = Family(VP(), 4, 1.0, "velocity-3")
    solver = Tuned((family.solver(numbers_of(family, 0.1)),), any_model=True)
    sample(model, x, solver, 4, driver="differentiable", progress=False).x.sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())


# Least squares --------------------------------------------------------------------------------------------------------


def test_a_linear_problem_is_solved_as_in_closed_form() -> None:
    matrix, right = drawn(60, 4), drawn(60, 1, 1)

    def residuals(vectors: Tensor, samples: slice, apart: bool) -> Tensor:
        return (vectors @ matrix[samples].T)[..., None] - right[samples]

    *_, last = minimize(
        LeastSquares(residuals, 60, chunk=50), torch.zeros(4).double(), 4, penalty=0.0, robust=math.inf, tolerance=1e-9
    )
    torch.testing.assert_close(last.numbers, torch.linalg.lstsq(matrix, right).solution[:, 0], rtol=0, atol=1e-6)
    first_two = [
        p.numbers for p in minimize(LeastSquares(residuals, 60), torch.zeros(4).double(), 2, penalty=0.0, robust=math.inf)
    ]
    assert all(bool((numbers[2:] == 0).all()) for numbers in first_two)  # what is not free stays
    assert bool((drawn(1, 4)[0] != last.numbers).all())


def test_a_robust_fit_is_not_moved_by_a_few_wild_samples() -> None:
    matrix, truth = drawn(200, 3), torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    right = matrix @ truth + 0.01 * drawn(200, 1, 1)[:, 0]
    right[:5] += 100.0

    def residuals(vectors: Tensor, samples: slice, apart: bool) -> Tensor:
        return ((vectors @ matrix[samples].T) - right[samples])[..., None]

    def fitted(robust: float) -> float:
        *_, last = minimize(
            LeastSquares(residuals, 200), torch.zeros(3).double(), 3, penalty=0.0, robust=robust, most=9.0, tolerance=1e-6
        )
        return float((last.numbers - truth).abs().max())

    assert fitted(10.0) < 0.01 < fitted(math.inf)


def test_the_objective_falls_at_every_step_and_a_penalty_keeps_numbers_small() -> None:
    def residuals(vectors: Tensor, samples: slice, apart: bool) -> Tensor:  # Rosenbrock's
        a, b = vectors[:, :1], vectors[:, 1:]
        return torch.stack([10 * (b - a**2), 1 - a], -1).expand(-1, 4, -1)[:, samples]

    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = list(minimize(LeastSquares(residuals, 4), start, 2, penalty=0.0, robust=math.inf, tolerance=1e-12))
    errors = [float(p.errors.mean()) for p in found]
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(found[-1].numbers, torch.ones(2).double(), rtol=0, atol=1e-3)
    *_, kept = minimize(LeastSquares(residuals, 4), start, 2, penalty=10.0, robust=math.inf)
    assert float(kept.numbers.norm()) < float(found[-1].numbers.norm())


# Tuning ---------------------------------------------------------------------------------------------------------------

QUICK = {"starts": 96, "iterations": 12, "tolerance": 1e-6, "progress": False}


@pytest.fixture(scope="module")
def ring() -> tuple[ScoreModel, Tuned]:
    model = problems.ring().model(VP())
    return model, tuning.tune(model, [2, 5], **QUICK)  # type: ignore[arg-type]


def test_a_tuned_solver_is_far_ahead_of_the_named_ones_on_starts_it_never_saw(ring: tuple[ScoreModel, Tuned]) -> None:
    model, solver = ring
    assert solver.step_counts == (2, 5) and solver.description.order == 1
    five = solver.steps[1]
    assert five.held_out < 0.33 * five.untuned and five.gap == five.held_out / five.training
    found = scoresde.compare(
        model.problem, {"tuned": solver, "velocity-3": "velocity-3"}, [5, 7], metrics=["rms"], n=64, progress=False
    )
    tuned, named = (found.select(solver=name, budget=5)[0].value for name in ("tuned", "velocity-3"))
    assert tuned < 0.33 * named
    assert found.select(solver="tuned", budget=7)[0].evaluations == 5  # the largest number within the budget


def test_the_same_seed_gives_the_same_solver(ring: tuple[ScoreModel, Tuned]) -> None:
    model, solver = ring
    assert tuning.tune(model, 2, **QUICK).steps[0] == solver.steps[0]  # type: ignore[arg-type]
    assert tuning.tune(model, 2, seed=1, **QUICK).steps[0] != solver.steps[0]  # type: ignore[arg-type]


def test_a_solver_is_written_read_pickled_and_chosen_by_the_name_of_its_file(
    ring: tuple[ScoreModel, Tuned], tmp_path
) -> None:
    model, solver = ring
    file = tmp_path / "mine.json"
    solver.write(file)
    for back in (Tuned.read(file), solvers.get(str(file)), pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)):
        assert back == solver and back.steps == solver.steps and digest(back) == digest(solver)
    x = drawn(3, 2)
    ends = [sample(model, x, s, 5, progress=False) for s in (solver, str(file), f"{file}: any_model=true")]
    assert all(torch.equal(end.x, ends[0].x) for end in ends)
    assert ends[0].evaluations == 5 and ends[0].times == (*solver.steps[1].times, 0.0) and ends[0].solver == "tuned"
    found = scoresde.compare("ring", [str(file)], [5], metrics=["rms"], n=8, progress=False)
    assert found.records[0].solver == str(file)
    for name, text in {"no": "{", "other": "[]", "old": json.dumps({**solver.to_json(), "version": 0})}.items():
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(ValueError, match=r"tuned solver"):
            solvers.get(str(tmp_path / f"{name}.json"))
    with pytest.raises(ValueError, match=r"cannot read the tuned solver"):
        solvers.get(str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match=r"ends in \.json"):
        solver.write(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="any_model=true"):
        solvers.get(f"{file}: order=2")


def test_another_model_sde_start_or_number_of_steps_is_refused(ring: tuple[ScoreModel, Tuned]) -> None:
    model, solver = ring

    class Doubled(Wrapper):
        def x0(self, x: Tensor, t: object, **conditions: object) -> Tensor:
            return 2 * self.model.x0(x, t, **conditions)  # type: ignore[arg-type]

    for other in (problems.grid().model(VP()), problems.ring(7).model(VP()), Doubled(model)):
        with pytest.raises(ValueError, match="not the model for which"):
            sample(other, (2, 2), solver, 5, progress=False)
        sample(other, (2, 2), Tuned(solver.steps, any_model=True), 5, progress=False)
    with pytest.raises(ValueError, match="not the model for which"):
        sample(model, (2, 2), solver, 5, transform=lambda m, t: m.clamp(-1, 1), progress=False)
    anything = Tuned(solver.steps, any_model=True)
    for sde in (VE(), VP(beta_max=19.0)):
        with pytest.raises(ValueError, match="marginals differ"):
            sample(problems.ring().model(sde), (2, 2), anything, 5, progress=False)
    with pytest.raises(ValueError, match="expected steps=2, 5"):
        sample(model, (2, 2), solver, 6, progress=False)
    with pytest.raises(ValueError, match=r"starts at t=0\.5"):
        sample(model, drawn(2, 2), solver, 5, t_max=0.5, progress=False)
    with pytest.raises(ValueError, match="stops before sigma = 0"):
        sample(model, (2, 2), solver, 5, end="stop", progress=False)


def test_numbers_that_break_the_law_are_refused() -> None:
    one = Family(VP(), 2, 1.0, "velocity-2").solver(torch.zeros(2).double())
    logs = one.log_alpha, one.log_sigma
    for times, mixes in (
        (one.times, ((1.0,), (1.5, -0.4))),
        (one.times, ((1.0,), (1.0,))),
        (one.times[::-1], one.mixes),
        (one.times, ((1.0,), (math.inf, -math.inf))),
        (one.times[:1], one.mixes),
        ((), ()),
    ):
        with pytest.raises(ValueError, match=r"^got .*; expected"):
            TunedSteps(times, *logs, mixes)
    for steps in ((), (one, one)):
        with pytest.raises(ValueError, match="learned numbers for"):
            Tuned(steps)


def test_a_network_is_known_in_every_precision_and_refused_when_it_changed(tmp_path) -> None:
    torch.manual_seed(0)
    model = ScoreModel(MLP(2, hidden=(8,)), VP(), "v")
    solver = tuning.tune(model, 2, shape=(2,), **QUICK)  # type: ignore[arg-type]
    assert model_identity(model) == model_identity(copy.deepcopy(model).double()) == solver.model
    assert sample(model, (2, 2), solver, 2, progress=False).x.dtype == torch.float32
    with pytest.raises(ValueError, match="carries no tuned solver"):
        sample(model, (2, 2), "tuned", 2, progress=False)
    scoresde.save(model, tmp_path / "model.safetensors", event=(2,))
    scoresde.training.save_tuned(solver, tmp_path)
    loaded = scoresde.load(tmp_path)
    assert loaded.tuned == solver
    end = sample(loaded, (2, 2), "tuned", 2, progress=False).x
    assert torch.equal(end, sample(model, (2, 2), solver, 2, progress=False).x)
    scoresde.save(loaded, tmp_path / "again.safetensors")
    assert scoresde.load(tmp_path / "again.safetensors").tuned == solver
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="has changed since"):
        sample(model, (2, 2), solver, 2, progress=False)
    with pytest.raises(ValueError, match=r"expected shape="):
        tuning.tune(model, 2, **QUICK)  # type: ignore[arg-type]


def test_conditions_are_taken_in_turn_and_a_metric_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Labelled(ScoreModel):
        def x0(self, x: Tensor, t: object, *, label: Tensor, **conditions: object) -> Tensor:
            alpha, sigma = (self.sde.alpha(self.sde.check_time(t)), self.sde.sigma(self.sde.check_time(t)))  # type: ignore[arg-type]
            alpha, sigma = (v.reshape(-1, 1) for v in (alpha, sigma))
            mean = label.to(x.dtype)[:, None]  # the data are N(label, 0.25)
            return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * mean)

    model = Labelled(None, VP())
    solver = tuning.tune(model, 3, shape=(2,), conditions={"label": [0, 1, 2]}, **QUICK)  # type: ignore[arg-type]
    one = solver.steps[0]
    assert one.held_out < 0.33 * one.untuned
    blind = tuning.tune(model, 3, shape=(2,), conditions={"label": [0, 1, 2]}, metric=lambda x, y: 0.1 * (x - y), **QUICK)  # type: ignore[arg-type]
    assert blind.steps[0].untuned == pytest.approx(0.1 * one.untuned)


def test_a_file_is_continued_and_one_for_another_model_is_refused(ring: tuple[ScoreModel, Tuned], tmp_path) -> None:
    model, solver = ring
    file = tmp_path / "mine.json"
    Tuned(solver.steps[1:], solver.model).write(file)
    found = tuning.tune(model, [2, 5], out=file, **QUICK)  # type: ignore[arg-type]
    assert found == solver == Tuned.read(file)
    with pytest.raises(ValueError, match="tuned for another model"):
        tuning.tune(problems.grid().model(VP()), 2, out=file, **QUICK)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_fit_is_an_error_that_keeps_what_is_done(
    number: int, ring: tuple[ScoreModel, Tuned], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    model, solver = ring
    steps, file = minimize, tmp_path / "mine.json"
    Tuned(solver.steps[:1], solver.model).write(file)

    left = [number]

    def interrupted(*args: object, **options: object):
        if left:  # a second signal would end the process
            os.kill(os.getpid(), left.pop())
        yield from steps(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(importlib.import_module("scoresde.tuning.tune"), "minimize", interrupted)
    first, second = solver.step_counts
    with pytest.raises(KeyboardInterrupt, match=rf"stopped with {first} of {first}, {second} evaluations done; they are in"):
        tuning.tune(model, [first, second], out=file, **QUICK)  # type: ignore[arg-type]
    assert Tuned.read(file).step_counts == (first,)
    left.append(number)
    with pytest.raises(KeyboardInterrupt, match="none of 3 evaluations done; nothing is saved"):
        tuning.tune(model, 3, **QUICK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"evaluations": 0}, {"evaluations": []}, {"evaluations": 2.5}, {"end": "stop"}, {"starts": 1}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        tuning.tune(problems.ring().model(VP()), **{"evaluations": 2, "progress": False, **wrong})  # type: ignore[arg-type]


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_tunes_a_checkpoint_that_then_samples_and_compares_by_it(tmp_path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from scoresde.cli import app

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = ScoreModel(MLP(2, hidden=(8,)), VP(), "v")
    scoresde.save(model, tmp_path / "run" / "model.safetensors", event=(2,))

    def typed(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output

    few = "--starts 16 --iterations 3 --tolerance 1e-5 --no-progress"
    assert "carries no tuned solver" in CliRunner().invoke(app, ["sample", "run", "--solver", "tuned"]).output
    said = typed(f"tune run --evaluations 2,3 {few}")
    assert "3 evaluations: rms error" in said and "model.safetensors" in said and "tuned.json" in said
    assert typed(f"tune run --evaluations 2,3 {few}") == said  # continues, with nothing left to do
    assert "64 samples" in typed("sample run --solver tuned --steps 3 --no-progress")
    assert "on held-out starts" in typed("solvers --show run/tuned.json --steps 2")
    assert "tuned" in typed("compare run --solver tuned,ddim,run/tuned.json --evaluations 3 --metric rms -n 8 --no-progress")
    assert "whole numbers with commas" in CliRunner().invoke(app, ["tune", "run", "--evaluations", "a"]).output
