"""The presets: what their papers state, that they fit the command, and that they train, sample and are continued."""

import csv
import functools
import importlib
import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import files, invoke, one_line
from torch import nn
from typer.main import get_command

import scoresde
from scoresde import VE, VP, ScoreModel, data, models, presets, training
from scoresde.base.settings import parse
from scoresde.cli import app, options
from scoresde.objectives import OBJECTIVES, LabelDropout
from scoresde.sde import names
from scoresde.sde.chain import Chain
from scoresde.solvers import make_path
from scoresde.training import networks
from scoresde.training.files import checkpoint, runs
from scoresde.weights import PUBLISHED

NAMES = list(presets.PRESETS)

# name: (images, images of the warm-up, half-life of the averages in images), by the papers and their code
RULES = {
    "ddpm-cifar10": (800e3 * 128, 5000 * 128, 128 * math.log(0.5) / math.log(0.9999)),
    "ddpmpp-cifar10": (1.3e6 * 128, 5000 * 128, 128 * math.log(0.5) / math.log(0.9999)),
    "ddpmpp-cifar10-subvp": (1.3e6 * 128, 5000 * 128, 128 * math.log(0.5) / math.log(0.9999)),
    "ncsnpp-cifar10": (1.3e6 * 128, 5000 * 128, 128 * math.log(0.5) / math.log(0.999)),
    **dict.fromkeys([f"edm-cifar10-{kind}" for kind in ("vp", "vp-cond", "ve", "ve-cond")], (200e6, 10e6, 0.5e6)),
}

# The published checkpoint that each training would give, as far as this library reads it.
CHECKPOINTS = {
    "ddpmpp-cifar10": "vp/cifar10_ddpmpp_continuous",
    "ddpmpp-cifar10-subvp": "subvp/cifar10_ddpmpp_continuous",
    "ncsnpp-cifar10": "ve/cifar10_ncsnpp_continuous",
    "edm-cifar10-vp": "edm-cifar10-32x32-uncond-vp",
    "edm-cifar10-ve": "edm-cifar10-32x32-uncond-ve",
    "edm-cifar10-vp-cond": "edm-cifar10-32x32-cond-vp",
    "edm-cifar10-ve-cond": "edm-cifar10-32x32-cond-ve",
}


def network(name: str) -> nn.Module:
    """The network that the command would build for a preset, without memory."""
    given = presets.find_preset(name).train
    classes, augment = 10 if given.get("labels") else 0, data.Augmentation.size if "augment" in given else 0
    process = names.process(given["sde"])
    with torch.device("meta"):
        return networks.network(given["network"], (3, 32, 32), process, given["predicts"], classes=classes, augment=augment)


# The files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_an_option_and_every_value_what_the_command_takes(name):
    preset = presets.find_preset(name)
    for command, given in (("train", preset.train), ("evaluate", preset.sample)):
        command = get_command(app).commands[command]
        needed = {"train": ["--data", "x", "--out", "y"], "evaluate": ["x", "--against", "y"]}[command.name]
        settings = options.checked(command, given, name)
        taken = command.make_context(command.name, needed, default_map=settings).params
        assert all(taken[key] in (value, str(value)) for key, value in settings.items())
    assert tomllib.loads(preset.text)["published"] == preset.published
    assert preset.published["source"].count("https://") == 1 and "table" in preset.published["source"]


