"""Samples in files: the same whatever the number of processes and interruptions; and the command that scores them."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scoresde import DDPM, EDM, VP, FunctionSDE, ScoreModel, sample
from scoresde.cli import app
from scoresde.evaluation import generate
from scoresde.models import MLP
from scoresde.problems import ring


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(MLP(2, hidden=(8,)), VP(), "v").eval()


def draw(model, folder, n=10, **options):
    return generate(model, (2,), folder, n, **{"steps": 3, "shard": 4, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.npy")}


def test_samples_are_those_of_the_library(model, tmp_path):
    drawn = draw(model, tmp_path, solver="ddim", seed=5)
    assert torch.allclose(drawn.tensor(), sample(model, (10, 2), "ddim", 3, seed=5, progress=False).x, atol=1e-6)
    order = [9, 0, 4, 4, 3]
    assert torch.equal(drawn.samples(order), drawn.tensor()[order])
    assert sorted(contents(tmp_path)) == [f"{a:08}-{b:08}.npy" for a, b in ((0, 4), (4, 8), (8, 10))]


def test_two_chains_that_differ_in_one_step_of_many_do_not_share_samples(model, tmp_path):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    other = betas.clone()
    other[500] *= 1 + 1e-6  # in no digit that a repr shows
    folders = {draw(ScoreModel(model.net, DDPM(b), "eps"), tmp_path, n=2).folder for b in (betas, other, betas.clone())}
    assert len(folders) == 2


def test_a_call_that_was_stopped_is_continued_and_changes_nothing(model, tmp_path, monkeypatch):
    whole = contents(draw(model, tmp_path / "whole").folder)
    real, calls = os.replace, []

    def stopping(source, target):
        calls.append(target)
        if len(calls) == 3:  # the description, the first file, and then
            raise KeyboardInterrupt
        return real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stopping)
        draw(model, tmp_path / "stopped")
    assert len(contents(tmp_path / "stopped")) == 1
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("*.npy")}
    counted = []
    drawn = draw(model, tmp_path / "stopped", progress=counted.append)
    assert counted == [4, 4, 2] and contents(drawn.folder) == whole
    assert all(path.stat().st_mtime_ns == before for path, before in times.items()), "what was there is not drawn again"


def test_more_samples_add_to_what_there_is(model, tmp_path):
    few, counted = draw(model, tmp_path, 8), []
    more = draw(model, tmp_path, 15, progress=counted.append)
    assert counted == [8, 4, 3] and more.folder == few.folder
    assert torch.equal(more.tensor()[:8], few.tensor())


def test_the_number_of_processes_changes_nothing(model, tmp_path):
    alone, counted = draw(model, tmp_path / "alone"), []
    together = draw(model, tmp_path / "together", processes=2, progress=counted.append)
    assert contents(alone.folder) == contents(together.folder)
    assert sum(counted) == 10


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"steps": 4}, {"solver": "ddim"}, {"path": "t"}, {"end": "stop"}, {"shard": 5}]
)
def test_other_settings_have_folders_of_their_own(model, tmp_path, options):
    assert draw(model, tmp_path, 2).folder != draw(model, tmp_path, 2, **options).folder


def test_other_models_have_folders_of_their_own(model, tmp_path):
    one, two = ring().model(VP()), ring().model(EDM())
    trained = copy.deepcopy(model)
    with torch.no_grad():
        next(trained.parameters()).add_(1)
    others = [ScoreModel(model.net, FunctionSDE(lambda t: 1 - t / 2, lambda t, s=s: s * t)) for s in (1.0, 1.1)]
    assert len({draw(m, tmp_path, 2).folder for m in (one, two, model, trained, *others)}) == 6
    assert draw(copy.deepcopy(model), tmp_path, 2).folder == draw(model, tmp_path, 2).folder


def test_a_model_that_cannot_be_sent_to_other_processes_is_refused(tmp_path):
    local = ScoreModel(lambda x, t: x, VP())
    with pytest.raises(ValueError, match=r"cannot be sent to other processes .* expected processes=1"):
        draw(local, tmp_path, processes=2)
    assert len(draw(local, tmp_path).tensor()) == 10


def test_labels_come_in_turn(tmp_path):
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t, label):
            seen.append(label.tolist())
            return x * self.weight

    draw(ScoreModel(Net(), VP()), tmp_path, 6, labels=range(4))
    assert [labels for i, labels in enumerate(seen) if i == 0 or labels != seen[i - 1]] == [[0, 1, 2, 3], [0, 1]]


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(model, tmp_path):
    for options, sentence in (
        ({"n": 0}, "got n=0; expected at least 1"),
        ({"shard": 0, "processes": 0}, "got shard=0, processes=0"),
        ({"solver": "dim"}, "did you mean 'ddim'"),
        ({"labels": []}, "got labels=0; expected at least 1"),
        ({"device": "cuda:77"}, "got the device 'cuda:77', which is not there"),
    ):
        with pytest.raises(ValueError, match=sentence):
            draw(model, tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda file, whole: file.write_bytes(b""), "not start with the header of an .npy file"),
        (lambda file, whole: file.write_bytes(file.read_bytes()[:-1]), "float32 of shape"),
        (lambda file, whole: np.save(file, whole.astype(np.float64)), "float64 of shape"),
        (lambda file, whole: np.save(file, whole[:, :1]), r"of shape \(4, 1\); expected float32 of shape \(4, 2\)"),
        (lambda file, whole: np.save(file, whole[:3]), r"of shape \(3, 2\)"),
        (lambda file, whole: np.save(file, np.asfortranarray(whole)), "expected float32"),
        (lambda file, whole: np.save(file, np.array([object()]), allow_pickle=True), "holds Python objects"),
        (lambda file, whole: (file.unlink(), os.mkfifo(file)), "is a pipe"),
        (lambda file, whole: (file.unlink(), file.mkdir()), "is a folder"),
    ],
)
def test_a_file_of_other_samples_is_refused(model, tmp_path, wrong, sentence):
    drawn = draw(model, tmp_path)
    wrong(drawn.file(4), np.load(drawn.file(4)))
    with pytest.raises(
        ValueError, match=rf"cannot read the samples in .*00000004-00000008\.npy.*{sentence}.*; remove the file"
    ):
        drawn.tensor()


# The command ---------------------------------------------------------------------------------------------------------


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name, shift in (("real", 0), ("other", 0), ("far", 3)):
        np.save(folder / f"{name}.npy", rng.normal(size=(300, 2)) + shift)
    return folder


def test_samples_in_a_file_are_scored_with_their_floor(files, tmp_path):
    out = tmp_path / "scores.json"
    done = invoke(
        *("evaluate", files / "far.npy", "--against", files / "real.npy", "--floor", files / "other.npy"),
        *("--out", out, "--cache", tmp_path / "cache", "--no-progress"),
    )
    assert done.exit_code == 0, done.output
    scores = json.loads(out.read_text())
    assert scores["frechet"] == pytest.approx(18, rel=0.15) and scores["floor"]["frechet"] < 0.2
    assert "300 samples against 300; floor: 300 real ones" in done.stdout and f"{scores['frechet']:.5g}" in done.stdout
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_run_is_sampled_scored_and_found_again(files, tmp_path):
    run = tmp_path / "run"
    trained = invoke("train", "--data", files / "real.npy", "--out", run, "--steps", 5, "--width", 4, "--no-progress")
    assert trained.exit_code == 0, trained.output
    call = ("evaluate", run, "--against", files / "real.npy", "-n", 40, "--steps", 4, "--no-progress")
    first = invoke(*call)
    assert first.exit_code == 0, first.output
    before = {path: path.stat().st_mtime_ns for path in (run / "samples").rglob("*.npy")}
    again = invoke(*call)
    assert again.stdout == first.stdout and "40 samples against 300" in first.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (run / "samples").rglob("*.npy")}


def test_features_are_code_of_the_user(files, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef first():\n    return First()\n"
        "class First(torch.nn.Module):\n    def forward(self, x):\n        return x[:, :1]\n"
    )
    call = ("evaluate", files / "far.npy", "--against", files / "real.npy", "--no-progress")
    done = invoke(*call, "--features", f"{tmp_path / 'mine.py'}:first", "--out", tmp_path / "a.json")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "a.json").read_text())["frechet"] == pytest.approx(9, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("absent.npy", "--against", "digits"), "got data 'absent.npy'; expected one of digits, or a file"),
        (("FAR", "--against", "digits"), "expected one shape"),
        (("FAR", "--against", "REAL", "--split", "test"), "which has no parts"),
        (("FAR", "--against", "REAL", "--features", "x"), "package.module:name or file.py:name"),
    ],
)
def test_refusals_are_one_line(files, arguments, sentence):
    places = {"FAR": files / "far.npy", "REAL": files / "real.npy"}
    done = invoke("evaluate", *(places.get(a, a) for a in arguments), "--no-progress")
    assert done.exit_code == 2 and sentence in done.output
    assert len(done.stderr.strip().splitlines()) == 1
