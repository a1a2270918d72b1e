"""Everything runs on CUDA unchanged, and the fast driver never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from support import model_on

from scoresde import EDM, VP, ScoreModel, models, sample, solvers
from scoresde.sde import GaussianSDE
from scoresde.solvers import SOLVERS, FreshNoise, RowSolver, make_path

pytestmark = pytest.mark.gpu
F64 = torch.float64


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_runs_on_the_device_of_its_start(solver: str) -> None:
    x = torch.randn(8, 2, dtype=F64)
    method = solvers.get(solver)
    ends = [sample(model_on(VP()), x.to(device), method, 8, "t", progress=False).x for device in ("cpu", "cuda")]
    assert ends[1].device.type == "cuda" and bool(torch.isfinite(ends[1]).all())
    if not method.stochastic:  # generators of different devices draw different numbers
        torch.testing.assert_close(ends[1].cpu(), ends[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [n for n in SOLVERS if isinstance(solvers.get(n), RowSolver)])
@pytest.mark.parametrize("sde", [VP(), EDM()], ids=repr)
def test_the_fast_driver_never_waits_for_the_device(solver: str, sde: GaussianSDE) -> None:
    net = models.UNet(1, 16, (1, 2)).cuda().eval()
    model = ScoreModel(net, sde, "edm")

    class Door:
        """Binding copies the times to the device, which may wait; from then on nothing may."""

        def at(
            self, times: torch.Tensor, *, device: torch.device, dtype: torch.dtype
        ) -> Sequence[Callable[[torch.Tensor], torch.Tensor]]:
            bound = model.at(times, device=device, dtype=dtype)
            torch.cuda.set_sync_debug_mode("error")
            return bound

    method = solvers.get(solver)
    assert isinstance(method, RowSolver)
    x = torch.randn(4, 1, 8, 8, device="cuda")
    try:
        with torch.no_grad():
            end = solvers.fast(method.rows(make_path(sde, "lam", 4)), Door(), x, FreshNoise(range(4), x.device))  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert end.shape == x.shape


def test_a_sample_on_the_device_depends_on_its_seed_and_not_on_its_batch() -> None:
    batch = sample(model_on(VP()), (3, 2), "ddpm", 6, "t", device="cuda", progress=False)
    alone = sample(model_on(VP()), (1, 2), "ddpm", 6, "t", seed=batch.seeds[1:2], device="cuda", progress=False)
    torch.testing.assert_close(alone.x[0], batch.x[1], rtol=1e-5, atol=1e-5)
