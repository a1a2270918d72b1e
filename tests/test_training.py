"""Training: what is resumed is what was interrupted, what is written is whole, what is reported is right."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import divided, mostly_slow
from torch import Tensor, nn

from scoresde import DDPM, EDM, NCSN, VE, VP, CosineVP, FunctionSDE, RectifiedFlow, ScoreModel, SubVP, discretize
from scoresde.models import MLP, UNet
from scoresde.objectives import DSM, OBJECTIVES
from scoresde.score import PREDICTIONS
from scoresde.training import CheckpointError, FitResult, fit, load, report, save
from scoresde.training.batches import Batches
from scoresde.training.files.checkpoint import read, write

STD = 0.6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Gaussian:
    """N(0, STD^2 I) in two dimensions; calls ``hook(count)`` at each draw."""

    def __init__(self, hook: Any = None) -> None:
        self.hook, self.count = hook, 0

    event = (2,)

    def fingerprint(self) -> str:
        return "the same, whatever it counts"

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        self.count += 1
        if self.hook is not None:
            self.hook(self.count)
        return STD * torch.randn(n, 2, generator=generator)


def exact(sde: Any, offset: float = 0.0) -> ScoreModel:
    """The exact noise prediction for :class:`Gaussian`, plus an error."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        slope = sde.sigma(t) / (sde.alpha(t) ** 2 * STD**2 + sde.sigma(t) ** 2)
        return slope[:, None].to(x) * x + offset

    return ScoreModel(eps, sde)


def mlp(seed: int = 0, **arguments: Any) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP(2, hidden=(16,), time_features=8, **arguments)


def small(seed: int = 0) -> ScoreModel:
    return ScoreModel(mlp(seed), VP(), "v")


def quiet(model: ScoreModel, data: Any, **arguments: Any) -> FitResult:
    steps, truth, made = (
        arguments.pop("steps"),
        arguments.pop("truth", None),
        divided({"log": False, "progress": False, "batch_size": 16, **arguments}),
    )
    return fit(model, data, steps=steps, truth=truth, **made)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# Batches -------------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 12), size=st.integers(1, 30), seed=st.integers(0, 100))
