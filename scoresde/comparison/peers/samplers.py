"""The samplers of k-diffusion and diffusers as solvers, to be drawn in one chart with those of this package.

Each visits the levels of noise of the path that all others visit. A scheduler of diffusers gets them in place of those that
it derives from its training chain: as ``sigmas``, where it is written in them, or as a training chain which has exactly the
path's points for its steps. Options are the packages' defaults, but for two that suppose a last step to sigma = 0, where
here all solvers make the same last move: the final steps of lower order that diffusers takes there are left to the orders
of the method.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.comparison.peers.foreign import Foreign, Levels
from scoresde.comparison.peers.modules import diffusers_scheduler, k_diffusion_sampling
from scoresde.solvers import Description

__all__ = ["PEERS"]

# k-diffusion ---------------------------------------------------------------------------------------------------------


def _k(function: str, noise: bool = False, **options: Any) -> Callable[[Levels, Tensor], Tensor]:
    """A sampler that takes the levels themselves."""

    def sampler(levels: Levels, y: Tensor) -> Tensor:
        if noise:
            options["noise_sampler"] = levels.noise
        sample = getattr(k_diffusion_sampling(), function)
        return sample(levels.denoise, y, levels.rho.to(y), disable=True, **options)  # type: ignore[no-any-return]

    return sampler


def _k_fast(levels: Levels, y: Tensor) -> Tensor:
    sampling, rho = k_diffusion_sampling(), levels.rho.tolist()
    solver = sampling.DPMSolver(levels.denoise, {})
    ends = [torch.tensor(-level, dtype=y.dtype).neg().log().neg() for level in (rho[0], rho[-1])]
    return solver.dpm_solver_fast(y, *ends, len(rho) - 1)  # type: ignore[no-any-return]


def _k_adaptive(order: int) -> Callable[[Levels, Tensor], Tensor]:
    def sampler(levels: Levels, y: Tensor) -> Tensor:
        solver = k_diffusion_sampling().DPMSolver(levels.denoise, {})
        first, last = (-levels.rho[[0, -1]].log()).to(y)
        end, _ = solver.dpm_solver_adaptive(y, first, last, order, levels.rtol, levels.atol)
        return end  # type: ignore[no-any-return]

    return sampler


# diffusers -----------------------------------------------------------------------------------------------------------


def _vp(levels: Levels) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the variance-preserving scale at the levels."""
    alpha = (1 + levels.rho**2).rsqrt()
    return alpha, levels.rho * alpha


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Some schedulers hand tensors to NumPy, which deprecates how they do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _in_sigmas(module: str, name: str, vp: bool, **options: Any) -> Callable[[Levels, Tensor], Tensor]:
    """A scheduler that reads its levels from ``sigmas``; its state is y, or with ``vp`` y / sqrt(1 + rho^2)."""

    def sampler(levels: Levels, y: Tensor) -> Tensor:
        with _quiet():
            scheduler = diffusers_scheduler(module, name)(prediction_type="sample", **options)
        rho = levels.rho
        if name == "HeunDiscreteScheduler":  # each level is visited by two evaluations, the first by one
            rho = torch.cat([rho[:1], rho[1:].repeat_interleave(2)])
        calls = len(rho) - 1
        scheduler.sigmas, scheduler.num_inference_steps = rho, calls
        scheduler.timesteps = torch.arange(calls, 0, -1, dtype=torch.float64)
        scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        if hasattr(scheduler, "get_order_list"):
            scheduler.order_list = scheduler.get_order_list(calls)
        scale = (1 + rho**2).rsqrt().tolist() if vp else [1.0] * len(rho)
        noisy = str(options.get("algorithm_type", "")).startswith("sde")
        x = scale[0] * y
        for i, t in enumerate(scheduler.timesteps):
            drawn = {"variance_noise": levels.noise(rho[i], rho[i + 1])} if noisy else {}
            m = levels.denoise(x / scale[i], rho[i])
            with _quiet():
                x = scheduler.step(m, t, x, **drawn).prev_sample
        return x / scale[-1]

    return sampler


def _ddim(levels: Levels, y: Tensor) -> Tensor:
    scheduler, alpha, _ = _on_chain("scheduling_ddim", "DDIMScheduler", levels, prediction_type="sample", clip_sample=False)
    x, n = alpha[0] * y, len(levels.rho) - 1
    for i in range(n):
        x = scheduler.step(levels.denoise(x / alpha[i], levels.rho[i]), n - i, x).prev_sample
    return x / alpha[-1]


def _pndm(levels: Levels, y: Tensor) -> Tensor:
    scheduler, alpha, sigma = _on_chain("scheduling_pndm", "PNDMScheduler", levels, skip_prk_steps=True)
    n = len(levels.rho) - 1
    x = alpha[0] * y
    # The first step is taken twice, the second time with the mean of the predictions at its two ends.
    for t in [n, *([n - 1] if n > 1 else []), *range(n - 1, 0, -1)]:
        i = n - t
        eps = (x - alpha[i] * levels.denoise(x / alpha[i], levels.rho[i])) / sigma[i]
        x = scheduler.step_plms(eps, t, x).prev_sample
    return x / alpha[-1]


def _on_chain(module: str, name: str, levels: Levels, **options: Any) -> tuple[Any, Tensor, Tensor]:
    """A scheduler on a training chain whose steps n .. 0 are the levels, and alpha and sigma there."""
    n = len(levels.rho) - 1
    scheduler = diffusers_scheduler(module, name)(num_train_timesteps=max(n, 2), **options)
    alpha, sigma = _vp(levels)
    scheduler.alphas_cumprod = (alpha**2).flip(0)
    scheduler.config.num_train_timesteps = scheduler.num_inference_steps = n
    return scheduler, alpha, sigma


