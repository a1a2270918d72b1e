"""How a step is made: optimizers, schedules, augmentation, reading ahead; each resumed bit for bit and told from others."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from support import divided
from torch import Tensor, nn

from scoresde import VP, ScoreModel, data
from scoresde.base.options import options_of
from scoresde.cli import app, train
from scoresde.data import Augmentation
from scoresde.models import MLP, UNet
from scoresde.objectives import DSM, LabelDropout
from scoresde.training import (
    CheckpointError,
    Constant,
    Cosine,
    Files,
    InverseSqrt,
    Linear,
    Method,
    StepDecay,
    Trainer,
    fit,
    load,
    read_log,
    result_of,
)
from scoresde.training.optimization.optimizers import OPTIMIZERS
from scoresde.training.optimization.schedules import SCHEDULES, schedule
from scoresde.training.processes import Processes

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def small(**arguments: Any) -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(MLP(2, hidden=(8,), time_features=4, **arguments), VP(), "v")


def trained(steps: int, model: ScoreModel | None = None, x: Any = POINTS, **arguments: Any) -> Trainer:
    usual: dict[str, Any] = {"batch_size": 16, "lr": 0.02, "warmup": 0, "progress": False}
    made = Trainer(model or small(), x, **divided(usual | arguments))
    if steps:
        made.run(steps)
    return made


def same(a: Trainer, b: Trainer) -> bool:
    one, two = a.model.state_dict(), b.model.state_dict()
    return a.losses == b.losses and all(torch.equal(one[k], two[k]) for k in one)


def check_resumes(tmp_path: Path, make: Callable[[], ScoreModel] = small, x: Any = POINTS, **arguments: Any) -> Trainer:
    """A training in two parts is the whole one; returns that."""
    whole = trained(7, make(), x, **arguments)
    for steps in (3, 7):
        parts = trained(steps, make(), x, out=tmp_path / "run", **arguments)
    assert same(parts, whole)
    return whole


# Optimizers ----------------------------------------------------------------------------------------------------------


class Counting(torch.optim.Optimizer):
    """Gradient descent that slows down, with numbers of Python for its state, of each parameter and of its group."""

    def __init__(self, parameters: Any, lr: float = 1.0) -> None:
        super().__init__(parameters, {"lr": lr, "pace": 1.0, "scale": None})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["pace"] *= 0.9
            for p in group["params"]:
                self.state[p]["count"] = self.state[p].get("count", 0) + 1
                self.state[p]["mean"] = 0.5 * self.state[p].get("mean", 0.0) + p.grad.mean().item()
                move = group["pace"] * group["lr"] * (p.grad + self.state[p]["mean"])
                p.data -= move / self.state[p]["count"]


def grouped(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    matrices, vectors = ([p for p in parameters if (p.ndim == 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 2e-4}]
    return torch.optim.AdamW(groups, lr=1e-3)


MADE: dict[str, Any] = {
    **{name: name for name in OPTIMIZERS},
    "partial": functools.partial(torch.optim.AdamW, betas=(0.8, 0.99), weight_decay=0.1),
    "amsgrad": functools.partial(torch.optim.Adam, amsgrad=True),
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "centered": functools.partial(torch.optim.RMSprop, centered=True, momentum=0.5),
    "groups": grouped,
    "numbers": Counting,
}


@pytest.mark.parametrize("name", MADE)
def test_each_optimizer_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = check_resumes(tmp_path, optimizer=MADE[name])
    assert not same(whole, trained(7, optimizer="adam" if name != "adam" else "sgd"))


def test_numbers_come_back_as_numbers(tmp_path: Path) -> None:
    def held(t: Trainer) -> list[tuple[str, str]]:
        whole = t.stepper.optimizer.state_dict()
        rows = [*whole["state"].values(), *whole["param_groups"]]
        return [(name, type(value).__name__) for row in rows for name, value in row.items() if name != "lr"]

    before = trained(2, optimizer=Counting, out=tmp_path / "run")
    assert held(trained(0, optimizer=Counting, out=tmp_path / "run")) == held(before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_name_is_the_class_with_its_usual_settings(name: str) -> None:
    made = trained(3, optimizer=lambda p: OPTIMIZERS[name](p, lr=1.0))  # the trainer's lr is the one that counts
    assert same(trained(3, optimizer=name.upper()), made)


def test_gradient_descent_moves_by_lr_times_the_clipped_gradient(tmp_path: Path) -> None:
    start = small().state_dict()
    moved = trained(1, optimizer="sgd", lr=0.3, clip=0.01, out=tmp_path / "run").model.state_dict()
    norm = read_log(tmp_path / "run.csv")["grad_norm"][0]
    length = math.sqrt(sum(float((moved[k] - start[k]).square().sum()) for k in start))
    assert norm > 0.01 and length == pytest.approx(0.3 * 0.01, rel=1e-3)


def test_groups_of_parameters_keep_the_ratio_of_their_step_sizes() -> None:
    # The first step of Adam moves each weight that has a gradient by the step size, whatever the gradient.
    start, moved = small().state_dict(), trained(1, optimizer=lambda p: grouped_plain(p), lr=0.05).model.state_dict()
    for name, factor in (("net.output.weight", 1.0), ("net.output.bias", 0.2)):
        step = (moved[name] - start[name]).abs()
        torch.testing.assert_close(step, torch.full_like(step, 0.05 * factor), rtol=1e-3, atol=0)


def grouped_plain(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    vectors = [p for p in parameters if p.ndim == 1]
    return torch.optim.Adam([{"params": [p for p in parameters if p.ndim > 1]}, {"params": vectors, "lr": 2e-4}], lr=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("adam", "adamw", r"training.optimizer=None \(here 'AdamW'\)"),
        ("sgd", "adam", r"training.optimizer='SGD' \(here None\)"),
        ("adamw", MADE["partial"], r"training.optimizer='AdamW' \(here 'AdamW\(betas=\(0.8, 0.99\), weight_decay=0.1\)'\)"),
        ("adamw", grouped, r"training.optimizer='AdamW' \(here 'AdamW\(5 of weight_decay=0.1 \| 5 of lr\*0.2\)'\)"),
    ],
)
def test_a_training_is_not_resumed_with_another_optimizer(before: Any, after: Any, message: str, tmp_path: Path) -> None:
    trained(1, optimizer=before, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        trained(2, optimizer=after, out=tmp_path / "run")


def test_the_same_optimizer_by_name_and_by_function_is_the_same_training(tmp_path: Path) -> None:
    trained(2, optimizer="AdamW", out=tmp_path / "run")
    function = functools.partial(torch.optim.AdamW, weight_decay=0.01, foreach=False)  # as usual, but for how it computes
    assert trained(3, optimizer=function, out=tmp_path / "run").steps == 3


class Listing(Counting):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p]["trace"] = [1.0]


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        ("lbfgs", ValueError, "evaluates the loss several times in a step; .*: take another, such as 'adamw'"),
        (torch.optim.LBFGS, ValueError, "got the optimizer LBFGS, which evaluates"),
        ("SparseAdam", ValueError, "takes only sparse gradients"),
        ("muon", ValueError, "takes only matrices"),
        ("adma", ValueError, r"got optimizer 'adma'; expected one of .* did you mean 'adamax' or 'adam'"),
        (0.9, TypeError, "got optimizer=0.9; expected a name or a function of the parameters"),
        (lambda parameters: None, TypeError, "got a function that returns a NoneType for the optimizer"),
        (Listing, CheckpointError, "the state of Listing holds trace of type list; expected tensors and numbers"),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(optimizer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trained(1, optimizer=optimizer)


# Schedules -----------------------------------------------------------------------------------------------------------

STEPS = st.integers(1, 40)
PART = st.floats(0, 1)


@given(steps=STEPS, part=st.floats(0.01, 1))
def test_schedules_are_those_of_torch(steps: int, part: float) -> None:
    parameter = nn.Parameter(torch.ones(1))

    def theirs(make: Callable[..., Any]) -> list[float]:
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler, found = make(optimizer), []
        for _ in range(steps + 1):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    torchs = torch.optim.lr_scheduler
    pairs = [
        (Linear(steps, part), lambda o: torchs.LinearLR(o, 1.0, part, steps)),
        (Cosine(steps, part), lambda o: torchs.CosineAnnealingLR(o, steps, part)),
        (StepDecay(max(steps // 3, 1), part), lambda o: torchs.StepLR(o, max(steps // 3, 1), part)),
    ]
    for ours, make in pairs:
        assert [ours.factor(n) for n in range(steps + 1)] == pytest.approx(theirs(make), rel=1e-9, abs=1e-12), ours


@given(steps=STEPS, part=PART, at=st.integers(0, 200))
def test_laws_of_the_schedules(steps: int, part: float, at: int) -> None:
    assert Constant().factor(at) == 1
    for made in (Linear(steps, part), Cosine(steps, part)):
        assert made.factor(0) == 1 and made.factor(steps + at) == pytest.approx(part)
        assert made.factor(min(at, steps)) + made.factor(steps - min(at, steps)) == pytest.approx(1 + part)
    root = InverseSqrt(steps)
    assert root.factor(min(at, steps)) == 1 and root.factor(4 * (steps + at)) == pytest.approx(0.5 * root.factor(steps + at))
    assert StepDecay(steps, part).factor(at + steps) == pytest.approx(part * StepDecay(steps, part).factor(at))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", Constant()),
        ("linear-5000", Linear(5000)),
        ("cosine-5000-0.05", Cosine(5000, 0.05)),
        ("cosine-10-1e-3", Cosine(10, 1e-3)),
        ("inverse-sqrt-70000", InverseSqrt(70000)),
        ("step-100-0.5", StepDecay(100, 0.5)),
    ],
)
def test_schedules_have_names(name: str, expected: Any) -> None:
    assert schedule(name) == expected and schedule(expected) is expected


@pytest.mark.parametrize("name", ["cosin-5", "cosine", "cosine-x", "constant-5", "inverse-sqrt-5-0.1", "linear-5-0.1-3", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"got schedule '{name}'(: .*)?; expected .* with its numbers, such as cosine"):
        trained(1, schedule=name)


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got a schedule of type float; expected a name or an object with factor\(step\)"):
        trained(1, schedule=0.5)
    for made in (lambda: Linear(0), lambda: StepDecay(0), lambda: InverseSqrt(0), lambda: schedule("cosine-0")):
        with pytest.raises(ValueError, match=r"=0 for a schedule; expected a whole number of at least 1"):
            made()
    with pytest.raises(ValueError, match="got final=2 for a schedule; expected a fraction of the learning rate"):
        Cosine(5, 2)


@dataclasses.dataclass(frozen=True)
class Sawtooth:
    """A schedule of one's own."""

    period: int

    def factor(self, step: int) -> float:
        return 1 - (step % self.period) / self.period


