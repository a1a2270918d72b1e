"""``scoresde score``: the table it writes, and what it refuses before it writes anything."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import scoresde
from scoresde import VP
from scoresde.cli import app
from scoresde.evaluation import ANOMALY_SCORES, Detector
from scoresde.models import MLP


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of a small network and three sets of vectors."""
    out = tmp_path_factory.mktemp("score")
    torch.manual_seed(0)
    scoresde.save(scoresde.ScoreModel(MLP(2, hidden=(8,)), VP(), "v"), out / "model.safetensors", event=(2,))
    rng = np.random.default_rng(0)
    for name, shift in (("data", 0), ("reference", 0), ("other", 4)):
        np.save(out / f"{name}.npy", (rng.normal(size=(30, 2)) + shift).astype(np.float32))
    np.save(out / "wide.npy", np.zeros((5, 3), np.float32))
    return out


def test_the_table_has_every_sample_and_score(folder, tmp_path):
    names = [f"{name}: steps=4" if name in ("likelihood", "typicality") else name for name in ANOMALY_SCORES]
    by = [part for name in names for part in ("--by", name)]
    out = tmp_path / "scores.csv"
    sets = ["--data", folder / "data.npy", "--reference", folder / "reference.npy", "--against", folder / "other.npy"]
    done = invoke("score", folder / "model.safetensors", *sets, *by, "-n", 20, "--out", out, "--batch-size", 7)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["set"], row["index"]) for row in rows] == [(s, str(i)) for s in ("data", "against") for i in range(20)]
    assert list(rows[0]) == ["set", "index", *(c for name in names for c in (name, f"{name} error"))]
    assert done.output.count("AUROC") == len(ANOMALY_SCORES)
    model = scoresde.load(folder / "model.safetensors")
    x, reference = (torch.from_numpy(np.load(folder / f"{name}.npy")[:20]) for name in ("data", "reference"))
    truth = Detector(model, "score-norms", reference)(x).score
    assert [float(row["score-norms"]) for row in rows[:20]] == pytest.approx(truth.tolist(), rel=1e-6)


def test_a_reference_from_the_same_source_is_of_other_samples(folder, tmp_path):
    out, path = tmp_path / "scores.csv", folder / "data.npy"
    done = invoke("score", folder / "model.safetensors", "--data", path, "--reference", path, "-n", 12, "--out", out)
    assert done.exit_code == 0, done.output
    x = torch.from_numpy(np.load(path))
    truth = Detector(scoresde.load(folder / "model.safetensors"), "loss-excess", x[12:24])(x[:12]).score
    found = [float(row["loss-excess"]) for row in csv.DictReader(out.read_text().splitlines())]
    assert found == pytest.approx(truth.tolist(), rel=1e-6)


def test_without_a_reference_the_score_is_the_likelihood(folder):
    done = invoke("score", folder / "model.safetensors", "--data", folder / "data.npy", "-n", 3)
    assert done.exit_code == 0, done.output
    rows = list(csv.reader((folder / "scores.csv").read_text().splitlines()))
    assert rows[0] == ["set", "index", "likelihood", "likelihood error"] and len(rows) == 4
    (folder / "scores.csv").unlink()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "data.npy", "--by", "loss-excess"], "without --reference"),
        (["--data", "data.npy", "--by", "likelyhood"], "did you mean 'likelihood'"),
        (["--data", "data.npy", "--by", "likelihood: step=3"], "expected its arguments: steps"),
        (["--data", "data.npy", "-n", "0"], "got --n 0"),
        (["--data", "wide.npy"], "got --data with samples of shape (3,) for a model of (2,)"),
        (["--data", "data.npy", "--reference", "wide.npy"], "got --reference with samples of shape (3,)"),
        (["--data", "data.npy", "--reference", "data.npy", "-n", "30"], "30 samples, all of which are scored"),
        (["--data", "data.npy", "--label", "3"], "for a model without classes"),
        (["--data", "nowhere.npy"], "nowhere.npy"),
    ],
)
def test_what_cannot_be_scored_is_told_in_a_line(folder, arguments, sentence):
    given = [str(folder / a) if a.endswith(".npy") else a for a in arguments]
    done = invoke("score", folder / "model.safetensors", *given)
    assert done.exit_code == 2 and sentence in " ".join(done.output.split()), done.output
    assert not (folder / "scores.csv").exists()