def _ipndm(levels: Levels, y: Tensor) -> Tensor:
    scheduler = diffusers_scheduler("scheduling_ipndm", "IPNDMScheduler")()
    scheduler.alphas, scheduler.betas = alpha, sigma = _vp(levels)
    n = len(levels.rho) - 1
    scheduler.num_inference_steps, scheduler.timesteps = n, torch.arange(n, 0, -1)
    scheduler.set_begin_index(0)
    x = alpha[0] * y
    for i, t in enumerate(scheduler.timesteps):
        m = levels.denoise(x / alpha[i], levels.rho[i])
        v = (alpha[i] * x - m) / sigma[i]
        x = scheduler.step(v, t, x).prev_sample
    return x / alpha[-1]


# The table -----------------------------------------------------------------------------------------------------------

K_DIFFUSION = "k-diffusion, https://github.com/crowsonkb/k-diffusion"
DIFFUSERS = "diffusers, https://github.com/huggingface/diffusers"


def _peers() -> dict[str, Foreign]:
    made = {}

    def add(package: str, name: str, sampler: Any, order: float | None, calls: int | None = 1, **more: Any) -> None:
        noisy = more.pop("noisy", False)
        paper = K_DIFFUSION if package == "k-diffusion" else DIFFUSERS
        numbers = {"weak_order": order} if noisy else {"order": order}
        description = Description(f"{package}/{name}", "peer", paper, evaluations=calls, stochastic=noisy, **numbers)  # type: ignore[arg-type]
        made[description.name] = Foreign(description, sampler, package, **more)

    k = functools.partial(add, "k-diffusion")
    k("euler", _k("sample_euler"), 1)
    k("heun", _k("sample_heun"), 2, 2)
    k("dpm-2", _k("sample_dpm_2"), 2, 2)
    k("lms", _k("sample_lms"), None)
    k("dpmpp-2m", _k("sample_dpmpp_2m"), 2)
    k("dpmpp-2s", _k("sample_dpmpp_2s_ancestral", eta=0.0), 2, 2)
    k("dpmpp-3m", _k("sample_dpmpp_3m_sde", noise=True, eta=0.0), None)
    k("dpm-fast", _k_fast, None)
    k("dpm-12", _k_adaptive(2), None, None, rtol=0.05, atol=0.0078)
    k("dpm-23", _k_adaptive(3), None, None, rtol=0.05, atol=0.0078)
    k("euler-a", _k("sample_euler_ancestral", noise=True), 1, noisy=True)
    k("dpm-2-a", _k("sample_dpm_2_ancestral", noise=True), 1, 2, noisy=True)
    k("dpmpp-2s-a", _k("sample_dpmpp_2s_ancestral", noise=True), 1, 2, noisy=True)
    k("dpmpp-sde", _k("sample_dpmpp_sde", noise=True), 1, 2, noisy=True)
    k("dpmpp-2m-sde", _k("sample_dpmpp_2m_sde", noise=True), 1, noisy=True)
    k("dpmpp-3m-sde", _k("sample_dpmpp_3m_sde", noise=True), 1, noisy=True)

    d = functools.partial(add, "diffusers")
    d("ddim", _ddim, 1)
    d("pndm", _pndm, None)
    d("ipndm", _ipndm, None)
    d("euler", _in_sigmas("scheduling_euler_discrete", "EulerDiscreteScheduler", False), 1)
    d("heun", _in_sigmas("scheduling_heun_discrete", "HeunDiscreteScheduler", False), 2, 2)
    d("lms", _in_sigmas("scheduling_lms_discrete", "LMSDiscreteScheduler", False), None)
    multistep = functools.partial(_in_sigmas, "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", True)
    multistep = functools.partial(multistep, lower_order_final=False, final_sigmas_type="sigma_min")
    for order in (2, 3):
        d(f"dpmpp-{order}m", multistep(solver_order=order), order if order == 2 else None)
        d(f"dpm-{order}m", multistep(solver_order=order, algorithm_type="dpmsolver"), order if order == 2 else None)
    d("dpmpp-2m-heun", multistep(solver_type="heun"), 2)
    d("sde-dpmpp-2m", multistep(algorithm_type="sde-dpmsolver++"), 1, noisy=True)
    single = functools.partial(_in_sigmas, "scheduling_dpmsolver_singlestep", "DPMSolverSinglestepScheduler", True)
    deis = functools.partial(_in_sigmas, "scheduling_deis_multistep", "DEISMultistepScheduler", True)
    unipc = functools.partial(_in_sigmas, "scheduling_unipc_multistep", "UniPCMultistepScheduler", True)
    for order in (2, 3):
        d(
            f"dpmpp-{order}s",
            single(solver_order=order, lower_order_final=True, final_sigmas_type="sigma_min"),
            None,
        )
        d(f"deis-{order}", deis(solver_order=order, lower_order_final=False), order if order == 2 else None)
        for kind in ("bh1", "bh2"):
            d(
                f"unipc-{order}-{kind}",
                unipc(solver_order=order, solver_type=kind, lower_order_final=False, final_sigmas_type="sigma_min"),
                None,
            )
    return made


PEERS: Table[Foreign] = Table(
    "peer",
    "scoresde.comparison.PEERS",
    _peers(),
    check=lambda value: isinstance(value, Foreign),
    expects="a scoresde.comparison.Foreign",
)
"""The samplers of other packages by name, "package/name"; nothing of theirs is loaded before one runs."""
