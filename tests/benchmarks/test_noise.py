"""What noise from the shared Brownian path costs a step, in units of fresh noise."""

import statistics
import time

import pytest
import torch

from scoresde import VP
from scoresde.solvers import BrownianNoise, FreshNoise, NoiseSource, make_path

SHAPE, CPU = (64, 3, 32, 32), torch.device("cpu")


@pytest.mark.parametrize("steps", [20, 50, 100])
def test_brownian_noise_against_fresh_noise(benchmark, capsys: pytest.CaptureFixture[str], steps: int) -> None:
    """At the knots: at most 3 times fresh noise. At every fourth knot, as beside four times the steps, it is only shown."""
    torch.set_num_threads(1)
    path, fine = (make_path(VP(), "lam", n, end="stop") for n in (steps, 4 * steps))
    seconds: dict[str, list[float]] = {"fresh": [], "knots": [], "finer knots": []}
    out = torch.empty(SHAPE)

    def run(noise: NoiseSource) -> float:
        start = time.perf_counter()
        for u, v in path.moves:
            noise(u, v, out)
        return time.perf_counter() - start

    def each() -> None:  # in turn, so that a machine which slows down slows all
        seconds["fresh"].append(run(FreshNoise(range(64), CPU)))
        seconds["knots"].append(run(BrownianNoise(range(64), CPU, path)))
        seconds["finer knots"].append(run(BrownianNoise(range(64), CPU, fine)))

    benchmark.pedantic(each, rounds=5, warmup_rounds=1)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["fresh"], strict=True))
        for name in ("knots", "finer knots")
    }
    benchmark.extra_info.update(ratios)
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} / fresh = {ratio:.2f}" for name, ratio in ratios.items()))
    assert ratios["knots"] <= 3
