"""Solvers in the form of k-diffusion's samplers, the functions that popular user interfaces call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from scoresde.sampling import sample
from scoresde.score import ScoreModel
from scoresde.sde import EDM, Time
from scoresde.solvers import FreshNoise, Path, Point, Solver, State, get

__all__ = ["KSampler", "k_diffusion_sampler"]

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


class KSampler(Protocol):
    """The signature of a sampler of k-diffusion, for states y = x_0 + sigma eps.

    ``model(y, sigma, **extra_args)`` returns the data prediction, with ``sigma`` of shape ``(batch,)``. ``sigmas`` are the
    levels of noise, falling, shape ``(steps + 1,)``; with a last level of 0 the sampler returns clean data. ``callback``
    gets a dictionary with ``x``, ``i``, ``sigma``, ``sigma_hat`` and ``denoised`` at the first evaluation of each step.
    ``noise_sampler(sigma, sigma_next)`` draws the noise of a stochastic solver, by default ``torch.randn_like``.
    """

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor: ...


def k_diffusion_sampler(solver: str | Solver) -> KSampler:
    """Return a solver as a function with the signature of k-diffusion's samplers, described in :class:`KSampler`.

    All solvers are possible, those that choose their own steps included. The function equals :func:`scoresde.sample` with
    the model on the process :class:`~scoresde.EDM` and the path ``sigmas``. Options of the solver belong to its name,
    ``"ddim: eta=0.5"``, since the function takes none.

    Args:
        solver: a name of ``scoresde.solvers.SOLVERS``, with settings after it, or a solver object.

    Raises:
        TypeError: for neither a name nor a solver.
        ValueError: for an unknown name; the function itself raises it for levels that do not fall.

    Example:
        >>> sampler = k_diffusion_sampler("dpmpp-3m")
        >>> def denoise(y, sigma):  # exact for standard normal data
        ...     return y / (1 + sigma[:, None] ** 2)
        >>> sampler(denoise, 10 * torch.ones(4, 2), torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])).shape
        torch.Size([4, 2])
    """
    method = get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, Solver):
        raise TypeError(f"got solver {solver!r}; expected a name or a solver object")

    def sampler(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        levels = _levels(sigmas)
        sde = EDM(min(1e-3 * levels[-1 if levels[-1] else -2], 0.002), max(levels))
        denoiser = _Denoiser(model, sde, extra_args or {}, levels, callback)
        drawn = _Drawn(x, noise_sampler)
        found = sample(
            denoiser,
            x,
            method,
            path=Path.from_times(sde, levels),
            noise=drawn,
            progress=not disable,
            callback=denoiser.end_step,
        )
        return found.x

    sampler.__name__ = sampler.__qualname__ = f"sample_{method.name.replace('-', '_')}"
    return sampler


def _levels(sigmas: Tensor) -> list[float]:
    """Return the levels of noise as numbers."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    if levels.ndim != 1 or len(levels) < 2 or not bool(torch.isfinite(levels).all()) or not bool((levels[:-1] > 0).all()):
        raise ValueError(
            f"got sigmas of shape {tuple(levels.shape)}; expected at least two finite levels of noise, falling, of which "
            "the last alone may be 0"
        )
    found: list[float] = levels.tolist()
    return found


class _Denoiser(ScoreModel):
    """The model of a sampler of k-diffusion as a score model, which also reports to the sampler's callback."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        sde: EDM,
        extra_args: Mapping[str, Any],
        levels: list[float],
        callback: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        super().__init__(None, sde, "x0")
        self.called = (model,)  # in a tuple, so that it is no submodule: its mode is the caller's
        self.extra_args, self.levels, self.callback = extra_args, levels, callback
        self.sigma: float | None = levels[0]  # of the state that the next evaluation starts from
        self.step = -1

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        sigma = torch.as_tensor(t, dtype=torch.float64).to(x).expand(x.shape[0])
        m = self.called[0](x, sigma, **self.extra_args)
        if self.callback is not None and self._begins():
            level = torch.tensor(self.levels[self.step], dtype=torch.float64).to(x)
            self.callback({"x": x, "i": self.step, "sigma": level, "sigma_hat": sigma[0], "denoised": m})
        return m

    def _begins(self) -> bool:
        """Return whether this evaluation is the first after a level; a solver may go there and back between two levels."""
        if self.sigma is None:
            return False
        passed = sum(self.sigma <= level * (1 + 1e-9) for level in self.levels[:-1]) - 1
        begins, self.sigma = passed > self.step, None
        self.step = max(self.step, passed)
        return begins

    def end_step(self, state: State) -> None:
        """Note the level at which a step of the solver has ended."""
        self.sigma = state.point.sigma


class _Drawn(FreshNoise):
    """Noise drawn by a function of two levels, or by ``torch.randn_like`` as k-diffusion does."""

    def __init__(self, x: Tensor, draw: NoiseSampler | None) -> None:
        super().__init__(range(x.shape[0]), x.device)
        self.draw = draw

    def normal(self, out: Tensor) -> Tensor:
        return out.normal_()

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        if self.draw is None:
            return self.normal(out)
        levels = (torch.tensor(p.sigma, dtype=torch.float64).to(out) for p in (start, to))
        return out.copy_(self.draw(*levels))