@pytest.mark.parametrize("made", ["linear-6", "cosine-6-0.1", "inverse-sqrt-2", "step-2", Sawtooth(3)])
def test_a_schedule_multiplies_the_warm_up_and_resumes_bit_for_bit(made: Any, tmp_path: Path) -> None:
    check_resumes(tmp_path, schedule=made, warmup=2)
    factor = schedule(made).factor
    expected = [0.02 * min(1, (n + 1) / 3) * factor(n) for n in range(7)]
    assert read_log(tmp_path / "run.csv")["lr"] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(CheckpointError, match=r"training\.schedule='.*' \(here None\)"):
        trained(8, warmup=2, out=tmp_path / "run")


def test_every_schedule_is_among_the_names_of_the_tests() -> None:
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "inverse-sqrt", "step"}


# Options -------------------------------------------------------------------------------------------------------------


def test_every_option_of_the_command_stands_in_one_place() -> None:
    options = {name: about for cls in (Method, Files) for f, about in options_of(cls) for name in [about.name or f.name]}
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    shown = {name.lstrip("-").replace("-", "_"): p for p in command.params for name in p.opts if name.startswith("--")}
    assert options.keys() <= shown.keys()
    assert all(shown[name].help == about.help for name, about in options.items())
    text = inspect.getsource(inspect.unwrap(train.train))
    assert not [name for name in options if f"    {name}: Annotated" in text]