@pytest.mark.parametrize("name", NAMES)
def test_images_warm_up_and_averages_are_those_of_the_paper(name):
    given, (images, warmup, half_life) = presets.find_preset(name).train, RULES[name]
    batch = given["batch-size"]
    assert presets.find_preset(name).images == presets.find_preset(name).published["images"] == images
    assert abs(given["warmup"] * batch - warmup) < batch
    assert math.log(0.5) / math.log(given["ema"]) * batch == pytest.approx(half_life, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_has_as_many_parameters_as_the_paper_s(name):
    published = models.NETWORKS[presets.find_preset(name).train["network"]]
    assert sum(p.numel() for p in network(name).parameters()) == published.parameters


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_training_makes_the_model_of_the_published_checkpoint(name):
    given, published = presets.find_preset(name).train, PUBLISHED[CHECKPOINTS[name]]
    assert names.process(given["sde"]).config() == published.process().config()
    assert given["predicts"] == published.predicts
    with torch.device("meta"):
        theirs = published.net().config
    ours = network(name).config
    assert {key for key in ours if ours[key] != pytest.approx(theirs[key])} == set()


@pytest.mark.parametrize(
    ("sde", "told"),
    [
        ("ddpm", lambda t: 1000 * t - 1),
        ("vp", lambda t: 999 * t),
        ("ve: sigma_min=0.02, sigma_max=100.0", lambda t: math.log(0.01) + t * math.log(5000)),
        ("ve: sigma_min=0.1, sigma_max=20.0", lambda t: math.log(0.1 * 200**t / 2)),
    ],
)
def test_a_network_is_told_the_time_as_in_its_paper(sde, told):
    process = names.process(sde)
    net = networks.network("ddpmpp-cifar10: width=8, blocks=1", (3, 32, 32), process, "eps")
    seen = []
    model = ScoreModel(lambda x, t: seen.append(t) or x, process)
    t = torch.tensor([0.25, 1.0])
    model(torch.zeros(2, 1), t)
    given = (seen[0] - net.config["time_shift"]) / net.config["time_scale"]
    assert torch.allclose(given, torch.tensor([told(float(s)) for s in t]), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_sampler_takes_the_published_number_of_evaluations(name):
    preset = presets.find_preset(name)
    how = {key: value for key, value in preset.sample.items() if key in ("solver", "steps", "path", "end")}
    model = ScoreModel(lambda x, t: 0 * x, names.process(preset.train["sde"]), preset.train["predicts"])
    counted = scoresde.sample(model, (1, 2), progress=False, **how).evaluations
    assert abs(counted - preset.published["evaluations"]) <= (how["solver"] == "pc"), "it corrects once less"
    assert preset.sample["n"] == 50_000


def test_the_levels_of_noise_of_edm_are_those_of_its_equation_5():
    given = presets.find_preset("edm-cifar10-vp")
    path = make_path(names.sde(given.train["sde"]), given.sample["path"], given.sample["steps"])
    low, high, i = 0.002 ** (1 / 7), 80 ** (1 / 7), np.arange(18)
    assert np.allclose(path.times[:-1], (high + i / 17 * (low - high)) ** 7) and path.times[-1] == 0


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_that_of_the_counted_operations(name):
    preset = presets.find_preset(name)
    assert presets.gpu_hours(preset) == pytest.approx(preset.cost["a100-hours"], rel=0.02)


def test_operations_are_those_of_convolutions_and_attention_by_hand():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    one = type("One", (nn.Module,), {"forward": lambda self, x, t: self.conv(x)})()
    one.conv = conv
    assert presets.operations(one, (3, 8, 8)) == 2 * 3 * 5 * 9 * 64
    given = {"channels": 3, "width": 32, "blocks": 1, "multipliers": (1,)}
    without, with_ = (models.build("ddpmpp-cifar10", **given, attention=a) for a in ((), (0,)))
    # on the way down and, last_attention, once on the way up: four products of 32 channels and two with 64 x 64 weights
    each = 2 * (4 * 64 * 32 * 32 + 2 * 64 * 64 * 32)
    assert presets.operations(with_, (3, 8, 8)) - presets.operations(without, (3, 8, 8)) == 2 * each


@pytest.mark.parametrize(("name", "factor"), [("ncsnpp-cifar10", 1536), ("edm-cifar10-vp", 3072)])
def test_steps_on_the_mean_are_the_paper_s_on_the_sum(name, factor):
    """Adam on the sum over an image with the paper's numbers, and on the mean with those of the preset."""
    given = presets.find_preset(name).train
    settings = parse(given["optimizer"])[1]
    theirs_clip = 1.0 if math.isfinite(given["clip"]) else math.inf
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(64)) for _ in range(2)]
    makers = (torch.optim.Adam([weights[0]], lr=0.1), torch.optim.Adam([weights[1]], lr=0.1, **settings))
    for step in range(20):
        size = 1e-5 if step % 2 else 1e-3  # below and above what theirs is clipped at
        gradient = size * torch.randn(64, generator=generator) * torch.logspace(-4, 0, 64)  # some as small as eps
        scales = ((factor, theirs_clip), (1, given["clip"]))
        for weight, optimizer, (scale, clip) in zip(weights, makers, scales, strict=True):
            weight.grad = scale * gradient
            nn.utils.clip_grad_norm_([weight], clip)
            optimizer.step()
    assert torch.allclose(weights[0], weights[1], rtol=5e-3, atol=1e-6)
    assert not torch.allclose(weights[0], torch.zeros(64), atol=1e-2)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """Made-up images in the files of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    for k in range(1, 6):
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(2 * k - 2, 2 * k + 2) % 10
        records.tofile(folder / f"data_batch_{k}.bin")
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("features") / "pixels.py"
    file.write_text(
        "from scoresde.evaluation import Features\n\n"
        "def make():\n    return Features(lambda x: x[:, :, ::16, ::16].flatten(1), 'some pixels')\n"
    )
    return f"{file}:make"


@pytest.fixture
def quick(monkeypatch):
    """The loss by time, from a few samples."""
    report = training.report
    module = importlib.import_module("scoresde.training.fit")  # the package has a function of this name
    monkeypatch.setattr(module, "report", functools.partial(report, samples=10, batch_size=1))


SMALL = "width=8, blocks=1, multipliers=[1], attention=[]"


def small(name: str) -> list[str]:
    """Changes that make a preset a matter of a second."""
    given = presets.find_preset(name).train["network"]
    stem = ", stem=8" if given.startswith("edm") else ""
    changes = [f"network={given}: {SMALL}{stem}", "steps=2", "batch-size=2", "sample.n=4", "sample.steps=2"]
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_every_preset_trains_samples_and_is_evaluated(tmp_path, cifar, features, quick, name):
    base = ["reproduce", name, "--data", f"cifar10:{cifar}", "--features", features, "--no-progress", *small(name)]
    done = invoke(*base, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert {"model.safetensors", "scores.json", "loss.png"} <= files(tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (scores["n"], scores["m"]) == (4, 20)
    published = presets.find_preset(name).published
    line = done.stdout.splitlines()[-1]
    assert f"FID {scores['frechet']:.4g} of 4 samples against 20" in line
    assert f"published: {published['fid']:g} with {published['evaluations']}" in line and published["source"] in line
    model, event = runs.open_run(tmp_path / "run")
    assert event == (3, 32, 32) and model.predicts == presets.find_preset(name).train["predicts"]
    assert model.net.config["augment"] == network(name).config["augment"]
    assert (model.net.config["num_classes"] == 10) == name.endswith("-cond")


def test_reproduce_continues_after_an_interruption(tmp_path, cifar, features, quick, monkeypatch):
    name = "ddpm-cifar10"
    base = ["reproduce", name, "--data", f"cifar10:{cifar}", "--features", features, "--no-progress", *small(name)]
    base += ["--set", "steps=4", "--set", "save_every=2"]

    class Interrupted(training.Trainer):
        def run(self, steps: int) -> None:
            super().run(2)
            raise KeyboardInterrupt("stopped after step 2 of 4")

    with monkeypatch.context() as patch:
        patch.setattr("scoresde.cli.train.Trainer", Interrupted)
        stopped = invoke(*base, "--out", tmp_path / "a")
    assert stopped.exit_code == 130 and "stopped after step 2 of 4" in stopped.stderr
    assert "scores.json" not in files(tmp_path / "a")

    def failing(*arguments, **named):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("scoresde.evaluation.evaluate", failing)
        assert invoke(*base, "--out", tmp_path / "a").exit_code == 2
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "samples").rglob("*.npy")}
    done, whole = invoke(*base, "--out", tmp_path / "a"), invoke(*base, "--out", tmp_path / "b")
    assert done.exit_code == whole.exit_code == 0
    assert drawn and drawn == {path: path.stat().st_mtime_ns for path in drawn}, "samples are used again"
    assert done.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    a, b = (runs.open_run(tmp_path / run)[0].state_dict() for run in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path, cifar, quick):
    printed = invoke("presets", "ddpm-cifar10")
    (tmp_path / "run.toml").write_text(printed.stdout.replace("batch-size = 128", "batch-size = 3"))
    preset = ["--preset", "ddpm-cifar10"]
    line = ["--network", f"ddpm-cifar10: {SMALL}", "--steps", 4, "--warmup", 2, "--no-progress"]
    for order in (["train", tmp_path / "run.toml", *preset], ["train", *preset, tmp_path / "run.toml"]):
        out = tmp_path / f"run{order.index('--preset')}"
        done = invoke(*order, "--data", f"cifar10:{cifar}", "--out", out, *line)
        assert done.exit_code == 0, done.output
        described = checkpoint.read(out / "model.safetensors", ()).description["training"]
        assert (described["batch_size"], described["lr"], described["warmup"]) == (3, 2e-4, 2)
        rates = [float(row["lr"]) for row in csv.DictReader((out / "model.csv").read_text().splitlines())]
        paper = [2e-4 * min(n / 2, 1) for n in range(1, 5)]  # the linear ramp of the paper, n counting from 1
        assert all(abs(rate - rule) <= 2e-4 / 2 for rate, rule in zip(rates, paper, strict=True)) and rates[2:] == paper[2:]


def test_the_table_of_presets_has_all_of_them_within_100_columns():
    shown = invoke("presets").stdout
    assert max(map(len, shown.splitlines())) <= 100
    rows = {line.split()[0]: line for line in shown.splitlines()[2:]}
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        published = presets.find_preset(name).published
        assert re.search(rf" {published['fid']:.2f} +{published['evaluations']} ", row) and published["hardware"] in row


# What the trainer is given -------------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What the command hands to the trainer."""

    def train(*line: object) -> dict:
        seen = {}

        def recorder(model, source, objective, *, method, files, **named):
            seen.update(named, model=model, source=source, objective=objective, method=method, files=files)
            raise KeyboardInterrupt

        monkeypatch.setattr("scoresde.cli.train.Trainer", recorder)
        done = invoke("train", "--data", "digits", "--out", tmp_path, "--width", 4, *line)
        assert done.exit_code == 130, done.output
        return seen

    return train


