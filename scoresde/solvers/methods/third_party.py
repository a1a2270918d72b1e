"""Third-party reference integrators: SciPy's and torchsde's, as solvers.

They see the reverse process as plain functions of ``(x, t)``. They follow a path that ends at sigma = 0 to its last point
before that, and then make the last move of every other solver.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scoresde.sde import GaussianSDE
from scoresde.solvers.drivers import Denoiser, State
from scoresde.solvers.methods.drift_diffusion import point_at
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path
from scoresde.solvers.rows import first_move, last_move
from scoresde.solvers.solver import Description, Dynamics, Solver, maker

if TYPE_CHECKING:
    from torchsde import BaseBrownian

__all__ = ["SciPy", "TorchSDE", "affine_dynamics", "rk45", "torchsde_solver"]


def affine_dynamics(sde: GaussianSDE, model: Denoiser, eta: float) -> Dynamics:
    """Write the reverse process of an SDE with marginals in the data prediction, which is finite at alpha = 0."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        sigma2 = sde.sigma(t) ** 2
        slope = sde.d_log_sigma(t)
        if eta:
            slope = slope + 0.5 * eta * sde.diffusion_squared(t) / sigma2
        return slope.to(x) * x + (sde.d_alpha(t) - sde.alpha(t) * slope).to(x) * model(x, t)

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        return (eta * sde.diffusion_squared(t)).sqrt().to(x).expand_as(x)

    return Dynamics(drift, diffusion, lambda x, t: 0.0, eta)


@dataclass(frozen=True, repr=False)
class _Outside(Solver):
    """Base of both integrators: it turns a path into dynamics and times, and makes the move to sigma = 0."""

    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        eta = 1.0 if self.stochastic else 0.0
        times = list(path.times[:-1] if path.ends_clean else path.times)
        step = begun = 0
        if eta and path.points[0].log_alpha == -math.inf and len(times) > 1:  # where the diffusion is infinite
            x = _begin(path, model, x, noise, eta)
            step, begun, times = 1, 1, times[1:]
            yield State(step, path.points[step], x)
        if len(times) > 1:
            for state in self.integrate(affine_dynamics(path.sde, model, eta), x, times, noise):
                step, x = state.step + begun, state.x
                yield State(step, path.points[step], x)
        if path.ends_clean:
            last = last_move(path)
            m = model(x, torch.tensor(path.points[-2].t, dtype=torch.float64))
            yield State(step + 1, path.points[-1], torch.add(last.a * x, m, alpha=last.w[0]))


def _begin(path: Path, model: Denoiser, x: Tensor, noise: FreshNoise, eta: float) -> Tensor:
    """Make the first move of a path from alpha = 0, with the data prediction held constant."""
    u, v = path.points[:2]
    row = first_move(u, v, eta)
    x = torch.add(row.a * x, model(x, torch.tensor(u.t, dtype=torch.float64)), alpha=row.w[0])
    return torch.add(x, noise(u, v, torch.empty_like(x), row.kernel), alpha=row.s[0])


