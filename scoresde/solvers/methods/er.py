r"""ER-SDE-Solver: the reverse SDE with a noise given by a function of rho = sigma / alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from scoresde.solvers import scalar
from scoresde.solvers.history import finishing, most_nodes
from scoresde.solvers.path import Path, Point
from scoresde.solvers.rows import apart, first_move, forward_move, kernel_of_decay, last_move, newest_first
from scoresde.solvers.solver import Description, RowSolver, maker
from scoresde.solvers.updates import Row

__all__ = ["er_sde_solver", "power"]

CUI = "Cui et al. 2023, arXiv:2309.06169"

Scale = Callable[[float], float]


def power(eta: float) -> Scale:
    """Return phi(rho) = rho^(1 + eta), the scale of ``Data(eta)``: eta = 0 is the flow, eta = 1 the time reversal."""
    return lambda rho: rho ** (1 + eta)


def _fifth(rho: float) -> float:
    return rho * (scalar.exp(rho**0.3) + 10)


@maker
def er_sde_solver(order: int = 3, scale: Scale = _fifth, variant: str = "published", finish: str = "published") -> RowSolver:
    r"""Return ER-SDE-Solver-1, -2 or -3: with :math:`r = \phi(\rho_v) / \phi(\rho_u)`,

    .. math:: \frac{x_v}{\alpha_v} = r \frac{x_u}{\alpha_u}
              + \phi(\rho_v) \int_{\rho_v}^{\rho_u} \frac{\phi'(\rho)}{\phi(\rho)^2}\, m(\rho)\, d\rho
              + \sqrt{\rho_v^2 - r^2 \rho_u^2}\; \xi

    with m constant (1), linear (2) or quadratic (3) in rho through the last points. The share of noise eta follows from
    :math:`1 + \eta = d \log \phi / d \log \rho`. :func:`power` gives a constant eta, with which order 1 is
    SDE-DPM-Solver++(1).

    Args:
        order: the number of points of the polynomial, 1, 2 or 3.
        scale: the function phi, positive, with phi(rho) / rho not decreasing; by default the authors' choice
            :math:`\rho\, (e^{\rho^{0.3}} + 10)`.
        variant: the rule. ``"published"`` sums the integrals over 100 points and takes the backward difference for the
            derivative; ``"exact"`` integrates the polynomial, by Gauss's rule.
        finish: the finish. ``"published"`` and ``"same"`` keep the order to the end, as the authors' code does; for
            ``"lower-order"`` see :func:`~scoresde.solvers.finishing`. There is no singlestep method of this kind.

    Order 1 has weak order 1. Orders 2 and 3 have weak order 2 with ``"exact"``. As published they have weak order 1, by the
    error of their sums, which is some hundred times smaller than the error of order 1. Source: Cui et al., "Elucidating the
    solution space of extended reverse-time SDE for diffusion models", 2023, algorithms 1 to 3.

    Raises:
        ValueError: if ``order`` is not 1, 2 or 3, ``variant`` is unknown, or ``finish`` is unknown or ``"high-order"``.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 2.0], end="stop")
        >>> row = er_sde_solver(1, scale=power(1.0)).rows(path)[0]  # the time reversal: r = (rho_v / rho_u)^2
        >>> round(row.a, 6), round(row.w[0], 6), round(row.s[0] ** 2, 6)
        (0.25, 0.75, 3.0)
    """
    if order not in (1, 2, 3):
        raise ValueError(f"got order={order}; expected 1, 2 or 3")
    if variant not in ("published", "exact"):
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")

    end = finishing(finish)
    if end.kind == "high-order":
        raise ValueError("got finish='high-order', for which there is no singlestep step; expected 'same' or 'lower-order'")

    def rows(path: Path) -> list[Row]:
        out: list[Row] = []
        past: list[float] = []  # rho at the evaluations, newest first
        nodes_at = iter(most_nodes(path, order, end))
        for u, v in path.moves:
            if v.sigma == 0:
                out.append(last_move(path))
            elif v.lam < u.lam:
                out.append(forward_move(u, v))
                past = []
            elif u.log_alpha == -math.inf:
                next(nodes_at)
                out.append(first_move(u, v, 1.0))
            else:
                past = [scalar.exp(-u.lam), *past[: order - 1]]
                nodes = apart(past, scalar.exp(-v.lam) - past[0])[: next(nodes_at)]
                row = _row(u, v, [past[i] for i in nodes], scale, variant)
                out.append(replace(row, w=newest_first(row.w, [-i for i in nodes], 1)))
        return out

    weak = min(order, 2) if variant == "exact" else 1
    description = Description(f"er-sde-{order}", "stochastic", CUI, weak_order=weak, stochastic=True)
    return RowSolver(description if variant == "exact" else replace(description, constants=()), rows)


def _row(u: Point, v: Point, past: list[float], scale: Scale, variant: str) -> Row:
    here, there = past[0], scalar.exp(-v.lam)
    r = scale(there) / scale(here)
    variance = (there + r * here) * (there - r * here)
    if not (r > 0 and variance > -1e-12 * there**2):
        raise ValueError(
            f"got a scale that falls from {scale(here) / here:.6g} to {scale(there) / there:.6g} in units of rho between "
            f"rho={here:.6g} and {there:.6g}, or is not positive; expected scale(rho) / rho not to decrease with rho"
        )
    s = v.alpha * scalar.sqrt(variance) if variance > 1e-12 * there**2 else 0.0  # zero up to rounding is zero
    w = [1 - r]
    if len(past) > 1:
        first, second = (_published if variant == "published" else _gauss)(scale, here, there)
        slope = there - here + scale(there) * first
        slopes = _difference(past[:2])
        w = [(w[0] if i == 0 else 0.0) + slope * d for i, d in enumerate(slopes)]
        if len(past) > 2:
            bend = 0.5 * (there - here) ** 2 + scale(there) * second
            if variant == "exact":  # the derivative of the parabola at its newest point
                bend += 0.5 * slope * (past[0] - past[1])
            bends = [2 * d for d in _second_difference(past)]
            w = [a + bend * b for a, b in zip([*w, 0.0], bends, strict=True)]
    a = scalar.exp(v.log_alpha - u.log_alpha) * r
    return Row(
        to=v,
        at=u,
        a=a,
        w=tuple(v.alpha * weight for weight in w),
        s=(s,) if s else (),
        draw=(u, v) if s else None,
        kernel=kernel_of_decay(u, v, a) if s else 0.0,
    )


def _difference(rho: Sequence[float]) -> list[float]:
    return [1 / (rho[0] - rho[1]), 1 / (rho[1] - rho[0])]


def _second_difference(rho: Sequence[float]) -> list[float]:
    a, b, c = rho
    return [1 / ((a - b) * (a - c)), 1 / ((b - a) * (b - c)), 1 / ((c - a) * (c - b))]


def _published(scale: Scale, here: float, there: float) -> tuple[float, float]:
    """Integrate 1 / phi and (rho - rho_u) / phi from v to u by the authors' sums."""
    width = (here - there) / 100
    rho = [there + k * width for k in range(100)]
    phi = [scale(x) for x in rho]
    return scalar.fsum(width / f for f in phi), scalar.fsum((x - here) * width / f for x, f in zip(rho, phi, strict=True))


@cache
def _legendre() -> tuple[list[float], list[float]]:
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(20)
    return nodes.tolist(), weights.tolist()


def _gauss(scale: Scale, here: float, there: float) -> tuple[float, float]:
    """Integrate 1 / phi and (rho - rho_u) / phi from v to u by Gauss's rule in log rho, where every useful phi is smooth."""
    half, middle = 0.5 * scalar.log(here / there), 0.5 * scalar.log(here * there)
    nodes, weights = _legendre()
    rho = [scalar.exp(middle + half * x) for x in nodes]
    terms = [half * weight * x / scale(x) for weight, x in zip(weights, rho, strict=True)]
    return scalar.fsum(terms), scalar.fsum(term * (x - here) for term, x in zip(terms, rho, strict=True))
