"""What noise from the shared Brownian path costs a step, in units of fresh noise."""

import statistics
import time

import pytest
import torch

from scoresde import VP
from scoresde.solvers import BrownianNoise, FreshNoise, NoiseSource, Path, make_path

SHAPE, CPU = (64, 3, 32, 32), torch.device("cpu")
WIDE = (-32.0, 32.0)  # knots that lie nowhere near the path


@pytest.mark.parametrize("steps", [20, 50, 100])
def test_brownian_noise_against_fresh_noise(benchmark, capsys: pytest.CaptureFixture[str], steps: int) -> None:
    """At most 3 times fresh noise on the path's own knots, at every fourth knot, and where two paths are the knots.

    What each further kernel adds, and points between the knots, are shown only.
    """
    torch.set_num_threads(1)
    path, fine, other = (
        make_path(VP(), name, n, end="stop") for name, n in (("lam", steps), ("lam", 4 * steps), ("t", steps))
    )
    increments, data, both = (0.0,), (0.0, 1.0), (0.0, 1.0, -1.0)
    cases: dict[str, tuple[object, tuple[float, ...], float]] = {
        "knots": (path, increments, 0.0),
        "finer knots": (fine, increments, 0.0),
        "knots of two paths": ([path, other], increments, 0.0),
        "knots, kernels 0 and 1": (path, data, 1.0),
        "finer knots, kernels 0 and 1": (fine, data, 1.0),
        "knots, kernels 0, 1 and -1": (path, both, 1.0),
    }
    if steps == 20:
        cases["no knots"] = (WIDE, increments, 0.0)
    out = torch.empty(SHAPE)
    ratios: dict[str, list[float]] = {name: [] for name in cases}

    def run(noise: NoiseSource, path: Path, kernel: float = 0.0) -> float:
        start = time.perf_counter()
        for u, v in path.moves:
            noise(u, v, out, kernel)
        return time.perf_counter() - start

    def each() -> None:  # in turn, so that a machine which slows down slows all
        for name, (knots, kernels, kernel) in cases.items():
            fresh = run(FreshNoise(range(64), CPU), path)
            brownian = run(BrownianNoise(range(64), CPU, knots, kernels=kernels), path, kernel)  # type: ignore[arg-type]
            ratios[name].append(brownian / fresh)

    benchmark.pedantic(each, rounds=5, warmup_rounds=1)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    benchmark.extra_info.update(medians)
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} / fresh = {ratio:.2f}" for name, ratio in medians.items()))
    assert max(medians[name] for name in ("knots", "finer knots", "knots of two paths")) <= 3