@dataclass(frozen=True, repr=False)
class SciPy(_Outside):
    """A solver of the probability flow by ``scipy.integrate.solve_ivp``, in float64 on the host.

    The batch is one system. It meets the tolerance as a whole, and a sample depends on its batch within the tolerance. The
    method chooses its own steps, whatever the points of a path, and interpolates the states at the points between the
    ends.

    Args:
        description: the claims of the solver.
        method, rtol, atol: the arguments of ``solve_ivp``.
        max_evaluations: the number of evaluations after which the solver gives up.

    Raises:
        ArithmeticError: where the network is not finite, or after too many evaluations, with the time.
    """

    dense: ClassVar[bool] = True

    method: str = "RK45"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_evaluations: int = 100_000

    def integrate(self, dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
        from scipy.integrate import solve_ivp

        if dynamics.eta:
            raise ValueError(f"solver {self.name!r} integrates the probability flow; pass sde.probability_flow(score)")

        made = itertools.count(1)

        def slope(t: float, flat: Any) -> Any:
            state = torch.from_numpy(flat).to(device=x.device, dtype=x.dtype).reshape(x.shape)
            found = dynamics.drift(state, torch.tensor(t, dtype=torch.float64)).double().cpu().numpy().ravel()
            if not np.isfinite(found).all():  # SciPy would shorten its step for ever
                raise ArithmeticError(
                    f"the slope that solver {self.name!r} follows is not finite at t={t:.6g}. Check that the network is "
                    "finite there"
                )
            if next(made) > self.max_evaluations:
                raise ArithmeticError(
                    f"solver {self.name!r} made {self.max_evaluations} evaluations and has come no farther than t={t:.6g}; "
                    "take larger tolerances, or more max_evaluations"
                )
            return found

        start = x.detach().double().cpu().numpy().ravel()
        asked: dict[str, Any] = {"method": self.method, "rtol": self.rtol, "atol": self.atol}
        solution = solve_ivp(slope, (times[0], times[-1]), start, t_eval=times[1:], **asked)
        if not solution.success:
            raise ArithmeticError(f"solver {self.name!r} stopped at t={solution.t[-1]:.6g}: {solution.message}")
        for i, (t, y) in enumerate(zip(times[1:], solution.y.T, strict=True)):
            yield State(i + 1, point_at(t), torch.from_numpy(y.copy()).to(x).reshape(x.shape))


@dataclass(frozen=True, repr=False)
class TorchSDE(_Outside):
    """A solver of the reverse SDE by ``torchsde.sdeint`` in the time s = t_start - t, one Brownian interval per sample.

    Args:
        description: the claims of the solver.
        method: the method of ``sdeint``, "euler", "milstein" or "srk".
    """

    method: str = "euler"

    def integrate(self, dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
        import torchsde

        if not dynamics.eta:
            raise ValueError(f"solver {self.name!r} needs noise; for the probability flow take rk45 or heun")
        shape, start = x.shape, times[0]

        class Reverse(torch.nn.Module):
            noise_type = "diagonal"
            sde_type = "ito"

            def __init__(self) -> None:
                super().__init__()
                self.seen: list[tuple[float, Tensor, Tensor]] = []

            def f(self, s: Tensor, y: Tensor) -> Tensor:
                # torchsde calls the drift several times at one state: to check its shape, and in every stage of srk.
                for at, state, value in self.seen:
                    if state is y and at == float(s):
                        return value
                value = -dynamics.drift(y.reshape(shape), start - s.to(torch.float64)).flatten(1)
                self.seen.append((float(s), y, value))
                return value

            def g(self, s: Tensor, y: Tensor) -> Tensor:
                return dynamics.diffusion(y.reshape(shape), start - s.to(torch.float64)).expand(shape).flatten(1)

        ends = [start - t for t in times]
        y = x.flatten(1)
        levy = "space-time" if self.method == "srk" else "none"
        brownian = _per_sample_brownian(noise.seeds, y, ends[-1], levy)
        for i, (a, b) in enumerate(itertools.pairwise(ends)):
            # One call per interval, since within a call torchsde steps by dt and interpolates between; dt a little longer,
            # or rounding leaves a sliver that costs a second step.
            span = torch.tensor([a, b], dtype=torch.float64, device=y.device)
            y = torchsde.sdeint(Reverse(), y, span, bm=brownian, method=self.method, dt=(b - a) * (1 + 1e-6))[-1]
            yield State(i + 1, point_at(times[i + 1]), y.reshape(shape))


def _per_sample_brownian(seeds: list[int], y: Tensor, end: float, levy: str) -> BaseBrownian:
    import torchsde

    class PerSample(torchsde.BaseBrownian):  # type: ignore[misc]  # torchsde is not typed
        """The Brownian intervals of the samples, so that a path depends on its seed and never on its batch."""

        def __init__(self) -> None:
            super().__init__()
            # The endpoints lie a little outside, since rounding may lead there and torchsde warns of queries beyond them.
            common: dict[str, Any] = {"dtype": y.dtype, "device": y.device, "levy_area_approximation": levy}
            self.parts = [
                torchsde.BrownianInterval(-1e-6, end + 1e-6, size=(1, y.shape[1]), entropy=s % 2**31, **common)
                for s in seeds
            ]

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            drawn = [part(ta, tb, return_U=return_U, return_A=return_A) for part in self.parts]
            if isinstance(drawn[0], tuple):
                return tuple(torch.cat(values) for values in zip(*drawn, strict=True))
            return torch.cat(drawn)

        def __repr__(self) -> str:
            return f"PerSample({self.parts!r})"

        @property
        def dtype(self) -> torch.dtype:
            return y.dtype

        @property
        def device(self) -> torch.device:
            return y.device

        @property
        def shape(self) -> tuple[int, ...]:
            return tuple(y.shape)

        @property
        def levy_area_approximation(self) -> str:
            return levy

    return PerSample()


@maker
def rk45(rtol: float = 1e-5, atol: float = 1e-5, method: str = "RK45") -> SciPy:
    """Return SciPy's adaptive ``solve_ivp`` for the probability flow, with the tolerances of Song et al., 2021.

    The batch is one system of equations, as in the authors' code. It meets the tolerance as a whole, so that a sample
    depends on its batch within the tolerance. :func:`~scoresde.solvers.dormand_prince` is the same pair sample by sample.

    Raises:
        ValueError: if ``rtol`` or ``atol`` is not positive.

    Example:
        >>> solver = rk45(rtol=1e-8, atol=1e-8)
        >>> solver, solver.rtol
        (<solver rk45>, 1e-08)
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"got rtol={rtol} and atol={atol}; expected positive tolerances")
    return SciPy(
        Description("rk45", "adaptive", "Dormand & Prince 1980; Song et al. 2021, arXiv:2011.13456", evaluations=None),
        method,
        rtol,
        atol,
    )


@maker
def torchsde_solver(method: str = "euler") -> TorchSDE:
    """Return ``torchsde.sdeint`` for the reverse SDE, with the method "euler", "milstein" or "srk".

    Raises:
        ValueError: if ``method`` is none of the three.

    Example:
        >>> torchsde_solver("srk"), torchsde_solver("srk").description.evaluations
        (<solver torchsde-srk>, 4)
    """
    calls = {"euler": 1, "milstein": 1, "srk": 4}
    if method not in calls:
        raise ValueError(f"got method={method!r}; expected one of {', '.join(calls)}")
    paper = "Li et al. 2020, arXiv:2001.01328"
    description = Description(
        f"torchsde-{method}", "stochastic", paper, weak_order=1, evaluations=calls[method], stochastic=True
    )
    return TorchSDE(description, method)
