r"""Adams methods with a step, an order and an error for every sample by itself, for a state and the density along its path.

The flow is :math:`dw / du = N` in the clock :math:`u = \sigma / (\alpha + \sigma)`. The log-density grows by the integral of
a rate G in the clock :math:`\tau = \log u`. In these clocks both are smooth at either end of time.

A step predicts the state by the polynomial through the last four values of N (Adams-Bashforth), evaluates N and G there
once, and corrects the state by the polynomial through five (Adams-Moulton). G is integrated by the polynomial through six
values. The same polynomials without their oldest node are of lower order, and the differences :math:`\delta` and
:math:`\delta_G` are the errors of the step. The first steps use the values that there are.

What an error of the state does to the density is known without following it to the end of the flow. The sum of the gain from
here on and the density at the end is the log-density here, whose gradient in w is :math:`-\epsilon / u`. With
:math:`z = \delta / u`, the displacement in standard deviations of the noise, the error of a step in nats is

.. math:: e = |z \cdot \epsilon| + \tfrac12 |z|^2 + |\delta_G| + |c|, \qquad
          c = (w_{\mathrm{corrected}} - w_{\mathrm{predicted}}) \cdot \Delta(\epsilon / u) .

The last term is there because N and G are evaluated at the predicted state: c, with the change of :math:`\epsilon / u` over
the step, is what that changes, to first order, and is added to the density.

A step of length h is accepted where e is at most :math:`0.22 \sqrt{h / H}` of the tolerance, with H the length of the
whole path in :math:`\tau`: errors of many short steps have many signs.

Source of the method: Shampine and Gordon, "Computer Solution of Ordinary Differential Equations", 1975, with one evaluation
a step (predict, evaluate, correct).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.sampling.likelihood.clock import Clock, Where
from scoresde.solvers.coefficients import gauss_legendre

__all__ = ["Course", "Field", "Rates", "Solved", "follow", "interpolation_weights"]

ORDER = 4
"""The number of values of N in the polynomial that predicts."""
QUADRATURE = 6
"""The number of values of G in the polynomial that integrates the density, the newest included."""
SHARE = 0.22
"""The part of the tolerance for a single step over the whole path."""
CAUTION = 2.0
"""The factor of the sum of the errors in the error that is reported, for steps that are too long for their estimates."""
FIRST, LONGEST, SHORTEST = 0.05, 1.0, 1e-10
"""The length in tau of the first attempt, and of the longest and the shortest step."""
MOST_ATTEMPTS = 10_000
"""The number of attempted steps after which a flow is given up."""


class Rates(NamedTuple):
    """What one evaluation of a model gives at a state."""

    slope: Tensor
    """N, the slope of the state in the clock u; shape of the state."""
    eps: Tensor
    """The noise prediction, without gradients; shape of the state."""
    density: Tensor
    """G, the rate of the log-density in the clock tau, shape ``(probes, batch)``, float64."""

    def score(self, tau: Tensor) -> Tensor:
        """Return eps / u, minus the gradient of the log-density in w."""
        return self.eps / expand(tau.exp(), self.eps).to(self.eps)


class Solved(NamedTuple):
    """The end of a flow."""

    w: Tensor
    """The state at the end, shape ``(batch, *event)``."""
    gained: Tensor
    """The integral of G, shape ``(probes, batch)``, float64."""
    error: Tensor
    """The error of the log-density from the steps, in nats, shape ``(batch,)``, float64."""
    density: Tensor
    """G at the end, shape ``(probes, batch)``, float64."""
    nodes: list[Tensor]
    """The points tau that each sample visited, each of shape ``(batch,)``; the end is repeated for early arrivals."""


Field = Callable[[Tensor, Where], Rates]
"""The velocity and the divergence at a state and a place of the flow."""


class _History(NamedTuple):
    """The last evaluations of each sample, the newest first."""

    tau: Tensor  # (nodes, batch)
    slopes: Tensor  # (nodes, batch, *event)
    densities: Tensor  # (nodes, probes, batch)
    known: Tensor  # (batch,), how many evaluations there are

    @classmethod
    def of(cls, tau: Tensor, rates: Rates) -> _History:
        return _History(
            torch.stack([tau] * max(ORDER, QUADRATURE - 1)),
            torch.stack([rates.slope] * ORDER),
            torch.stack([rates.density] * (QUADRATURE - 1)),
            torch.ones_like(tau, dtype=torch.int64),
        )

    def longer(self, tau: Tensor, rates: Rates) -> _History:
        """Return the history with one more evaluation in front."""
        return _History(
            torch.cat([tau[None], self.tau]),
            torch.cat([rates.slope[None], self.slopes]),
            torch.cat([rates.density[None], self.densities]),
            self.known + 1,
        )

    def shortened(self) -> _History:
        """Return the history without its oldest evaluation."""
        return _History(self.tau[:-1], self.slopes[:-1], self.densities[:-1], self.known)

    def where(self, good: Tensor, other: _History) -> _History:
        """Return this history for the samples that are ``good``, and the other one for the others."""
        return _History(
            torch.where(good, self.tau, other.tau),
            torch.where(expand(good, self.slopes[0]), self.slopes, other.slopes),
            torch.where(good, self.densities, other.densities),
            torch.where(good, self.known, other.known),
        )

    def first(self, most: int | Tensor, of: int) -> Tensor:
        """Return which of the ``of`` newest evaluations there are, and at most ``most``, shape ``(of, batch)``."""
        return torch.arange(of, device=self.known.device)[:, None] < self.known.clamp(max=most)


def interpolation_weights(nodes: Tensor, use: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the weights of the integral from ``start`` to ``end`` of the polynomial through some of the nodes.

    Args:
        nodes: shape ``(n, batch)``, float64, with n at most 10.
        use: the nodes of the polynomial, the same shape; those that are used are distinct.
        start, end: shape ``(batch,)``.

    Returns:
        The weights, shape ``(n, batch)``; zero where a node is not used.

    Example:
        >>> nodes = torch.tensor([[0.0], [-1.0], [7.0]], dtype=torch.float64)
        >>> use = torch.tensor([[True], [True], [False]])
        >>> weights = interpolation_weights(nodes, use, nodes[0], nodes[0] + 1)  # Adams-Bashforth of order 2
        >>> [round(w, 12) for w in weights[:, 0].tolist()]
        [1.5, -0.5, 0.0]
    """
    at, shares = (c.to(nodes.device)[:, None] for c in gauss_legendre(5))
    points = start + (end - start) * at  # (points, batch)
    others = use[None] & ~torch.eye(len(nodes), dtype=torch.bool, device=nodes.device)[:, :, None]
    apart = torch.where(others & use[:, None], nodes[:, None] - nodes[None], 1.0)
    factors = torch.where(others[:, :, None], (points - nodes[:, None]) / apart[:, :, None], 1.0)
    values = factors.prod(1)  # of the Lagrange polynomials, (n, points, batch)
    return torch.where(use, (end - start) * (shares * values).sum(1), 0.0)


