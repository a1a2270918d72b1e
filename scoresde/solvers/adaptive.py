r"""The probability flow by embedded pairs, with the error and the step of every sample its own.

With :math:`y = x / \alpha` and :math:`\rho = \sigma / \alpha = e^{-\lambda}` the flow is :math:`dy/d\rho = \epsilon`, or
:math:`dy/d\lambda = -\rho\, \epsilon`. A pair makes two estimates of the end of a step from the same evaluations,

.. math:: x_i = \frac{\alpha_i}{\alpha_u} x_u + \sum_j w_{ij}\, \epsilon_j,

and their difference, in units of :math:`\delta = \max(\mathrm{atol}, \mathrm{rtol} \max(|x_u|, |x_v|))`, root mean square
over the event, is the error E of the step. It is accepted where E <= 1, and the next one is longer by the factor

.. math:: \theta\, E^{-k_I / q}\, E_{\mathrm{before}}^{\,k_P / q}

(a PI controller; q is the order of the better estimate, theta = 0.9, and the factor is kept between 1/5 and 5, at most 1
after a rejection). All samples are evaluated together, at a time each; a sample that has arrived stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde._shape import expand
from scoresde.sde import AffineSDE
from scoresde.solvers.drivers import Denoiser, State
from scoresde.solvers.noise import FreshNoise
from scoresde.solvers.path import Path, Point
from scoresde.solvers.rows import last_move
from scoresde.solvers.solver import Description, Solver

__all__ = ["Adaptive", "Pair", "bogacki_shampine", "dormand_prince", "dpm_adaptive"]

DPM = "Lu et al. 2022, arXiv:2206.00927"


class Where(NamedTuple):
    """The marginals at one time per sample, each of shape ``(batch,)``, in float64."""

    lam: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


Weights = Callable[[list[Where], int], list[Tensor]]


@dataclass(frozen=True)
class Pair:
    """An embedded pair.

    Attributes:
        order: of the better estimate, which is kept.
        c: where its n evaluations are, as fractions of the step in its clock; the first is 0. A pair whose last one is 1 has
            evaluated at the end of the step, which the next step starts with.
        weights: ``weights(where, i)``: the factors of the noise predictions, each of shape ``(batch,)``, in the state at
            ``where[i]``, given all n + 1 points: those of the evaluations and the end. i = 1 .. n - 1 is a stage, i = n the
            end, i = n + 1 the other estimate of the end.
        clock: "lam" or "rho", the variable of which ``c`` are fractions.
    """

    order: int
    c: tuple[float, ...]
    weights: Weights
    clock: str

    @property
    def reuses_last(self) -> bool:
        """Whether the last evaluation of an accepted step is the first of the next."""
        return self.c[-1] == 1

    def lams(self, u: Tensor, v: Tensor) -> list[Tensor]:
        """lam at all points of a step from ``u`` to ``v``."""
        if self.clock == "lam":
            inner = [u + c * (v - u) for c in self.c[1:]]
        else:
            inner = [u - torch.log1p(c * torch.expm1(u - v)) if c < 1 else v for c in self.c[1:]]
        return [u, *inner, v]


def _tableau(order: int, c: tuple[float, ...], a: list[list[float]], b: list[float], low: list[float], clock: str) -> Pair:
    """A Butcher tableau; the first row of ``a``, which is empty, is left out."""
    if clock not in ("lam", "rho"):
        raise ValueError(f"got clock={clock!r}; expected 'lam' or 'rho'")
    rows = [*a, b, low]

    def weights(where: list[Where], i: int) -> list[Tensor]:
        row, alpha = rows[i - 1], where[min(i, len(where) - 1)].alpha
        u, v = where[0].lam, where[-1].lam
        if clock == "lam":
            return [-w * alpha * (v - u) * torch.exp(-where[j].lam) for j, w in enumerate(row)]
        return [w * alpha * torch.exp(-u) * torch.expm1(u - v) for w in row]

    return Pair(order, c, weights, clock)


def _phi(h: Tensor) -> Tensor:
    """(e^h - 1) / h - 1, by its series where it cancels."""
    series = h * (1 / 2 + h * (1 / 6 + h * (1 / 24 + h * (1 / 120 + h * (1 / 720 + h / 5040)))))
    safe = torch.where(h == 0, 1.0, h)
    return torch.where(h.abs() < 1e-2, series, torch.expm1(safe) / safe - 1)


def _dpm_12(where: list[Where], i: int) -> list[Tensor]:
    """DPM-Solver-1 beside DPM-Solver-2 with the middle of the step."""
    u, to = where[0], where[min(i, 2)]
    whole = -to.sigma * torch.expm1(to.lam - u.lam)
    zero = torch.zeros_like(whole)
    return {1: [whole], 2: [zero, whole], 3: [whole, zero]}[i]


def _dpm_23(where: list[Where], i: int) -> list[Tensor]:
    """DPM-Solver-2 with a third of the step beside DPM-Solver-3."""
    u, to = where[0], where[min(i, 3)]
    h = to.lam - u.lam
    whole, line = -to.sigma * torch.expm1(h), -to.sigma * _phi(h)
    zero = torch.zeros_like(whole)
    ends = {1: [whole], 2: [whole - 2 * line, 2 * line], 3: [whole - 1.5 * line, zero, 1.5 * line]}
    return ends[i] if i in ends else [-0.5 * whole, 1.5 * whole, zero]


@dataclass(frozen=True, repr=False)
class Adaptive(Solver):
    """An embedded pair with per-sample control: see the module.

    It follows the flow from the first point of the path to the last before sigma = 0 with steps of its own, and yields a
    state at each point between by the cubic through the ends of the step there and their slopes, once all samples have
    passed it. Later states carry the info ``accepted`` and ``rejected``: the numbers of steps of each sample, shape
    ``(batch,)``.

    Args:
        description: what it claims.
        pair: the embedded pair.
        rtol, atol: the tolerances.
        integral, proportional, safety: k_I, k_P and theta of the controller.
        first_step: length in lam of the first attempt.
        max_attempts: after which it gives up.
    """

    pair: Pair
    rtol: float
    atol: float
    integral: float = 0.7
    proportional: float = 0.4
    safety: float = 0.9
    first_step: float = 0.05
    max_attempts: int = 100_000

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"got rtol={self.rtol} and atol={self.atol}; expected positive tolerances")
        if not (self.integral > 0 and self.proportional >= 0 and self.first_step > 0):
            raise ValueError(
                f"got integral={self.integral}, proportional={self.proportional}, first_step={self.first_step}; expected a "
                "positive integral part and first step, and a proportional part of at least 0"
            )

    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        points = path.points[:-1] if path.ends_clean else path.points
        if points[0].log_alpha == -math.inf:
            raise ValueError(
                f"solver {self.name!r} cannot start at alpha = 0 (t={points[0].t:.6g}), where it divides by alpha; take a "
                "smaller t_max or a solver in Data prediction"
            )
        if any(v.lam < u.lam for u, v in path.moves):
            raise ValueError(
                f"got a path that goes back towards the noise, while solver {self.name!r} chooses its own steps from one "
                "end to the other; take a solver that makes rows (dpmpp-2m, heun)"
            )
        state = State(0, points[0], x)
        if len(points) > 1:
            for state in self._integrate(path.sde, points, model, x):
                yield state
        if path.ends_clean:
            last = last_move(path)
            m = model(state.x, torch.tensor(points[-1].t, dtype=torch.float64))
            x = torch.add(last.a * state.x, m, alpha=last.w[0])
            yield State(state.step + 1, path.points[-1], x, state.info)

    def _integrate(self, sde: AffineSDE, points: tuple[Point, ...], model: Denoiser, x: Tensor) -> Iterator[State]:
        pair, batch, n = self.pair, x.shape[0], len(self.pair.c)
        start, end = (torch.tensor(p.lam, dtype=torch.float64, device=x.device) for p in (points[0], points[-1]))
        t_max, t_min = points[0].t, points[-1].t

        def at(lams: list[Tensor]) -> list[Where]:
            lam = torch.cat(lams)
            t = sde.time(lam).clamp(t_min, t_max)
            columns = (lam, t, sde.alpha(t), sde.sigma(t))
            return [Where(*row) for row in zip(*(torch.split(column, batch) for column in columns), strict=True)]

        def eps(y: Tensor, u: Where) -> Tensor:
            return (y - expand(u.alpha, y).to(y) * model(y, u.t)) / expand(u.sigma, y).to(y)

        u = at([start.expand(batch)])[0]
        slope = eps(x, u)
        length = torch.full_like(u.lam, self.first_step)
        error_before, limit = torch.ones_like(length), torch.full_like(length, 5.0)
        accepted, rejected = (torch.zeros(batch, dtype=torch.int64, device=x.device) for _ in range(2))
        between = _Between(points[1:-1])
        for _ in range(self.max_attempts):
            # A step that would leave a sliver goes all the way; a sample that has arrived goes nowhere.
            whole = u.lam + length >= end - 1e-9 * (end - start)
            where = at(pair.lams(u.lam, torch.where(whole, end, u.lam + length)))
            slopes = [slope]
            for i in range(1, n):
                slopes.append(eps(_state(x, where, i, slopes, pair.weights(where, i)), where[i]))
            v = where[n]
            y, other = (_state(x, where, i, slopes, pair.weights(where, i)) for i in (n, n + 1))

            error = self._error(x, y, other)
            active = u.lam < end
            good = active & (error <= 1)
            bad = active & ~good
            accepted, rejected = accepted + good, rejected + bad
            # An error that is not a number is as bad as can be.
            error = torch.nan_to_num(error, nan=1e10).clamp(1e-10, 1e10)
            factor = self.safety * error ** (-self.integral / pair.order) * error_before ** (self.proportional / pair.order)
            length = torch.minimum(factor.clamp(min=0.2), limit) * (v.lam - u.lam)
            limit = torch.where(bad, 1.0, 5.0).to(limit)
            error_before = torch.where(good, error, error_before)
            stuck = bad & (length < 1e-10 * (end - start))

            moved, before = expand(good, x), (u, x, slope)
            x = torch.where(moved, y, x)
            u = Where(*(torch.where(good, b, a) for a, b in zip(u, v, strict=True)))
            # The one wait for the device in each attempt.
            some, going, failed = torch.stack([good.any(), (u.lam < end).any(), stuck.any()]).tolist()
            if failed:
                self._fail(float(u.t[stuck][0]), x.dtype)
            if pair.reuses_last:
                slope = torch.where(moved, slopes[-1], slope)
            elif some and (going or between.waiting):
                slope = torch.where(moved, eps(x, u), slope)
            info = {"accepted": accepted, "rejected": rejected}
            for i, state in between.passed(good, before, (u, x, slope)):
                yield State(i + 1, points[i + 1], state, info)
            if not going:
                yield State(len(points) - 1, points[-1], x, info)
                return
        raise ArithmeticError(
            f"solver {self.name!r} made {self.max_attempts} attempts and has not arrived; take larger tolerances"
        )

    def _error(self, x: Tensor, y: Tensor, other: Tensor) -> Tensor:
        """The error of each sample in units of the tolerance, shape ``(batch,)``."""
        scale = (self.rtol * torch.maximum(x.abs(), other.abs())).clamp(min=self.atol)
        return ((y - other) / scale).flatten(1).double().square().mean(1).sqrt()

    def _fail(self, t: float, dtype: torch.dtype) -> None:
        raise ArithmeticError(
            f"the step of solver {self.name!r} became zero at t={t:.6g}: its error stays above rtol={self.rtol}, "
            f"atol={self.atol} in {str(dtype).removeprefix('torch.')}. Check that the network is finite and smooth there, "
            "take larger tolerances, or float64"
        )


def _state(x: Tensor, where: list[Where], i: int, slopes: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The state at point ``i`` of a step (or its end, for the other estimate)."""
    to = where[min(i, len(where) - 1)]
    y = expand(to.alpha / where[0].alpha, x).to(x) * x
    for weight, slope in zip(weights, slopes, strict=False):
        y = y + expand(weight, x).to(x) * slope
    return y