@settings(deadline=None)
def test_each_sample_comes_once_per_epoch_with_its_condition(n: int, size: int, seed: int) -> None:
    data = torch.arange(n, dtype=torch.float32)[:, None]
    batches = Batches(data, size, seed, {"label": 10 * torch.arange(n)})
    drawn = [batches.at(i) for i in range(3 * n // size + 2)]
    x, label = torch.cat([x for x, _ in drawn])[:, 0], torch.cat([c["label"] for _, c in drawn])
    for epoch in range(3):
        assert x[epoch * n : (epoch + 1) * n].sort().values.tolist() == list(range(n))
    assert torch.equal(label.float(), 10 * x)


def test_epochs_have_orders_of_their_own() -> None:
    batches = Batches(torch.arange(50.0)[:, None], 50, 0)
    assert not torch.equal(batches.at(0)[0], batches.at(1)[0])
    assert not torch.equal(batches.at(0)[0], Batches(batches.data, 50, 1).at(0)[0])


# Resuming ------------------------------------------------------------------------------------------------------------


def images() -> tuple[ScoreModel, Tensor, dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 8, (1, 2), lean=True, blocks=1, num_classes=3, dropout=0.2)
    arguments = {"conditions": {"label": torch.arange(20) % 3}, "batch_size": 8, "lr": 1e-2, "warmup": 4, "ema": 0.5}
    return ScoreModel(net, DDPM.linear(10, 0.01, 0.4)), torch.randn(20, 1, 4, 4, generator=generator()), arguments


@pytest.mark.parametrize("objective", mostly_slow(OBJECTIVES, {"ddpm", "sigmoid", "likelihood"}))
def test_resumed_is_uninterrupted_bit_for_bit(objective: str, tmp_path: Path) -> None:
    model, data, arguments = images()
    whole = quiet(model, data, steps=7, objective=objective, **arguments)
    for steps in (3, 4, 7):  # each in a process's worth of fresh objects, with the global generator elsewhere
        torch.manual_seed(steps)
        parts = quiet(images()[0], data, steps=steps, objective=objective, out=tmp_path / "run", **arguments)
    assert same(parts.raw, whole.raw)
    assert same(parts.model, whole.model)
    assert parts.history == whole.history
    assert [step for step, _ in whole.history] == list(range(1, 8))
    assert not same(whole.raw, images()[0])
    assert not same(whole.raw, whole.model)


def test_a_seed_is_a_training_and_the_global_generator_is_left_alone() -> None:
    model, data, arguments = images()
    state = torch.get_rng_state()
    a = quiet(model, data, steps=2, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    b, c = (quiet(images()[0], data, steps=2, seed=seed, **arguments) for seed in (0, 1))
    assert same(a.raw, b.raw)
    assert not same(a.raw, c.raw)


def test_a_finished_training_is_loaded_and_not_repeated(tmp_path: Path) -> None:
    first = quiet(small(), Gaussian(), steps=3, out=tmp_path / "new" / "folder" / "run")
    data = Gaussian()
    again = quiet(small(seed=9), data, steps=3, out=tmp_path / "new" / "folder" / "run")
    assert same(again.model, first.model)
    assert again.history == first.history
    assert data.count == 10  # for the report alone
    assert torch.equal(again.report.loss, first.report.loss)


def test_resume_false_starts_afresh(tmp_path: Path) -> None:
    quiet(small(), Gaussian(), steps=3, out=tmp_path / "run", lr=0.5)
    fresh = quiet(small(), Gaussian(), steps=2, out=tmp_path / "run", resume=False)
    assert len(fresh.history) == 2
    assert same(load(tmp_path / "run"), fresh.model)


def test_each_step_has_dropout_of_its_own_which_depends_on_the_seed_alone() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            if self.training:
                seen.append(torch.rand(1).item())
            return super().forward(x)

    draws = []
    for seed in (0, 0, 1):
        seen: list[float] = []
        quiet(ScoreModel(Noisy(2, 2), VP()), Gaussian(), steps=4, seed=seed)
        draws.append(seen)
    assert len(set(draws[0] + draws[2])) == 8
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.25}, r"training.lr=0.001 \(here 0.25\); to go on .* pass accept=lr; to start afresh .* resume=False"),
        ({"objective": "edm"}, "training.objective="),
        ({"seed": 3}, r"training.seed=0 \(here 3\)"),
        ({"batch_size": 8}, r"training.batch_size=16 \(here 8\)"),
        ({"data": torch.zeros(8, 2)}, "training.data=.*torch.float32"),
        ({"model": ScoreModel(mlp(), VP(beta_max=10.0), "v")}, r"process.beta_max=20.0 \(here 10.0\)"),
        ({"model": ScoreModel(mlp(), VP(), "eps")}, r"predicts='v' \(here 'eps'\)"),
        ({"model": ScoreModel(mlp(time_scale=2.0), VP(), "v")}, r"net.config.time_scale=1.0 \(here 2.0\)"),
        ({"model": ScoreModel(nn.Linear(2, 2), VP(), "v")}, "net.type='MLP'"),
    ],
)
def test_resume_refuses_another_training(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    quiet(small(), Gaussian(), steps=1, out=tmp_path / "run")
    before = (tmp_path / "run").read_bytes()
    arguments = {"model": small(), "data": Gaussian(), "steps": 2, "out": tmp_path / "run"} | change
    with pytest.raises(CheckpointError, match=f"belongs to another training: .*{message}"):
        quiet(**arguments)
    assert (tmp_path / "run").read_bytes() == before


def test_resume_tells_changed_data(tmp_path: Path) -> None:
    data = torch.randn(8, 2, generator=generator())
    quiet(small(), data, steps=1, out=tmp_path / "run")
    quiet(small(), data.clone(), steps=2, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"training.data="):
        quiet(small(), data + 1e-6, steps=3, out=tmp_path / "run")


def test_resume_refuses_a_model_without_its_training(tmp_path: Path) -> None:
    save(small(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds a model but no training to resume"):
        quiet(small(), Gaussian(), steps=1, out=tmp_path / "model")


# Interrupts and failures ---------------------------------------------------------------------------------------------


@pytest.fixture
def sigint() -> Iterator[Any]:
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_finishes_the_step_and_saves(sigint: Any, tmp_path: Path) -> None:
    def press(count: int) -> None:
        if count == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3 of 6; saved to .*: the same call continues"):
        quiet(small(), Gaussian(press), steps=6, out=tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is sigint
    assert read(tmp_path / "run").description["step"] == 3
    resumed = quiet(small(), Gaussian(), steps=6, out=tmp_path / "run")
    whole = quiet(small(), Gaussian(), steps=6)
    assert same(resumed.model, whole.model) and same(resumed.raw, whole.raw) and resumed.history == whole.history


def test_second_ctrl_c_interrupts_at_once(sigint: Any, tmp_path: Path) -> None:
    def press(count: int) -> None:
        if count == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    data = Gaussian(press)
    with pytest.raises(KeyboardInterrupt):
        quiet(small(), data, steps=6, out=tmp_path / "run", save_every=2)
    assert data.count == 3
    assert signal.getsignal(signal.SIGINT) is sigint
    assert read(tmp_path / "run").description["step"] == 2


def test_ctrl_c_without_a_file_says_that_nothing_was_saved(sigint: Any) -> None:
    data = Gaussian(lambda count: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 6; nothing was saved"):
        quiet(small(), data, steps=6)


def test_an_ignored_signal_stays_ignored(sigint: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    data = Gaussian(lambda count: signal.raise_signal(signal.SIGINT))
    assert len(quiet(small(), data, steps=2).history) == 2


class Failing(nn.Module):
    """A linear network whose output, or whose gradient, is not a number from one call on."""

    def __init__(self, call: int, gradient: bool) -> None:
        super().__init__()
        self.linear, self.left, self.gradient = nn.Linear(2, 2), call, gradient

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.left -= 1
        y: Tensor = self.linear(x)
        if self.left > 0:
            return y
        return y + (y - y.detach()).abs().sqrt() if self.gradient else y * torch.nan


@pytest.mark.parametrize("gradient", [False, True])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(gradient: bool, tmp_path: Path) -> None:
    model = ScoreModel(Failing(4, gradient), VP())
    with pytest.raises(FloatingPointError, match=r"step 4: the loss is .*; expected finite numbers: take a smaller lr"):
        quiet(model, Gaussian(), steps=9, save_every=2, out=tmp_path / "run")
    assert read(tmp_path / "run").description["step"] == 2
    assert all(p.isfinite().all() for p in model.parameters())
    assert load(tmp_path / "run", Failing(99, False)).score(torch.ones(1, 2), 0.5).isfinite().all()


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["os.fsync", "os.replace", "builtins.open"])
def test_a_failed_write_leaves_what_was_there(failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small(0), tmp_path / "model")
    before = (tmp_path / "model").read_bytes()

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(failure, full)
        with pytest.raises(OSError, match="no space left"):
            save(small(1), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == before
    assert same(load(tmp_path / "model"), small(0))


def test_a_write_that_stops_half_way_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small(0), tmp_path / "model")

    class HalfWritten:
        def __init__(self, path: Path, mode: str) -> None:
            self.file = path.open(mode)

        def __enter__(self) -> HalfWritten:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[: len(content) // 2])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", HalfWritten)
        with pytest.raises(KeyboardInterrupt):
            save(small(1), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert same(load(tmp_path / "model"), small(0))


PROCESSES = [
    *(VP(beta_min=0.2), CosineVP(s=0.01), SubVP(), VE(sigma_max=9.0), EDM(sigma_max=7.0), RectifiedFlow(t_max=0.9)),
    *(DDPM.linear(6, 0.1, 0.5), DDPM([0.1, 1.0]), NCSN.geometric(5), discretize(RectifiedFlow(), 4)),
    *(DDPM.linear(6, 0.1, 0.5).sde(),),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_load_builds_what_was_saved(process: Any, predicts: str, tmp_path: Path) -> None:
    net = mlp(num_classes=2)
    nn.init.normal_(net.output.weight, generator=generator())
    model = ScoreModel(net, process, predicts, sigma_data=0.7).eval()
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert not loaded.training
    x, t, label = torch.randn(4, 2, generator=generator()), torch.linspace(0.3, 0.8, 4), torch.tensor([0, 1, 0, 1])
    for view in ("score", "eps", "x0", "v"):
        assert torch.equal(getattr(loaded, view)(x, t, label=label), getattr(model, view)(x, t, label=label))


def test_load_keeps_the_type_of_the_weights(tmp_path: Path) -> None:
    save(ScoreModel(UNet(1, 8, (1, 2), lean=True).double(), VP()), tmp_path / "model")
    assert {p.dtype for p in load(tmp_path / "model").parameters()} == {torch.float64}


def test_load_takes_averaged_or_last_weights(tmp_path: Path) -> None:
    result = quiet(small(), Gaussian(), steps=3, lr=0.1, warmup=0, out=tmp_path / "run")
    assert same(load(tmp_path / "run"), result.model)
    assert same(load(tmp_path / "run", ema=False), result.raw)
    assert not same(result.model, result.raw)


def test_a_learned_variance_is_saved(tmp_path: Path) -> None:
    net = UNet(1, 8, (1,), lean=True, attention=())
    model = ScoreModel(Doubled(net), VP(), learned_variance=True).eval()
    save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="scoresde cannot build; pass one as net="):
        load(tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors", net=Doubled(UNet(1, 8, (1,), lean=True, attention=())))
    x, t = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    for got, wanted in zip(back.outputs(x, t), model.outputs(x, t), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


class Doubled(nn.Module):
    """A network that returns twice the channels: its output, and one minus it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.net(x, t) + x.mean()
        return torch.cat([y, 1 - y], 1)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    save(ScoreModel(net, VP()), tmp_path / "model")
    assert same(load(tmp_path / "model", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).net, net)  # type: ignore[arg-type]


def test_load_asks_for_what_a_file_cannot_hold(tmp_path: Path) -> None:
    own = FunctionSDE(lambda t: 0 * t, torch.log, t_max=2.0)
    model = ScoreModel(nn.Linear(2, 2), own, time=torch.log)
    save(model, tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"gets a function of t of your own; pass it: load\(\.\., time=\.\.\)"):
        load(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"linear.Linear, which scoresde cannot build; pass one as net=\.\."):
        load(tmp_path / "model", time=torch.log, sde=own)
    with pytest.raises(
        CheckpointError, match=r"under FunctionSDE, an SDE of your own; .* load\(\.\., sde=FunctionSDE\(\.\.\)\)"
    ):
        load(tmp_path / "model", nn.Linear(2, 2), time=torch.log)
    loaded = load(tmp_path / "model", nn.Linear(2, 2), time=torch.log, sde=own)
    assert same(loaded, model)
    assert loaded.sde is own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sde": VE()}, "another model than the given parts make: process.beta_max=20.0"),
        ({"sde": VP(beta_max=3.0)}, r"process.beta_max=20.0 \(here 3.0\)"),
        ({"net": nn.Linear(2, 2)}, "net.type='MLP'"),
        ({"net": mlp(dropout=0.5)}, r"net.config.dropout=0.0 \(here 0.5\)"),
    ],
)
def test_load_refuses_another_model(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(small(), tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model", **arguments)


class Pair(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        for i, size in enumerate(sizes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.full((size,), float(size))))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1,), "this Pair: it also holds net.p1"),
        ((1, 2, 3), "it lacks net.p2"),
        ((1, 3), r"it has in another shape net.p1 \(2,\) for \(3,\)"),
        ((3,), r"it also holds net.p1; it has in another shape net.p0 \(1,\) for \(3,\)"),
        ((1, 2, *[1] * 9), "it lacks net.p10, net.p2, net.p3, net.p4 and 5 more"),
    ],
)
def test_load_names_the_tensors_that_do_not_fit(sizes: tuple[int, ...], message: str, tmp_path: Path) -> None:
    save(ScoreModel(Pair(1, 2), VP()), tmp_path / "model")
    net = Pair(*sizes)
    with pytest.raises(CheckpointError, match=f"of another architecture than {message}|{message}"):
        load(tmp_path / "model", net)
    assert same(net, Pair(*sizes))  # untouched


def test_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    save(small(), tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    for length in {*range(0, 64), *range(64, len(content), len(content) // 40), len(content) - 1}:
        (tmp_path / "part").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            load(tmp_path / "part")


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the file was unpickled",))


def foreign(path: Path, what: str) -> None:
    from safetensors.torch import save_file

    if what == "pickle":
        path.write_bytes(pickle.dumps(Bomb()) + bytes(20))
    elif what == "torch.save":
        torch.save({"weight": torch.ones(3)}, path)
    elif what == "text":
        path.write_text("this is no checkpoint at all")
    elif what == "safetensors":
        save_file({"weight": torch.ones(3)}, path)
    elif what == "damaged":
        save_file({"weight": torch.ones(3)}, path, metadata={"scoresde": "{"})
    elif what == "older":
        save_file({"weight": torch.ones(3)}, path, metadata={"scoresde": '{"versions": {"format": 2}}'})
    elif what == "newer":
        save_file({"weight": torch.ones(3)}, path, metadata={"scoresde": '{"versions": {"format": 99}}'})
    elif what == "no model":
        write(path, {}, {})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "there is no checkpoint .*file"),
        ("pickle", "not a safetensors file .it looks like a pickle, which can run any code and is never opened"),
        ("torch.save", "not a safetensors file .it looks like a pickle"),
        ("text", "is not a safetensors file; expected a checkpoint written by scoresde"),
        ("safetensors", "but not one of scoresde's: its header has no 'scoresde' entry"),
        ("damaged", "has a damaged description in its header"),
        ("older", "has format 2, written by an earlier version of scoresde; this one reads format 4: use that version"),
        ("newer", "has format 99, written by another version of scoresde; this one reads format 4"),
        ("no model", "damaged description in its header: Object missing required field `process`"),
    ],
)
def test_foreign_files_are_refused(what: str, message: str, tmp_path: Path) -> None:
    foreign(tmp_path / "file", what)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "file")
    if what not in ("missing", "no model"):
        with pytest.raises(CheckpointError, match=message):
            quiet(small(), Gaussian(), steps=1, out=tmp_path / "file")


def test_only_tensors_are_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a torch.nn.Module, which has weights to save"):
        save(exact(VP()), tmp_path / "model")

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"anything": object()}

    with pytest.raises(CheckpointError, match=r"holds net\._extra_state, not tensors"):
        save(ScoreModel(Extra(2, 2), VP()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_training_on_a_gpu_resumes_bit_for_bit(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.use_deterministic_algorithms(True)
    try:
        model, data, arguments = images()
        whole = quiet(model, data, steps=5, device="cuda", **arguments)
        for steps in (2, 5):
            parts = quiet(images()[0], data, steps=steps, device="cuda", out=tmp_path / "run", **arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(parts.raw, whole.raw) and same(parts.model, whole.model) and parts.history == whole.history
    assert all(p.is_cuda for p in whole.model.parameters())
    assert not any(p.is_cuda for p in load(tmp_path / "run").parameters())


# The training itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.27, 0.9])
def test_the_average_is_that_of_its_formula(decay: float) -> None:
    steps = 5
    weights = [quiet(small(), Gaussian(), steps=n, lr=0.1, warmup=0).raw.state_dict() for n in range(1, steps + 1)]
    expected = dict(weights[0])
    for n, now in enumerate(weights[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * now[name] for name in now}
    averaged = quiet(small(), Gaussian(), steps=steps, lr=0.1, warmup=0, ema=decay).model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value)


def test_steps_warm_up() -> None:
    # The first step of Adam moves each weight that has a gradient by the step size, whatever the gradient.
    start = small().state_dict()
    for warmup, lr in ((0, 0.1), (3, 0.1)):
        moved = quiet(small(), Gaussian(), steps=1, lr=lr, warmup=warmup).raw.state_dict()
        step = (moved["net.output.bias"] - start["net.output.bias"]).abs()
        torch.testing.assert_close(step, torch.full((2,), lr / (warmup + 1)), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("objective", "predicts", "sde"), [("ddpm", "eps", VP()), ("edm", "edm", EDM(sigma_max=9.0))])
def test_training_comes_close_to_the_true_score(objective: str, predicts: str, sde: Any) -> None:
    model = ScoreModel(mlp(), sde, predicts)
    before = report(model, Gaussian(), exact(sde), objective=objective)
    after = quiet(
        model, Gaussian(), steps=400, batch_size=128, lr=1e-2, ema=0.99, objective=objective, truth=exact(sde)
    ).report
    assert before.excess is not None and after.excess is not None and after.error is not None
    assert after.excess.mean() < 0.05 * before.excess.mean()
    assert after.error.median() < 0.12


def test_progress_shows_loss_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    fit(small(), Gaussian(), steps=3, batch_size=4, progress=True)
    shown = capsys.readouterr().err
    assert "step 3/3, loss" in shown and "samples/s" in shown
    quiet(small(), Gaussian(), steps=3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "got steps=0; expected a whole number of at least 1"),
        ({"save_every": 0}, "got save_every=0"),
        ({"batch_size": 0}, "got batch_size=0"),
        ({"lr": -1.0}, "got lr=-1.0; expected a positive number"),
        ({"ema": 1.0}, "got ema=1.0; expected 0 <= ema < 1"),
        ({"objective": "eddm"}, "did you mean 'edm'"),
        ({"data": torch.ones(3)}, "write scalars as"),
        ({"data": torch.ones(3, 2).long()}, "expected a floating point tensor"),
        ({"data": torch.ones(0, 2)}, "got data of no samples"),
        ({"data": torch.full((3, 2), torch.nan)}, "got data that are not all finite"),
        ({"data": [1.0, 2.0]}, "got data of type list; expected a tensor"),
        ({"data": torch.ones(3, 2), "conditions": {"label": torch.ones(2)}}, "got condition 'label' of shape"),
        ({"conditions": {"label": torch.ones(2)}}, "expected conditions only with a tensor"),
        ({"model": exact(VP())}, "no parameters to train; expected a torch.nn.Module"),
        ({"out": "."}, "got the folder . for a checkpoint; expected the path of a file"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(**({"model": small(), "data": Gaussian(), "steps": 1} | arguments))


# The report ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sde", [VP(), EDM(sigma_max=9.0), DDPM.linear(40, 1e-3, 0.2).sde()], ids=lambda s: str(s)[:5])
def test_excess_is_the_weighted_square_of_what_is_wrong(objective: str, sde: Any) -> None:
    # A noise prediction that is off by c everywhere: the excess is the mean of w c^2, and no noise is left in it.
    c, bins = 0.3, 4
    dsm = OBJECTIVES[objective]
    got = report(exact(sde, c), Gaussian(), exact(sde), objective=objective, bins=bins, samples=40_000, batch_size=10_000)
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    t, importance = dsm.distribution.at(u, sde)
    weight = importance * dsm.weight.function(sde, t, 0.5)
    weight = weight * (1 if dsm.weight.on == "eps" else (sde.sigma(t) / sde.alpha(t)) ** 2)
    assert got.excess is not None and got.error is not None
    torch.testing.assert_close(got.excess, c**2 * weight.reshape(bins, -1).mean(1), rtol=0.01, atol=0)
    size = sde.sigma(t) ** 2 / (sde.alpha(t) ** 2 * STD**2 + sde.sigma(t) ** 2)  # E eps*^2
    torch.testing.assert_close(got.error, (c**2 / size.reshape(bins, -1).mean(1)).sqrt(), rtol=0.03, atol=0)
    floor = report(exact(sde), Gaussian(), exact(sde), objective=objective, bins=bins, samples=40_000, batch_size=10_000)
    torch.testing.assert_close(got.loss - floor.loss, got.excess, rtol=0.2, atol=0.01 * floor.loss.mean().item())
    assert floor.excess is not None
    assert (floor.excess == 0).all()


def test_the_mean_over_bins_is_the_objective() -> None:
    model, dsm = exact(VP(), 0.3), DSM("likelihood", "uniform")
    got = report(model, Gaussian(), objective=dsm, bins=7, samples=50_000)
    x0 = Gaussian().sample(50_000, generator(1))
    direct = dsm(model, x0, generator(2))[0].mean().item()
    assert got.loss.mean().item() == pytest.approx(direct, rel=0.03)
    assert (got.edges[0].item(), got.edges[-1].item()) == VP().span
    assert (got.edges.diff() > 0).all()
    assert got.excess is None and got.error is None


def test_report_is_a_table_and_leaves_the_model_as_it_was() -> None:
    model = small().train()
    got = report(model, Gaussian(), exact(VP()), bins=3, samples=30)
    assert model.training
    lines = str(got).splitlines()
    assert lines[0].split() == ["t", "loss", "excess", "score", "error"]
    assert len(lines) == 5
    assert float(lines[-1].split()[1]) == pytest.approx(got.loss.mean().item(), rel=1e-3)
    assert "excess" not in str(report(model, Gaussian(), bins=3, samples=30))


def test_report_refuses_a_truth_under_another_process() -> None:
    with pytest.raises(ValueError, match=r"got a truth under VE\(.* for a model under VP\("):
        report(small(), Gaussian(), exact(VE()))
    with pytest.raises(ValueError, match="got bins=0"):
        report(small(), Gaussian(), bins=0)