class Course(NamedTuple):
    """How far the flow of each sample has been followed, with all that the next step needs."""

    tau: Tensor
    """Where each sample is, shape ``(batch,)``."""
    w: Tensor
    """The state there, shape ``(batch, *event)``."""
    score: Tensor
    """eps / u there, without gradients; shape of the state."""
    history: _History
    gained: Tensor
    """The integral of G so far, shape ``(probes, batch)``."""
    error: Tensor
    """The sum of the errors of the steps so far, shape ``(batch,)``."""

    @classmethod
    def start(cls, field: Field, w: Tensor, where: Where) -> Course:
        """Return the beginning of a flow, after its first evaluation."""
        rates, tau = field(w, where), where.tau.expand(len(w))
        zero = torch.zeros_like(rates.density)
        return cls(tau, w, rates.score(tau), _History.of(tau, rates), zero, torch.zeros_like(tau))

    def attempt(self, field: Field, there: Where) -> tuple[Course, Tensor, Tensor]:
        """Attempt one step of every sample; samples that are at their goals stay.

        Returns:
            The course after the step, the error of the step in nats and what rounding leaves of it, shape ``(batch,)``.
        """
        goal, history, w = there.tau.expand(len(self.w)), self.history, self.w
        moving = goal > self.tau
        ahead = torch.where(moving, goal, self.tau + FIRST)  # nodes of a polynomial are distinct, also without a step
        predicted = torch.where(expand(moving, w), _predicted(history, w, self.tau, ahead), w)
        rates = field(predicted, there)
        newer = history.longer(ahead, rates)
        corrected, added, errors = _corrected(newer, w, self.tau, ahead)
        score = rates.score(ahead)
        change = _product(corrected.detach() - predicted.detach(), score - self.score)
        found = _nats(*errors, rates.eps, ahead) + change.abs()
        rounding = 10 * torch.finfo(w.dtype).eps * (rates.eps.flatten(1).double().square().sum(1) + w[0].numel())
        after = Course(goal, corrected, score, newer.shortened(), self.gained + added + change, self.error + found)
        return after.where(moving, self), found, rounding

    def where(self, good: Tensor, other: Course) -> Course:
        """Return this course for the samples that are ``good``, and the other one for the others."""
        w, score = (torch.where(expand(good, a), a, b) for a, b in ((self.w, other.w), (self.score, other.score)))
        history = self.history.where(good, other.history)
        tau, gained, error = (
            torch.where(good, a, b)
            for a, b in ((self.tau, other.tau), (self.gained, other.gained), (self.error, other.error))
        )
        return Course(tau, w, score, history, gained, error)

    def along(self, field: Field, nodes: Sequence[Where]) -> Course:
        """Return the course after steps to the given points."""
        course = self
        for there in nodes:
            course, *_ = course.attempt(field, there)
        return course

    def solved(self, nodes: list[Tensor]) -> Solved:
        """Return the end of the flow."""
        return Solved(self.w, self.gained, CAUTION * self.error, self.history.densities[0], nodes)