Here = tuple[Where, Tensor, Tensor]
"""A point, the state there and its slope."""


class _Between:
    """The states at given points, by cubic Hermite interpolation of x / alpha in rho, whose slope is eps."""

    def __init__(self, points: tuple[Point, ...]) -> None:
        self.points = points
        self.states: list[Tensor] = []
        self.done = 0

    @property
    def waiting(self) -> bool:
        """Whether there are points that some sample has not passed."""
        return self.done < len(self.points)

    def passed(self, good: Tensor, before: Here, now: Here) -> Iterator[tuple[int, Tensor]]:
        """Fill in what the last step went across, and hand out what all samples have passed by now."""
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
            self.states[self.done] = torch.empty(0)  # handed out, so no longer kept
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


def dpm_adaptive(order: int = 23, rtol: float = 0.05, atol: float = 0.0078) -> Adaptive:
    r"""DPM-Solver-12 (``order=12``) or -23: DPM-Solver-1 beside -2, or -2 beside -3, with the authors' controller.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u - \sigma_v \int_{\lambda_u}^{\lambda_v}
              e^{\lambda_v - s}\, \epsilon(s)\, ds

    They share their evaluations: two or three an attempt. The authors' controller is theta E^{-1/q}, their error the root
    mean square over the event, as here; they take it over a batch as one system where here each sample has its own.
    Source: Lu et al., "DPM-Solver", 2022, https://arxiv.org/abs/2206.00927, appendix C.
    """
    pairs = {12: Pair(2, (0.0, 0.5), _dpm_12, "lam"), 23: Pair(3, (0.0, 1 / 3, 2 / 3), _dpm_23, "lam")}
    if order not in pairs:
        raise ValueError(f"got order={order}; expected 12 or 23")
    return Adaptive(
        Description(f"dpm-{order}", "adaptive", DPM, evaluations=None),
        pairs[order],
        rtol,
        atol,
        integral=1.0,
        proportional=0.0,
    )


