"""The trainer: averages and their reconstruction, many processes, killed processes, bad batches, full disks."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from support import divided
from torch import Tensor, nn
from typer.testing import CliRunner

from scoresde import VP, ScoreModel, data
from scoresde.cli import app
from scoresde.models import MLP, UNet
from scoresde.objectives import DSM, LabelDropout, Times, UniformTimes
from scoresde.training import (
    CheckpointError,
    ExponentialAverage,
    PowerAverage,
    Trainer,
    combination,
    fit,
    load,
    read_log,
    reconstruct,
)
from scoresde.training.files.checkpoint import read
from scoresde.training.files.logs import Log

ROOT = Path(__file__).resolve().parents[1]
POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def small(seed: int = 0, **arguments: Any) -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ScoreModel(MLP(2, hidden=(16,), time_features=8, **arguments), VP(), "v")


def trainer(model: ScoreModel | None = None, x: Any = POINTS, **arguments: Any) -> Trainer:
    usual = {"batch_size": 16, "lr": 0.02, "warmup": 0, "progress": False}
    return Trainer(model or small(), x, **divided(usual | arguments))


def trained(steps: int, model: ScoreModel | None = None, x: Any = POINTS, **arguments: Any) -> Trainer:
    made = trainer(model, x, **arguments)
    made.run(steps)
    return made


def state(t: Trainer) -> dict[str, Tensor]:
    """All weights and averages by name."""
    models = {"net": t.model, **t.averaged}
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}


def same(a: Trainer, b: Trainer) -> bool:
    one, two = state(a), state(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def close(a: Trainer, b: Trainer, tolerance: float = 1e-5) -> None:
    for name, value in state(a).items():
        torch.testing.assert_close(value, state(b)[name], rtol=tolerance, atol=tolerance)


# Averages ------------------------------------------------------------------------------------------------------------


@given(sigma_rel=st.floats(0.02, 0.28), steps=st.integers(2, 60))
def test_the_steps_of_a_power_average_weigh_what_its_profile_integrates_to(sigma_rel: float, steps: int) -> None:
    profile = PowerAverage(sigma_rel)
    weights = torch.zeros(steps, dtype=torch.float64)
    for t in range(1, steps + 1):
        weights *= profile.beta(t)
        weights[t - 1] = 1 - profile.beta(t)
    ends = torch.arange(steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(weights, (ends ** (profile.gamma + 1)).diff(), rtol=1e-9, atol=1e-12)


@given(sigma_rel=st.floats(0.01, 0.288))
def test_sigma_rel_is_the_deviation_of_the_profile(sigma_rel: float) -> None:
    g = PowerAverage(sigma_rel).gamma
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)  # of tau with density (gamma + 1) tau^gamma on [0, 1]
    assert math.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-6)


def test_the_combination_is_the_least_squares_fit_of_the_profiles() -> None:
    stored = [(60, PowerAverage(0.06)), (100, PowerAverage(0.14)), (100, PowerAverage(0.05))]
    wanted = (90, PowerAverage(0.1))

    def density(step: int, profile: PowerAverage, tau: float) -> float:
        g = profile.gamma
        return (g + 1) * tau**g / step ** (g + 1) if tau <= step else 0.0

    found = combination(stored, wanted).tolist()

    def residual(tau: float) -> float:
        return sum(c * density(*p, tau) for c, p in zip(found, stored, strict=True)) - density(*wanted, tau)

    for profile in stored:  # the residual of a least squares fit is orthogonal to what it is fitted with
        inner = quad(lambda tau, p=profile: residual(tau) * density(*p, tau), 0, 100, points=[60, 90], limit=200)[0]
        scale = quad(lambda tau, p=profile: density(*p, tau) ** 2, 0, 100, points=[60, 90], limit=200)[0]
        assert abs(inner) < 1e-6 * scale


@given(chosen=st.integers(0, 11), at=st.integers(1, 4))
def test_a_stored_average_is_reconstructed_as_it_is(chosen: int, at: int) -> None:
    stored = [(100 * at * k, PowerAverage(s)) for k in range(1, 7) for s in (0.05, 0.1)]
    expected = torch.zeros(12, dtype=torch.float64)
    expected[chosen] = 1
    torch.testing.assert_close(combination(stored, stored[chosen]), expected, rtol=0, atol=1e-5)


def test_more_snapshots_reconstruct_another_average_better() -> None:
    steps = 1024
    walk = torch.randn(steps, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cumsum(0)
    tracked = {s: torch.zeros(steps, 40, dtype=torch.float64) for s in (0.05, 0.1, 0.075)}
    for s, values in tracked.items():
        for t in range(1, steps + 1):
            beta = PowerAverage(s).beta(t)
            values[t - 1] = beta * values[t - 2] + (1 - beta) * walk[t - 1]
    errors = []
    for count in (4, 8, 16, 32):
        stored = [(steps * k // count, s) for k in range(1, count + 1) for s in (0.05, 0.1)]
        c = combination([(t, PowerAverage(s)) for t, s in stored], (steps, PowerAverage(0.075)))
        found = sum(a * tracked[s][t - 1] for a, (t, s) in zip(c, stored, strict=True))
        errors.append(float((found - tracked[0.075][-1]).norm() / walk[-1].norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]
    assert errors[-1] < 2e-3


def test_snapshots_of_a_training_give_the_average_that_was_not_kept(tmp_path: Path) -> None:
    kept = [0.9, PowerAverage(0.05), PowerAverage(0.1)]
    out = tmp_path / "model.safetensors"
    trained(40, out=out, averages=kept, snapshot_every=5)
    direct = trained(40, averages=[PowerAverage(0.07)])
    found = reconstruct(tmp_path / "snapshots", 0.07).state_dict()
    stored = reconstruct(tmp_path / "snapshots", 0.1).state_dict()
    for name, value in direct.averaged["power-0.07"].state_dict().items():
        movement = (value - direct.model.state_dict()[name]).norm() + 1e-12
        assert (found[name] - value).norm() < 0.1 * movement
    for name, value in load(out, ema="power-0.1").state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"no average called 'power-0.2'; it holds exponential-0.9, power-0.05"):
        load(out, ema="power-0.2")
    with pytest.raises(CheckpointError, match="none a snapshot of a power-function average"):
        reconstruct(tmp_path / "checkpoints", 0.1)


def test_averages_are_those_of_their_formulas() -> None:
    kept = [ExponentialAverage(0.8), PowerAverage(0.1), PowerAverage(0.2)]
    got = trained(6, averages=kept)
    walk = [trained(n).model.state_dict() for n in range(1, 7)]
    for average in kept:
        expected = walk[0]
        for t, now in enumerate(walk[1:], start=2):
            b = average.beta(t)
            expected = {name: b * expected[name] + (1 - b) * now[name] for name in now}
        for name, value in expected.items():
            torch.testing.assert_close(got.averaged[average.name].state_dict()[name], value)


# One training, whichever way it is done ------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 16])
def test_a_batch_in_parts_is_the_batch(accumulate: int) -> None:
    close(trained(5, accumulate=accumulate), trained(5))


def test_a_set_is_trained_on_as_its_tensor_is() -> None:
    assert same(trained(4, x=data.Arrays(POINTS)), trained(4))


def test_fit_is_the_trainer() -> None:
    arguments: dict[str, Any] = {"batch_size": 16, "lr": 0.02, "warmup": 3, "progress": False}
    result = fit(small(), POINTS, steps=5, **divided(arguments | {"ema": 0.9}))
    direct = trained(5, averages=[0.9], warmup=3)
    assert result.history == direct.history
    assert all(
        torch.equal(v, direct.averaged["exponential-0.9"].state_dict()[k]) for k, v in result.model.state_dict().items()
    )


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    def run(last: bool) -> Trainer:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = ScoreModel(UNet(3, 8, (1, 2), lean=True), VP())
        return trained(3, model, torch.linspace(-1, 1, 4 * 192).reshape(4, 3, 8, 8), channels_last=last, batch_size=4)

    one, two = run(True), run(False)
    assert one.model.net.stem.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    # Not the weights: some have no gradient but its rounding errors, of which Adam makes whole steps.
    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(two.losses), rtol=1e-3, atol=0)
    assert one.losses[0] != one.losses[-1]


@pytest.mark.slow
def test_a_compiled_network_is_trained_to_the_same_weights_and_resumed(tmp_path: Path) -> None:
    one, two = trained(3, compile=True), trained(3)
    assert one.model.state_dict().keys() == two.model.state_dict().keys()
    close(one, two, 1e-4)
    for steps, compile in ((2, True), (3, False)):  # the file knows nothing of it
        close(trained(steps, compile=compile, out=tmp_path / "either"), trained(steps), 1e-4)


@pytest.mark.slow
def test_a_compiled_network_with_dropout_resumes_bit_for_bit(tmp_path: Path) -> None:
    class Dropping(nn.Sequential):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            y: Tensor = super().forward(x)
            return y

    def model(p: float = 0.3) -> ScoreModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ScoreModel(Dropping(nn.Linear(2, 8), nn.Dropout(p), nn.Linear(8, 2)), VP())

    whole = trained(5, model(), compile=True)
    for steps in (2, 5):
        parts = trained(steps, model(), compile=True, out=tmp_path / "run")
    assert same(parts, whole)
    assert not same(whole, trained(5, model(0.0), compile=True))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_low_precision_trains_alike_and_resumes_bit_for_bit(precision: str, tolerance: float, tmp_path: Path) -> None:
    whole, exact = trained(9, precision=precision, lr=1e-3), trained(9, lr=1e-3)
    assert whole.losses != exact.losses
    torch.testing.assert_close(torch.tensor(whole.losses), torch.tensor(exact.losses), rtol=tolerance, atol=0)
    for steps in (4, 9):
        parts = trained(steps, precision=precision, lr=1e-3, out=tmp_path / "run")
    assert same(parts, whole)
    with pytest.raises(CheckpointError, match=r"training\.precision="):
        trainer(lr=1e-3, out=tmp_path / "run")


@pytest.mark.filterwarnings("ignore:got data between")
def test_the_scale_of_a_loss_falls_until_its_gradient_is_finite_and_is_kept(tmp_path: Path) -> None:
    large = 1e4 * POINTS  # its gradient, times the first scale of 65536, is more than a half can hold
    t = trained(2, x=large, precision="fp16", out=tmp_path / "run")
    again = trainer(x=large, precision="fp16", out=tmp_path / "run")
    assert again.stepper.scaler.get_scale() == t.stepper.scaler.get_scale()


@dataclass(frozen=True, eq=False)
class Learning(Times):
    """Times that lean on the mean of the losses they were told."""

    seen: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    def at(self, u: Tensor, sde: Any) -> tuple[Tensor, Tensor]:
        power = 1 + float(self.seen[0] / self.seen[1].clamp(min=1))
        return UniformTimes().at(u**power, sde)

    def observe(self, u: Tensor, loss: Tensor) -> None:
        assert u.shape == loss.shape
        self.seen.add_(torch.stack([loss.double().sum(), loss.new_tensor(float(len(loss))).double()]))


def test_times_that_learn_are_told_the_losses_and_resumed(tmp_path: Path) -> None:
    whole = trained(6, objective=DSM("ddpm", Learning()))
    assert whole.objective.distribution.seen[1] == 6 * 16  # type: ignore[attr-defined]
    for steps in (3, 6):
        parts = trained(steps, objective=DSM("ddpm", Learning()), out=tmp_path / "run")
    assert same(parts, whole)
    assert not same(whole, trained(6, objective=DSM("ddpm", "uniform")))


class Labelled(nn.Module):
    """A linear network that notes the labels it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(2, 2), []

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.seen += label.tolist()
        y: Tensor = self.linear(x)
        return y