@pytest.mark.parametrize("cls", [Method, Files])
def test_every_setting_is_an_option_and_is_checked_at_its_bounds(cls: Any) -> None:
    assert {f.name for f in dataclasses.fields(cls)} - {f.name for f, _ in options_of(cls)} <= {"path"}
    for f, about in options_of(cls):
        assert about.help.endswith(".") or about.help[-1] in "'"
        wrong: list[Any] = []
        wrong += [about.least - 1, 1.5, True, "3"] if about.least is not None else []
        wrong += [about.above, math.nan, "3"] if about.above is not None else []
        wrong += ["neither"] if about.choices else []
        for value in wrong:
            with pytest.raises(ValueError, match=f"got {f.name}="):
                cls(**{f.name: value})
        for value in [np.int64(about.least)] if about.least is not None else []:
            assert getattr(cls(**{f.name: value}), f.name) == about.least


def test_settings_stay_as_they_are() -> None:
    method = Method(schedule="linear-10", augmentation=0.2, averages=["0.9", "power-0.1"])
    assert dataclasses.replace(method, lr=0.5) == dataclasses.replace(method, lr=0.5)
    assert method.augmentation == Augmentation(p=0.2) and Method(augmentation=0.0).augmentation is None
    assert [a.name for a in method.kept_averages()] == ["exponential-0.999", "exponential-0.9", "power-0.1"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.lr = 1.0  # type: ignore[misc]


def test_fit_hands_every_setting_on() -> None:
    settings: dict[str, Any] = {"optimizer": "radam", "schedule": "cosine-5", "warmup": 1}
    method = Method(averages=[0.9], batch_size=7, **settings)
    result = fit(small(), POINTS, steps=4, ema="power-0.1", batch_size=16, method=method, progress=False)
    direct = trained(4, averages=["power-0.1", 0.9], lr=1e-3, batch_size=16, **settings)
    assert result.history == direct.history
    expected = direct.averaged["power-0.1"].state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in result.model.state_dict().items())


