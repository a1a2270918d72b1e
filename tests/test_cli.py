"""The command line: what it writes, what it refuses and that it then writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import scoresde
from scoresde import EDM, VP, data
from scoresde.cli import app
from scoresde.solvers import SOLVERS, from_json, get, make_path

ROOT = Path(__file__).resolve().parents[1]


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "vectors.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, vectors) -> Path:
    """A run folder of a small training on vectors."""
    out = tmp_path_factory.mktemp("runs") / "vectors"
    done = invoke("train", "--data", vectors, "--out", out, "--steps", 30, "--width", 4, "--no-progress")
    assert done.exit_code == 0, done.output
    return out


# The table and the version -------------------------------------------------------------------------------------------


def test_the_table_has_every_solver_and_what_it_claims_within_100_columns():
    result = invoke("solvers")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line for line in lines[2:] if not line.startswith(" ")}
    assert list(rows) == list(SOLVERS)
    for name, make in SOLVERS.items():
        d = make().description
        assert f" {d.family} " in rows[name]
        assert (" yes " in rows[name]) == d.stochastic
        assert (" adaptive " in rows[name]) == (d.evaluations is None or d.family == "adaptive")
        if d.weak_order:
            assert f" {d.weak_order:g} weak " in rows[name]
    text = " ".join(result.stdout.split())
    assert all(make().description.paper in text for make in SOLVERS.values())


def test_rows_are_shown_as_numbers_and_as_json():
    shown = invoke("solvers", "--show", "dpmpp-3m", "--steps", 5)
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 125
    rows = get("dpmpp-3m").rows(make_path(VP(), "lam", 5))
    assert shown.stdout.count("*") == 1 + len(rows)
    for row in rows:
        assert " ".join(f"{w:.6g}" for w in row.w) in shown.stdout
    printed = invoke("solvers", "--show", "pc", "--steps", 3, "--sde", "edm", "--path", "karras", "--json")
    assert from_json(json.loads(printed.stdout)) == get("pc").rows(make_path(EDM(), "karras", 3))
    assert invoke("solvers", "--show", "rk45").exit_code == 2
    assert invoke("solvers", "--show", "ddim", "--steps", 0).exit_code == 2


def test_the_console_command_in_a_process_of_its_own():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for programme in (["-c", "from scoresde.cli import main; main()"], ["-m", "scoresde.cli"]):
        version = subprocess.run([sys.executable, *programme, "--version"], capture_output=True, text=True, env=environment)
        assert (version.returncode, version.stdout) == (0, f"scoresde {scoresde.__version__}\n")
        assert version.stderr == ""


# Training ------------------------------------------------------------------------------------------------------------


def test_training_writes_the_checkpoint_the_curve_and_the_loss_by_time(run, vectors):
    assert files(run) == {"model.safetensors", "model.csv", "loss.png"}
    again = invoke("train", "--data", vectors, "--out", run, "--steps", 30, "--width", 4, "--no-progress")
    assert again.exit_code == 0, "a finished training is loaded"
    assert "loss by time after 30 steps" in again.stdout
    assert sum(line.strip().startswith("mean") for line in again.stdout.splitlines()) == 1


@pytest.mark.sweep(2)
@pytest.mark.parametrize("sde", ["vp", "cosine", "subvp", "ve", "edm", "flow"])
def test_every_sde_trains_on_images_and_is_sampled_with_its_defaults(tmp_path, sde):
    images = tmp_path / "images.npz"
    np.savez(images, x=data.load_digits()[0][:100].numpy())
    out = tmp_path / sde
    trained = invoke("train", "--data", images, "--out", out, "--sde", sde, "--steps", 3, "--width", 4, "--batch-size", 8)
    assert trained.exit_code == 0, trained.output
    sampled = invoke("sample", out, "-n", 5, "--steps", 4, "--no-progress")
    assert sampled.exit_code == 0, sampled.output
    assert (out / "samples.png").read_bytes()[:4] == b"\x89PNG"


# Sampling ------------------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_library_whatever_the_batch_and_the_format(run, tmp_path):
    outs = {name: tmp_path / name for name in ("a.npy", "b.npz", "c.png")}
    for name, batch in (("a.npy", 512), ("b.npz", 3), ("c.png", 512)):
        result = invoke(
            "sample", run, "-n", 8, "--solver", "ddpm", "--steps", 10, "--path", "t", "--seed", 4,
            "--batch-size", batch, "--out", outs[name], "--no-progress",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "10 evaluations" in result.stdout
    model = scoresde.training.load(run / "model.safetensors")
    expected = scoresde.sample(model, (8, 2), "ddpm", 10, "t", seed=4, progress=False).x.numpy()
    np.testing.assert_array_equal(np.load(outs["a.npy"]), expected)
    with np.load(outs["b.npz"]) as archive:
        np.testing.assert_allclose(archive["x"], expected, atol=1e-5)
        assert len(set(archive["seeds"].tolist())) == 8
    assert files(tmp_path) == set(outs), "nothing is left beside the files asked for"
    assert data.load_tensor(outs["b.npz"]).shape == (8, 2), "samples can be data again"


def test_the_last_step_ends_as_asked(run, tmp_path):
    for end in ("denoise", "flow", "stop"):
        out = tmp_path / f"{end}.npy"
        assert invoke("sample", run, "-n", 4, "--steps", 5, "--end", end, "--out", out, "--no-progress").exit_code == 0
        model = scoresde.training.load(run / "model.safetensors")
        expected = scoresde.sample(model, (4, 2), steps=5, end=end, progress=False).x.numpy()
        np.testing.assert_array_equal(np.load(out), expected)


def test_a_checkpoint_alone_is_sampled_where_it_tells_the_shape_or_that_is_given(run, tmp_path):
    checkpoint = tmp_path / "alone.safetensors"
    checkpoint.write_bytes((run / "model.safetensors").read_bytes())
    assert invoke("sample", checkpoint, "-n", 2, "--out", tmp_path / "y.npy", "--no-progress").exit_code == 0
    scoresde.save(scoresde.load(checkpoint), checkpoint)  # which does not know the shape
    refused = invoke("sample", checkpoint, "--no-progress")
    assert refused.exit_code == 2
    assert "give it: --shape" in one_line(refused.stderr)
    given = invoke("sample", checkpoint, "--shape", "2", "-n", 2, "--out", tmp_path / "x.npy", "--no-progress")
    assert given.exit_code == 0, given.output


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--solver", "dpm++2m"],
            "got solver 'dpm++2m'; expected one of the",
        ),
        (["--path", "cubic"], "got path 'cubic'; expected one of t, quadratic, lam, karras"),
        (["--steps", 0], "got --steps 0; expected a whole number of at least 1"),
        (["-n", 0], "got --n 0; expected at least 1"),
        (["--out", "samples.jpg"], "got --out 'samples.jpg'; expected a name that ends in .png, .npy or .npz"),
        (["--shape", "two"], "got --shape 'two'; expected whole numbers with commas"),
        (["--shape", "3", "--out", "a.png"], "samples of shape (3,) cannot be drawn"),
    ],
)
def test_a_bad_request_for_samples_is_one_line_and_writes_nothing(run, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    before = files(run)
    result = invoke("sample", run, *arguments, "--no-progress")
    assert result.exit_code == 2
    assert sentence in one_line(result.stderr)
    assert files(tmp_path) == set() and files(run) == before


def test_a_missing_truncated_or_pickled_checkpoint_is_refused(run, tmp_path):
    whole = (run / "model.safetensors").read_bytes()
    torch.save({"weights": torch.zeros(2)}, tmp_path / "pickle.pt")
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    for name, sentence in [
        ("absent.safetensors", "there is no checkpoint"),
        ("half.safetensors", "is truncated or damaged"),
        ("pickle.pt", "is not a safetensors file"),
    ]:
        result = invoke("sample", tmp_path / name, "--shape", "2", "--out", tmp_path / "x.npy")
        assert result.exit_code == 2
        assert sentence in one_line(result.stderr)
        assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "digit"], "did you mean 'digits'?"),
        (["--data", "half.npy"], "cannot read 'half.npy', which may be truncated"),
        (["--sde", "vpp"], "got SDE 'vpp'; expected one of vp, cosine, subvp, ve, edm, flow, ddpm; did you mean"),
        (["--predicts", "epsilon"], "got prediction 'epsilon'; expected one of eps"),
        (["--objective", "ddmp"], "did you mean 'ddpm'?"),
        (["--steps", 0], "got --steps 0; expected a whole number of at least 1"),
        (["--batch-size", 0], "got --batch-size 0; expected a whole number of at least 1"),
        (["--lr", -1], "got --lr -1.0; expected a positive number"),
    ],
)
def test_a_training_that_cannot_be_writes_nothing(tmp_path, monkeypatch, vectors, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.npy").write_bytes(vectors.read_bytes()[:500])
    options = [] if "--data" in arguments else ["--data", vectors]
    result = invoke("train", *options, *arguments, "--out", "run")
    assert result.exit_code == 2
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert files(tmp_path) == {"half.npy"}


def test_unreadable_images_stop_a_command_or_are_left_out_and_named(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, dtype=np.uint8)).save(pictures / f"{i}.png")
    (pictures / "broken.png").write_bytes(b"no")
    train = ["train", "--data", pictures, "--out", tmp_path / "run", "--steps", 2, "--width", 4, "--no-progress"]
    refused = invoke(*train)
    assert refused.exit_code == 2 and "broken.png" in refused.stderr and "--unreadable skip" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = invoke(*train, "--unreadable", "skip")
    assert done.exit_code == 0 and done.stderr.count("left out, cannot be read") == 1 and "broken.png" in done.stderr
    assert "data: 6 samples" in done.stdout
    evaluate = ["evaluate", pictures, "--against", pictures, "--no-progress"]
    assert invoke(*evaluate).exit_code == 2
    assert invoke(*evaluate, "--unreadable", "skip").exit_code == 0


def test_another_training_in_the_same_folder_is_refused_and_no_resume_overwrites_it(vectors, tmp_path):
    base = ["train", "--data", vectors, "--out", tmp_path, "--width", 4, "--steps", 3, "--no-progress"]
    assert invoke(*base).exit_code == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    refused = invoke(*base, "--lr", 0.5)
    assert refused.exit_code == 2 and "belongs to another training" in refused.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert invoke(*base, "--lr", 0.5, "--no-resume").exit_code == 0
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_ctrl_c_exits_130_and_says_what_was_saved(monkeypatch, vectors, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt("stopped after step 7 of 9; saved to x")

    monkeypatch.setattr("scoresde.cli.train.Trainer", interrupted)
    result = invoke("train", "--data", vectors, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted: stopped after step 7 of 9; saved to x"
    assert not (tmp_path / "run").exists()


def test_programming_errors_are_not_hidden(monkeypatch, vectors, tmp_path):
    def wrong(*arguments, **options):
        raise TypeError("a bug")

    monkeypatch.setattr("scoresde.cli.train.Trainer", wrong)
    assert isinstance(invoke("train", "--data", vectors, "--out", tmp_path / "run").exception, TypeError)