def bogacki_shampine(rtol: float = 1e-3, atol: float = 1e-3, clock: str = "lam") -> Adaptive:
    """Bogacki and Shampine's pair of orders 3 and 2, in ``lam`` or ``rho``: three evaluations an attempt.

    Source: Bogacki and Shampine, "A 3(2) pair of Runge-Kutta formulas", 1989.
    """
    a = [[1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]]
    pair = _tableau(3, (0, 1 / 2, 3 / 4, 1), a, [*a[-1], 0], [7 / 24, 1 / 4, 1 / 3, 1 / 8], clock)
    return Adaptive(Description("bs3", "adaptive", "Bogacki & Shampine 1989", evaluations=None), pair, rtol, atol)


def dormand_prince(rtol: float = 1e-5, atol: float = 1e-5, clock: str = "lam") -> Adaptive:
    """Dormand and Prince's pair of orders 5 and 4, in ``lam`` or ``rho``: six evaluations an attempt.

    The method of :func:`~scoresde.solvers.rk45`, for each sample by itself and in the state's own precision.
    Source: Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980.
    """
    a = [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ]
    low = [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]
    pair = _tableau(5, (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1), a, [*a[-1], 0], low, clock)
    return Adaptive(Description("dopri5", "adaptive", "Dormand & Prince 1980", evaluations=None), pair, rtol, atol)
