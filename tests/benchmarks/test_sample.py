"""The whole of a call of `sample`, in units of the same rows by hand and of k-diffusion's time."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path as File

import pytest
import torch

sys.path.insert(0, str(File(__file__).resolve().parents[1]))
from peers import k_diffusion_sampling

import scoresde
from scoresde import EDM, ScoreModel, solvers
from scoresde.solvers import make_path

SHAPE, STEPS = (64, 3, 32, 32), 20
PREDICTIONS = list(torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(1)))
START = 80 * torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0))


class Free(torch.nn.Module):
    """A network that costs nothing: it returns tensors in turn, more than are looked back on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return PREDICTIONS[(self.calls - 1) % len(PREDICTIONS)]


def by_hand(net: Free, rows: list[tuple[float, list[tuple[int, float]], torch.Tensor | None, bool]]) -> torch.Tensor:
    """y = a x + sum_j w_j m_j in place, its coefficients and the times of the network computed beforehand."""
    x, history = START.clone(), []
    y = x
    for a, weights, t, ends in rows:
        if t is not None:
            history.append(net(y, t))
        y = x.mul_(a) if ends else x * a
        for j, w in weights:
            y.add_(history[-1 - j], alpha=w)
        if ends:
            x = y
    return y


def medians(pair: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each function, called in turn, so that a machine which slows down slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for function in pair.values():
        function()
    gc.collect()
    gc.disable()  # a collection costs more than a call, and falls into either
    try:
        for _ in range(rounds):
            for name, function in pair.items():
                start = time.thread_time()  # of the processor, which others may be using too
                function()
                seconds[name].append(time.thread_time() - start)
    finally:
        gc.enable()
    return {name: statistics.median(times) for name, times in seconds.items()}


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3"])
def test_a_call_against_the_same_rows_by_hand(solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    model = ScoreModel(Free(), EDM(), "x0")
    path = make_path(EDM(), "karras", STEPS, end="stop")
    rows = [
        (
            row.a,
            [(j, w * q) for j, (w, q) in enumerate(zip(row.w, [1.0] * len(row.w), strict=True)) if w],
            None if row.at is None else torch.full((len(START),), row.at.t),
            row.ends_step,
        )
        for row in solvers.get(solver).rows(path)  # type: ignore[attr-defined]
    ]

    def whole() -> torch.Tensor:
        model.net.calls = 0
        return scoresde.sample(model, START, solver, path=path, progress=False).x

    def hand() -> torch.Tensor:
        model.net.calls = 0
        with torch.no_grad():
            return by_hand(model.net, rows)

    torch.testing.assert_close(whole(), hand(), rtol=1e-4, atol=1e-4)
    found = medians({"sample": whole, "hand": hand}, 40)
    with capsys.disabled():
        print(f"\nsample(.., {solver!r}) / by hand = {found['sample'] / found['hand']:.3f} ({1e3 * found['sample']:.2f} ms)")


@pytest.mark.parametrize(
    ("solver", "theirs"), [("ddim", "sample_euler"), ("dpmpp-2m", "sample_dpmpp_2m"), ("heun", "sample_heun")]
)
def test_a_small_network_on_points_against_k_diffusion(solver: str, theirs: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)).eval()
    model = ScoreModel(lambda x, t: net(x), EDM(), "x0")
    start = 80 * torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    path = make_path(EDM(), "karras", STEPS)
    sigmas = torch.tensor([p.sigma for p in path.points])
    function = getattr(k_diffusion_sampling(), theirs)

    def peer() -> torch.Tensor:
        with torch.no_grad():
            return function(lambda x, sigma: net(x), start, sigmas, disable=True)

    def ours() -> torch.Tensor:
        return scoresde.sample(model, start, solver, path=path, progress=False).x

    torch.testing.assert_close(ours(), peer(), rtol=1e-3, atol=1e-3)
    found = medians({"ours": ours, "theirs": peer}, 60)
    with capsys.disabled():
        print(f"\nsample(.., {solver!r}) / {theirs} = {found['ours'] / found['theirs']:.3f} ({1e3 * found['ours']:.2f} ms)")
    assert found["ours"] < found["theirs"]
