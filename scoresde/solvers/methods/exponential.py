"""Exponential integrators of the probability flow with one evaluation a step: DDIM and the multistep DPM-Solvers.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scoresde.solvers import scalar, stencil
from scoresde.solvers.coefficients import exponential_moments
from scoresde.solvers.history import (
    Finish,
    Rule,
    constant_weight,
    exact_rule,
    finishing,
    high_order,
    multistep_rows,
    reached_order,
    step_stencils,
)
from scoresde.solvers.path import Point
from scoresde.solvers.prediction import Data, Noise, Prediction
from scoresde.solvers.rows import each_step, kernel_of_decay, one_step, stencil_rows
from scoresde.solvers.solver import Description, RowSolver, compose, maker
from scoresde.solvers.updates import Row

__all__ = ["ddim", "dpm_multistep", "dpmpp_2m", "dpmpp_3m"]

DDIM = "Song et al. 2020, arXiv:2010.02502"
DPM = "Lu et al. 2022, arXiv:2206.00927"
DPMPP = "Lu et al. 2022, arXiv:2211.01095"

LU_FINISH = Finish("lower-order", below=10)
"""The default finish of DPM-Solver's code (``lower_order_final=True``): a lower order with fewer than 10 steps."""


HALF_A_PARABOLA = ((2, 1 / 12),)
"""The error constant of the published rule of three nodes, which misses half of the integral of a parabola."""


