r"""The probability flow by embedded pairs, with an error and a step for every sample by itself.

With :math:`y = x / \alpha` and :math:`\rho = \sigma / \alpha = e^{-\lambda}` the flow is :math:`dy/d\rho = \epsilon`, or
:math:`dy/d\lambda = -\rho\, \epsilon`. A pair (:mod:`scoresde.solvers.adaptive.pairs`) makes two estimates of the end of
a step. Their difference decides whether the step is accepted, with the better estimate, and how long the next step will be:
see :mod:`scoresde.solvers.adaptive.control`. All samples are evaluated together, each at its own time. A sample that has
arrived no longer changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.sde import GaussianSDE
from scoresde.solvers.adaptive.control import Controller, OwnSteps, as_it_is, bounded, scaled_error, smooth
from scoresde.solvers.adaptive.pairs import DPM_12, DPM_23, Pair, Where, bogacki_shampine_32, dormand_prince_54
from scoresde.solvers.drivers import Denoiser, State
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Point
from scoresde.solvers.solver import Description, maker

__all__ = ["Adaptive", "bogacki_shampine", "dormand_prince", "dpm_adaptive"]

DPM = "Lu et al. 2022, arXiv:2206.00927"


class Here(NamedTuple):
    """The state and its slope at a point."""

    u: Where
    x: Tensor
    slope: Tensor


@dataclass(frozen=True, repr=False)
class Adaptive(OwnSteps):
    """A solver of the probability flow by an embedded pair with per-sample step control: see the module.

    It follows the flow from the first point of the path to the last before sigma = 0 with its own steps. It yields a state
    at each point between, once all samples have passed it: the value of the cubic through the ends of the step there and
    their slopes. The ``info`` of later states holds ``accepted`` and ``rejected``, the numbers of steps of each sample,
    shape ``(batch,)``.

    Args:
        description: the claims of the solver.
        pair: the embedded pair.
        rtol, atol: the relative and the absolute tolerance.
        controller: the step-size controller.
        before: the reference of the relative tolerance beside the newest estimate: ``"state"``, the state at the start of
            the step, or ``"estimate"``, the lower-order estimate of that state, made by the last step.
        first_step: the length in lam of the first attempt.
        max_attempts: the number of attempts after which the solver gives up.
        norm: the samples that share a step. ``"sample"``: each sample has its own error and steps. ``"batch"`` and
            ``"maximum"``: all samples take one step, which depends on the batch, by the root mean square or the maximum of
            their errors. All samples then wait for the slowest, and are often more accurate for the same number of
            evaluations.
        scale: the quantity that the tolerances bound: ``"state"``, x; or ``"data"``, x / alpha, which is the same under
            every SDE.

    Raises:
        ValueError: if a tolerance is not positive, or ``before``, ``norm`` or ``scale`` is unknown.

    Example:
        >>> from dataclasses import replace
        >>> shared = replace(bogacki_shampine(), norm="batch")  # all samples take one step
        >>> shared, shared.tolerance
        (<solver bs3>, 0.001)
    """

    dense: ClassVar[bool] = True

    pair: Pair
    rtol: float
    atol: float
    controller: Controller
    before: str = "state"
    first_step: float = 0.05
    max_attempts: int = 100_000
    norm: str = "sample"
    scale: str = "state"

    def __post_init__(self) -> None:
        if self.scale not in ("state", "data"):
            raise ValueError(f"got scale={self.scale!r}; expected 'state' or 'data'")
        if self.norm not in ("sample", "batch", "maximum"):
            raise ValueError(f"got norm={self.norm!r}; expected 'sample', 'batch' or 'maximum'")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"got rtol={self.rtol} and atol={self.atol}; expected positive tolerances")
        if self.before not in ("state", "estimate"):
            raise ValueError(f"got before={self.before!r}; expected 'state' or 'estimate'")

    @property
    def tolerance(self) -> float:
        return min(self.rtol, self.atol)

    def run(
        self, sde: GaussianSDE, points: tuple[Point, ...], model: Denoiser, x: Tensor, noise: FreshNoise
    ) -> Iterator[State]:
        flow = _Flow(sde, model, points[0].t, points[-1].t, x.shape[0])
        start, end = (torch.tensor(p.lam, dtype=torch.float64, device=x.device) for p in (points[0], points[-1]))
        u = flow.at([start.expand(x.shape[0])])[0]
        here, before = Here(u, x, flow.eps(x, u)), x
        progress, between = self.controller.start(self.first_step, u.lam), _Between(points[1:-1])
        for _ in range(self.max_attempts):
            # A step that would leave a sliver goes to the end; a sample that has arrived stays.
            goal = here.u.lam + progress.length
            goal = torch.where(goal >= end - 1e-9 * (end - start), end, goal)
            there, low = self._attempt(flow, here, goal)
            error = self._error(low, there, before, here)
            good, progress = self.controller.judge(progress, error, goal - here.u.lam, here.u.lam < end)
            stuck = progress.again & (progress.length < 1e-10 * (end - start))

            moved, left = expand(good, x), here
            u = Where(*(torch.where(good, b, a) for a, b in zip(here.u, there.u, strict=True)))
            here = Here(u, torch.where(moved, there.x, here.x), torch.where(moved, there.slope, here.slope))
            before = here.x if self.before == "state" else torch.where(moved, low, before)
            # The one wait for the device in each attempt.
            broken = progress.broken > 1
            some, going, lost, failed = torch.stack([good.any(), (u.lam < end).any(), broken.any(), stuck.any()]).tolist()
            if lost:
                raise self.not_finite(float(u.t[broken][0]))
            if failed:
                raise self.no_progress(float(u.t[stuck][0]), x, self.rtol, self.atol)
            if some and not self.pair.reuses_last and (going or between.waiting):
                here = here._replace(slope=torch.where(moved, flow.eps(here.x, u), left.slope))
            for i, state in between.passed(good, left, here):
                yield State(i + 1, points[i + 1], state, progress.info)
            if not going:
                yield State(len(points) - 1, points[-1], here.x, progress.info)
                return
        raise self.no_arrival(self.max_attempts, float(here.u.t.max()))

    def _error(self, low: Tensor, there: Here, before: Tensor, here: Here) -> Tensor:
        """Return the error of each sample in units of the tolerance, shape ``(batch,)``."""
        y = there.x
        if self.scale == "data":
            v, u = (expand(1 / at.u.alpha, y).to(y) for at in (there, here))
            low, y, before = v * low, v * y, u * before
        error = scaled_error(low, y, before, self.rtol, self.atol)
        if self.norm == "sample":
            return error
        whole = error.max() if self.norm == "maximum" else error.square().mean().sqrt()
        return whole.expand_as(error)

    def _attempt(self, flow: _Flow, here: Here, goal: Tensor) -> tuple[Here, Tensor]:
        """Step from ``here`` to lam = ``goal``; return the end, with the last slope evaluated, and the other estimate."""
        pair, n = self.pair, len(self.pair.c)
        where, slopes = flow.at(pair.lams(here.u.lam, goal)), [here.slope]
        for i in range(1, n):
            slopes.append(flow.eps(_state(here.x, where, i, slopes, pair.weights(where, i)), where[i]))
        y, low = (_state(here.x, where, i, slopes, pair.weights(where, i)) for i in (n, n + 1))
        return Here(where[n], y, slopes[-1]), low


@dataclass(frozen=True)
class _Flow:
    """The probability flow of a model, at a time per sample between two ends."""

    sde: GaussianSDE
    model: Denoiser
    t_max: float
    t_min: float
    batch: int

    def at(self, lams: list[Tensor]) -> list[Where]:
        """Compute the marginals at each of ``lams``, in one call of the SDE."""
        lam = torch.cat(lams)
        t = self.sde.time(lam).clamp(self.t_min, self.t_max)
        columns = (lam, t, self.sde.alpha(t), self.sde.sigma(t))
        return [Where(*row) for row in zip(*(torch.split(column, self.batch) for column in columns), strict=True)]

    def eps(self, y: Tensor, u: Where) -> Tensor:
        """Return the noise prediction, which is the slope of x / alpha in rho."""
        return (y - expand(u.alpha, y).to(y) * self.model(y, u.t)) / expand(u.sigma, y).to(y)


def _state(x: Tensor, where: list[Where], i: int, slopes: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return the state at point ``i`` of a step; the number after the end stands for the other estimate of the end."""
    to = where[min(i, len(where) - 1)]
    y = expand(to.alpha / where[0].alpha, x).to(x) * x
    for weight, slope in zip(weights, slopes, strict=False):
        y = y + expand(weight, x).to(x) * slope
    return y


