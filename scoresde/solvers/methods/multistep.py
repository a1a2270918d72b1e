r"""Multistep methods for the probability flow with one evaluation a step: DEIS, LMS, PNDM, iPNDM, velocity.

Notation of the formulas: a step goes from u to v, towards the data; :math:`\rho = \sigma / \alpha`, in which
:math:`x / \alpha` has the slope eps; eps_0, eps_1, .. are the noise predictions at u and at the starts of the steps before
it; h, h_1, h_2, .. are the lengths in rho of this step and of those before it.

All of them start with DDIM, since there is no history yet, which limits them to second order. ``start="high-order"`` takes
singlestep steps first. All keep their order to the end by default, as the authors' code does. ``finish`` changes that, see
:func:`~scoresde.solvers.finishing`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from scoresde.sde import GaussianSDE
from scoresde.solvers import scalar, stencil
from scoresde.solvers.coefficients import gauss_legendre, lagrange_weights
from scoresde.solvers.history import (
    Opening,
    Rule,
    constant_weight,
    exact_rule,
    finishing,
    high_order,
    multistep_rows,
    reached_order,
    step_stencils,
)
from scoresde.solvers.path import Path, Point, points
from scoresde.solvers.prediction import Noise, Prediction, Rho, Velocity
from scoresde.solvers.rows import stencil_rows
from scoresde.solvers.solver import Description, RowSolver, maker
from scoresde.solvers.stencil import Stage, Stencil
from scoresde.solvers.updates import Row

__all__ = ["deis", "gradient_estimation", "ipndm", "ipndm_v", "lms", "plms", "pndm", "velocity"]

DEIS = "Zhang & Chen 2023, arXiv:2204.13902"
CROWSON = "Crowson 2022, k-diffusion"
LIU_2022 = "Liu et al. 2022, arXiv:2202.09778"
RECTIFIED = "Liu et al. 2023, arXiv:2209.03003"
ZHOU = "Zhou et al. 2024, arXiv:2312.00094"
PERMENTER = "Permenter & Yuan 2024, arXiv:2306.04848"

ADAMS: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""The Adams-Bashforth weights of equal steps, by the number of nodes."""


def _exact(description: Description, prediction: Prediction, order: int, start: str, finish: str) -> RowSolver:
    opening, end = high_order(order, start), finishing(finish)
    return RowSolver(
        replace(description, order=reached_order(order, start, end)),
        lambda path: stencil_rows(prediction, step_stencils(path, opening, order, stencil.multistep, end), path),
    )


def _by_rule(
    description: Description, prediction: Prediction, order: int, rule: Rule, finish: str, opening: Sequence[Opening] = ()
) -> RowSolver:
    end = finishing(finish)
    return RowSolver(description, lambda path: multistep_rows(prediction, path, (order, rule), opening=opening, finish=end))


@maker
def deis(order: int = 3, clock: str = "lam", start: str = "published", finish: str = "published") -> RowSolver:
    r"""Return DEIS, exponential Adams-Bashforth, which integrates a polynomial through ``order`` values of eps exactly.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u + \alpha_v \int_{\rho_u}^{\rho_v} P\, d\rho

    Args:
        order: the number of nodes, 1 to 4, which is also the number in the names. The authors count the degree of P:
            "tab-3" and "rhoab-3" are their ``ab_order=2``. Order 1 is DDIM.
        clock: the variable of the polynomial P: ``"lam"`` (log-rho), ``"t"`` (tAB-DEIS) or ``"rho"`` (rhoAB-DEIS, which is
            :func:`lms`).
        start: the starting procedure, ``"published"`` or ``"high-order"``.
        finish: the finish. The authors keep the order to the end; diffusers lowers it with fewer than 15 steps by default.

    Gauss-Legendre quadrature in lam computes the integral in t to rounding, where the authors sum over 10,000 points. In t
    the sample depends on the SDE, in lam and rho it does not.
    Source: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023,
    https://arxiv.org/abs/2204.13902, and their code.

    Raises:
        ValueError: if ``order`` is not 1 to 4, or ``clock``, ``start`` or ``finish`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "t", 5, end="stop")
        >>> [len(row.w) for row in deis(3).rows(path)]  # the values of eps that each step takes
        [1, 2, 3, 3, 3]
        >>> deis(3, clock="t")
        <solver tab-3>
    """
    names = {"lam": "deis", "t": "tab", "rho": "rhoab"}
    if clock not in names:
        raise ValueError(f"got clock={clock!r}; expected 'lam', 't' or 'rho'")
    opening, end = high_order(order, start), finishing(finish)
    description = Description(f"{names[clock]}-{order}", "multistep", DEIS, order=reached_order(order, start, end))
    if clock != "t":
        return _exact(description, Noise() if clock == "lam" else Rho(), order, start, finish)

    def rows(path: Path) -> list[Row]:
        return multistep_rows(Noise(), path, (order, _polynomial_in_t(path)), opening=opening, finish=end)

    return RowSolver(description, rows)


