"""Trainings in several processes, started by the real launchers: what they reach, Ctrl-C, and a process that fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from scoresde.cli import app
from scoresde.training import read_log
from scoresde.training.files.checkpoint import Checkpoint, read
from scoresde.training.interrupts import interrupts

ROOT = Path(__file__).resolve().parents[1]

# Labels, so that those which are hidden are the same; two processes have unequal shares of 9 samples.
OPTIONS = "--labels --label-dropout 0.4 --width 4 --batch-size 9 --lr 0.01 --warmup 3 --no-progress --device cpu"

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def options(folder: Path, out: str, steps: int) -> list[str]:
    """The command line of a training on labelled points; ``out`` is a folder in ``folder``, where the points are."""
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    points = {"x": torch.randn(60, 2, generator=generator).numpy(), "y": torch.arange(60).numpy() % 3}
    np.savez(folder / "points.npz", **points)
    given = {"data": folder / "points.npz", "out": folder / out, "steps": steps}
    return ["train", *OPTIONS.split(), *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def alone(folder: Path, out: str, steps: int) -> Checkpoint:
    """What one process makes of the same training, or of the rest of it."""
    done = CliRunner().invoke(app, options(folder, out, steps))
    assert done.exit_code == 0, done.output
    return read(folder / out / "model.safetensors")


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_a_launched_training_stops_at_ctrl_c_and_one_process_goes_on(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", *LAUNCHERS[launcher], free_port(), "-m", "scoresde.cli"]
    process = subprocess.Popen(
        command + options(tmp_path, "launched", 100_000),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log, saved = tmp_path / "launched" / "model.csv", tmp_path / "launched" / "model.safetensors"
    try:
        wait_for(lambda: log.exists() and len(read_log(log).get("step", [])) >= 3, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher, which passes it on, and to all others
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert f"saved to {saved}: the same call continues from there" in said, said
    steps = int(read(saved).description["step"])
    together, one = alone(tmp_path, "launched", steps + 2), alone(tmp_path, "one", steps + 2)
    assert together.tensors.keys() == one.tensors.keys()
    for name, value in one.tensors.items():
        torch.testing.assert_close(together.tensors[name], value, rtol=1e-3, atol=1e-4)
    assert read_log(log)["step"] == list(range(1, steps + 3))


_FAILING = """
import sys
import torch
from scoresde import VP, ScoreModel
from scoresde.models import MLP
from scoresde.training import Files, Method, Trainer

torch.manual_seed(0)
trainer = Trainer(ScoreModel(MLP(2, hidden=(8,)), VP()), torch.randn(50, 2), method=Method(batch_size=4),
                  files=Files(sys.argv[1], save_every=2), progress=False, device="cpu")
if trainer.processes.main:
    def full(path):
        raise OSError(28, "No space left on device")
    trainer.save = full
try:
    trainer.run(1000)
except Exception as error:
    print(trainer.steps, type(error).__name__, error, flush=True)
    sys.stdin.read()  # this process lives on: nothing but what it said tells the other one
"""


@pytest.mark.slow
def test_where_the_first_process_cannot_write_all_stop(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", _FAILING, str(tmp_path / "run")]
    both = [
        subprocess.Popen(
            command,
            env=environment(RANK=rank, LOCAL_RANK=rank, **shared),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    late = threading.Timer(90, lambda: [p.kill() for p in both])  # one that waits for ever says nothing
    late.start()
    try:
        said = [p.stdout.readline().strip() for p in both if p.stdout is not None]  # waits for each to stop
    finally:
        late.cancel()
        for p in both:
            p.kill()
            p.communicate()
    assert said[0] == "2 OSError [Errno 28] No space left on device"
    assert said[1] == "2 RuntimeError the first process failed after step 2; read its error"
    assert not (tmp_path / "run").exists()


def test_one_of_several_processes_waits_however_often_ctrl_c_comes() -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts(patient=True) as interrupted:
            assert not interrupted()
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)


_READING = """
import sys
import torch
from scoresde import VP, ScoreModel, data
from scoresde.models import UNet
from scoresde.training import Files, Method, Trainer

torch.manual_seed(0)
model = ScoreModel(UNet(1, 4, (1,), lean=True, num_classes=10), VP())
method, files = Method(batch_size=4, workers=2), Files(sys.argv[1])
Trainer(model, data.open("digits"), method=method, files=files, progress=False).run(100_000)
"""


@pytest.mark.slow
def test_readers_outlive_the_ctrl_c_that_a_terminal_sends_them_too(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "run.csv"
    command = [sys.executable, "-c", _READING, str(out)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: log.exists() and len(read_log(log).get("step", [])) >= 3, process)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    steps = int(read(out).description["step"])
    assert f"KeyboardInterrupt: stopped after step {steps} of 100000; saved to {out}" in said, said
    with pytest.raises(ProcessLookupError):  # none of the group is left
        os.killpg(process.pid, 0)
