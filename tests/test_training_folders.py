"""A folder belongs to one training: who writes in it holds a lock, and each training sees its own files alone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import divided
from typer.testing import CliRunner

from scoresde import VP, ScoreModel, data
from scoresde.base.files import leftovers, replacing
from scoresde.base.lock import Lock
from scoresde.cli import app
from scoresde.models import MLP, UNet
from scoresde.training import CheckpointError, InUseError, PowerAverage, Trainer, load, read_log, reconstruct
from scoresde.training.files.checkpoint import read

ROOT = Path(__file__).resolve().parents[1]
POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def small() -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(MLP(2, hidden=(16,), time_features=8), VP(), "v")


def trainer(**arguments: Any) -> Trainer:
    usual = {"batch_size": 16, "lr": 0.02, "warmup": 0, "progress": False}
    return Trainer(small(), POINTS, **divided(usual | arguments))


def trained(steps: int, **arguments: Any) -> Trainer:
    made = trainer(**arguments)
    made.run(steps)
    return made


def steps_in(folder: Path) -> list[int]:
    return sorted(int(read(file).description["step"]) for file in folder.glob("*.safetensors"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# Several trainings in one folder -------------------------------------------------------------------------------------


def test_two_names_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_every": 2, "keep_last": 2, "averages": [0.9, PowerAverage(0.1)], "snapshot_every": 2}
    for steps in (4, 8):
        for name, lr in (("a", 0.02), ("b", 0.01)):
            trained(steps, out=tmp_path / f"{name}.safetensors", lr=lr, **options)
    for name, lr in (("a", 0.02), ("b", 0.01)):
        alone = tmp_path / "alone" / f"{name}.safetensors"
        trained(8, out=alone, lr=lr, **options)
        for folder in ("checkpoints", "snapshots"):
            ours, expected = ({f.name: f for f in (base / folder).glob(f"{name}-*")} for base in (tmp_path, alone.parent))
            assert ours.keys() == expected.keys() and len(ours) == (2 if folder == "checkpoints" else 4)
            for file, other in expected.items():
                assert all(torch.equal(v, read(other).tensors[k]) for k, v in read(ours[file]).tensors.items())
        assert read_log(tmp_path / f"{name}.csv")["loss"] == read_log(alone.with_suffix(".csv"))["loss"]


@pytest.mark.parametrize("names", [("lr0.001", "lr0.01"), ("lr0.1.safetensors", "lr0.2.safetensors"), ("m.1", "m.2")])
def test_names_with_points_have_logs_of_their_own(names: tuple[str, str], tmp_path: Path) -> None:
    losses = {name: trained(3, out=tmp_path / name, lr=0.1 * (i + 1)).losses for i, name in enumerate(names)}
    for name in names:
        log = tmp_path / f"{name.removesuffix('.safetensors')}.csv"
        assert read_log(log)["loss"] == losses[name]


def test_to_start_afresh_keeps_the_new_files_and_leaves_those_of_another_training(tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "m.safetensors", "save_every": 2, "keep_last": 2}
    first = trained(20, lr=0.01, **options)
    old = contents(tmp_path / "checkpoints")
    trained(6, lr=0.02, resume=False, **options)
    now = contents(tmp_path / "checkpoints")
    assert old.items() <= now.items()
    assert first.places is not None
    new = [file for file in now if file not in old]
    assert sorted(read(file).description["step"] for file in new) == [4, 6]
    trained(4, lr=0.02, resume=False, **options)  # the same training once more: what it had made is to be made again
    assert sorted(read(f).description["step"] for f in contents(tmp_path / "checkpoints") if f not in old) == [2, 4]
    assert same(load(tmp_path / "m.safetensors"), trained(4, lr=0.02).sampled)


def test_snapshots_of_two_trainings_are_never_averaged_together(tmp_path: Path) -> None:
    options: dict[str, Any] = {"averages": [PowerAverage(0.05), PowerAverage(0.1)], "snapshot_every": 5}
    trained(20, out=tmp_path / "m.safetensors", lr=0.05, **options)
    trained(20, out=tmp_path / "m.safetensors", resume=False, **options)
    alone = tmp_path / "alone"
    trained(20, out=alone / "m.safetensors", **options)
    runs = sorted({read(f).description["run"] for f in (tmp_path / "snapshots").iterdir()})
    assert len(runs) == 2
    with pytest.raises(CheckpointError, match=rf"snapshots of 2 trainings; .* pass run='{runs[0]}' or run='{runs[1]}'"):
        reconstruct(tmp_path / "snapshots", 0.07)
    run = read(tmp_path / "m.safetensors").description["run"]
    assert same(reconstruct(tmp_path / "snapshots", 0.07, run=run), reconstruct(alone / "snapshots", 0.07))


def test_a_setting_may_change_where_that_is_said(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    options: dict[str, Any] = {"out": out, "save_every": 2, "keep_last": 3}
    trained(4, lr=0.02, **options)
    with pytest.raises(CheckpointError, match=r"training.lr=0.02 \(here 0.01\); to go on .* pass accept=lr; to start"):
        trainer(lr=0.01, **options)
    went_on = trained(8, lr=0.01, accept=["lr"], **options)
    assert went_on.steps == 8 and read_log(tmp_path / "m.csv")["lr"] == [0.02] * 4 + [0.01] * 4
    assert steps_in(tmp_path / "checkpoints") == [4, 6, 8], "it is the same run still"
    with pytest.raises(CheckpointError, match=r"training.seed=0 \(here 1\)"):
        trainer(lr=0.01, seed=1, accept=["lr"], **options)
    with pytest.raises(ValueError, match=r"got accept='lr'; expected a sequence of names: pass accept=\('lr',\)"):
        trainer(accept="lr", **options)


# One writer at a time ------------------------------------------------------------------------------------------------


def test_a_second_trainer_on_a_file_in_use_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    out, refused = tmp_path / "m.safetensors", []

    def second(step: int, model: ScoreModel) -> None:
        before = contents(tmp_path)
        (tmp_path / ".m.1.0123abcd.safetensors").write_text("of one that writes this very moment")
        with pytest.raises(InUseError, match=rf"m.safetensors is being written by .* \(process {os.getpid()} on"):
            trainer(out=out)
        with pytest.raises(InUseError):
            trainer(out=out, resume=False, lr=0.5)
        (tmp_path / ".m.1.0123abcd.safetensors").unlink()
        assert contents(tmp_path) == before
        refused.append(step)

    first = trained(6, out=out, monitor=second, monitor_every=2, save_every=3)
    assert refused == [2, 4, 6]
    assert same(first.model, trained(6).model)
    assert not list(tmp_path.glob(".*"))


def test_a_trainer_whose_file_another_has_written_since_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    early, other = trainer(out=out), trainer(out=out)
    other.run(4)
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match=r"has changed since this trainer read or wrote it: another training"):
        early.run(2)
    assert out.read_bytes() == before
    other.run(6)
    assert read(out).description["step"] == 6


_HOLD = """
import sys, time
from pathlib import Path
from scoresde.base.lock import Lock
path = Path(sys.argv[1])
Lock(path, path.with_name(".m.lock")).acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    held = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert held.stdout is not None and held.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"process {held.pid} on"):
            trainer(out=path)
    finally:
        held.send_signal(signal.SIGKILL)
        held.communicate()
    assert trained(2, out=path).steps == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "m")
    lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # closes what it inherits
    import multiprocessing

    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    forked.start()
    try:
        os.close(lock._handle)  # type: ignore[arg-type]  # as the system does when the holder dies
        lock._handle = None
        other = Lock(tmp_path / "m")
        for _ in range(500):  # until the forked process has begun
            with contextlib.suppress(InUseError):
                other.acquire()
                break
            time.sleep(0.01)
        else:
            other.acquire()
        other.release()
    finally:
        forked.kill()
        forked.join()
        child.kill()
        child.wait()


