"""Work that several processes share in a folder: the same numbers as one process, to the bit, whoever is killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
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
from test_launchers import LAUNCHERS, environment, free_port
from typer.testing import CliRunner

from scoresde import VP, ScoreModel, compare, models, problems
from scoresde.base.lock import Lock
from scoresde.base.processes import launch_rank, share
from scoresde.cli import app
from scoresde.comparison import Comparison
from scoresde.comparison.store import FILE, Result, Store, StoreError
from scoresde.data import Arrays
from scoresde.evaluation import Features, evaluate, summarize
from scoresde.solvers import Tuned
from scoresde.training import save

# Pieces of work -------------------------------------------------------------------------------------------------------


def test_a_process_begins_at_its_own_piece_and_leaves_out_what_others_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert launch_rank() == (1, 2)
    share(list("abcd"), tmp_path, made.__contains__, made.append)
    assert made == list("cdab")
    assert not list(tmp_path.iterdir())

    made.clear()
    share(list("abcd"), None, made.__contains__, made.append)  # alone, whatever was launched
    assert made == list("abcd")


def test_the_piece_of_a_killed_process_is_done_by_another(tmp_path: Path) -> None:
    here, there = os.pipe()

    def hold(piece: str) -> None:
        os.write(there, piece.encode())
        time.sleep(600)

    holder = multiprocessing.get_context("fork").Process(
        target=share, args=(["a", "b"], tmp_path, lambda piece: False, hold)
    )
    holder.start()
    assert os.read(here, 1) == b"a"
    made: list[str] = []

    def work(piece: str) -> None:
        made.append(piece)
        if piece == "b":  # all that the other does not hold is done
            holder.kill()
            holder.join()

    share(["a", "b"], tmp_path, made.__contains__, work)
    assert made == ["b", "a"]
    os.close(here)
    os.close(there)
    assert not list(tmp_path.iterdir())


def test_work_that_fails_is_given_back_and_a_stop_leaves_the_rest(tmp_path: Path) -> None:
    def fail(piece: str) -> None:
        raise RuntimeError(piece)

    with pytest.raises(RuntimeError, match="a"):
        share(["a"], tmp_path, lambda piece: False, fail)
    made: list[str] = []
    share(list("abc"), tmp_path, made.__contains__, made.append, stop=lambda: len(made) == 2)
    assert made == ["a", "b"]
    assert not list(tmp_path.iterdir())


# The store ------------------------------------------------------------------------------------------------------------


def result(i: int) -> Result:
    return Result(i, 2 * i, values={"rms": (i / 3, 0.0, 1.0)})


def test_two_writers_of_a_store_read_each_other_and_write_over_what_was_cut_off(tmp_path: Path) -> None:
    one, two = (Store(tmp_path, lambda: {"seed": 0}) for _ in range(2))
    one.add("a", result(1))
    two.add("b", result(2))
    assert "b" not in one and "a" in two
    one.refresh()
    assert one["b"] == result(2)
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"key": "c", "res')  # a writer that was killed
    one.refresh()
    two.add("d", result(4))
    one.add("e", result(5))
    again = Store(tmp_path, lambda: {"seed": 0})
    assert [key for key in "abcde" if key in again] == ["a", "b", "d", "e"]
    assert all(again[key] == store[key] for key, store in (("a", two), ("d", one), ("e", one)))


def test_a_store_that_cannot_be_locked_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, lambda: {"seed": 0})

    def none(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(StoreError, match=r"cannot lock .*file system with locks"):
        store.add("a", result(1))
    with pytest.raises(OSError, match=r"cannot lock .*file system with locks"):
        Lock(tmp_path / "other").acquire()


# Statistics of samples ------------------------------------------------------------------------------------------------


def test_statistics_do_not_depend_on_who_reads_which_part(tmp_path: Path) -> None:
    x = torch.randn(83, 6, generator=torch.Generator().manual_seed(0))
    read: list[int] = []

    def features(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        read.append(len(batch))
        return {"features": batch.sin(), "logits": batch[:, :3]}

    how: dict[str, Any] = {"features": Features(features, "sine"), "keep": 40, "projections": 8, "batch_size": 4}
    alone = summarize(Arrays(x), **how)
    together = summarize(Arrays(x), cache=tmp_path, **how)
    assert len(read) == 2 * 21  # 21 batches in parts of two batches each
    for a, b in zip(vars(alone).values(), vars(together).values(), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
    for kind, moments in alone.moments.items():
        assert torch.equal(moments.mean, together.moments[kind].mean)
        assert torch.equal(moments.products, together.moments[kind].products)
    whole = (x.double().sin().T.cov(), alone.moments["features"].covariance)
    torch.testing.assert_close(*whole, rtol=0, atol=1e-7)
    summarize(Arrays(x), cache=tmp_path, **how)
    assert len(read) == 2 * 21 and len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_reading_continues_at_the_part_that_it_was_at(tmp_path: Path) -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []

    def features(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return batch

    how: dict[str, Any] = {"features": Features(features, "itself"), "batch_size": 4, "cache": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        evaluate(Arrays(x[:48]), Arrays(x), **how)
    scores = evaluate(Arrays(x[:48]), Arrays(x), **how)
    assert len(calls) == 12 + 16 + 1
    assert scores == evaluate(Arrays(x[:48]), Arrays(x), **{**how, "cache": None})


# The commands ---------------------------------------------------------------------------------------------------------


def second(launcher: int) -> int:
    """The process of rank 1 among the children of a launcher."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(child) for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())