def test_what_is_asked_for_is_passed_on(given, tmp_path):
    usual = given()
    assert usual["objective"] == OBJECTIVES["ddpm"]
    assert usual["method"] == training.Method(batch_size=64, lr=2e-3)
    assert usual["files"] == training.Files(tmp_path / "model.safetensors", monitor_every=0)
    assert given("--optimizer", "adamw")["method"].optimizer == "adamw"
    asked = given("--schedule", "cosine-500", "--workers", 2, "--ema", "none", "--average", "power-0.1", "--average", "0.9")
    expected = {"schedule": "cosine-500", "workers": 2, "ema": "none", "averages": ("power-0.1", "0.9")}
    assert asked["method"] == training.Method(batch_size=64, lr=2e-3, **expected)
    assert [a.name for a in asked["method"].kept_averages()] == ["power-0.1", "exponential-0.9"]
    assert given("--augment", 0)["method"].augmentation is None
    files = given("--keep-last", 2, "--no-resume", "--accept", "lr", "--accept", "seed", "--no-log")["files"]
    assert files == training.Files(
        tmp_path / "model.safetensors", keep_last=2, resume=False, accept=("lr", "seed"), log=False, monitor_every=0
    )
    line = ["--network", f"edm-ddpmpp-cifar10: {SMALL}, stem=8", "--sde", "edm", "--augment", 0.12, "--sigma-data", 0.5]
    seen = given(*line)
    assert seen["method"].augmentation == data.Augmentation(0.12) and seen["model"].sigma_data == 0.5
    assert seen["model"].net.config["channels"] == 1 and seen["model"].net.config["augment"] == data.Augmentation.size