def test_the_last_weights_are_sampled_from_without_an_average(tmp_path: Path) -> None:
    seen = []
    result = fit(small(), POINTS, steps=3, ema=None, out=tmp_path / "run", batch_size=16, progress=False)
    assert result.model is result.raw and not result.model.training
    assert all(torch.equal(v, result.raw.state_dict()[k]) for k, v in load(tmp_path / "run").state_dict().items())
    trained(2, ema=None, monitor=lambda step, model: seen.append(model.training), monitor_every=1)
    assert seen == [False, False]


def test_settings_of_an_optimizer_are_text_as_well() -> None:
    made = trained(2, optimizer="adamw: betas=[0.8, 0.9], weight_decay=0.1")
    assert same(made, trained(2, optimizer=functools.partial(torch.optim.AdamW, betas=(0.8, 0.9), weight_decay=0.1)))
    with pytest.raises(ValueError, match=r"got 'beta' for the optimizer 'adamw'; expected its arguments: .*betas"):
        trained(0, optimizer="adamw: beta=1")


# Augmentation --------------------------------------------------------------------------------------------------------

IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(3)) - 0.5


def told(augment: int = 9) -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(UNet(3, 8, (1,), blocks=1, attention=(), augment=augment), VP())


@dataclasses.dataclass(frozen=True)
class Noting(DSM):
    """Notes the data and conditions that it is given."""

    seen: list[tuple[Tensor, dict[str, Tensor]]] = dataclasses.field(default_factory=list, repr=False)

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        self.seen.append((x0.clone(), conditions))
        return super().at(model, x0, t, eps, **conditions)


def test_images_are_transformed_as_their_condition_says_and_the_report_sees_them_as_they_are() -> None:
    noting = Noting()
    monitored = []
    t = trained(
        3,
        told(),
        IMAGES,
        objective=noting,
        augmentation=Augmentation(p=0),
        batch_size=6,
        accumulate=2,
        monitor=lambda step, model: monitored.append(model.eps(IMAGES, 0.5)) or {"zero": 0.0},  # type: ignore[func-returns-value]
        monitor_every=3,
    )
    assert len(noting.seen) == 6 and len(monitored) == 1
    x0 = torch.cat([x for x, _ in noting.seen])
    described = torch.cat([conditions["augment"] for _, conditions in noting.seen])
    data_in_order = torch.cat([t.batches.at(i)[0] for i in range(3)])
    assert set(described[:, 0].tolist()) == {0, 1} and not described[:, 1:].any()
    assert len({tuple(step.tolist()) for step in described[:, 0].reshape(3, 6)}) > 1, "each step draws its own"
    for x, of_data, row in zip(x0, data_in_order, described, strict=True):
        torch.testing.assert_close(x, of_data.flip([-1] * int(row[0])), rtol=0, atol=1e-6)
    noting.seen.clear()
    result_of(t)
    assert noting.seen and all("augment" not in conditions for _, conditions in noting.seen)
    numbers = {round(v, 5) for x, _ in noting.seen for v in x[:, 0, 0, 0].tolist()}
    assert numbers <= {round(v, 5) for v in IMAGES[:, 0, 0, 0].tolist()}


def test_processes_augment_what_one_would() -> None:
    def prepared(count: int) -> tuple[Tensor, Tensor]:
        parts = []
        for rank in range(count):
            t = trained(0, told(), IMAGES, augmentation=Augmentation(p=0.5), batch_size=7)
            stepper = type(t.stepper)(
                t.model, t.batches, t.objective, Processes(torch.device("cpu"), rank, count), t.stepper.method
            )
            x, conditions = stepper._prepared(4, *next(stepper.read(range(4, 5))))
            parts.append((x, conditions["augment"]))
        return torch.cat([x for x, _ in parts]), torch.cat([a for _, a in parts])

    one, two = prepared(1), prepared(3)
    assert torch.equal(one[1], two[1])
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-6)


