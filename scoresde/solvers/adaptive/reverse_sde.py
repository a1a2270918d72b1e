r"""The reverse SDE with adaptive steps, and an error and a step for every sample by itself.

.. math:: dx = b(x, t)\, dt + c(t)\, dw, \qquad b = f x - \tfrac{1 + \eta}{2} g^2\, s(x, t), \qquad c^2 = \eta\, g^2

An attempt to go from u to v is an Euler-Maruyama step and the stochastic improved Euler step that shares its noise,

.. math:: y_{\mathrm{low}} = x + (v - u)\, b(x, u) + c_u \sqrt{|v - u|}\, \xi, \qquad
          y = \tfrac12 \left[ y_{\mathrm{low}} + x + (v - u)\, b(y_{\mathrm{low}}, v) + c_v \sqrt{|v - u|}\, \xi \right],

The step y is accepted where the difference of both is small enough: see :mod:`scoresde.solvers.adaptive.control`.

The acceptance of an attempt depends on its noise. Fresh noise after a rejection would therefore favour the noise that is
accepted. Here every sample follows one Brownian path W in lam. The values of W that a rejected attempt has drawn are kept,
and the shorter attempt that follows draws from the Brownian bridge to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.sde import GaussianSDE
from scoresde.solvers.adaptive.control import Controller, OwnSteps, as_it_is, scaled_error
from scoresde.solvers.drivers import Denoiser, State
from scoresde.solvers.noise.brownian import BrownianNoise
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Point
from scoresde.solvers.solver import Description, maker

__all__ = ["AdaptiveSDE", "gotta_go_fast"]

JOLICOEUR = "Jolicoeur-Martineau et al. 2021, arXiv:2105.14080"


@dataclass(frozen=True, repr=False)
class AdaptiveSDE(OwnSteps):
    """A solver of the reverse SDE by Euler-Maruyama and stochastic improved Euler, with per-sample control: see the module.

    Only the ends of a path matter. The ``info`` of the last state holds ``accepted`` and ``rejected``, the numbers of steps
    of each sample, shape ``(batch,)``.

    Args:
        description: the claims of the solver.
        rtol, atol: the relative and the absolute tolerance.
        eta: the share of noise; 1 is the time reversal.
        controller: the step-size controller.
        first_step: the length in t of the first attempt, as a fraction of the path.
        max_attempts: the number of attempts after which the solver gives up.

    Raises:
        ValueError: if ``rtol`` is negative, or ``atol`` or ``eta`` is not positive.

    Example:
        >>> solver = gotta_go_fast(rtol=0.1)
        >>> isinstance(solver, AdaptiveSDE), solver.rtol, solver.eta
        (True, 0.1, 1.0)
    """

    rtol: float
    atol: float
    eta: float
    controller: Controller
    first_step: float = 0.01
    max_attempts: int = 100_000

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol > 0):
            raise ValueError(f"got rtol={self.rtol} and atol={self.atol}; expected rtol >= 0 and atol > 0")
        if not self.eta > 0:
            raise ValueError(f"got eta={self.eta}; expected a positive number (for the probability flow take bs3 or dopri5)")

    @property
    def tolerance(self) -> float:
        return min(self.rtol or self.atol, self.atol)

    @property
    def noise_share(self) -> float:
        return self.eta

    def run(
        self, sde: GaussianSDE, points: tuple[Point, ...], model: Denoiser, x: Tensor, noise: FreshNoise
    ) -> Iterator[State]:
        reverse = _Reverse(sde, model, self.eta)
        u, end = (torch.full((x.shape[0],), p.t, dtype=torch.float64, device=x.device) for p in (points[0], points[-1]))
        span, before, slope = points[0].t - points[-1].t, x, reverse.drift(x, u)
        progress = self.controller.start(self.first_step * span, u)
        draw = _source(noise, x, sde.lam(u))
        for _ in range(self.max_attempts):
            # A step that would leave a sliver goes to the end; a sample that has arrived stays.
            v = torch.where(u - progress.length <= end + 1e-9 * span, end, u - progress.length)
            xi = draw(sde.lam(u), sde.lam(v))
            low = reverse.euler(x, slope, u, v, u, xi)
            y = 0.5 * (low + reverse.euler(x, reverse.drift(low, v), u, v, v, xi))
            error = scaled_error(low, y, before, self.rtol, self.atol)
            good, progress = self.controller.judge(progress, error, u - v, u > end)
            stuck = progress.again & (progress.length < 1e-10 * span)

            moved = expand(good, x)
            x, before, u = torch.where(moved, y, x), torch.where(moved, low, before), torch.where(good, v, u)
            broken = progress.broken > 1
            some, going, lost, failed = torch.stack([good.any(), (u > end).any(), broken.any(), stuck.any()]).tolist()
            if lost:
                raise self.not_finite(float(u[broken][0]))
            if failed:
                raise self.no_progress(float(u[stuck][0]), x, self.rtol, self.atol)
            if not going:
                yield State(len(points) - 1, points[-1], x, progress.info)
                return
            if some:
                slope = torch.where(moved, reverse.drift(x, u), slope)
        raise self.no_arrival(self.max_attempts, float(u.max()))


@dataclass(frozen=True)
class _Reverse:
    """The reverse SDE of a model in t, at a time per sample."""

    sde: GaussianSDE
    model: Denoiser
    eta: float

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        rate = self.sde.d_log_sigma(t) + 0.5 * self.eta * self.sde.diffusion_squared(t) / self.sde.sigma(t) ** 2
        of_m = self.sde.d_alpha(t) - self.sde.alpha(t) * rate
        return expand(rate, x).to(x) * x + expand(of_m, x).to(x) * self.model(x, t)

    def euler(self, x: Tensor, slope: Tensor, u: Tensor, v: Tensor, at: Tensor, xi: Tensor) -> Tensor:
        """Step from u to v with this slope and the diffusion at the time ``at``."""
        deviation = (self.eta * self.sde.diffusion_squared(at) * (u - v)).sqrt()
        return x + expand(v - u, x).to(x) * slope + expand(deviation, x).to(x) * xi


Draws = Callable[[Tensor, Tensor], Tensor]
"""A function ``draw(u, v)`` that returns (W(v) - W(u)) / sqrt(v - u), between values of lam of shape ``(batch,)``."""


def _source(noise: FreshNoise, x: Tensor, start: Tensor) -> Draws:
    if not isinstance(noise, BrownianNoise):
        return _Path(noise, x, start)
    same = partial(BrownianNoise, knots=noise.knots, kernels=noise.kernels, resolution=noise.resolution)
    alone = [same([seed], x.device) for seed in noise.seeds]

    def draw(u: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for row, path, a, b in zip(out, alone, u.tolist(), v.tolist(), strict=True):
            if b > a:
                path.integral(a, b, row[None]).div_((b - a) ** 0.5)
        return out

    return draw


class _Path:
    """A Brownian path drawn on demand, at a lam per sample, and kept ahead of the current lam of the sample."""

    def __init__(self, noise: FreshNoise, x: Tensor, start: Tensor) -> None:
        self.noise = noise
        self.lam, self.w = start[None], torch.zeros_like(x)[None]  # the known points, (points, batch), and W there

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        self._forget(u)
        below = torch.where(self.lam <= v, self.lam, -torch.inf).max(0)
        above = torch.where(self.lam >= v, self.lam, torch.inf).min(0)
        known, length = above.values.isfinite(), v - below.values
        share = torch.where(known, length / (above.values - below.values), 0.0).nan_to_num()
        each = torch.arange(len(u), device=u.device)
        left, right = self.w[below.indices, each], self.w[above.indices, each]
        deviation = (length * (1 - share)).sqrt()  # of the bridge, or of the path beyond all known points
        xi = self.noise.normal(torch.empty_like(left))
        w = torch.lerp(left, right, expand(share, left).to(left)) + expand(deviation, left).to(left) * xi
        self.lam, self.w = torch.cat([self.lam, v[None]]), torch.cat([self.w, w[None]])
        start = self.w[torch.where(self.lam == u, 1, 0).argmax(0), each]
        return (w - start) / expand(torch.where(v > u, v - u, 1.0).sqrt(), w).to(w)

    def _forget(self, u: Tensor) -> None:
        """Forget the points of each sample before ``u``; keep as many rows as the sample with the most points needs."""
        order = torch.where(self.lam >= u, self.lam, torch.inf).argsort(0)
        rows = int((self.lam >= u).sum(0).max())
        order = order[:rows]
        self.lam = torch.where(self.lam >= u, self.lam, -torch.inf).gather(0, order)
        self.w = self.w.gather(0, order.reshape(*order.shape, *[1] * (self.w.ndim - 2)).expand(-1, *self.w.shape[1:]))


@maker
def gotta_go_fast(rtol: float = 0.02, atol: float = 0.0078, eta: float = 1.0) -> AdaptiveSDE:
    r"""Return the adaptive solver of "Gotta Go Fast" for the reverse SDE, with the controller :math:`0.9\, E^{-0.9}`.

    Args:
        rtol, atol: the relative and the absolute tolerance. The authors take an rtol of 0.01 to 0.5. Their atol is the width
            of the range of the data over 256, as is the default for [-1, 1].
        eta: the share of noise; 1 is the time reversal, as published.

    An accepted step costs two evaluations, a rejected one costs one. The solver differs from the published one in two
    points: it keeps the noise of a rejected step (see the module), and the evaluation at its start. Given a
    :class:`~scoresde.solvers.BrownianNoise`, each sample follows that path, with a query for each sample.
    Source: Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models", 2021,
    https://arxiv.org/abs/2105.14080, algorithm 1.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> samples = scoresde.sample(model, (4, 2), gotta_go_fast(rtol=0.1), progress=False)
        >>> bool((samples.info["accepted"] > 1).all())
        True
    """
    description = Description("gotta-go-fast", "adaptive", JOLICOEUR, evaluations=None, stochastic=True)
    return AdaptiveSDE(description, rtol, atol, eta, Controller(0.9, limit=as_it_is))
