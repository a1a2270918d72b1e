"""Exponential integrators of the probability flow: DDIM and the DPM-Solvers.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scoresde.solvers import stencil
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Data, Noise
from scoresde.solvers.rows import Op, Row, each_step, one_step, stencil_rows
from scoresde.solvers.solver import Description, RowSolver, compose
from scoresde.solvers.stencil import Stencil

__all__ = ["ddim", "dpm_solver", "dpmpp_2m"]

DDIM = "Song et al. 2020, arXiv:2010.02502"
DPM = "Lu et al. 2022, arXiv:2206.00927"
DPMPP = "Lu et al. 2022, arXiv:2211.01095"


def ddim(eta: float = 0.0) -> RowSolver:
    r"""DDIM: one step with any share ``eta`` of the posterior's noise.

    .. math:: x_v = \alpha_v m + \sqrt{\sigma_v^2 - s^2}\, \epsilon + s\, \xi, \qquad
              s = \eta\, \sigma_v \sqrt{1 - e^{-2 h}}

    eta = 0 is DPM-Solver-1 and Euler in rho, eta = 1 the ancestral sampler of DDPM.
    Source: Song et al., "Denoising Diffusion Implicit Models", 2020, equations (12) and (16).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta={eta}; expected a number between 0 (deterministic) and 1 (DDPM's noise)")

    def rule(u: Point, v: Point) -> Row:
        s = eta * v.sigma * math.sqrt(-math.expm1(-2 * (v.lam - u.lam)))
        # eps = (x - alpha_u m) / sigma_u, collected in x and m.
        a = math.sqrt(max(v.sigma**2 - s**2, 0.0)) / u.sigma
        return one_step(u, v, a=a, w=v.alpha - a * u.alpha, s=s)

    if eta == 0:  # the same row, with alpha_v (1 - e^{-h}) in the form that does not cancel
        return compose(Description("ddim", "exponential", DDIM, order=1), Data(), stencil.multistep(1))
    return RowSolver(
        Description("ddim", "ancestral", DDIM, weak_order=1, stochastic=True), lambda path: each_step(rule, path)
    )


def dpm_solver(order: int = 2) -> RowSolver:
    r"""DPM-Solver-1, -2 or -3, singlestep: exponential Runge-Kutta methods in the noise prediction.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u - \sigma_v \int_{\lambda_u}^{\lambda_v}
              e^{\lambda_v - s}\, \epsilon(s)\, ds

    with eps constant at the start (1), constant at the middle of the step in lam (2), and linear through the start and
    two thirds of it (3). Source: Lu et al., "DPM-Solver", 2022, algorithms 1 and 2.
    """
    stencils: dict[int, Stencil] = {1: stencil.multistep(1), 2: stencil.midpoint, 3: stencil.radau}
    if order not in stencils:
        raise ValueError(f"got order={order}; expected 1, 2 or 3")
    return compose(Description(f"dpm-{order}", "exponential", DPM, order=order, evaluations=order), Noise(), stencils[order])


def dpmpp_2m(variant: str = "published") -> RowSolver:
    r"""DPM-Solver++(2M), the two-step method in the data prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v (1 - e^{-h})
              \left[ \left(1 + \frac{1}{2r}\right) m_u - \frac{1}{2r} m_{u-1} \right], \qquad r = \frac{h_{u-1}}{h}

    That is the published rule; ``variant="exact"`` integrates the line through both predictions exactly. The first step
    is DDIM. Source: Lu et al., "DPM-Solver++", 2022, algorithm 2.
    """
    description = Description("dpmpp-2m", "exponential", DPMPP, order=2)
    if variant == "exact":
        return compose(description, Data(), stencil.multistep(2))
    if variant != "published":
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")

    def rows(path: Path) -> list[Op]:
        out = stencil_rows(Data(), stencil.multistep(1), path)
        h_before = math.inf
        for i, (u, v) in enumerate(path.moves):
            row, h = out[i], v.lam - u.lam
            # Nothing can be extrapolated at the start, after a first step from alpha = 0, or after a move towards the noise.
            if 0 < h < math.inf and h_before > 0 and isinstance(row, Row):
                ratio = h / h_before
                if ratio:
                    out[i] = replace(row, w=(row.w[0] * (1 + 0.5 * ratio), -row.w[0] * 0.5 * ratio))
            h_before = h
        return out

    return RowSolver(description, rows)