def test_labels_are_hidden_as_often_as_asked_for_and_from_the_right_samples() -> None:
    labels = torch.arange(50) % 3
    seen = {}
    for probability in (0.0, 0.3, 1.0):
        model = ScoreModel(Labelled(), VP())
        hiding = LabelDropout(null={"label": 9}, probability=probability)
        t = trained(40, model, conditions={"label": labels}, objective=hiding)
        seen[probability] = torch.tensor(model.net.seen)  # type: ignore[union-attr]
    order = torch.cat([labels[t.batches.indices(i)] for i in range(40)])
    assert torch.equal(seen[0.0], order)
    assert (seen[1.0] == 9).all()
    hidden = seen[0.3] == 9
    assert hidden.double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 640))
    assert torch.equal(seen[0.3][~hidden], order[~hidden])


_PROGRAMME = """
import torch
from support import divided
from scoresde import VP, ScoreModel
from scoresde.models import MLP
from scoresde.training import PowerAverage, Trainer
torch.manual_seed(0)
model = ScoreModel(MLP(2, hidden=(16,), time_features=8), VP(), "v")
points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
usual = dict(batch_size=16, lr=0.02, warmup=0, progress=False, averages=[0.9, PowerAverage(0.1)])
Trainer(model, points, **divided(usual | {arguments!r})).run({steps})
"""