def test_augmented_trainings_resume_bit_for_bit_and_are_told_from_others(tmp_path: Path) -> None:
    options: dict[str, Any] = {"augmentation": Augmentation(p=0.3), "batch_size": 4}
    whole = check_resumes(tmp_path, told, IMAGES, **options)
    assert not same(whole, trained(7, told(), IMAGES, batch_size=4))
    with pytest.raises(CheckpointError, match=r"training.augmentation='Augmentation\(p=0.3, mirror=1.0\) \[.* \(here"):
        trained(8, told(), IMAGES, out=tmp_path / "run", batch_size=4, augmentation=Augmentation(p=0.2))


class Plain(nn.Conv2d):
    """A network that is told the time alone."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (small, POINTS, r"got augmentation for samples of shape \(2,\); expected images"),
        (small, data.Arrays(POINTS), r"got augmentation for samples of shape \(2,\); expected images"),
        (
            lambda: ScoreModel(UNet(3, 8, (1, 2)), VP()),
            IMAGES,
            "got augmentation for a UNet that takes none as",
        ),
        (lambda: told(0), IMAGES, "UNet that takes none as its condition 'augment'; expected .*augment=9"),
        (lambda: told(4), IMAGES, "that takes one of length 4"),
    ],
)
def test_augmentation_that_does_not_apply_is_refused(model: Callable[[], ScoreModel], x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(0, model(), x, augmentation=Augmentation())


def test_what_is_no_augmentation_is_refused() -> None:
    with pytest.raises(
        TypeError,
        match=r"got augmentation='flips'; expected a probability or an augmentation",
    ):
        trained(0, told(), IMAGES, augmentation="flips")


# Reading ahead -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in two classes."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(14):
        pixels = torch.randint(256, (9, 8, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    return tmp_path / "images"


def unet() -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(UNet(3, 8, (1,), lean=True, num_classes=2), VP())


def test_the_result_does_not_depend_on_who_reads(folder: Path, tmp_path: Path) -> None:
    images = data.open(str(folder), size=8)
    here = trained(5, unet(), images, batch_size=4)
    for steps, workers in ((2, 2), (3, 0), (5, 1)):
        there = trained(steps, unet(), images, batch_size=4, workers=workers, out=tmp_path / "run")
        assert not multiprocessing.active_children()
    assert same(here, there)


def test_readers_end_with_a_training_that_fails(folder: Path) -> None:
    def monitor(step: int, model: ScoreModel) -> dict[str, float]:
        assert multiprocessing.active_children(), "they read ahead"
        raise KeyboardInterrupt("in the monitor")

    images = data.open(str(folder), size=8)
    with pytest.raises(KeyboardInterrupt, match="in the monitor") as caught:
        trained(9, unet(), images, batch_size=4, workers=2, monitor=monitor, monitor_every=2)
    assert not multiprocessing.active_children(), caught


def test_a_file_that_cannot_be_read_is_named_whoever_reads(folder: Path) -> None:
    said = []
    for workers in (0, 1):
        images = data.open(str(folder), size=8)
        gone = next(iter(sorted(folder.rglob("*.png"))))
        content = gone.read_bytes()
        gone.write_bytes(content[:40])
        with pytest.raises(ValueError, match=gone.name) as caught:
            trained(9, unet(), images, batch_size=4, workers=workers)
        said.append(str(caught.value))
        gone.write_bytes(content)
    assert said[0] == said[1] and not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (
            2,
            "got workers=2 for data of type Tensor, which is not read from files; expected a dataset",
        ),
        (-1, "got workers=-1; expected a whole number of at least 0"),
    ],
)
def test_readers_that_cannot_be_are_refused(workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(1, workers=workers)


# Labels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 5])
def test_hidden_labels_do_not_depend_on_the_parts_of_a_batch(accumulate: int, tmp_path: Path) -> None:
    def run(steps: int = 6, **options: Any) -> Trainer:
        hiding = LabelDropout(DSM(), {"label": 3}, 0.4)
        model = small(num_classes=3)
        return trained(steps, model, objective=hiding, conditions={"label": torch.arange(50) % 3}, **options)

    whole, parts = run(), run(accumulate=accumulate)
    torch.testing.assert_close(torch.tensor(whole.losses), torch.tensor(parts.losses), rtol=1e-4, atol=1e-5)
    for steps in (2, 6):
        resumed = run(steps, out=tmp_path / "run")
    assert same(resumed, whole)
