"""Checkpoints: what is in them comes back, under whatever wrapper, and nothing that is not theirs is taken for one."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import divided
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scoresde import DDPM, VP, ScoreModel, fit
from scoresde.models import MLP, UNet
from scoresde.training import CheckpointError, Trainer, load, save
from scoresde.training.files import checkpoint, runs
from scoresde.training.files.checkpoint import read, write

ROOT = Path(__file__).resolve().parents[1]
POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def mlp(seed: int = 0, **arguments: Any) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(2, hidden=(16,), time_features=8, **arguments)
        nn.init.normal_(net.output.weight)
        return net


def small(seed: int = 0) -> ScoreModel:
    return ScoreModel(mlp(seed), VP(), "v")


def trained(steps: int, model: ScoreModel | None = None, x: Any = POINTS, **arguments: Any) -> Trainer:
    usual = {"batch_size": 16, "lr": 0.02, "warmup": 0, "progress": False}
    made = Trainer(model or small(), x, **divided(usual | arguments))
    made.run(steps)
    return made


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# Models of one's own -------------------------------------------------------------------------------------------------


class Shifted(ScoreModel):
    """The data prediction plus a trained shift."""

    def __init__(self, net: nn.Module, scale: float = 1.0) -> None:
        super().__init__(net, VP(), "v")
        self.scale = scale
        self.shift = nn.Parameter(torch.zeros(2))

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return super().x0(x, t, **conditions) + self.scale * self.shift


class Twice(Shifted):
    """Another class of the same tensors."""


def test_a_model_of_ones_own_class_comes_back_whole_into_one_like_it(tmp_path: Path) -> None:
    model = Shifted(mlp())
    model.shift.data = torch.tensor([1.0, -2.0])
    path = tmp_path / "m.safetensors"
    save(model, path)
    with pytest.raises(
        CheckpointError, match=r"holds a .*Shifted, a class of your own.*load\(\.\., model=Shifted\(\.\.\)\)"
    ):
        load(path)
    loaded, x = load(path, model=Shifted(mlp(1))), torch.ones(3, 2)
    assert same(loaded, model) and not loaded.training
    assert torch.equal(loaded.x0(x, 0.5), model.eval().x0(x, 0.5))
    with pytest.raises(
        CheckpointError, match=r"holds another model than the one given: model.type='.*Shifted' \(here '.*Twice'"
    ):
        load(path, model=Twice(mlp(1)))
    with pytest.raises(CheckpointError, match="another model than the one given: model="):
        load(path, model=small())
    with pytest.warns(UserWarning, match="Shifted whose code or settings differ from the one given"):
        load(path, model=Shifted(mlp(1), scale=2.0))


def test_all_that_a_model_of_ones_own_trains_is_stored_and_resumed(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    whole = trained(6, Shifted(mlp()))
    for steps in (3, 6):
        parts = trained(steps, Shifted(mlp()), out=out)
    assert same(parts.model, whole.model) and same(parts.sampled, whole.sampled)
    assert same(load(out, model=Shifted(mlp(1))), whole.sampled)
    with pytest.raises(CheckpointError, match="the code or the settings of model"):
        trained(7, Shifted(mlp(), scale=2.0), out=out)


# Wrapped networks ----------------------------------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda net: net,
    "compiled": lambda net: torch.compile(net, backend="eager"),  # type: ignore[return-value]
    "data parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),  # type: ignore[arg-type]
    "the other way round": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),  # type: ignore[return-value]
}


@pytest.mark.parametrize("written", WRAPPERS)
@pytest.mark.parametrize("into", WRAPPERS)
def test_a_network_comes_back_whatever_is_around_it(written: str, into: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(ScoreModel(WRAPPERS[written](mlp()), VP(), "v"), path)
    assert read(path).tensors.keys() == {f"model.net.{name}" for name in mlp().state_dict()}
    assert same(load(path), small())
    wrapped = WRAPPERS[into](mlp(1))
    load(path, wrapped)
    assert list(wrapped.state_dict().values())[-1].equal(list(mlp().state_dict().values())[-1])


def test_a_part_called_module_keeps_its_name(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert set(checkpoint.weights(nn.DataParallel(Odd()))) == {"module.weight", "module.bias"}


@pytest.mark.parametrize("name", ["m.pt", "m.PTH", "m.ckpt", "m.bin"])
def test_the_name_of_a_pickle_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the name of a pickle, .*; expected a safetensors file: pass '.*m.safetensors'"):
        save(small(), tmp_path / name)
    with pytest.raises(ValueError, match="the name of a pickle"):
        trained(1, out=tmp_path / name)
    with pytest.raises(ValueError, match=r"expected a score model and then a path: save\(model, path\)"):
        save(tmp_path / "m.safetensors", small())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# What sampling needs -------------------------------------------------------------------------------------------------


def test_the_checkpoint_alone_tells_the_shape_and_the_classes(tmp_path: Path) -> None:
    from scoresde import data

    net = UNet(1, 8, (1,), lean=True, num_classes=2)
    images = data.Arrays(torch.rand(6, 1, 4, 4), torch.arange(6) % 2, ("shirt", "shoe"))
    trained(1, ScoreModel(net, VP()), images, out=tmp_path / "run" / "model.safetensors", batch_size=4)
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "run" / "model.safetensors").rename(moved)
    assert runs.open_run(moved)[1] == (1, 4, 4) and runs.class_names(moved) == ("shirt", "shoe")


# Halves --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_half_weights_move(dtype: torch.dtype, tmp_path: Path) -> None:
    from scoresde.training.optimization import averages

    current = nn.Linear(1, 1, bias=False).to(dtype)
    kept = averages.start(current)
    with torch.no_grad():
        kept.weight.fill_(1.0)  # type: ignore[union-attr, operator]
        current.weight.fill_(1.5)
    for _ in range(2000):
        averages.update(kept, current, 0.9999)
    assert kept.weight.item() == pytest.approx(1.5 - 0.5 * 0.9999**2000, abs=1e-4)  # type: ignore[union-attr, operator]
    out = tmp_path / "m.safetensors"
    how: dict[str, Any] = {"lr": 1e-3, "optimizer": "sgd"}  # whose step, unlike Adam's, does not overflow in a half
    whole = trained(6, ScoreModel(mlp().to(dtype), VP(), "v"), **how)
    for steps in (3, 6):
        parts = trained(steps, ScoreModel(mlp().to(dtype), VP(), "v"), out=out, **how)
    assert same(parts.model, whole.model) and same(parts.sampled, whole.sampled)
    assert {p.dtype for p in load(out).parameters()} == {torch.float32}
    assert {p.dtype for p in load(out, ema=False).parameters()} == {dtype}


# Monitors and signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: 3.0, "AttributeError"),
        (lambda: {"a": "b"}, "ValueError: could not convert"),
        (lambda: None, ""),
        (dict, ""),
    ],
)
def test_a_monitor_that_fails_loses_nothing(returns: Callable[[], Any], said: str, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = trained(4, out=out, save_every=2, monitor=lambda step, model: returns(), monitor_every=2)
    assert [str(w.message).partition(": ")[0] for w in caught if "monitor" in str(w.message)] == [
        f"the monitor failed at step {step}" for step in ((2, 4) if said else ())
    ]
    assert all(said in str(w.message) for w in caught if "monitor" in str(w.message))
    assert read(out).description["step"] == 4 and same(made.model, trained(4).model)


def test_sigterm_saves_as_ctrl_c_does(tmp_path: Path) -> None:
    programme = """
