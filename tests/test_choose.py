"""The choice by a pilot: it is the best of what was tried, runs as tried, and is written, read, refused and continued."""

import copy
import importlib
import json
import os
import pickle
import signal

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde import VP, RectifiedFlow, ScoreModel, problems, sample, solvers, tuning
from scoresde.base.identity import digest
from scoresde.comparison import flow_end
from scoresde.solvers import Arctan, Chosen, Pilot, Trial, make_path
from scoresde.solvers.fitted import model_identity

CHOOSE = importlib.import_module("scoresde.tuning.choose")
QUICK = {"starts": 16, "tolerance": 1e-6, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def few_candidates():
    """A tenth of the candidates, so that the tests are short."""
    every = CHOOSE._candidates()
    kept = CHOOSE._candidates, CHOOSE.HALVINGS
    CHOOSE._candidates, CHOOSE.HALVINGS = (lambda: every[::10]), 1
    yield
    CHOOSE._candidates, CHOOSE.HALVINGS = kept


@pytest.fixture(scope="module")
def ring(few_candidates) -> tuple[ScoreModel, Chosen]:
    model = problems.ring().model(VP())
    return model, tuning.choose(model, [4, 7], **QUICK)  # type: ignore[arg-type]


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_choice_is_the_best_of_what_was_tried_and_runs_as_it_was_tried(ring: tuple[ScoreModel, Chosen]) -> None:
    """Each listed error is that of a call of ``sample`` with the same solver, times and end, from the pilot's starts."""
    model, solver = ring
    noise = solvers.FreshNoise(solvers.sample_seeds(0, 32), torch.device("cpu"))
    x = noise.normal(torch.empty(32, 2, dtype=torch.float64)).mul_(float(VP().sigma(1.0)))
    ends = flow_end(model, x, make_path(VP(), "lam", 2), to="data", tolerance=1e-7).x
    for n, pilot in zip((4, 7), solver.pilots, strict=True):
        errors = [trial.error for trial in pilot.trials]
        assert pilot.evaluations == n and errors == sorted(errors) and len(set(map(str, pilot.trials))) > 5
        assert any(isinstance(t.spacing, str) for t in pilot.trials)
        for trial in (pilot.trials[0], pilot.trials[-1]):
            t_min = float(VP().time(float(VP().lam(VP().span[0])) - trial.cut)) if trial.cut else None
            found = sample(model, x[:16], trial.solver, n, trial.spacing, t_min=t_min, end=trial.end, progress=False)  # type: ignore[arg-type]
            assert float((found.x - ends[:16]).square().mean().sqrt()) == pytest.approx(trial.error, rel=1e-3)
            assert found.evaluations <= n
        end = sample(model, x[16:], solver, n, progress=False)
        assert end.evaluations == n and end.solver == solvers.get(pilot.trials[0].solver).name
        assert float((end.x - ends[16:]).square().mean().sqrt()) == pytest.approx(pilot.held_out, rel=1e-3)


def test_between_two_numbers_of_evaluations_the_smaller_one_decides(ring: tuple[ScoreModel, Chosen]) -> None:
    _, solver = ring
    four, seven = (pilot.trials[0] for pilot in solver.pilots)
    for steps, trial in ((1, four), (3, four), (4, four), (6, four), (7, seven), (30, seven)):
        choice = solver.choice(steps)
        assert (choice.solver.name, choice.spacing, choice.cut, choice.end) == (
            solvers.get(trial.solver).name,
            trial.spacing,
            trial.cut,
            trial.end,
        )


def test_a_choice_is_written_read_pickled_and_named_by_its_file(ring: tuple[ScoreModel, Chosen], tmp_path) -> None:
    model, solver = ring
    file = tmp_path / "mine.json"
    solver.write(file)
    for back in (solvers.get(str(file)), pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)):
        assert back == solver and digest(back) == digest(solver)
    x = drawn(3, 2)
    ends = [sample(model, x, s, 7, progress=False).x for s in (solver, str(file), f"{file}: any_model=true")]
    assert all(torch.equal(end, ends[0]) for end in ends)
    found = scoresde.compare("ring", [str(file)], [7], metrics=["rms"], n=8, progress=False)
    assert found.records[0].solver == str(file) and found.records[0].path == "own"
    for name, change in {"old": {"version": 0}, "damaged": {"pilots": [{}]}, "none": {"pilots": []}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**solver.to_json(), **change}))
        with pytest.raises(ValueError, match=r"^got .*; expected"):
            solvers.get(str(tmp_path / f"{name}.json"))
    with pytest.raises(ValueError, match=r"ends in \.json"):
        solver.write(tmp_path / "mine.txt")


