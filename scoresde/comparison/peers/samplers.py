"""Samplers of k-diffusion and diffusers as solvers, for comparison with those of this package in one chart.

Each visits the levels of noise of the common path. A scheduler of diffusers gets them in place of the levels that it derives
from its training chain. It reads them as ``sigmas`` where it accepts these. Otherwise it gets a training chain whose steps
are exactly the points of the path.

Options are the packages' defaults. A scheduler whose default is to end at sigma = 0 therefore knows that it will end there,
and lowers the order of its last steps. The last move itself is the same for all solvers. A name that ends in ``-same``
denotes the scheduler with ``lower_order_final=False``, which keeps its order to the end. Two defaults are changed:
``clip_sample`` is off, since data here are not within [-1, 1]. PNDM runs without its Runge-Kutta start, whose half steps are
no points of the path (hence ``plms``, the scheduler with ``skip_prk_steps=True``).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.comparison.peers.foreign import Foreign, Levels
from scoresde.comparison.peers.modules import diffusers_scheduler, k_diffusion_sampling
from scoresde.solvers import Description

__all__ = ["PEERS"]

# k-diffusion ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _K:
    """A sampler that takes the levels directly."""

    function: str
    noise: bool = False
    eta: float | None = None

    def __call__(self, levels: Levels, y: Tensor) -> Tensor:
        options: dict[str, Any] = {} if self.eta is None else {"eta": self.eta}
        if self.noise:
            options["noise_sampler"] = levels.noise
        sample = getattr(k_diffusion_sampling(), self.function)
        return sample(levels.denoise, y, levels.rho.to(y), disable=True, **options)  # type: ignore[no-any-return]


def _k_fast(levels: Levels, y: Tensor) -> Tensor:
    sampling, rho = k_diffusion_sampling(), levels.rho.tolist()
    solver = sampling.DPMSolver(levels.denoise, {})
    ends = [torch.tensor(-level, dtype=y.dtype).neg().log().neg() for level in (rho[0], rho[-1])]
    return solver.dpm_solver_fast(y, *ends, len(rho) - 1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _KAdaptive:
    """A sampler that chooses its own steps."""

    order: int

    def __call__(self, levels: Levels, y: Tensor) -> Tensor:
        solver = k_diffusion_sampling().DPMSolver(levels.denoise, {})
        first, last = (-levels.rho[[0, -1]].log()).to(y)
        end, _ = solver.dpm_solver_adaptive(y, first, last, self.order, levels.rtol, levels.atol)
        return end  # type: ignore[no-any-return]


# diffusers -----------------------------------------------------------------------------------------------------------


def _vp(levels: Levels) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of the variance-preserving scale at the levels."""
    alpha = (1 + levels.rho**2).rsqrt()
    return alpha, levels.rho * alpha


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warning of NumPy about tensors that some schedulers hand to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@dataclass(frozen=True)
class _InSigmas:
    """A scheduler that reads its levels from ``sigmas``; its state is y, or with ``vp`` y / sqrt(1 + rho^2)."""

    module: str
    name: str
    vp: bool
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, levels: Levels, y: Tensor) -> Tensor:
        kind, options = diffusers_scheduler(self.module, self.name), dict(self.options)
        defaults = inspect.signature(kind.__init__).parameters
        if not levels.clean and "final_sigmas_type" in defaults:
            options["final_sigmas_type"] = "sigma_min"  # the path ends there
        with _quiet():
            scheduler = kind(prediction_type="sample", **options)
        to_zero = getattr(scheduler.config, "final_sigmas_type", "sigma_min") == "zero"
        rho = levels.rho
        if self.name == "HeunDiscreteScheduler":  # each level is visited by two evaluations, the first by one
            rho = torch.cat([rho[:1], rho[1:].repeat_interleave(2)])
        calls, steps = len(rho) - 1, len(rho) - 1 + to_zero
        scheduler.sigmas = torch.cat([rho, torch.zeros(1).to(rho)]) if to_zero else rho
        scheduler.num_inference_steps, scheduler.timesteps = steps, torch.arange(steps, 0, -1, dtype=torch.float64)
        scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        if hasattr(scheduler, "get_order_list"):
            if to_zero and not scheduler.config.lower_order_final:  # set_timesteps of the scheduler does so too
                scheduler.config.lower_order_final = True
            scheduler.order_list = scheduler.get_order_list(steps)
        scale = (1 + rho**2).rsqrt().tolist() if self.vp else [1.0] * len(rho)
        noisy = str(options.get("algorithm_type", "")).startswith("sde")
        x = scale[0] * y
        for i, t in enumerate(scheduler.timesteps[:calls]):
            drawn = {"variance_noise": levels.noise(rho[i], rho[i + 1])} if noisy else {}
            m = levels.denoise(x / scale[i], rho[i])
            with _quiet():
                x = scheduler.step(m, t, x, **drawn).prev_sample
        return x / scale[-1]


