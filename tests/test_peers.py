"""Parity with peers' packages on the same inputs."""

from __future__ import annotations

import pytest
import torch
from peers import k_diffusion_sampling
from support import generator, model_on

from scoresde import EDM, sample, solvers
from scoresde.solvers import Path

F64 = torch.float64


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("dpmpp-2m", "sample_dpmpp_2m"),
        ("ddim", "sample_euler"),
        ("heun", "sample_heun"),
        (solvers.dpm_solver(2), "sample_dpm_2"),
        ("ncsn", "sample_euler_ancestral"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_equal_to_k_diffusion(ours: str, theirs: str, dtype: torch.dtype) -> None:
    peer = k_diffusion_sampling()
    sde, model = EDM(), model_on(EDM())
    sigmas = peer.get_sigmas_karras(12, 0.01, 80.0).to(F64)
    path = Path.from_times(sde, sigmas.clamp(max=80.0))
    x = 80 * torch.randn(8, 2, generator=generator(), dtype=dtype)

    def denoise(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return model.x0(y, sigma[0].double())

    kwargs = {}
    if theirs == "sample_euler_ancestral":  # same noise: ours, recorded
        noise = solvers.FreshNoise(range(8), x.device)
        kwargs = {"noise_sampler": lambda *_: noise.normal(torch.empty_like(x))}
    wanted = getattr(peer, theirs)(denoise, x.clone(), sigmas.to(dtype), disable=True, **kwargs)
    got = sample(model, x, ours, path=path, seed=list(range(8)), progress=False).x
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