@maker
def ddim(eta: float = 0.0) -> RowSolver:
    r"""Return DDIM, a one-step method with any share ``eta`` of the posterior's noise.

    .. math:: x_v = \alpha_v m + \sqrt{\sigma_v^2 - s^2}\, \epsilon + s\, \xi, \qquad
              s = \eta\, \sigma_v \sqrt{1 - e^{-2 h}}

    eta = 0 is DPM-Solver-1 and Euler's method in rho. eta = 1 is the ancestral sampler of DDPM.
    Source: Song et al., "Denoising Diffusion Implicit Models", 2020, equations (12) and (16).

    Raises:
        ValueError: if ``eta`` is not between 0 and 1.

    Example:
        >>> from scoresde import EDM, solvers
        >>> row = ddim().rows(solvers.make_path(EDM(), [4.0, 1.0], end="stop"))[0]
        >>> round(row.a, 6), round(row.w[0], 6)  # x_v = x_u / 4 + 3 m / 4
        (0.25, 0.75)
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta={eta}; expected a number between 0 (deterministic) and 1 (DDPM's noise)")

    def rule(u: Point, v: Point) -> Row:
        s = eta * v.sigma * scalar.sqrt(-scalar.expm1(-2 * (v.lam - u.lam)))
        # eps = (x - alpha_u m) / sigma_u, collected in x and m.
        a = scalar.sqrt(max(v.sigma**2 - s**2, 0.0)) / u.sigma
        return one_step(u, v, a=a, w=v.alpha - a * u.alpha, s=s, kernel=kernel_of_decay(u, v, a) if s else 0.0)

    if eta == 0:  # the same row, with alpha_v (1 - e^{-h}) in the form that does not cancel
        return compose(Description("ddim", "exponential", DDIM, order=1), Data(), stencil.multistep(1))
    return RowSolver(
        Description("ddim", "ancestral", DDIM, weak_order=1, stochastic=True), lambda path: each_step(rule, path)
    )


def _two_nodes(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """Return the weights of the published two-step rule: the line through both nodes at half the step, held constant."""
    constant = constant_weight(prediction, u, v)
    if len(nodes) == 1:
        return [constant]
    half = 0.5 * (v.lam - u.lam) / (u.lam - nodes[1].lam)
    return [constant * (1 + half), -constant * half]


def _three_nodes(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """Return the weights of the published three-step rule: m + theta D1 + theta^2 D2 / 2 over 0 <= theta <= 1.

    D1 and D2 are the coefficients of the parabola through the three nodes, m + theta D1 + theta^2 D2.
    """
    h = v.lam - u.lam
    r0, r1 = (u.lam - nodes[1].lam) / h, (nodes[1].lam - nodes[2].lam) / h
    m0, m1, m2 = (prediction.gain(v) * h * m for m in exponential_moments(prediction.rate * h, 3))
    newest, before = m1 + m1 * r0 / (r0 + r1) + 0.5 * m2 / (r0 + r1), -m1 * r0 / (r0 + r1) - 0.5 * m2 / (r0 + r1)
    return [m0 + newest / r0, -newest / r0 + before / r1, -before / r1]


def _variant(
    description: Description, prediction: Prediction, order: int, variant: str, start: str, finish: str, published: Rule
) -> RowSolver:
    """Return the solver of the published rule, or of the exact interpolation through ``order`` nodes, with either start."""
    if variant not in ("published", "exact"):
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")
    opening, end = high_order(order, start), finishing(finish, LU_FINISH)
    if variant == "published":
        return RowSolver(
            description, lambda path: multistep_rows(prediction, path, (order, published), opening=opening, finish=end)
        )
    return RowSolver(
        replace(description, order=reached_order(order, start, end), constants=None),
        lambda path: stencil_rows(prediction, step_stencils(path, opening, order, stencil.multistep, end), path),
    )


@maker
def dpmpp_2m(variant: str = "published", finish: str = "published") -> RowSolver:
    r"""Return DPM-Solver++(2M), the two-step method in the data prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v (1 - e^{-h})
              \left[ \left(1 + \frac{1}{2r}\right) m_u - \frac{1}{2r} m_{u-1} \right], \qquad r = \frac{h_{u-1}}{h}

    This is the published rule; ``variant="exact"`` integrates the line through both predictions exactly. The first step
    is DDIM. :func:`~scoresde.solvers.finishing` explains ``finish``.

    The defaults follow the authors' code. With fewer than 10 steps to the last point before sigma = 0 the last step is DDIM
    too (their ``lower_order_final``; diffusers and older copies do so with fewer than 15 steps). k-diffusion's
    ``sample_dpmpp_2m`` keeps its order: it is ``finish="same"``.
    Source: Lu et al., "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095, algorithm 2, and their code.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "t", 5, end="stop")
        >>> [len(row.w) for row in dpmpp_2m().rows(path)]  # the predictions that each step takes
        [1, 2, 2, 2, 1]
        >>> [len(row.w) for row in dpmpp_2m(finish="same").rows(path)]
        [1, 2, 2, 2, 2]
    """
    description = Description("dpmpp-2m", "exponential", DPMPP, order=2)
    return _variant(description, Data(), 2, variant, "published", finish, _two_nodes)


@maker
def dpmpp_3m(variant: str = "published", start: str = "published", finish: str = "published") -> RowSolver:
    r"""Return DPM-Solver++(3M), the three-step method in the data prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v h \left[ M_0\, m_u + M_1 D_1 + c\, M_2 D_2 \right], \qquad
              M_k = \int_0^1 e^{-h (1 - \theta)} \theta^k\, d\theta

    with :math:`m_u + \theta D_1 + \theta^2 D_2` the parabola through the three newest predictions. The published rule has
    c = 1/2 and is second order. The exact rule has c = 1 and is third order with ``start="high-order"``. The published
    start, DDIM and then two nodes, limits both to second order. At few steps the published rule can be the more accurate.

    The defaults follow the authors' code. The second step is a step of :func:`dpmpp_2m`. With fewer than 10 steps the last
    two are a step of :func:`dpmpp_2m` and DDIM. ``variant="k-diffusion"`` is k-diffusion's ``sample_dpmpp_3m_sde`` without
    noise, which integrates the line through two nodes exactly and keeps its order to the end.

    Args:
        variant: the rule: ``"published"``, ``"k-diffusion"`` or ``"exact"``.
        start: the starting procedure: ``"published"`` uses the history that there is, ``"high-order"`` takes singlestep
            steps first.
        finish: the finish, see :func:`~scoresde.solvers.finishing`.

    Source: Lu et al., "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095, their code.

    Raises:
        ValueError: if ``variant``, ``start`` or ``finish`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "lam", 5, end="stop")
        >>> [len(row.w) for row in dpmpp_3m().rows(path)]  # the predictions that each step takes
        [1, 2, 3, 2, 1]
        >>> [len(row.w) for row in dpmpp_3m(finish="same").rows(path)]
        [1, 2, 3, 3, 3]
    """
    description = Description("dpmpp-3m", "exponential", DPMPP, order=2, constants=HALF_A_PARABOLA)
    if variant == "k-diffusion":
        opening, end = high_order(3, start), finishing(finish)
        return RowSolver(
            description, lambda path: multistep_rows(Data(), path, (3, _exact_to_two), opening=opening, finish=end)
        )
    return _variant(description, Data(), 3, variant, start, finish, _up_to_three)


def _up_to_three(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """Return the weights of the authors' code, for three nodes or as many as there are."""
    return (_three_nodes if len(nodes) == 3 else _two_nodes)(prediction, u, v, nodes)


def _exact_to_two(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """Return the weights of k-diffusion's code, which is exact for fewer than three nodes."""
    return (_three_nodes if len(nodes) == 3 else exact_rule)(prediction, u, v, nodes)


@maker
def dpm_multistep(
    order: int = 2, variant: str = "published", start: str = "published", finish: str = "published"
) -> RowSolver:
    r"""Return the multistep DPM-Solver: :func:`dpmpp_2m` or :func:`dpmpp_3m` in the noise prediction.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u - \sigma_v (e^h - 1)
              \left[ \left(1 + \frac{1}{2r}\right) \epsilon_u - \frac{1}{2r} \epsilon_{u-1} \right],
              \qquad r = \frac{h_{u-1}}{h}

    With order 3 the first step through two nodes has this rule. The later steps have the rule of :func:`dpmpp_3m`, with
    c = 1/2 as published. ``variant="exact"`` is exponential Adams-Bashforth, :func:`~scoresde.solvers.deis` in lam.
    ``start`` and ``finish`` work as in :func:`dpmpp_3m`, with the same defaults.
    Source: Lu et al., "DPM-Solver++", 2022, their code (``algorithm_type="dpmsolver"``).

    Raises:
        ValueError: if ``order`` is not 2 or 3, or ``variant``, ``start`` or ``finish`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "lam", 4, end="stop")
        >>> [len(row.w) for row in dpm_multistep(3, finish="same").rows(path)]  # the predictions that each step takes
        [1, 2, 3, 3]
    """
    if order not in (2, 3):
        raise ValueError(f"got order={order!r}; expected 2 or 3")
    constants = HALF_A_PARABOLA if order == 3 else None
    description = Description(f"dpm-{order}m", "exponential", DPM, order=2, constants=constants)
    return _variant(description, Noise(), order, variant, start, finish, _up_to_three)