def test_of_many_that_want_the_lock_at_once_one_has_it(tmp_path: Path) -> None:
    inside, most = [0], [0]
    mine: dict[int, int] = {}
    guard = threading.Lock()

    def work(number: int) -> None:
        while mine.setdefault(number, 0) < 5:
            lock = Lock(tmp_path / "m")
            try:
                lock.acquire()
            except InUseError:
                continue
            with guard:
                inside[0] += 1
                mine[number] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.0005)
            with guard:
                inside[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and list(mine.values()) == [5] * 8


# Data and output -----------------------------------------------------------------------------------------------------


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_output_among_the_data_is_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    images = data.open(folder)
    model = ScoreModel(UNet(1, 8, (1,), lean=True), VP())
    for source in (images, data.Flipped(images)):
        with pytest.raises(ValueError, match=r"to write to, inside the folder .*data of the data; expected a path outside"):
            Trainer(model, source, **divided({"out": folder / "run" / "m.safetensors", "progress": False}))
    run = ["train", "--data", str(folder), "--steps", "1", "--width", "4", "--no-progress", "--out"]
    refused = CliRunner().invoke(app, [*run, str(folder / "run")])
    assert refused.exit_code == 2 and "got --out" in refused.stderr and "inside the folder" in refused.stderr
    assert len(list(folder.rglob("*"))) == 6
    assert CliRunner().invoke(app, [*run, str(tmp_path / "run")]).exit_code == 0


def test_the_command_speaks_of_its_options(tmp_path: Path) -> None:
    run = ["train", "--data", "digits", "--steps", "1", "--width", "4", "--no-progress", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, run).exit_code == 0
    refused = CliRunner().invoke(app, [*run, "--lr", "0.5", "--steps", "2"])
    assert "training.lr=0.002 (here 0.5); to go on with the new settings pass --accept lr; " in refused.stderr
    assert "to start afresh and overwrite it pass --no-resume; or choose another file" in refused.stderr
    assert CliRunner().invoke(app, [*run, "--lr", "0.5", "--steps", "2", "--accept", "lr"]).exit_code == 0
    wrong = CliRunner().invoke(app, [*run, "--batch-size", "0"])
    assert "got --batch-size 0; expected a whole number of at least 1" in wrong.stderr


# Files ---------------------------------------------------------------------------------------------------------------


def test_any_number_of_writers_replace_one_file_at_once(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def write(text: str) -> None:
        for _ in range(20):
            try:
                with replacing(tmp_path / "a.txt") as temporary:
                    temporary.write_text(text * 100)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    (file,) = tmp_path.iterdir()
    assert len(set(file.read_text())) == 1 and len(file.read_text()) == 100


def test_the_folder_is_on_the_disk_after_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])

    def noted(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert events == ["file", "replace", "folder"] or not Path("/proc/self/fd").exists()


@pytest.mark.parametrize("where", ["write", "sync"])
def test_a_full_disk_is_said_to_be_one(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.txt").write_text("before")
    if where == "sync":
        monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left.*cannot write .*a.txt; make room .* is as it was"),
        replacing(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("after")
        full() if where == "write" else None
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.txt", "before")]


def test_leftovers_are_those_of_one_file_whose_writer_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ours = {f".a.{gone.pid}.0123abcd.txt", f".a.{os.getpid()}.0123abcd.txt"}
    others = {f".a.1.{gone.pid}.0123abcd.txt", f".ab.{gone.pid}.0123abcd.txt", f".a.{gone.pid}.0123abcd.csv"}
    others |= {".a.1.0123abcd.txt"}  # of a process that lives
    for name in ours | others | {"a.txt", ".a.txt"}:
        (tmp_path / name).touch()
    assert {file.name for file in leftovers(tmp_path / "a.txt")} == ours
