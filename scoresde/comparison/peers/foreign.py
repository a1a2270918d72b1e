r"""Adapter for samplers of other packages: same start, same levels of noise, same model, evaluations counted.

Samplers of other packages are written for data plus noise, :math:`y = x_0 + \rho\, \epsilon`. The probability flow does not
depend on the scale of the state. So any SDE with Gaussian marginals becomes this one, exactly, by

.. math:: y = x / \alpha, \qquad \rho = \sigma / \alpha = e^{-\lambda}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.sde import GaussianSDE
from scoresde.solvers import Denoiser, FreshNoise, Path, Point, Solver, State, points
from scoresde.solvers.rows import last_move

__all__ = ["Denoise", "Foreign", "Levels", "Sampler"]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""The data prediction at ``y`` and a level of noise ``rho``, shape ``()`` or ``(batch,)``."""


@dataclass(frozen=True)
class Levels:
    """The input of a foreign sampler beside its start.

    Attributes:
        denoise: the data prediction, ``denoise(y, rho)``, counted.
        rho: the levels of noise on the path, falling, shape ``(steps + 1,)``, float64; the last is above zero.
        noise: a standard normal draw for the interval between two levels, ``noise(rho, rho_next)``.
        rtol, atol: the tolerances for a sampler that chooses its own steps.
        clean: whether the move to sigma = 0, which all solvers make alike, follows the last level.

    Example:
        >>> levels = Levels(lambda y, rho: 0 * y, torch.tensor([2.0, 1.0]), lambda rho, rho_next: torch.zeros(1, 2))
        >>> y = torch.ones(1, 2)
        >>> y + (levels.rho[1] - levels.rho[0]) * (y - levels.denoise(y, levels.rho[0])) / levels.rho[0]  # an Euler step
        tensor([[0.5000, 0.5000]])
    """

    denoise: Denoise
    rho: Tensor
    noise: Callable[[Tensor, Tensor], Tensor]
    rtol: float | None = None
    atol: float | None = None
    clean: bool = True


class Sampler(Protocol):
    """A function from the start ``y`` at ``levels.rho[0]`` to the state at ``levels.rho[-1]``."""

    def __call__(self, levels: Levels, y: Tensor) -> Tensor: ...


@dataclass(frozen=True, repr=False)
class Foreign(Solver):
    """A sampler of another package, or a user's own, as a solver.

    It runs to the last point before sigma = 0; the move from there is the same for all solvers.

    Args:
        description: the claims of the sampler: order, evaluations per step, whether it draws noise.
        sampler: the function from y = x / alpha at the first level to y at the last.
        package: the name of the package that the sampler is from.
        rtol, atol: the tolerances, for a sampler that chooses its own steps.

    Raises:
        ValueError: if a path starts at alpha = 0, where x / alpha does not exist.

    Example:
        >>> from scoresde import VP, problems, sample
        >>> from scoresde.solvers import Description
        >>> def euler(levels, y):
        ...     for here, there in zip(levels.rho[:-1], levels.rho[1:]):
        ...         y = y + (there - here) / here * (y - levels.denoise(y, here))
        ...     return y
        >>> mine = Foreign(Description("mine", "runge-kutta", "this page", order=1), euler)
        >>> model, start = problems.ring().model(VP()), torch.ones(4, 2, dtype=torch.float64)
        >>> theirs, ours = (sample(model, start, solver, 10, progress=False) for solver in (mine, "ddim"))
        >>> theirs.evaluations, bool(torch.allclose(theirs.x, ours.x))
        (10, True)
    """

    sampler: Sampler
    package: str = "own"
    rtol: float | None = None
    atol: float | None = None

    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        inner = path.points[:-1] if path.ends_clean else path.points
        if inner[0].log_alpha == -float("inf"):
            raise ValueError(
                f"solver {self.name!r} cannot start at alpha = 0 (t={inner[0].t:.6g}), where it divides by alpha; take a "
                "smaller t_max"
            )
        step = len(inner) - 1
        if step:
            levels = Levels(
                denoise=_denoiser(path.sde, inner, model),
                rho=torch.tensor([-p.lam for p in inner], dtype=torch.float64).exp(),
                noise=_noise(path.sde, noise, x),
                rtol=self.rtol,
                atol=self.atol,
                clean=path.ends_clean,
            )
            x = inner[-1].alpha * self.sampler(levels, x / inner[0].alpha).to(x)
            yield State(step, inner[-1], x)
        if path.ends_clean:
            last = last_move(path)
            m = model(x, torch.tensor(inner[-1].t, dtype=torch.float64))
            yield State(step + 1, path.points[-1], torch.add(last.a * x, m, alpha=last.w[0]))


def _time(sde: GaussianSDE, rho: Tensor, latest: float, earliest: float) -> Tensor:
    return sde.time(-rho.double().log()).clamp(latest, earliest)


def _denoiser(sde: GaussianSDE, inner: tuple[Point, ...], model: Denoiser) -> Denoise:
    def denoise(y: Tensor, rho: Tensor) -> Tensor:
        t = _time(sde, rho, inner[-1].t, inner[0].t)
        if t.ndim and bool((t == t[0]).all()):
            t = t[0]
        return model(expand(sde.alpha(t), y).to(y) * y, t)

    return denoise


def _noise(sde: GaussianSDE, noise: FreshNoise, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def draw(rho: Tensor, rho_next: Tensor) -> Tensor:
        levels = torch.stack([torch.as_tensor(rho), torch.as_tensor(rho_next)])
        start, to = points(sde, _time(sde, levels, 0.0, sde.span[1]))
        return noise(start, to, torch.empty_like(x))

    return draw