def follow(field: Field, w: Tensor, clock: Clock, tolerance: float) -> Solved:
    """Follow the flow from data to noise, by steps that keep to a tolerance.

    Args:
        field: the rates at a state and a point.
        w: the state at the first point, shape ``(batch, *event)``.
        clock: the clock of the flow.
        tolerance: the error of the log-density in nats that all steps together may make.

    Raises:
        ArithmeticError: if steps become zero, rates are not finite, or the end is not reached in 10,000 attempts.
    """
    start, end = clock.ends
    tau = torch.full((len(w),), start, dtype=torch.float64, device=w.device)
    course = Course.start(field, w, clock.at(tau))
    visited = [(tau, torch.ones_like(tau, dtype=torch.bool))]
    length, again = torch.full_like(tau, FIRST), torch.zeros_like(tau, dtype=torch.bool)
    for _ in range(MOST_ATTEMPTS):
        there = clock.at(_goal(course.tau, length, end))
        after, found, rounding = course.attempt(field, there)
        moving, taken = there.tau > course.tau, (there.tau - course.tau).clamp(min=SHORTEST)
        ratio = found / (SHARE * tolerance * (taken / (end - start)).sqrt() + rounding)
        good = moving & (ratio <= 1)
        bad = moving & ~good
        length = torch.where(moving, _next_length(ratio, taken, course.history.known, again | bad), length)
        again = bad
        course = after.where(good, course)
        visited.append((there.tau, good))
        # The one wait for the device in each attempt.
        going, lost = torch.stack([(course.tau < end).any(), (length < SHORTEST).any()]).tolist()
        if lost:
            raise ArithmeticError(
                f"the step of the likelihood became zero at t={float(there.t[length < SHORTEST][0]):.6g}: its error "
                f"stays above the tolerance in {str(w.dtype).removeprefix('torch.')}, or is not finite. Check that the "
                "network is finite and smooth there, take a larger tolerance, float64, or steps=50"
            )
        if not going:
            return course.solved(_compressed(visited, end))
    raise ArithmeticError(
        f"the likelihood made {MOST_ATTEMPTS} attempts and has come no farther than tau={float(course.tau.min()):.6g} of "
        f"{end:.6g}; take a larger tolerance, or steps=50"
    )