def launch(*command: str, launcher: str = "torchrun", kill: Path | None = None) -> str:
    """Run a command of the library in two processes, and kill the second one when the file ``kill`` has three lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", *LAUNCHERS[launcher], free_port(), "-m", "scoresde.cli", *command, "--no-progress"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while kill is not None and not (kill.exists() and kill.read_bytes().count(b"\n") > 2):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        if kill is not None:
            os.kill(second(process.pid), signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode == 0) == (kill is None), said
    return said


def numbers(found: Comparison) -> list[Any]:
    """All numbers of a comparison, exactly; a time is none of its results."""
    return [repr(record) for record in found.records if record.metric != "time"]


COMPARED = ("ring", "grid", "--solver", "ddim,ddpm", "--evaluations", "6,20", "--metric", "rms,energy")


def compared(folder: Path, *, alone: bool = True, **how: Any) -> Comparison:
    command = ("compare", *COMPARED, "--out", str(folder))
    if alone:
        done = CliRunner().invoke(app, [*command, "--no-progress"])
        assert done.exit_code == 0, done.output
    else:
        said = launch(*command, **how)
        assert said.count("index.html") == (0 if "kill" in how else 1), said  # the first process alone speaks
    return Comparison.load(folder) if (folder / "comparison.json").exists() else Comparison(())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_launched_processes_compare_as_one_does_even_if_they_were_killed(launcher: str, tmp_path: Path) -> None:
    one = compared(tmp_path / "one")
    assert numbers(one) and any(len(trace.x) for trace in one.traces)
    two = compared(tmp_path / "two", alone=False, launcher=launcher)
    assert numbers(two) == numbers(one)
    for a, b in zip(one.traces, two.traces, strict=True):
        assert torch.equal(a.x, b.x)
    lines = [json.loads(line) for line in (tmp_path / "two" / FILE).read_bytes().splitlines()]
    keys = [line["key"] for line in lines[1:]]
    assert len(keys) == len(set(keys))  # no run was made twice

    compared(tmp_path / "killed", alone=False, launcher=launcher, kill=tmp_path / "killed" / FILE)
    assert numbers(compared(tmp_path / "killed", alone=False, launcher=launcher)) == numbers(one)
    assert not [path for path in tmp_path.rglob("*.lock") if path.parent.name != "references"]


def a_run(folder: Path) -> Path:
    """A checkpoint of a small network on points in the plane."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreModel(models.MLP(2, hidden=(8,)), VP(), "v").eval()
    save(model, folder / "model.safetensors", event=(2,))
    return folder / "model.safetensors"


@pytest.mark.slow
def test_two_launched_processes_tune_as_one_does(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    options = ("--evaluations", "3,4", "--starts", "32", "--iterations", "3", "--tolerance", "1e-6", "--shape", "2")
    files = tmp_path / "one.json", tmp_path / "two.json"
    done = CliRunner().invoke(app, ["tune", str(run), *options, "--out", str(files[0]), "--no-progress"])
    assert done.exit_code == 0, done.output
    said = launch("tune", str(run), *options, "--out", str(files[1]))
    assert said.count(str(files[1])) == 1
    assert Tuned.read(files[0]).to_json() == Tuned.read(files[1]).to_json()


@pytest.mark.slow
def test_two_launched_processes_evaluate_as_one_does(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", problems.ring().sample(700, torch.Generator().manual_seed(1)).float().numpy())
    scores = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = ["evaluate", str(a_run(tmp_path / name)), "--against", str(tmp_path / "data.npy"), "-n", "1300"]
        command += ["--steps", "4", "--cache", str(tmp_path / name / "cache"), "--out", str(tmp_path / name / "scores.json")]
        if name == "one":
            done = CliRunner().invoke(app, [*command, "--no-progress"])
            assert done.exit_code == 0, done.output
        else:
            assert launch(*command).count("sliced Wasserstein") == 1
        scores.append((tmp_path / name / "scores.json").read_text())
    assert scores[0] == scores[1]
    drawn = [{p.name: p.read_bytes() for p in (tmp_path / name).rglob("*-*.npy")} for name in ("one", "two")]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 3


@pytest.mark.parametrize(
    ("command", "option"), [(["compare", "ring"], "--out"), (["evaluate", "a", "--against", "b"], "--cache")]
)
def test_processes_without_a_folder_to_share_are_told_the_option(
    command: list[str], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and f"got 2 processes without a folder to share; expected {option} FOLDER" in done.output


def test_a_comparison_that_others_are_at_waits_for_their_part(tmp_path: Path) -> None:
    """Another process holds one group of runs; its results appear in the store, and are the ones reported."""
    arguments: dict[str, Any] = {"solvers": ["ddim", "heun"], "evaluations": [6], "metrics": ["rms"], "n": 8}
    whole = compare("ring", **arguments, out=tmp_path, progress=False)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(lines[0])

    other = threading.Timer(0.5, lambda: [f() for f in held])
    store = Store(tmp_path, lambda: json.loads(lines[0])["arguments"])
    key = json.loads(lines[2])["key"]
    group = json.dumps(json.loads(key)[:-1])
    lock = Lock(tmp_path / hashlib.blake2b(group.encode(), digest_size=8).hexdigest())
    lock.acquire()
    theirs = Result(6, 6, values={"rms": (42.0, 42.0, 42.0)})
    held = [lambda: store.add(key, theirs), lock.release]
    other.start()
    found = compare("ring", **arguments, out=tmp_path, progress=False)
    other.join()
    assert [r.value for r in found.records] == [whole.records[0].value, 42.0]