class _Between:
    """The dense output: states at given points by cubic Hermite interpolation of x / alpha in rho, whose slope is eps."""

    def __init__(self, points: tuple[Point, ...]) -> None:
        self.points = points
        self.states: list[Tensor] = []
        self.done = 0

    @property
    def waiting(self) -> bool:
        """Whether there are points that some sample has not passed."""
        return self.done < len(self.points)

    def passed(self, good: Tensor, before: Here, now: Here) -> Iterator[tuple[int, Tensor]]:
        """Interpolate the states at the points that the last step passed, and yield those that all samples have passed."""
        if not self.waiting:
            return
        (u, _, _), (v, y, _) = before, now
        slowest, fastest = torch.stack([v.lam.min(), v.lam.max()]).tolist()
        for i in range(self.done, len(self.points)):
            if self.points[i].lam > fastest:
                break
            if i >= len(self.states):
                self.states.append(y)
            crossed = good & (u.lam < self.points[i].lam) & (self.points[i].lam <= v.lam)
            self.states[i] = torch.where(expand(crossed, y), _hermite(self.points[i], before, now), self.states[i])
        while self.waiting and self.points[self.done].lam <= slowest:
            yield self.done, self.states[self.done]
            self.states[self.done] = torch.empty(0)  # yielded, so no longer kept
            self.done += 1


