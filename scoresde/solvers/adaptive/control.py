r"""Step control: the error of an attempt decides on its acceptance and on the next step, for each sample by itself.

An attempt makes two estimates of the end of a step, y and one of lower order, y_low. Their difference in units of the
tolerance

.. math:: \delta = \max(\mathrm{atol}, \mathrm{rtol} \max(|y_{\mathrm{low}}|, |y_{\mathrm{before}}|)),

as a root mean square over the event, is the error E. The length of the next attempt is multiplied by a factor made of

.. math:: f = \theta\, E^{-a}\, E_{\mathrm{before}}^{\,b}

with E_before the error of the last accepted attempt.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from scoresde.sde import GaussianSDE
from scoresde.solvers.drivers import Denoiser, State
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path, Point
from scoresde.solvers.path import points as points_at
from scoresde.solvers.rows import first_move, last_move
from scoresde.solvers.solver import Solver

__all__ = ["Controller", "OwnSteps", "Progress", "as_it_is", "bounded", "scaled_error", "smooth"]


def bounded(factor: Tensor, again: Tensor) -> Tensor:
    """Return f clamped between 1/5 and 5, and to at most 1 after a rejection."""
    return torch.minimum(factor.clamp(min=0.2), torch.where(again, 1.0, 5.0).to(factor))


def as_it_is(factor: Tensor, again: Tensor) -> Tensor:
    """Return f unchanged."""
    return factor


def smooth(factor: Tensor, again: Tensor) -> Tensor:
    """Return 1 + arctan(f - 1), k-diffusion's limiter."""
    return 1 + torch.atan(factor - 1)


class Progress(NamedTuple):
    """The progress of each sample; all fields have shape ``(batch,)``.

    Attributes:
        length: the length of the next attempt.
        before: the error of the last accepted attempt.
        again: whether the newest attempt was rejected.
        accepted: the number of accepted attempts.
        rejected: the number of rejected attempts.
        broken: the number of recent attempts whose error was not finite.
    """

    length: Tensor
    before: Tensor
    again: Tensor
    accepted: Tensor
    rejected: Tensor
    broken: Tensor

    @property
    def info(self) -> dict[str, Tensor]:
        """The numbers of accepted and rejected attempts, for the ``info`` of a state."""
        return {"accepted": self.accepted, "rejected": self.rejected}


@dataclass(frozen=True)
class Controller:
    """A step-size controller, from the error of an attempt to its acceptance and the length of the next: see the module.

    Args:
        integral, proportional, safety: the numbers a, b and theta.
        limit: the function ``limit(f, again)`` that returns the factor taken; ``again`` is true where the attempt before was
            rejected.
        accepts: the largest error that is accepted.

    Raises:
        ValueError: if ``integral``, ``safety`` or ``accepts`` is not positive, or ``proportional`` is negative.

    Example:
        >>> halving = Controller(integral=1.0, safety=1.0)
        >>> start = halving.start(0.5, torch.zeros(2))
        >>> good, after = halving.judge(start, torch.tensor([2.0, 0.5]), start.length, torch.ones(2, dtype=torch.bool))
        >>> good.tolist(), after.length.tolist()
        ([False, True], [0.25, 1.0])
    """

    integral: float
    proportional: float = 0.0
    safety: float = 0.9
    limit: Callable[[Tensor, Tensor], Tensor] = bounded
    accepts: float = 1.0

    def __post_init__(self) -> None:
        if not (self.integral > 0 and self.proportional >= 0 and self.safety > 0 and self.accepts > 0):
            raise ValueError(
                f"got integral={self.integral}, proportional={self.proportional}, safety={self.safety}, "
                f"accepts={self.accepts}; expected a positive integral part, safety and largest error, and a proportional "
                "part of at least 0"
            )

    def start(self, length: float, like: Tensor) -> Progress:
        """Return the progress before the first attempt of this length; ``like`` has an entry per sample."""
        if not 0 < length < math.inf:
            raise ValueError(f"got first_step={length}; expected a positive length")
        none = torch.zeros_like(like, dtype=torch.int64)
        return Progress(torch.full_like(like, length), torch.ones_like(like), none.bool(), none, none, none)

    def judge(self, progress: Progress, error: Tensor, taken: Tensor, active: Tensor) -> tuple[Tensor, Progress]:
        """Return which samples accept an attempt of length ``taken``, and the progress after it; shapes ``(batch,)``."""
        good = active & (error <= self.accepts)
        bad = active & ~good
        # A short accepted step right after a rejection is no success: an unbounded controller leaps ahead again from there.
        recovered = torch.where(good & ~progress.again, 0, progress.broken)
        broken = torch.where(bad & ~torch.isfinite(error), progress.broken + 1, recovered)
        # An error that is NaN counts as the largest error. An error of zero does not tell how long the next step may be.
        error = torch.nan_to_num(error, nan=1e10).clamp(1e-30, 1e10)
        factor = self.safety * error**-self.integral * progress.before**self.proportional
        return good, Progress(
            self.limit(factor, progress.again) * taken,
            torch.where(good, error.clamp(min=1e-10), progress.before),
            bad,
            progress.accepted + good,
            progress.rejected + bad,
            broken,
        )


