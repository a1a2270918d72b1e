"""Commands that open a model: labels by name and number, every kind of file that load reads, and devices."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import scoresde
from scoresde import VP, ScoreModel
from scoresde.cli import app
from scoresde.cli.compare import _compared
from scoresde.cli.source import chosen_labels
from scoresde.guidance import ClassifierFree
from scoresde.models import MLP, UNet

CLASSES = ("3", "7", "black cat", "a,b", "owl")


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def model(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(2, hidden=(8,), **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return ScoreModel(net, VP(), "v").eval()


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0"], (0,)),
        (["3"], (0,)),  # the class of this name, not the fourth
        (["7,4"], (1, 4)),
        (["owl", "2"], (4, 2)),
        (["black cat, owl"], (2, 4)),
        (["a,b"], (3,)),
        (["all"], (0, 1, 2, 3, 4)),
        (["none,1"], (5, 1)),
        (None, None),
        ([], None),
    ],
)
def test_labels_are_names_first_and_then_numbers(texts, expected):
    assert chosen_labels(texts, model(num_classes=5), CLASSES) == expected


@pytest.mark.parametrize(
    ("texts", "options", "sentence"),
    [
        (["5"], {"num_classes": 5}, "got --label '5'; expected one of 3, 7, .* or a number from 0 to 4, or all, or none"),
        (["oowl"], {"num_classes": 5}, "did you mean 'owl'"),
        (["-1"], {"num_classes": 5}, "got --label '-1'"),
        (["1.5"], {"num_classes": 5}, "got --label '1.5'"),
        (["²"], {"num_classes": 5}, "got --label '²'"),
        (["1,,2"], {"num_classes": 5}, "got --label ''"),
        (["9" * 5000], {"num_classes": 5}, "got --label '9"),
        (["none"], {"num_classes": 5, "unconditional": False}, "got --label 'none'.*or all$"),
        (None, {"num_classes": 5, "unconditional": False}, "needs a class for every sample; give --label, one of 3, 7"),
        (["0"], {}, "got --label 0 for a model without classes; leave --label out"),
    ],
)
def test_other_labels_are_told_what_there_is(texts, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        chosen_labels(texts, model(**options), CLASSES)


def test_samples_take_the_labels_in_turn_whatever_the_batch(tmp_path):
    labelled = model(num_classes=5)
    path = tmp_path / "model.safetensors"
    save(labelled, path)
    conditions = {"label": [4, 0, 4, 0, 4]}
    expected = scoresde.sample(labelled, (5, 2), "ddim", 3, seed=0, end="flow", progress=False, conditions=conditions).x
    for batch_size in (5, 2, 3):
        call = ("sample", path, "--shape", "2", "-n", 5, "--solver", "ddim", "--steps", 3, "--label", "4,0", "--no-progress")
        done = invoke(*call, "--batch-size", batch_size, "--end", "flow", "--out", tmp_path / "x.npy")
        assert done.exit_code == 0, done.output
        found = torch.from_numpy(np.load(tmp_path / "x.npy"))
        assert torch.allclose(found, expected, atol=1e-5)
    refused = invoke(*call[:-2], "12", "--out", tmp_path / "x.npy")
    assert refused.exit_code == 2 and "got --label '12'; expected a number from 0 to 4, or all, or none" in refused.stderr


def test_guidance_is_classifier_free_guidance_towards_the_labels(tmp_path):
    guided = model(num_classes=5)
    scoresde.save(guided, tmp_path / "model.safetensors", event=[2])
    out = tmp_path / "x.npz"
    common = ["--n", 4, "--solver", "ddim", "--steps", 3, "--no-progress", "--out", out]
    run = invoke("sample", tmp_path / "model.safetensors", "--label", "1,2", "--guidance", 2.5, *common)
    assert run.exit_code == 0 and "6 evaluations" in run.output, run.output
    with np.load(out) as drawn:
        x, seeds = drawn["x"], drawn["seeds"].tolist()
    wanted = scoresde.sample(
        ClassifierFree(guided, 2.5, {"label": 5}),
        (4, 2),
        "ddim",
        3,
        seed=seeds,
        conditions={"label": [1, 2, 1, 2]},
        progress=False,
    )
    np.testing.assert_allclose(x, wanted.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "texts", "sentence"),
    [
        ({"num_classes": 5}, [], "got --guidance 2 without --label, .* as in --label 3"),
        ({}, [], "this model has no classes, so leave --guidance out"),
        ({"num_classes": 5, "unconditional": False}, ["--label", "1"], "expected one trained with label dropout"),
    ],
)
def test_guidance_without_what_it_needs_is_a_sentence(tmp_path, options, texts, sentence):
    scoresde.save(model(**options), tmp_path / "model.safetensors", event=[2])
    for command in (["sample"], ["compare"], ["evaluate", "--against", "digits"]):
        run = invoke(*command, tmp_path / "model.safetensors", "--guidance", 2, *texts, "--no-progress")
        assert run.exit_code != 0 and re.search(sentence, " ".join(run.output.split())), run.output


def test_a_guided_model_is_evaluated_and_compared_as_it_is_sampled(tmp_path):
    guided = model(num_classes=5)
    scoresde.save(guided, tmp_path / "model.safetensors", event=[2])
    np.save(tmp_path / "real.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    common = ["-n", 30, "--solver", "ddim", "--steps", 3, "--no-progress"]
    folders = []
    for scale in (2.5, 3.0, 2.5):
        call = ["evaluate", tmp_path / "model.safetensors", "--against", tmp_path / "real.npy", "--label", "1,2"]
        run = invoke(*call, "--guidance", scale, *common)
        assert run.exit_code == 0, run.output
        folders.append(Path(re.search(r"samples: (.*)", run.output)[1]))
    assert folders[0] == folders[2] != folders[1]  # each scale has samples of its own, which are used again
    wanted = scoresde.sample(
        ClassifierFree(guided, 2.5, {"label": 5}),
        (30, 2),
        "ddim",
        3,
        seed=0,
        conditions={"label": [1, 2] * 15},
        progress=False,
    )
    np.testing.assert_allclose(np.load(next(folders[0].glob("*.npy"))), wanted.x, rtol=1e-5, atol=1e-6)
    (case,) = _compared([str(tmp_path / "model.safetensors")], ["vp"], None, ["1,2"], 2.5, 3)["problem"].values()
    assert (
        isinstance(case.model, ClassifierFree) and float(case.model.scale) == 2.5 and case.conditions == {"label": [1, 2, 1]}
    )
    run = invoke("evaluate", tmp_path / "real.npy", "--against", tmp_path / "real.npy", "--guidance", 2, "--label", "3")
    assert run.exit_code == 2 and "got --label 3 and --guidance 2.0 for samples that are drawn" in " ".join(
        run.output.split()
    )
    run = invoke("compare", "ring", "--guidance", 2)
    assert run.exit_code == 2 and "got --guidance 2.0 for problems" in " ".join(run.output.split())


def save(model: ScoreModel, path: Path) -> None:
    scoresde.save(model, path, event=(2,))


def test_class_names_travel_from_folders_to_samples(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("train/2", "train/10", "train/1", "val/1", "val/10"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "photos" / name / "a.png")
    call = ("train", "--data", f"{tmp_path / 'photos'}:train", "--labels", "--out", tmp_path / "run", "--steps", 2)
    done = invoke(*call, "--batch-size", 2, "--width", 4, "--no-progress")
    assert done.exit_code == 0, done.output
    found = []
    for label in ("10", "2", "1,1"):
        out = tmp_path / "x.npy"
        done = invoke("sample", tmp_path / "run", "-n", 1, "--steps", 2, "--label", label, "--out", out, "--no-progress")
        assert done.exit_code == 0, done.output
        found.append(np.load(out))
    loaded = scoresde.load(tmp_path / "run")
    for x, label in zip(found, (2, 1, 0), strict=True):  # of 1, 2, 10
        expected = scoresde.sample(loaded, (1, 1, 8, 8), steps=2, seed=0, progress=False, conditions={"label": [label]}).x
        assert np.allclose(x, expected.numpy(), atol=1e-5)
    done = invoke("sample", tmp_path / "run", "--label", "3", "--no-progress")
    assert done.exit_code == 2 and "got --label '3'; expected one of 1, 2, 10, or a number from 0 to 2" in done.stderr
    call = ("compare", tmp_path / "run", "--solver", "ddim", "--evaluations", 3, "--metric", "time", "-n", 4)
    done = invoke(*call, "--label", "10,2", "--out", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert "label: 2 (2), 10 (2)" in done.output and "label: 2 (2), 10 (2)" in (tmp_path / "report/table.md").read_text()
    done = invoke("compare", "ring", "--label", "10", "--no-progress")
    assert done.exit_code == 2 and "got --label 10 for problems, which have no classes" in done.stderr


# What is opened ------------------------------------------------------------------------------------------------------


def folder_of_diffusers(folder: Path, **config) -> Path:
    """A small U-Net of random weights, as diffusers would have written it."""
    from scoresde.weights import diffusers
    from scoresde.weights.files import read_json
    from scoresde.weights.keys import Dialect, takes

    told = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler", "beta_schedule": "linear"}))
    read = read_json(folder / "config.json", diffusers.UNet2D)
    net = UNet(**diffusers.network(read))
    tensors, own = {}, net.state_dict()
    names = {name: torch.empty(0) for name in ("conv_in.weight",)}
    for take in takes(net, names, Dialect("diffusers")):
        parts = own[take.ours].chunk(len(take.theirs)) if len(take.theirs) > 1 else [own[take.ours]]
        tensors |= {name: part.clone().contiguous() for name, part in zip(take.theirs, parts, strict=True)}
    from safetensors.torch import save_file

    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_load_and_sample_read_the_same(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save(model(), run / "model.safetensors")
    diffusers = folder_of_diffusers(tmp_path / "diffusers")
    for where, shape in ((run, (2,)), (run / "model.safetensors", (2,)), (diffusers, (1, 8, 8))):
        assert isinstance(scoresde.load(where), ScoreModel)
        done = invoke("sample", where, "-n", 2, "--steps", 2, "--no-progress", "--out", tmp_path / "x.npy")
        assert done.exit_code == 0, done.output
        assert np.load(tmp_path / "x.npy").shape == (2, *shape)
    done = invoke("sample", folder_of_diffusers(tmp_path / "other", sample_size=None), "--no-progress")
    assert done.exit_code == 2 and "does not tell the shape of a sample; give it: --shape" in done.stderr
    done = invoke("sample", tmp_path, "--no-progress")
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(ValueError):
        scoresde.load(tmp_path)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "", "cuda:-1"])
def test_a_device_that_is_not_there_is_a_sentence(tmp_path, command, device):
    save(model(), tmp_path / "model.safetensors")
    against = ("--against", "digits") if command == "evaluate" else ()
    done = invoke(command, tmp_path, *against, "--device", device, "--no-progress")
    assert done.exit_code == 2 and f"got the device '{device}', which is not there" in done.stderr and "cpu" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_one_is_a_sentence(tmp_path):
    save(model(), tmp_path / "model.safetensors")
    done = invoke("sample", tmp_path / "model.safetensors", "--shape", "2", "--device", "cuda", "--no-progress")
    assert done.exit_code == 2 and "got the device 'cuda', which is not there" in done.stderr
