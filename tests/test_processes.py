"""Several processes: errors come back whole, a killed worker is a sentence, none outlives its parent; what travels."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from support import SDES, mixture
from torch import Tensor

from scoresde import NonFiniteError, ScoreModel, models, problems, sample
from scoresde.base.processes import workers
from scoresde.comparison import PEERS, StoreError
from scoresde.sde.names import SDES as NAMED


def diverge() -> None:
    torch.set_num_threads(1)
    model = ScoreModel(models.MLP(2), SDES["VP"])
    sample(model, (2, 2), "ddim", 4, progress=False, transform=lambda m, t: m / (t > 0.5))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_of_a_worker_comes_back_with_all_it_holds() -> None:
    with workers(1) as pool, pytest.raises(NonFiniteError, match="became non-finite in step") as caught:
        pool.submit(diverge).result()
    error = caught.value
    assert error.solver == "ddim" and error.step > 0 and 0 < error.t <= 0.5
    assert error.last_finite.shape == (2, 2) and bool(error.last_finite.isfinite().all())


def test_a_killed_worker_is_a_sentence() -> None:
    with (
        pytest.raises(RuntimeError, match=r"one of 2 worker processes ended without a result.* fewer processes"),
        workers(2) as pool,
    ):
        pool.submit(kill).result()


PARENT = """
import os, sys, time
from scoresde.base.processes import workers
if __name__ == "__main__":
    with workers(2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)
        waiting = [pool.submit(time.sleep, 60) for _ in range(2)]
        time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc to look processes up in")
def test_workers_end_when_their_parent_is_killed(tmp_path: Any) -> None:
    file = tmp_path / "parent.py"
    file.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids and all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
    parent.stdout.close()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# What travels ---------------------------------------------------------------------------------------------------------


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_errors_keep_what_they_hold() -> None:
    error = StoreError(28, "no room")
    error.comparison = "all of it"
    assert (sent(error).comparison, sent(error).errno, str(sent(error))) == ("all of it", 28, str(error))
    found = sent(NonFiniteError("ddim", 3, 0.25, torch.ones(2, 2)))
    assert (found.step, found.t, found.last_finite.sum().item()) == (3, 0.25, 4.0) and "in step 3" in str(found)


@pytest.mark.parametrize("name", NAMED)
def test_sdes_and_models_on_them_travel(name: str) -> None:
    sde = NAMED[name]()
    x = torch.ones(2, 2, dtype=torch.float64)
    for model in (mixture().model(sde), ScoreModel(models.MLP(2).double(), sde, "v")):
        back = sent(model)
        assert torch.equal(back.x0(x, 0.5), model.x0(x, 0.5)) and torch.equal(sent(model.sde).lam(0.5), model.sde.lam(0.5))


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_problems_travel(name: str) -> None:
    problem = problems.PROBLEMS[name]()
    draws: list[Tensor] = [p.sample(2, torch.Generator().manual_seed(0)) for p in (problem, sent(problem))]
    assert torch.equal(*draws)


@pytest.mark.parametrize("name", PEERS)
def test_peers_travel(name: str) -> None:
    assert sent(PEERS[name]) == PEERS[name]