def _goal(tau: Tensor, length: Tensor, end: float) -> Tensor:
    """Return the goals of the next steps; the last two of a path are equally long."""
    left = end - tau
    length = torch.where((left > length) & (left < 1.8 * length), 0.5 * left, length)
    return torch.where(length >= left * (1 - 1e-9), end, tau + length)


def _next_length(ratio: Tensor, taken: Tensor, known: Tensor, again: Tensor) -> Tensor:
    """Return the length of the next attempts; the ratio grows with the power order + 1/2 of the length."""
    order = known.clamp(max=ORDER).to(ratio.dtype) + 0.5
    factor = 0.75 * torch.nan_to_num(ratio, nan=1e10).clamp(1e-10, 1e10) ** (-1 / order)
    factor = factor.clamp(0.2, 2.0)
    return (torch.where(again, factor.clamp(max=1.0), factor) * taken).clamp(max=LONGEST)


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sum over the first dimension of ``values``, shape ``(n, batch, *event)``, weighted by ``(n, batch)``."""
    shaped = weights.to(values.dtype).reshape(*weights.shape, *[1] * (values.ndim - 2))
    return (shaped * values).sum(0)


def _predicted(history: _History, w: Tensor, tau: Tensor, goal: Tensor) -> Tensor:
    weights = interpolation_weights(history.tau[:ORDER].exp(), history.first(ORDER, ORDER), tau.exp(), goal.exp())
    return w + _sum(weights, history.slopes)


def _corrected(newer: _History, w: Tensor, tau: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return the corrected state, the gain of the density, and the errors of both; the newest evaluation is at ``goal``."""
    fewer = newer.known - 1  # one node less
    uses = [newer.first(most, QUADRATURE) for most in (ORDER + 1, fewer.clamp(max=ORDER), QUADRATURE)]
    uses.append(newer.first(fewer.clamp(max=QUADRATURE - 1), QUADRATURE))
    # The four polynomials of each sample in one call: of N in u and of G in tau, each with and without its oldest node.
    nodes, start, end = (torch.cat([c.exp(), c.exp(), c, c], -1) for c in (newer.tau[:QUADRATURE], tau, goal))
    of_state, lower, of_density, below = interpolation_weights(nodes, torch.cat(uses, 1), start, end).chunk(4, 1)
    delta = _sum((of_state - lower)[: ORDER + 1], newer.slopes.detach())
    wrong = ((of_density - below)[:, None] * newer.densities.detach()).sum(0).mean(0)
    corrected = w + _sum(of_state[: ORDER + 1], newer.slopes)
    return corrected, (of_density[:, None] * newer.densities).sum(0), (delta, wrong)


def _nats(delta: Tensor, wrong: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
    """Return the error of a step in nats, shape ``(batch,)``, float64: see the module."""
    z = delta / expand(tau.exp(), delta).to(delta)
    return _product(z, eps).abs() + 0.5 * _product(z, z) + wrong.abs()


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.flatten(1).double() * b.flatten(1).double()).sum(1)


def _compressed(visited: list[tuple[Tensor, Tensor]], end: float) -> list[Tensor]:
    """Return the accepted points of each sample, in order, with the end repeated."""
    goals, good = (torch.stack(column) for column in zip(*visited, strict=True))
    order = torch.argsort((~good).to(torch.int8), dim=0, stable=True)
    kept = torch.where(good.gather(0, order), goals.gather(0, order), end)
    return list(kept[: int(good.sum(0).max())])
