"""The cost of ``import scoresde`` in units of ``import torch``."""

import os
import statistics
import subprocess
import sys

import pytest

# An installed package has its byte code, and so has torch here: without it, this would time the compiler.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PROGRAMME = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_time(module: str) -> float:
    """Seconds that ``import module`` takes in a fresh interpreter."""
    command = [sys.executable, "-c", PROGRAMME.format(module)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return float(run.stdout)


@pytest.mark.parametrize("rounds", [7])
def test_importing_scoresde_costs_little_more_than_importing_torch(benchmark, capsys, rounds):
    import_time("scoresde")  # writes the byte code and fills the cache of files
    torch_times: list[float] = []
    scoresde_times: list[float] = []

    def pair() -> None:  # the two alternate, so that a machine which slows down slows both
        torch_times.append(import_time("torch"))
        scoresde_times.append(import_time("scoresde"))

    benchmark.pedantic(pair, rounds=rounds)
    ratio = statistics.median(scoresde_times) / statistics.median(torch_times)
    benchmark.extra_info["ratio"] = ratio
    with capsys.disabled():
        print(
            f"\nimport scoresde / import torch = {ratio:.3f} (medians of {len(torch_times)}: "
            f"{statistics.median(scoresde_times):.2f} s and {statistics.median(torch_times):.2f} s)"
        )
    assert ratio <= 1.3
