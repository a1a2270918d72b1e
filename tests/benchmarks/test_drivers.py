"""What each driver costs, in units of the same arithmetic written by hand, and what building rows costs."""

import math
import statistics
import sys
import time
from pathlib import Path as File

import pytest
import torch

sys.path.insert(0, str(File(__file__).resolve().parents[1]))
from test_loop import ROWS, SDE, START, FreeModel, by_hand

from scoresde import VP, ScoreModel, models, problems, sample, solvers
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


def network(kind: str) -> tuple[ScoreModel, tuple[int, ...]]:
    """A network with random weights, whose prediction starts small and is smooth, and the shape of a sample."""
    torch.manual_seed(0)
    if kind == "MLP":
        return ScoreModel(models.MLP(2), VP()), (2,)
    return ScoreModel(models.UNet(1, 16, (1, 2)), VP()), (1, 8, 8)


@pytest.mark.parametrize("steps", [50, 200])
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("kind", ["ring", "MLP", "UNet"])
def test_speed_up_of_the_parallel_driver(capsys: pytest.CaptureFixture[str], kind: str, batch: int, steps: int) -> None:
    """Seconds of the processor, which other work on the machine does not change, at a distance of 1e-3."""
    torch.set_num_threads(1)
    model, event = (problems.ring().model(VP()), (2,)) if kind == "ring" else network(kind)
    driver, ratios = solvers.Parallel(tolerance=1e-3), []
    for _ in range(3):
        start = time.process_time()
        one = sample(model, (batch, *event), "ddim", steps, seed=0, progress=False)
        middle = time.process_time()
        got = sample(model, (batch, *event), "ddim", steps, seed=0, driver=driver, progress=False)
        ratios.append((middle - start) / (time.process_time() - middle))
    distance = float((got.x - one.x).flatten(1).square().mean(1).sqrt().max())
    with capsys.disabled():
        print(
            f"\n{kind}, batch {batch}: {steps} steps of ddim in {got.info['sweeps']} sweeps, {got.evaluations} evaluations, "
            f"speed-up {statistics.median(ratios):.2f}; distance {distance:.1e}, estimated {got.info['distance']:.1e}"
        )
    assert distance <= 1e-3