def _hermite(point: Point, before: Here, now: Here) -> Tensor:
    (u, x, k), (v, y, k_end) = before, now
    length = torch.exp(-v.lam) - torch.exp(-u.lam)
    theta = torch.nan_to_num((math.exp(-point.lam) - torch.exp(-u.lam)) / length)
    factors = (
        (1 + 2 * theta) * (1 - theta) ** 2 / u.alpha,
        theta**2 * (3 - 2 * theta) / v.alpha,
        theta * (1 - theta) ** 2 * length,
        theta**2 * (theta - 1) * length,
    )
    terms = [expand(point.alpha * f, x).to(x) * value for f, value in zip(factors, (x, y, k, k_end), strict=True)]
    return terms[0] + terms[1] + terms[2] + terms[3]


@maker
def dpm_adaptive(
    order: int = 23, rtol: float = 0.05, atol: float = 0.0078, controller: str = "published", norm: str = "sample"
) -> Adaptive:
    r"""Return DPM-Solver-12 (``order=12``) or -23: DPM-Solver-1 beside -2, or -2 beside -3, with the authors' controller.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u - \sigma_v \int_{\lambda_u}^{\lambda_v}
              e^{\lambda_v - s}\, \epsilon(s)\, ds

    Both methods share their evaluations: two or three an attempt. The tolerance is relative to the lower-order estimates
    of both ends of the step.

    Args:
        order: the pair, 12 or 23.
        rtol, atol: the relative and the absolute tolerance.
        controller: the step-size controller. ``"published"`` accepts E <= 1 and takes the factor 0.9 E^{-1/q}, with q = 2
            or 3. ``"k-diffusion"`` takes 1 + arctan(E^{-1/q} - 1), and accepts where that is at least 0.81: an error of up
            to 1.5 (q = 2) or 1.9 (q = 3). Its tolerances are for x / alpha.
        norm: the samples that share a step. ``"sample"``: each sample has its own error and steps. ``"batch"``: all samples
            take one step, by the maximum of the errors with the published controller, by their root mean square with
            k-diffusion's.

    With ``norm="batch"``, or for one sample, these are the authors' and k-diffusion's samplers, step for step. Neither
    bounds the growth of the steps well, so that up to half of the attempts are rejected. A controller that lets a step grow
    fivefold at most rejects fewer: ``dataclasses.replace(solver, controller=Controller(1 / q))``.

    Source: Lu et al., "DPM-Solver", 2022, https://arxiv.org/abs/2206.00927, appendix C; k-diffusion's
    ``sample_dpm_adaptive``.

    Raises:
        ValueError: if ``order`` is not 12 or 23, a tolerance is not positive, or ``controller`` or ``norm`` is unknown.

    Example:
        >>> dpm_adaptive(12), dpm_adaptive(12).pair.order
        (<solver dpm-12>, 2)
    """
    pairs = {12: DPM_12, 23: DPM_23}
    if order not in pairs:
        raise ValueError(f"got order={order}; expected 12 or 23")
    if norm not in ("sample", "batch"):
        raise ValueError(f"got norm={norm!r}; expected 'sample' or 'batch'")
    if controller not in ("published", "k-diffusion"):
        raise ValueError(f"got controller={controller!r}; expected 'published' or 'k-diffusion'")
    pair = pairs[order]
    control = Controller(1 / pair.order, limit=as_it_is)
    if controller == "k-diffusion":  # 1 + arctan(f - 1) >= 0.81 means f = E^{-1/q} >= 1 - tan(0.19)
        control = Controller(1 / pair.order, safety=1.0, limit=smooth, accepts=(1 - math.tan(0.19)) ** -pair.order)
    description = Description(f"dpm-{order}", "adaptive", DPM, evaluations=None)
    scale = "data" if controller == "k-diffusion" else "state"
    if norm == "batch" and controller == "published":
        norm = "maximum"
    return Adaptive(description, pair, rtol, atol, control, "estimate", norm=norm, scale=scale)