def _polynomial_in_t(path: Path) -> Rule:
    r"""Return the rule of tAB-DEIS on a path, from the integrals of theta^k over each step, theta = (t - t_u) / (t_v - t_u).

    The quadrature nodes of all steps take one call of the SDE.
    """
    moves = [(u, v) for u, v in path.moves if v.sigma > 0 and -math.inf < u.lam < v.lam]
    powers_of = dict(zip(moves, _powers_of_t(path.sde, moves), strict=True)) if moves else {}

    def rule(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
        if not scalar.isfinite(u.lam):
            return [constant_weight(prediction, u, v)]
        theta = [(node.t - u.t) / (v.t - u.t) for node in nodes]
        return [prediction.gain(v) * w for w in lagrange_weights(theta, powers_of[u, v][: len(nodes)])]

    return rule


def _powers_of_t(sde: GaussianSDE, moves: Sequence[tuple[Point, Point]]) -> list[list[float]]:
    x, weights = gauss_legendre()
    lam_u, lam_v, t_u, t_v = (
        scalar.vector(column)[:, None] for column in zip(*((u.lam, v.lam, u.t, v.t) for u, v in moves), strict=True)
    )
    lam = lam_u + (lam_v - lam_u) * x
    theta = (sde.time(lam) - t_u) / (t_v - t_u)
    kernel = (lam_v - lam_u) * weights * torch.exp(lam_v - lam)
    powers = torch.stack([(kernel * theta**k).sum(1) for k in range(4)], 1)
    return (
        [[cast(float, c.as_subclass(scalar.Coefficient)) for c in row] for row in powers]
        if powers.requires_grad
        else powers.tolist()
    )


@maker
def lms(order: int = 4, start: str = "published", finish: str = "published") -> RowSolver:
    r"""Return the linear multistep method (Adams-Bashforth with varying steps) in rho: k-diffusion's LMS, rhoAB-DEIS.

    .. math:: \frac{x_v}{\alpha_v} = \frac{x_u}{\alpha_u} + \int_{\rho_u}^{\rho_v} P(\rho)\, d\rho

    with P the polynomial through the newest ``order`` values of eps, 1 to 4. Order 1 is DDIM, Euler in rho.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = lms(2).rows(solvers.make_path(EDM(), [8.0, 4.0, 2.0], end="stop"))
        >>> [[round(w, 6) for w in row.w] for row in rows]  # the line through eps at rho = 4 and 8, integrated from 4 to 2
        [[-4.0], [-2.5, 0.5]]
    """
    return _exact(Description("lms", "multistep", CROWSON), Rho(), order, start, finish)


@maker
def velocity(order: int = 2, start: str = "published", finish: str = "published") -> RowSolver:
    r"""Return the multistep method in the velocity eps - m, with the clock :math:`\tau = \sigma / (\alpha + \sigma)`.

    .. math:: \frac{x_v}{\alpha_v + \sigma_v} = \frac{x_u}{\alpha_u + \sigma_u} + \int_{\tau_u}^{\tau_v} P(\tau)\, d\tau

    with P the polynomial through the newest ``order`` velocities, 1 to 4. It serves every SDE, and can start at alpha = 0.
    On :class:`~scoresde.RectifiedFlow`, where tau = t, order 1 is Euler's method, the sampler of Liu et al., "Flow Straight
    and Fast", 2023.

    Example:
        >>> from scoresde import RectifiedFlow, solvers
        >>> row = velocity(1).rows(solvers.make_path(RectifiedFlow(), [0.75, 0.5], end="stop"))[0]
        >>> round(row.a, 6), round(row.w[0], 6)  # Euler's step
        (1.0, -0.25)
    """
    return _exact(Description(f"velocity-{order}", "multistep", RECTIFIED), Velocity(), order, start, finish)


def _classical(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    constant = constant_weight(prediction, u, v)
    return [constant * w for w in ADAMS[len(nodes) - 1]]


def _numbered(name: str, order: int) -> str:
    """Return the name in the table, which has no number for order 4, the default."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"got order={order!r}; expected 1, 2, 3 or 4")
    return name if order == 4 else f"{name}-{order}"


@maker
def ipndm(order: int = 4, finish: str = "published") -> RowSolver:
    r"""Return iPNDM: a DDIM step with the Adams-Bashforth combination of the newest eps, by the weights of equal steps.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u + \alpha_v (\rho_v - \rho_u)\, \bar\epsilon, \qquad
              \bar\epsilon = \tfrac{1}{24} (55 \epsilon_0 - 59 \epsilon_1 + 37 \epsilon_2 - 9 \epsilon_3)

    with fewer terms (23, -16, 5 over 12; 3, -1 over 2; 1) while there are fewer. eps-bar is the average over the step in
    the step's number, not in rho. So the method is second order, whatever the weights; at few steps it can be among the
    most accurate all the same.
    Source: Zhang and Chen, 2023, section 3.3, with the weights of :func:`pndm`.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = ipndm(2).rows(solvers.make_path(EDM(), [8.0, 4.0, 2.0], end="stop"))
        >>> [[round(w, 6) for w in row.w] for row in rows]  # steps of -4 and -2 in rho: eps_0, then (3 eps_0 - eps_1) / 2
        [[-4.0], [-3.0, 1.0]]
    """
    description = Description(_numbered("ipndm", order), "multistep", DEIS, order=min(order, 2))
    return _by_rule(description, Rho(), order, _classical, finish)


@maker
def ipndm_v(order: int = 4, variant: str = "published", finish: str = "published") -> RowSolver:
    r"""Return iPNDM with weights for varying steps in rho.

    With :math:`\Delta_k` the k-th differences of eps over the newest nodes, the published rule is

    .. math:: \bar\epsilon = \epsilon_0 + \frac{h}{2 h_1} (\epsilon_0 - \epsilon_1) + \tau_1 \Delta_2 + \tau_2 \Delta_3,

    .. math:: \tau_1 = \tfrac12 - \frac{h^2}{6 h_1 (h_1 + h_2)}, \qquad
              \tau_2 = \left[ \tfrac12 - \frac{h}{6 (h + h_1)} + \left(1 - \frac{h}{2 (h + h_1)}\right)
                       \frac{h}{6 (h + h_1 + h_2)} \right]
                       \frac{h (h + h_1) (h + h_1 + h_2)}{h_1 (h_1 + h_2) (h_1 + h_2 + h_3)}

    This differs from the Adams-Bashforth rule, on which it is modelled, in three places. In the Adams-Bashforth rule the
    bracket of tau_1 multiplies, :math:`(\tfrac12 - \tfrac{h}{6 (h + h_1)}) \tfrac{h (h + h_1)}{h_1 (h_1 + h_2)}`. The
    second term in the bracket of tau_2 has a minus sign. The oldest eps has the factor
    :math:`- \tfrac{h_1 (h_1 + h_2)}{h_3 (h_2 + h_3)}` in Delta_3, where the published code has h_1 / h_2 for h_2 / h_3. So
    the published weights do not add up to 1 with steps that vary. ``variant="exact"`` corrects the three places and is
    :func:`lms`. Both variants are second order, since their first step is DDIM.
    Source: Zhou et al., "Fast ODE-based Sampling for Diffusion Models in Around 5 Steps", 2024, their code.

    Raises:
        ValueError: if ``order`` is not 1 to 4, or ``variant`` or ``finish`` is unknown.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [8.0, 4.0, 2.0], end="stop")
        >>> [[round(w, 6) for w in row.w] for row in ipndm_v(2).rows(path)]  # the second step is half as long as the first
        [[-4.0], [-2.5, 0.5]]
    """
    name = _numbered("ipndm-v", order)
    if variant not in ("published", "exact"):
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")
    rule = exact_rule if variant == "exact" else _published_ipndm_v
    # For equal steps the four published weights are the Adams-Bashforth weights plus a twelfth of the third difference.
    constants = ((3, -1 / 12),) if variant == "published" and order == 4 else None
    description = Description(name, "multistep", ZHOU, order=min(order, 2), constants=constants)
    return _by_rule(description, Rho(), order, rule, finish)


def _published_ipndm_v(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    clocks = [prediction.clock(point) for point in (v, *nodes)]
    h, *past = [a - b for a, b in itertools.pairwise(clocks)]
    w = [1.0, 0.0, 0.0, 0.0]
    if len(past) >= 1:
        w[0] += 0.5 * h / past[0]
        w[1] -= 0.5 * h / past[0]
    if len(past) >= 2:
        h1, h2 = past[:2]
        tau1, r = 0.5 - h**2 / (6 * h1 * (h1 + h2)), h1 / h2
        w = [w[0] + tau1, w[1] - (1 + r) * tau1, r * tau1, 0.0]
    if len(past) == 3:
        h1, h2, h3 = past
        bracket = 0.5 - h / (6 * (h + h1)) + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        tau2 = bracket * h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        r, q = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
        w = [w[0] + tau2, w[1] - (1 + r + q) * tau2, w[2] + (r + q * (1 + h2 / h3)) * tau2, -q * r * tau2]
    constant = constant_weight(prediction, u, v)
    return [constant * factor for factor in w[: len(nodes)]]


@maker
def plms(finish: str = "published") -> RowSolver:
    r"""Return PLMS, the pseudo linear multistep method: :func:`ipndm` with Heun's method in rho for its first step.

    The first step evaluates at its DDIM prediction as well and takes the mean of both eps, so that it costs two evaluations.
    The method is second order, for the reason given at :func:`ipndm`.
    Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, as in Stable Diffusion.

    Example:
        >>> from scoresde import VP, solvers
        >>> solvers.evaluations(plms().rows(solvers.make_path(VP(), "t", 10, end="stop")))
        11
    """
    description = Description("plms", "multistep", LIU_2022, order=2, evaluations=None)
    return _by_rule(description, Rho(), 4, _classical, finish, [stencil.trapezoid])


@maker
def pndm(finish: str = "published") -> RowSolver:
    r"""Return PNDM: three steps of the pseudo Runge-Kutta method, then the Adams-Bashforth weights of :func:`ipndm`.

    The pseudo Runge-Kutta step is the classical step of order 4 with DDIM steps in place of Euler's. Its middle is at the
    mean of both times. It costs four evaluations, so that n steps cost n + 9. The method is second order, for the reason
    given at :func:`ipndm`.
    Source: Liu et al., 2022, algorithm 2.

    Example:
        >>> from scoresde import VP, solvers
        >>> solvers.evaluations(pndm().rows(solvers.make_path(VP(), "t", 10, end="stop")))
        19
    """

    end = finishing(finish)

    def rows(path: Path) -> list[Row]:
        up = [(u, v) for u, v in path.moves if v.sigma > 0 and v.lam > u.lam]
        middles = points(path.sde, scalar.vector([(u.t + v.t) / 2 for u, v in up])) if up else []
        steps = {move: _pseudo_rk4(*move, middle) for move, middle in zip(up, middles, strict=True)}
        return multistep_rows(Rho(), path, (4, _classical), opening=[lambda u, v: steps[u, v]] * 3, finish=end)

    return RowSolver(Description("pndm", "multistep", LIU_2022, order=2, evaluations=None), rows)


def _pseudo_rk4(u: Point, v: Point, middle: Point) -> Stencil:
    prediction = Rho().starting_at(u, inner=True)
    start, half, end = (prediction.clock(point) for point in (u, middle, v))
    c = (half - start) / (end - start)
    return (Stage(c, (0,), (c,)), Stage(c, (1,), (c,)), *stencil.rk4[2:])


@maker
def gradient_estimation(gamma: float = 2.0, finish: str = "published") -> RowSolver:
    r"""Return the gradient-estimation sampler: DDIM with eps extrapolated from the last two evaluations.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u + \alpha_v (\rho_v - \rho_u)\,
              \left[ \gamma \epsilon_0 + (1 - \gamma) \epsilon_1 \right]

    gamma = 1 is DDIM, and gamma = 3/2 is the second-order :func:`ipndm`. Any other gamma is first order, also the gamma of
    the paper. Source: Permenter and Yuan, "Interpreting and Improving Diffusion Models from an Optimization Perspective",
    2024, algorithm 2.

    Raises:
        ValueError: if ``gamma`` is not between 1 and 3, or ``finish`` is unknown.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = gradient_estimation().rows(solvers.make_path(EDM(), [4.0, 2.0, 1.0], end="stop"))
        >>> [round(w, 6) for w in rows[1].w]  # 2 eps_0 - eps_1, times the step of -1 in rho
        [-2.0, 1.0]
    """
    if not 1 <= gamma <= 3:
        raise ValueError(f"got gamma={gamma}; expected a number between 1 (DDIM) and 3 (the paper takes 2)")

    def rule(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
        constant = constant_weight(prediction, u, v)
        return [constant] if len(nodes) == 1 else [gamma * constant, (1 - gamma) * constant]

    order, constants = (2, None) if gamma == 1.5 else (1, ((1, 1.5 - gamma),))
    description = Description("gradient-estimation", "multistep", PERMENTER, order=order, constants=constants)
    return _by_rule(description, Rho(), 2, rule, finish)