def _ddim(levels: Levels, y: Tensor) -> Tensor:
    scheduler, alpha, _ = _on_chain("scheduling_ddim", "DDIMScheduler", levels, prediction_type="sample", clip_sample=False)
    x, n = alpha[0] * y, len(levels.rho) - 1
    for i in range(n):
        x = scheduler.step(levels.denoise(x / alpha[i], levels.rho[i]), n - i, x).prev_sample
    return x / alpha[-1]


def _plms(levels: Levels, y: Tensor) -> Tensor:
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
    """Return a scheduler on a training chain whose steps n .. 0 are the levels, with alpha and sigma at the levels."""
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
    k("euler", _K("sample_euler"), 1)
    k("heun", _K("sample_heun"), 2, 2)
    k("dpm-2", _K("sample_dpm_2"), 2, 2)
    k("lms", _K("sample_lms"), None)
    k("dpmpp-2m", _K("sample_dpmpp_2m"), 2)
    k("dpmpp-2s", _K("sample_dpmpp_2s_ancestral", eta=0.0), 2, 2)
    k("dpmpp-3m", _K("sample_dpmpp_3m_sde", noise=True, eta=0.0), None)
    k("dpm-fast", _k_fast, None)
    k("dpm-12", _KAdaptive(2), None, None, rtol=0.05, atol=0.0078)
    k("dpm-23", _KAdaptive(3), None, None, rtol=0.05, atol=0.0078)
    k("euler-a", _K("sample_euler_ancestral", noise=True), 1, noisy=True)
    k("dpm-2-a", _K("sample_dpm_2_ancestral", noise=True), 1, 2, noisy=True)
    k("dpmpp-2s-a", _K("sample_dpmpp_2s_ancestral", noise=True), 1, 2, noisy=True)
    k("dpmpp-sde", _K("sample_dpmpp_sde", noise=True), 1, 2, noisy=True)
    k("dpmpp-2m-sde", _K("sample_dpmpp_2m_sde", noise=True), 1, noisy=True)
    k("dpmpp-3m-sde", _K("sample_dpmpp_3m_sde", noise=True), 1, noisy=True)

    d = functools.partial(add, "diffusers")
    d("ddim", _ddim, 1)
    d("plms", _plms, None)
    d("ipndm", _ipndm, None)
    d("euler", _InSigmas("scheduling_euler_discrete", "EulerDiscreteScheduler", False), 1)
    d("heun", _InSigmas("scheduling_heun_discrete", "HeunDiscreteScheduler", False), 2, 2)
    d("lms", _InSigmas("scheduling_lms_discrete", "LMSDiscreteScheduler", False), None)

    def finishes(name: str, module: str, scheduler: str, order: int | None, zero: bool = True, **options: Any) -> None:
        """Add the scheduler at its defaults, and the scheduler that keeps its order to the end."""
        d(name, _InSigmas(module, scheduler, True, tuple(options.items())), order)
        options |= {"lower_order_final": False, **({"final_sigmas_type": "sigma_min"} if zero else {})}
        d(f"{name}-same", _InSigmas(module, scheduler, True, tuple(options.items())), order)

    multistep = "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"
    single = "scheduling_dpmsolver_singlestep", "DPMSolverSinglestepScheduler"
    deis = "scheduling_deis_multistep", "DEISMultistepScheduler"
    unipc = "scheduling_unipc_multistep", "UniPCMultistepScheduler"
    for order in (2, 3):
        claimed = order if order == 2 else None
        finishes(f"dpmpp-{order}m", *multistep, claimed, solver_order=order)
        ends: dict[str, Any] = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}  # it takes no other end
        finishes(f"dpm-{order}m", *multistep, claimed, solver_order=order, **ends)
        d(f"dpmpp-{order}s", _InSigmas(*single, True, (("solver_order", order),)), None)
        finishes(f"deis-{order}", *deis, claimed, zero=False, solver_order=order)
        for kind in ("bh1", "bh2"):
            finishes(f"unipc-{order}-{kind}", *unipc, None, solver_order=order, solver_type=kind)
    d("dpmpp-2m-heun", _InSigmas(*multistep, True, (("solver_type", "heun"),)), 2)
    d("sde-dpmpp-2m", _InSigmas(*multistep, True, (("algorithm_type", "sde-dpmsolver++"),)), 1, noisy=True)
    return made


PEERS: Table[Foreign] = Table(
    "peer",
    "scoresde.comparison.PEERS",
    _peers(),
    check=lambda value: isinstance(value, Foreign),
    expects="a scoresde.comparison.Foreign",
)
"""The samplers of other packages by name, "package/name"; a package is loaded when one of its samplers first runs."""