def _pi(pair: Pair) -> Controller:
    return Controller(0.7 / pair.order, 0.4 / pair.order, limit=bounded)


@maker
def bogacki_shampine(rtol: float = 1e-3, atol: float = 1e-3, clock: str = "lam") -> Adaptive:
    """Return Bogacki and Shampine's pair of orders 3 and 2, in ``lam`` or ``rho``, with three evaluations an attempt.

    Source: Bogacki and Shampine, "A 3(2) pair of Runge-Kutta formulas", 1989.

    Example:
        >>> solver = bogacki_shampine(rtol=0.01, atol=0.01)
        >>> solver, solver.tolerance
        (<solver bs3>, 0.01)
    """
    pair = bogacki_shampine_32(clock)
    return Adaptive(Description("bs3", "adaptive", "Bogacki & Shampine 1989", evaluations=None), pair, rtol, atol, _pi(pair))


@maker
def dormand_prince(rtol: float = 1e-5, atol: float = 1e-5, clock: str = "lam") -> Adaptive:
    """Return Dormand and Prince's pair of orders 5 and 4, in ``lam`` or ``rho``, with six evaluations an attempt.

    This is the method of :func:`~scoresde.solvers.rk45`, for each sample by itself and in the precision of the state.
    Source: Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980.

    Example:
        >>> solver = dormand_prince(rtol=1e-8, atol=1e-8)
        >>> solver, solver.tolerance
        (<solver dopri5>, 1e-08)
    """
    pair = dormand_prince_54(clock)
    return Adaptive(
        Description("dopri5", "adaptive", "Dormand & Prince 1980", evaluations=None), pair, rtol, atol, _pi(pair)
    )
