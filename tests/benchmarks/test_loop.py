"""The loop's own cost per step of DPM-Solver++(2M), network excluded, in units of the same arithmetic written by hand."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path as File

import pytest
import torch

sys.path.insert(0, str(File(__file__).resolve().parents[1]))
from peers import diffusers_scheduler, k_diffusion_sampling

from scoresde import EDM, solvers
from scoresde.solvers import FreshNoise, make_path

SHAPE, STEPS, ROUNDS = (64, 3, 32, 32), 20, 40
SDE = EDM()
PATH = make_path(SDE, "karras", STEPS, end="stop")  # at sigma = 0 every loop would end at the last prediction
PREDICTIONS = list(torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1)))
START = 80 * torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0))


class FreeModel:
    """A network that costs nothing: its evaluations return three tensors in turn."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, sigma):
        self.calls += 1
        return PREDICTIONS[(self.calls - 1) % 3]

    def at(self, times, *, device, dtype):
        return [lambda x, m=PREDICTIONS[i % 3]: m for i in range(len(times))]


def by_hand() -> torch.Tensor:
    """The same arithmetic in place, its coefficients computed beforehand."""
    x = START.clone()
    old = PREDICTIONS[0]
    for i, (a, w0, w1) in enumerate(COEFFICIENTS):
        m = PREDICTIONS[i % 3]
        x.mul_(a).add_(m, alpha=w0)
        if w1:
            x.add_(old, alpha=w1)
        old = m
    return x


def coefficients() -> list[tuple[float, float, float]]:
    out, h_old = [], None
    for u, v in zip(PATH.points[:-1], PATH.points[1:], strict=True):
        h = v.lam - u.lam
        weight = -math.expm1(-h)
        half = 0.5 * h / h_old if h_old and math.isfinite(h) else 0.0
        out.append((v.sigma / u.sigma, weight * (1 + half), -weight * half))
        h_old = h
    return out


COEFFICIENTS = coefficients()
ROWS = solvers.dpmpp_2m().rows(PATH)


def fast() -> torch.Tensor:
    return solvers.fast(ROWS, FreeModel(), START, FreshNoise([], START.device))


def readable() -> torch.Tensor:
    for state in solvers.readable(ROWS, FreeModel(), START, FreshNoise([], START.device)):  # noqa: B007
        pass
    return state.x


def k_diffusion() -> torch.Tensor:
    sigmas = torch.tensor([p.sigma for p in PATH.points])
    return k_diffusion_sampling().sample_dpmpp_2m(FreeModel(), START, sigmas, disable=True)


def diffusers() -> torch.Tensor:
    """Its scheduler, on our noise levels: a step a call, as its pipelines do."""
    scheduler = diffusers_scheduler("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler")(
        prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.tensor([p.sigma for p in PATH.points])
    scale = [(1 + p.sigma**2) ** 0.5 for p in PATH.points]  # its states are those of the variance-preserving process
    x = START / scale[0]
    for i in range(STEPS):
        scheduler._step_index = i
        x = scheduler.step(PREDICTIONS[i % 3], scheduler.timesteps[i], x).prev_sample
    return x * scale[-1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("loop", [fast, readable, k_diffusion, diffusers], ids=lambda f: f.__name__)
def test_loop_against_the_same_arithmetic_by_hand(
    benchmark, capsys: pytest.CaptureFixture[str], loop: Callable[[], torch.Tensor]
) -> None:
    torch.set_num_threads(1)
    torch.testing.assert_close(loop(), by_hand(), rtol=1e-5, atol=1e-5)
    seconds: dict[str, list[float]] = {"loop": [], "hand": []}

    def pair() -> None:  # in turn, so that a machine which slows down slows both
        for name, function in (("loop", loop), ("hand", by_hand)):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(pair, rounds=ROUNDS, warmup_rounds=3)
    ratio = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["hand"], strict=True))
    benchmark.extra_info["ratio"] = ratio
    with capsys.disabled():
        print(
            f"\n{loop.__name__} / by hand = {ratio:.3f} ({statistics.median(seconds['loop']) / STEPS * 1e6:.0f} us and "
            f"{statistics.median(seconds['hand']) / STEPS * 1e6:.0f} us a step)"
        )
    if loop is fast:
        assert ratio <= 1.3


def test_building_rows(benchmark) -> None:
    benchmark(lambda: solvers.dpmpp_2m().rows(make_path(SDE, "karras", 100)))


def test_noise_of_one_generator_per_sample(benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    """Against one draw for the whole batch."""
    noise, out = FreshNoise(range(64), START.device), torch.empty(SHAPE)
    one = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"ours": [], "batch": []}

    def pair() -> None:
        for name, function in (("ours", lambda: noise.normal(out)), ("batch", lambda: out.normal_(generator=one))):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)

    benchmark.pedantic(pair, rounds=100, warmup_rounds=3)
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["batch"], strict=True))
    benchmark.extra_info["ratio"] = ratio
    with capsys.disabled():
        print(f"\none generator per sample / one for the batch = {ratio:.3f}")