import sys, time, torch
from scoresde import VP, ScoreModel
from scoresde.models import MLP
from scoresde.training import Files, Method, Trainer
torch.manual_seed(0)
def monitor(step, model):
    print(step, flush=True)
    time.sleep(0.02)
points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
method, files = Method(batch_size=8), Files(sys.argv[1], monitor_every=1)
model = ScoreModel(MLP(2, hidden=(8,)), VP())
Trainer(model, points, method=method, files=files, monitor=monitor, progress=False).run(100_000)
"""
    out = tmp_path / "m.safetensors"
    command = [sys.executable, "-c", programme, str(out)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    for line in run.stdout:
        if int(line) == 3:
            run.send_signal(signal.SIGTERM)
            break
    _, said = run.communicate(timeout=60)
    assert "saved to" in said and read(out).description["step"] >= 3
    assert not list(tmp_path.glob(".*"))


# Data ----------------------------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    classes = ("a", "b")

    def __len__(self) -> int:
        return len(POINTS)

    def __getitem__(self, i: int) -> Any:
        return POINTS[i], i % 2


SOURCES: dict[str, Any] = {
    "array": POINTS.numpy(),
    "tensors": TensorDataset(POINTS),
    "loader": DataLoader(TensorDataset(POINTS), batch_size=3, shuffle=True),
    "pairs": Pairs(),
    "subset": torch.utils.data.Subset(Pairs(), range(len(POINTS))),
}


@pytest.mark.parametrize("source", SOURCES)
def test_arrays_and_datasets_and_loaders_of_torch_are_the_tensors_that_they_hold(source: str, tmp_path: Path) -> None:
    expected = trained(4)
    for steps in (2, 4):
        found = trained(steps, x=SOURCES[source], out=tmp_path / "m.safetensors")
    assert same(found.model, expected.model)
    assert runs.open_run(tmp_path / "m.safetensors")[1] == (2,)


def test_labels_of_a_dataset_are_given_to_a_network_that_takes_them() -> None:
    labels = torch.arange(len(POINTS)) % 2
    one = trained(4, ScoreModel(mlp(num_classes=2), VP(), "v"), Pairs())
    two = trained(4, ScoreModel(mlp(num_classes=2), VP(), "v"), conditions={"label": labels.numpy()})
    assert same(one.model, two.model) and not same(one.model, trained(4).model)
    result = fit(ScoreModel(mlp(num_classes=2), VP(), "v"), DataLoader(Pairs()), steps=2, batch_size=8, progress=False)
    assert len(result.history) == 2


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(POINTS)


class Texts(Pairs):
    def __getitem__(self, i: int) -> Any:
        return "text"


class Bytes(Pairs):
    def __getitem__(self, i: int) -> Any:
        return torch.zeros(1, 4, 4, dtype=torch.uint8), 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Endless(), r"got a Endless without a length .*sample\(n, generator\)"),
        (Texts(), "got items of type str from a Texts; expected tensors"),
        (Bytes(), r"got items of dtype torch.uint8 from a Bytes; .* x / 127.5 - 1 for bytes"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.uint8), r"got x of dtype torch.uint8; .* use x / 127.5 - 1"),
        (np.zeros((5, 2), dtype=np.int64), r"got x of dtype torch.int64; .* use x.float\(\)"),
        ([1, 2], "got data of type list"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(1, x=source)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.linspace(0, 255, 128).reshape(8, 1, 4, 4), r"between 0 and 255; .*train on x / 127.5 - 1"),
        (torch.linspace(-90, 60, 128).reshape(8, 1, 4, 4), r"train on \(x - x.mean\(\)\) / x.std\(\)"),
        (1e3 * POINTS, "expected values of about -1 to 1"),
        (POINTS, ""),
        (torch.linspace(0, 1, 128).reshape(8, 1, 4, 4), ""),
    ],
)
def test_data_far_from_one_draw_a_warning_that_names_their_range(x: Tensor, said: str) -> None:
    net = mlp() if x.ndim == 2 else UNet(1, 8, (1,), lean=True)
    arguments: dict[str, Any] = {"x": x, "batch_size": 4}
    if said:
        with pytest.warns(UserWarning, match=said):
            trained(1, ScoreModel(net, VP()), **arguments)
    else:
        trained(1, ScoreModel(net, VP()), **arguments)


# Hostile files -------------------------------------------------------------------------------------------------------


def refused(path: Path) -> bool:
    """Whether a file is refused by the one error; any other error is a failure of the test."""
    try:
        load(path)
    except CheckpointError:
        return True
    return False


def whole_file(path: Path) -> bytes:
    save(ScoreModel(mlp(), DDPM.linear(10, 0.01, 0.3), "eps"), path, event=(2,), classes=("a", "b"))
    return path.read_bytes()


def test_no_flipped_bit_is_accepted(tmp_path: Path) -> None:
    path, rng = tmp_path / "m.safetensors", random.Random(0)
    content = whole_file(path)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = [*range(8), *rng.sample(range(8, header), 250), *rng.sample(range(header, len(content)), 150)]
    accepted = []
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(flipped))
        if not refused(path):
            accepted.append((place, bytes(content[place - 12 : place + 12]), bytes(flipped[place - 1 : place + 2])))
    assert not accepted


def test_no_cut_or_lengthened_file_is_accepted(tmp_path: Path) -> None:
    path, rng = tmp_path / "m.safetensors", random.Random(1)
    content = whole_file(path)
    for length in [0, 1, 7, 8, 9, *rng.sample(range(len(content)), 60)]:
        path.write_bytes(content[:length])
        assert refused(path), length
    path.write_bytes(content + b"more")
    assert refused(path)


HOSTILE: dict[str, dict[str, Any]] = {
    "not a mapping": {"net": 3},
    "an argument that is none": {"net": {"type": "MLP", "config": {"features": 2, "bEta": 3}}},
    "a size that is text": {"net": {"type": "MLP", "config": {"features": "2"}}},
    "a size that is a list": {"net": {"type": "MLP", "config": {"features": [2]}}},
    "a negative size": {"net": {"type": "MLP", "config": {"features": -2}}},
    "a huge size": {"net": {"type": "MLP", "config": {"features": 2, "hidden": [2**30]}}},
    "a larger size than there is": {"net": {"type": "MLP", "config": {"features": 2, "hidden": [10**15]}}},
    "many layers": {"net": {"type": "MLP", "config": {"features": 2, "hidden": [16] * 100_000}}},
    "many blocks": {"net": {"type": "UNet", "config": {"channels": 1, "blocks": 10**9}}},
    "many levels": {"net": {"type": "UNet", "config": {"channels": 1, "multipliers": [1] * 1000}}},
    "a deep transformer": {"net": {"type": "DiT", "config": {"channels": 1, "size": 32, "depth": 10**9}}},
    "a class of another": {"net": {"type": "os.system", "config": {"command": "true"}}},
    "no type": {"net": {"config": {}}},
    "an SDE with an argument that is none": {"process": {"type": "VP", "bEta_min": 0.1}},
    "an SDE with text": {"process": {"type": "VP", "beta_min": "a"}},
    "an SDE with not a number": {"process": {"type": "VP", "beta_min": float("nan")}},
    "an SDE with infinity": {"process": {"type": "VE", "sigma_max": float("inf")}},
    "an SDE the wrong way round": {"process": {"type": "VP", "beta_min": 20.0, "beta_max": 0.1}},
    "an SDE without a type": {"process": {"beta_min": 0.1}},
    "a chain of text": {"process": {"type": "DDPM", "betas": "abc"}},
    "a chain of nothing": {"process": {"type": "DDPM", "betas": []}},
    "a chain of lists": {"process": {"type": "DDPM", "betas": [[0.1]]}},
    "an unknown prediction": {"predicts": "epsilon"},
    "a prediction that is a number": {"predicts": 3},
    "a deviation of nothing": {"sigma_data": 0.0},
    "a deviation of text": {"sigma_data": "0.5"},
    "an unknown time": {"time": "later"},
    "an entry that is none": {"surprise": 1},
    "averages that are none": {"averages": [1]},
    "an average that is not there": {"averages": ["exponential-0.9"]},
    "negative steps": {"step": -1},
    "a shape of text": {"event": ["a"]},
    "a negative shape": {"event": [-1]},
    "a huge shape": {"event": [10**18]},
    "classes that are numbers": {"classes": [1]},
    "a learned variance of text": {"learned_variance": "yes"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_file_says_is_checked_before_it_is_done(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    whole_file(path)
    good = read(path)
    described = {k: v for k, v in good.description.items() if k != "versions"}
    write(path, described, good.tensors)
    assert not refused(path)
    write(path, described | HOSTILE[what], good.tensors)
    start = time.perf_counter()
    assert refused(path)
    assert time.perf_counter() - start < 20


def test_headers_that_are_deep_or_of_other_kinds_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "m.safetensors"
    for text in ("[" * 100_000, '{"versions": ' * 5000, "null", "3", '"a"', "[]", '{"versions": 3}', "", "\x00", "nan"):
        save_file({"model.a": torch.ones(1)}, path, {"scoresde": text})
        assert refused(path)
    for head in ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, {"a": 3}, [], {"a": {"dtype": "F32"}}):
        packed = json.dumps(head).encode()
        path.write_bytes(struct.pack("<Q", len(packed)) + packed + bytes(4))
        assert refused(path)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{" + bytes(100))
    assert refused(path)
    path.write_bytes(struct.pack("<Q", 99) + b"{" + bytes(100))
    assert refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_devices_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=f"{path} is not a regular file"):
            read(path)


def test_many_writers_of_one_checkpoint_leave_a_whole_one(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def work(seed: int) -> None:
        try:
            for _ in range(5):
                save(small(seed), tmp_path / "m.safetensors")
                load(tmp_path / "m.safetensors")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]