def test_another_model_is_refused(ring: tuple[ScoreModel, Chosen]) -> None:
    model, solver = ring
    assert solver.model == model_identity(model)
    other = problems.grid().model(VP())
    with pytest.raises(ValueError, match="not the model for which"):
        sample(other, (2, 2), solver, 7, progress=False)
    free = Chosen(solver.choices, solver.pilots, solver.model, any_model=True)
    assert sample(other, (2, 2), free, 7, progress=False).evaluations == 7


def test_a_checkpoint_keeps_the_choice_for_its_model(tmp_path) -> None:
    torch.manual_seed(0)
    model = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), VP(), "v")
    model.tuned = solver = Chosen.of([Pilot(5, (Trial("abm-2"),))], solvers.get, model_identity(model))
    scoresde.save(model, tmp_path / "model.safetensors", event=(2,))
    loaded = scoresde.load(tmp_path)
    assert loaded.tuned == solver and sample(loaded, (2, 2), "tuned", 5, progress=False).solver == "abm-2"
    other = Chosen.of([Pilot(5, (Trial("abm-3"),))], solvers.get, model_identity(model))
    scoresde.training.save_tuned(other, tmp_path)
    assert scoresde.load(tmp_path).tuned == other
    with torch.no_grad():
        next(loaded.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="has changed since"):
        sample(loaded, (2, 2), "tuned", 5, progress=False)


def test_a_file_is_continued_and_one_for_another_model_refused(ring: tuple[ScoreModel, Chosen], tmp_path) -> None:
    model, solver = ring
    file = tmp_path / "mine.json"
    marked = Pilot(7, (Trial("ddim", error=1.0),), 1.0)  # no pilot would find it
    Chosen.of([marked], solvers.get, solver.model).write(file)
    found = tuning.choose(model, [4, 7], out=file, **QUICK)  # type: ignore[arg-type]
    assert found.pilots == (solver.pilots[0], marked) and solvers.get(str(file)) == found
    with pytest.raises(ValueError, match="chosen for another model"):
        tuning.choose(problems.grid().model(VP()), 4, out=file, **QUICK)  # type: ignore[arg-type]


def test_a_signal_is_an_error_that_keeps_what_is_done(
    ring: tuple[ScoreModel, Chosen], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    model, solver = ring
    sent = [signal.SIGTERM]
    varied, called = CHOOSE._varied, []

    def interrupted(trials: list[Trial]) -> list[Trial]:
        called.append(1)
        if len(called) == 2:
            os.kill(os.getpid(), sent[0])
        return varied(trials)

    monkeypatch.setattr(CHOOSE, "_varied", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped with 4 of 4, 7 evaluations done; they are in .*mine\.json"):
        tuning.choose(model, [4, 7], out=tmp_path / "mine.json", **QUICK)  # type: ignore[arg-type]
    assert solvers.get(str(tmp_path / "mine.json")).pilots == solver.pilots[:1]  # type: ignore[attr-defined]
    called[:] = [1, 1]
    assert tuning.choose(model, [4, 7], out=tmp_path / "mine.json", **QUICK) == solver  # type: ignore[arg-type]
    for sent[0] in (signal.SIGINT, signal.SIGTERM):
        called[:] = [1]
        with pytest.raises(KeyboardInterrupt, match="stopped with none of 4 evaluations done; nothing is saved"):
            tuning.choose(model, 4, **QUICK)  # type: ignore[arg-type]


def test_conditions_and_a_metric_reach_the_pilot() -> None:
    class Labelled(ScoreModel):
        def x0(self, x: Tensor, t: object, *, label: Tensor, **conditions: object) -> Tensor:
            alpha, sigma = (f(self.sde.check_time(t)).reshape(-1, 1) for f in (self.sde.alpha, self.sde.sigma))  # type: ignore[arg-type]
            mean = label.to(x.dtype)[:, None]  # the data are N(label, 0.25)
            return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x - alpha * mean)

    model, told = Labelled(None, VP()), {"label": [0, 1, 2]}
    one = tuning.choose(model, 4, shape=(2,), conditions=told, **QUICK)  # type: ignore[arg-type]
    tenth = tuning.choose(model, 4, shape=(2,), conditions=told, metric=lambda x, y: 0.1 * (x - y), **QUICK)  # type: ignore[arg-type]
    assert tenth.pilots[0].trials[0].error == pytest.approx(0.1 * one.pilots[0].trials[0].error)
    assert one.pilots[0].held_out < 0.1


def test_a_start_at_alpha_zero_and_other_ends_are_served() -> None:
    model = problems.ring().model(RectifiedFlow())
    for end in ("denoise", "data"):
        solver = tuning.choose(model, 5, end=end, **QUICK)  # type: ignore[arg-type]
        assert sample(model, (4, 2), solver, 5, progress=False).times[0] == 1.0 and solver.pilots[0].held_out < 0.3


def test_a_table_and_a_figure_show_the_trials(ring: tuple[ScoreModel, Chosen]) -> None:
    _, solver = ring
    lines = solver.table(3).splitlines()
    assert len(lines) == 2 + 2 * 3 and f"{solver.pilots[0].held_out:.3g}" in lines[2]
    axes = tuning.plot_trials(solver).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "chosen")
    assert list(line.get_ydata()) == [pilot.trials[0].error for pilot in solver.pilots]


