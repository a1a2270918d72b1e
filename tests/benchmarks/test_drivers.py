"""What each driver costs, in units of the same arithmetic written by hand, and what building rows costs."""

import functools
import math
import statistics
import sys
import time
from pathlib import Path as File

import pytest
import torch

sys.path.insert(0, str(File(__file__).resolve().parents[1]))
from test_loop import ROWS, SDE, START, FreeModel, by_hand

from scoresde import VP, problems, sample, solvers
from scoresde.solvers import FreshNoise, make_path


def run(driver) -> torch.Tensor:
    with torch.no_grad():
        for state in driver(ROWS, FreeModel(), START, FreshNoise([], START.device)):  # noqa: B007
            pass
    return state.x


@pytest.mark.parametrize("name", ["readable", "compiled", "differentiable"])
def test_drivers_against_the_same_arithmetic_by_hand(capsys: pytest.CaptureFixture[str], name: str) -> None:
    torch.set_num_threads(1)
    driver = solvers.DRIVERS[name]
    torch.testing.assert_close(run(driver), by_hand(), rtol=1e-5, atol=1e-5)
    ratios = []
    for _ in range(20):
        start = time.perf_counter()
        run(driver)
        middle = time.perf_counter()
        by_hand()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    with capsys.disabled():
        print(f"\n{name} / by hand = {statistics.median(ratios):.3f}")


@pytest.mark.parametrize("name", [n for n in solvers.SOLVERS if isinstance(solvers.get(n), solvers.RowSolver)])
def test_building_the_rows_of_100_steps_takes_under_5_ms(capsys: pytest.CaptureFixture[str], name: str) -> None:
    method, path = solvers.get(name), make_path(SDE, "karras", 100)
    best = math.inf
    for _ in range(30):
        start = time.perf_counter()
        method.rows(path)
        best = min(best, time.perf_counter() - start)
    with capsys.disabled():
        print(f"\nrows of 100 steps of {name}: {1e3 * best:.2f} ms")
    assert best < 5e-3


@pytest.mark.parametrize("steps", [50, 200])
def test_sweeps_of_the_parallel_driver(capsys: pytest.CaptureFixture[str], steps: int) -> None:
    model = problems.ring().model(VP())
    driver = functools.partial(solvers.parallel, window=steps)
    sweeps = sample(model, (64, 2), "ddim", steps, driver=driver, progress=False).info["sweeps"]
    with capsys.disabled():
        print(f"\n{steps} steps of ddim in {sweeps} sweeps")
    assert sweeps < steps / 3