def programme(steps: int, **arguments: Any) -> list[str]:
    """The same as ``trained(steps, averages=[0.9, PowerAverage(0.1)], **arguments)``, in a process of its own."""
    return [sys.executable, "-c", _PROGRAMME.format(steps=steps, arguments=arguments)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", **extra}


def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    out = tmp_path / "run"
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = programme(6, out=str(out), device="cpu", batch_size=15, accumulate=2)
    both = [
        subprocess.Popen(command, env=environment(RANK=r, LOCAL_RANK=r, **shared), stderr=subprocess.PIPE, text=True)
        for r in "01"
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    one = trained(6, averages=[0.9, PowerAverage(0.1)], batch_size=15)
    close(trainer(small(), averages=[0.9, PowerAverage(0.1)], batch_size=15, out=out), one)
    assert read_log(tmp_path / "run.csv")["step"] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(torch.tensor(read_log(tmp_path / "run.csv")["loss"]), torch.tensor(one.losses))


# Failures ------------------------------------------------------------------------------------------------------------


def killed_often(kills: int, folder: Path, seed: int) -> None:
    steps, out, chance = 80 * (kills + 1), folder / "model.safetensors", random.Random(seed)
    command = programme(steps, save_every=3, snapshot_every=50, out=str(out))
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
        before = out.stat().st_mtime_ns if out.exists() else 0
        while process.poll() is None and (not out.exists() or out.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = int(read(out).description["step"])
    assert done < steps, "every process was killed on its way"
    arguments: dict[str, Any] = {"averages": [0.9, PowerAverage(0.1)], "out": out, "snapshot_every": 50}
    resumed = trained(steps, **arguments)
    whole = trained(steps, **(arguments | {"out": folder / "whole" / "model.safetensors"}))
    assert same(resumed, whole) and resumed.losses == whole.losses
    one, two = read(out), read(folder / "whole" / "model.safetensors")
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[k], two.tensors[k]) for k in one.tensors)
    for name in ("step", "loss", "grad_norm", "lr"):
        assert read_log(folder / "model.csv")[name] == read_log(folder / "whole" / "model.csv")[name]
    assert not [p for p in folder.rglob(".*")], "nothing half-written is left"


def test_killed_at_random_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    killed_often(1, tmp_path, seed=0)


@pytest.mark.slow
def test_killed_twenty_times_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    killed_often(20, tmp_path, seed=1)


class Choking(nn.Module):
    """A linear network whose output is not a number for the samples beyond 1e6."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.linear(x.clamp(-10, 10))
        return torch.where(x.abs().amax(1, keepdim=True) > 1e6, torch.nan, y)


def poisoned() -> Tensor:
    x = POINTS.clone()
    x[17] = 1e12
    return x


@pytest.mark.filterwarnings("ignore:got data between")
def test_a_batch_that_is_not_finite_is_named_and_the_weights_never_see_it(tmp_path: Path) -> None:
    def model() -> ScoreModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ScoreModel(Choking(), VP())

    first = next(i for i in range(4) if 17 in trainer().batches.indices(i).tolist())  # type: ignore[union-attr]
    before = trained(first, model(), poisoned()) if first else trainer(model(), poisoned())
    stopped = trainer(model(), poisoned(), out=tmp_path / "run")
    with pytest.raises(FloatingPointError, match=rf"step {first + 1}: the loss is nan .*, at samples 17 of the data"):
        stopped.run(9)
    assert same(stopped, before)
    with pytest.warns(UserWarning, match=r"at samples 17 of the data; expected finite numbers. The batch is skipped"):
        went_on = trained(9, model(), poisoned(), nonfinite="skip")
    assert first + 1 in went_on.skipped and went_on.steps == 9
    assert all(math.isnan(loss) == (step in went_on.skipped) for step, loss in went_on.history)
    with pytest.warns(UserWarning), pytest.raises(FloatingPointError, match="take a smaller lr"):
        trained(60, model(), torch.full((4, 2), 1e12), nonfinite="skip")


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_full_disk_loses_nothing_that_was_saved(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model.safetensors"
    trained(4, out=out)
    before = out.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if what == "checkpoint" else "scoresde.training.files.logs.Log.write", full)
        with pytest.raises(OSError, match="No space left"):
            trained(8, out=out)
    assert out.read_bytes() == before
    assert same(trained(8, out=out), trained(8))


# Files ---------------------------------------------------------------------------------------------------------------


def test_the_log_drops_what_the_checkpoint_does_not_know_and_a_torn_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.csv", ["step", "loss"])
    for step in range(1, 6):
        log.write({"step": step, "loss": step / 10})
    log.close()
    with open(tmp_path / "log.csv", "a") as file:
        file.write("6,0.")
    assert read_log(tmp_path / "log.csv")["step"] == [1, 2, 3, 4, 5]
    Log(tmp_path / "log.csv", ["step", "loss"], step=3).close()
    assert read_log(tmp_path / "log.csv") == {"step": [1, 2, 3], "loss": [0.1, 0.2, 0.3]}


def test_the_log_has_each_step(tmp_path: Path) -> None:
    t = trained(5, out=tmp_path / "run", lr=0.5, warmup=4)
    log = read_log(tmp_path / "run.csv")
    assert log["loss"] == t.losses and log["lr"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(rate > 0 for rate in log["samples_per_s"])


def test_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    values = {3: 2.0, 6: 1.0, 9: 3.0, 12: 1.5}
    options: dict[str, Any] = {
        "out": tmp_path / "model.safetensors",
        "save_every": 2,
        "keep_last": 2,
        "keep_every": 6,
        "keep_best": True,
        "monitor": lambda step, model: {"distance": values[step]},
        "monitor_every": 3,
    }
    trained(7, **(options | {"monitor": lambda step, model: {"distance": values.get(step, 9.0)}}))
    trained(12, **options)
    kept = {p.stem.rpartition("-")[2]: p for p in (tmp_path / "checkpoints").iterdir()}
    assert kept.keys() == {"000000006", "000000010", "000000012", "best"}
    assert len({p.stem.rpartition("-")[0] for p in kept.values()}) == 1
    assert read(kept["best"]).description["step"] == 6
    six, direct = load(kept["000000006"]), trained(6).averaged["exponential-0.999"]
    assert all(torch.equal(v, direct.state_dict()[k]) for k, v in six.state_dict().items())
    assert read_log(tmp_path / "model.csv")["step"] == list(range(1, 13))


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    t = trained(3, out=tmp_path / "run", tensorboard=True)
    events = EventAccumulator(str(next((tmp_path / "tensorboard").iterdir())))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(t.losses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "got precision 'fp8'; expected one of fp32, bf16, fp16"),
        ({"nonfinite": "ignore"}, "got nonfinite='ignore'; expected one of stop, skip"),
        ({"accumulate": 0}, "got accumulate=0; expected a whole number of at least 1"),
        ({"averages": [0.9, 0.9]}, "got the averages exponential-0.9, exponential-0.9; expected each average once"),
        ({"averages": ["power-0.5"]}, "got sigma_rel=0.5; expected more than 0 and less than 12"),
        (
            {"averages": ["powr-0.1"]},
            "got average 'powr-0.1'; expected one of exponential, power, or one of them with",
        ),
        ({"snapshot_every": 5, "out": "x"}, "snapshot_every without a power-function average"),
        ({"keep_last": 1}, "got no file for checkpoints"),
        ({"keep_best": True, "out": "x"}, "keep_best=True without a monitor"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**arguments)


# The command ---------------------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_file_of_options_is_a_command_line_which_overrides_it(tmp_path: Path) -> None:
    x = tmp_path / "x.npy"
    import numpy as np

    np.save(x, POINTS.numpy())
    config = tmp_path / "run.toml"
    options = {"data": str(x), "steps": 3, "width": 4, "batch-size": 8, "average": ["power-0.1"], "progress": False}
    config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in options.items()))
    done = invoke("train", config, "--out", tmp_path / "a", "--steps", 4, "--monitor-every", 2)
    assert done.exit_code == 0, done.output
    line = [part for name, value in options.items() if name not in ("average", "progress") for part in (f"--{name}", value)]
    line += ["--average", "power-0.1", "--no-progress", "--steps", 4]
    assert invoke("train", *line, "--out", tmp_path / "b").exit_code == 0
    one, two = (read(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.description["step"] == 4 and one.description["averages"] == ["exponential-0.999", "power-0.1"]
    assert all(torch.equal(one.tensors[k], two.tensors[k]) for k in two.tensors)
    assert read_log(tmp_path / "a" / "model.csv")["step"] == [1, 2, 3, 4]
    assert (tmp_path / "a" / "samples" / "000000002.png").exists()
    config.write_text('batchsize = 3\ndata = "x"')
    refused = invoke("train", config, "--out", tmp_path / "c")
    assert (
        refused.exit_code == 2 and "got 'batchsize' in" in refused.stderr and "did you mean 'batch_size'" in refused.stderr
    )


def test_the_command_trains_on_labels_which_it_hides(tmp_path: Path) -> None:
    done = invoke("train", "--data", "digits", "--labels", "--out", tmp_path, "--steps", 2, "--width", 4, "--batch-size", 8)
    assert done.exit_code == 0, done.output
    model = load(tmp_path / "model.safetensors")
    assert model.net.config["num_classes"] == 10  # type: ignore[union-attr, index]
    assert "'label': 10" in read(tmp_path / "model.safetensors").description["training"]["objective"]