@pytest.mark.parametrize(
    "wrong", [{"evaluations": 0}, {"evaluations": []}, {"evaluations": 2.5}, {"end": "stop"}, {"starts": 4}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        tuning.choose(problems.ring().model(VP()), **{"evaluations": 2, **QUICK, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"spacing": 3}, {"cut": -1.0}, {"cut": float("nan")}, {"end": "later"}, {"solver": "rk45"}, {"solver": "auto"}]
)
def test_trials_that_cannot_run_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^got .*; expected"):
        Trial(**{"solver": "ddim", **wrong}).choice(1, solvers.get)  # type: ignore[arg-type]
    for pilots in ((), (Pilot(5, (Trial("ddim"),)),) * 2):
        with pytest.raises(ValueError, match="expected at least one"):
            Chosen.of(pilots, solvers.get)
    with pytest.raises(ValueError, match="without trials"):
        Pilot(5, ())


def test_all_kinds_of_solvers_are_tried_each_to_the_ends_that_it_has() -> None:
    named = [name for name, _ in CHOOSE._named()]
    assert {"ddim", "dpmpp-2m", "unipc-3", "ipndm", "deis-3", "abm-3"} <= set(named)
    assert not {"auto", "heun", "ddpm", "rk45", "student", "dpmpp-2s"} & set(named)
    assert dict(CHOOSE._named())["abm-3"][0] == "extrapolate" and "extrapolate" not in dict(CHOOSE._named())["dpmpp-2m"]
    assert len({trial.spacing for trial in CHOOSE._grid()}) == 9 and Arctan(0.3, 2.6) in {t.spacing for t in CHOOSE._grid()}


def test_the_command_chooses_for_a_checkpoint_that_then_samples_by_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from scoresde.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CHOOSE, "_candidates", lambda: [Trial("ddim"), Trial("abm-2", Arctan(0.3, 2.6), 0.6, "extrapolate")])
    torch.manual_seed(0)
    model = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), VP(), "v")
    scoresde.save(model, tmp_path / "run" / "model.safetensors", event=(2,))

    def typed(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output

    said = typed("choose run --evaluations 3,4 --starts 8 --tolerance 1e-5 --no-progress")
    assert "| 4 | " in said and "model.safetensors" in said and "chosen.json" in said
    assert typed("choose run --evaluations 3,4 --starts 8 --no-progress") == said  # continues, with nothing left to do
    assert "64 samples" in typed("sample run --solver tuned --steps 3 --no-progress")
    assert typed("solvers --show run/chosen.json --steps 4")


@pytest.mark.slow
def test_a_choice_is_ahead_of_the_frontier_on_starts_that_it_never_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all candidates, against all named solvers on lam and karras."""
    named = [Trial(name, path, 0.0, end) for name, ends in CHOOSE._named() for path in CHOOSE.PATHS for end in ends]
    monkeypatch.setattr(CHOOSE, "_candidates", lambda: [*named, *CHOOSE._grid()])
    model = problems.random_mixture(8, seed=3).model(VP())
    solver = tuning.choose(model, [6, 12], tolerance=1e-7, progress=False)
    x = drawn(128, 8, 9) * float(VP().sigma(1.0))
    ends = flow_end(model, x, make_path(VP(), "lam", 2), to="data", tolerance=1e-7).x
    for n in (6, 12):
        mine = float((sample(model, x, solver, n, progress=False).x - ends).square().mean().sqrt())
        others = [
            float((sample(model, x, name, n, path, end="flow", progress=False).x - ends).square().mean().sqrt())
            for name, _ in CHOOSE._named()
            if not name.startswith("abm")
            for path in ("lam", "karras")
        ]
        assert mine < 1.1 * min(others)