def test_labels_are_hidden_by_the_objective_alone(given):
    seen = given("--labels", "--label-dropout", 0.25, "--sde", "edm")
    assert seen["objective"] == LabelDropout(OBJECTIVES["edm"], {"label": 10}, 0.25)
    assert given("--labels", "--label-dropout", 0)["objective"] == OBJECTIVES["ddpm"]


def test_an_sde_and_a_chain_take_settings(given):
    assert given("--sde", "ve: sigma_max=7.0")["model"].sde == VE(sigma_max=7.0)
    model = given("--sde", "ddpm: n=10")["model"]
    assert isinstance(model.sde.chain, Chain) and len(model.sde.chain) == 10
    assert torch.allclose(model._time(torch.tensor(0.4)), torch.tensor(0.4)), "a small network is told t itself"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["train", "--preset", "edm-cifar10-vq"], "got preset 'edm-cifar10-vq'; expected one of ddpm-cifar10"),
        (["train", "--preset", "edm-cifar10-vq"], "did you mean 'edm-cifar10-vp'"),
        (["train", "--network", "ddpmp-cifar10"], "got network 'ddpmp-cifar10'; expected one of"),
        (["train", "--network", "ddpm-cifar10: widht=3"], "got 'widht' for the network 'ddpm-cifar10'; expected its"),
        (["train", "--network", "ddpm-cifar10: widht=3"], "did you mean 'width'"),
        (["train", "--network", "ddpm-cifar10: width 3"], "expected a name and settings as in TOML"),
        (["train", "--network", "ncsnv2-cifar10", "--labels"], "got num_classes=10 for the network 'ncsnv2-cifar10'"),
        (["train", "--sde", "ve: sigma=3"], "got 'sigma' for SDE 've'; expected its arguments: sigma_min"),
        (
            ["train", "--optimizer", "adamm: eps=1"],
            "got optimizer 'adamm'; expected one of adadelta",
        ),
        (["train", "--optimizer", "adam: epsilon=1"], "got 'epsilon' for the optimizer 'adam'; expected its arguments"),
        (["train", "--augment", 0.1], "got --augment without --network; expected one that is told of it"),
        (["presets", "ddpm-cifar"], "did you mean 'ddpm-cifar10'"),
        (["reproduce", "ddpm-cifar", "--features", "x:y"], "did you mean 'ddpm-cifar10'"),
        (["reproduce", "ddpm-cifar10", "--features", "x:y", "--set", "batchsize=3"], "did you mean 'batch_size'"),
        (["reproduce", "ddpm-cifar10", "--features", "x:y", "--set", "steps"], "expected an option and its value"),
        (["reproduce", "ddpm-cifar10", "--features", "x:y", "--set", "sampel.n=3"], "or sample.NAME, one of the sampling"),
        (["reproduce", "ddpm-cifar10", "--features", "x:y", "--set", "sample.step=3"], "did you mean 'steps'"),
        (["reproduce", "ddpm-cifar10", "--features", "no.py:make"], "found no file 'no.py' for the extractor"),
        (
            ["reproduce", "ddpm-cifar10", "--features", "json:JSONDecoder", "--set", "sample.path=tt"],
            "is JSONDecoder; expected",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_near_names_and_writes_nothing(tmp_path, monkeypatch, line, sentence):
    monkeypatch.chdir(tmp_path)
    more = [] if line[0] == "presets" else ["--data", "digits", "--out", "run"]
    result = invoke(*line, *more)
    assert result.exit_code == 2, result.output
    assert sentence in one_line(result.stderr)
    assert files(tmp_path) == set()


def test_a_file_with_an_unknown_option_is_refused(tmp_path):
    (tmp_path / "run.toml").write_text("batch-sise = 3\n")
    result = invoke("train", tmp_path / "run.toml", "--data", "digits", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "did you mean 'batch_size'" in one_line(result.stderr)


def test_vector_data_take_no_published_network():
    with pytest.raises(ValueError, match=re.escape("for samples of shape (2,); expected images (c, h, w)")):
        networks.network("ddpm-cifar10", (2,), VP(), "eps")