def scaled_error(low: Tensor, y: Tensor, before: Tensor, rtol: float, atol: float) -> Tensor:
    """Return the error E of each sample, shape ``(batch,)``, in float64."""
    scale = (rtol * torch.maximum(before.abs(), low.abs())).clamp(min=atol)
    return ((y - low) / scale).flatten(1).double().square().mean(1).sqrt()


@dataclass(frozen=True, repr=False)
class OwnSteps(Solver):
    """Interface of the solvers that choose their own steps from one end of the path to the other.

    In half precision, rounding would be most of the error that decides on the steps. There the states are kept in float32.
    The network is called in its own precision, and the tolerances are no smaller than the rounding of its outputs.
    """

    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        """Run from ``x`` with :meth:`run`, make the common move to sigma = 0, and yield the states."""
        if any(v.lam < u.lam for u, v in path.moves):
            raise ValueError(
                f"got a path that goes back towards the noise, while solver {self.name!r} chooses its own steps from one "
                "end to the other; take a solver that makes rows (dpmpp-2m, heun)"
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            for state in self._above(torch.finfo(x.dtype).eps)._states(path, _InHalf(model, x.dtype), x.float(), noise):
                yield state._replace(x=state.x.to(x.dtype))
        else:
            yield from self._states(path, model, x, noise)

    def _above(self, eps: float) -> Self:
        """Return this solver with tolerances of at least ``eps``, the precision of the network."""
        at_least: Any = {name: max(getattr(self, name), eps) for name in ("rtol", "atol")}
        return replace(self, **at_least)

    def _states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        points = path.points[:-1] if path.ends_clean else path.points
        state = State(0, points[0], x)
        if points[0].log_alpha == -math.inf and len(points) > 1:
            points, state = self._begin(path.sde, points, model, x, noise)
            if state.step:
                yield state
        done = state.step
        if len(points) > 1:
            for found in self.run(path.sde, points, model, state.x, noise):
                state = found._replace(step=found.step + done)
                yield state
        if path.ends_clean:
            last = last_move(path)
            m = model(state.x, torch.tensor(points[-1].t, dtype=torch.float64))
            x = torch.add(last.a * state.x, m, alpha=last.w[0])
            yield State(state.step + 1, path.points[-1], x, state.info)

    def _begin(
        self, sde: GaussianSDE, points: tuple[Point, ...], model: Denoiser, x: Tensor, noise: FreshNoise
    ) -> tuple[tuple[Point, ...], State]:
        """Move from alpha = 0, where lam is infinite, to a finite lam, and return the points from there on and the state.

        The move holds the prediction constant, with an error of the size of e^{2 lam}. It ends where this error is a tenth
        of the tolerance, or at the next point of the path, if that comes first.
        """
        lam = 0.5 * math.log(0.1 * min(0.1, self.tolerance))
        inner = points_at(sde, sde.time(torch.tensor([lam], dtype=torch.float64)))[0]
        ends = inner.lam >= points[1].lam
        to = points[1] if ends else inner
        row = first_move(points[0], to, self.noise_share)
        m = model(x, torch.tensor(points[0].t, dtype=torch.float64))
        x = torch.add(row.a * x, m, alpha=row.w[0])
        if row.s:
            x = torch.add(x, noise(points[0], to, torch.empty_like(x), row.kernel), alpha=row.s[0])
        return (to, *points[2 if ends else 1 :]), State(int(ends), to, x)

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The smaller of the tolerances."""

    @property
    def noise_share(self) -> float:
        """The eta of the process: 0 for the probability flow, 1 for the time reversal."""
        return 0.0

    @abstractmethod
    def run(
        self, sde: GaussianSDE, points: tuple[Point, ...], model: Denoiser, x: Tensor, noise: FreshNoise
    ) -> Iterator[State]:
        """Run from ``x`` at the first of ``points``, all with sigma > 0, to the last, and yield the states there."""

    def no_progress(self, t: float, x: Tensor, rtol: float, atol: float) -> ArithmeticError:
        """Return the error to raise where the steps of a sample have become zero, at ``t``."""
        return ArithmeticError(
            f"the step of solver {self.name!r} became zero at t={t:.6g}: its error stays above rtol={rtol}, atol={atol} in "
            f"{str(x.dtype).removeprefix('torch.')}. Check that the network is finite and smooth there, take larger "
            "tolerances, or float64"
        )

    def no_arrival(self, attempts: int, t: float) -> ArithmeticError:
        """Return the error to raise after too many attempts, with the slowest sample at ``t``."""
        return ArithmeticError(
            f"solver {self.name!r} made {attempts} attempts and has come no farther than t={t:.6g}; take larger tolerances, "
            "or more max_attempts"
        )

    def not_finite(self, t: float) -> ArithmeticError:
        """Return the error to raise where the error of a sample was not finite twice in a row, at ``t``."""
        return ArithmeticError(
            f"the error of solver {self.name!r} was not finite in two attempts in a row, at t={t:.6g}. Check that the "
            "network is finite there"
        )


class _InHalf:
    """A wrapper that calls a model in half precision on states in float32."""

    def __init__(self, model: Denoiser, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x.to(self.dtype), t).float()

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self, t=t) for t in times]
