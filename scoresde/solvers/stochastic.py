"""The reverse SDE: ancestral sampling, Euler-Maruyama and reverse diffusion.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scoresde.solvers import general, stencil
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Data, Time
from scoresde.solvers.rows import Op, Row, each_step, one_step, stencil_rows
from scoresde.solvers.solver import Description, RowSolver, compose

__all__ = ["ancestral", "ddpm", "euler_maruyama", "ncsn", "reverse_diffusion"]

HO = "Ho et al. 2020, arXiv:2006.11239"
SONG_2021 = "Song et al. 2021, arXiv:2011.13456"


def ancestral(variance: str | float = "lower") -> RowSolver:
    r"""Sample the posterior of the step with the data replaced by their prediction: DDPM's and NCSN's ancestral sampler.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} e^{-h} x_u + \alpha_v (1 - e^{-2h})\, m + s\, \xi

    which on a variance-preserving chain is :math:`(x - \beta \epsilon / \sigma_u) / \sqrt{1 - \beta} + s\, \xi`.

    Args:
        variance: ``"lower"``: that of the posterior, :math:`s = \sigma_v \sqrt{1 - e^{-2h}}`; ``"upper"``: that of the
            forward transition, :math:`s = \sigma_u \sqrt{1 - e^{-2h}}`; or the weight of the upper one, between 0 and 1,
            in the mean of their logarithms.

    Sources: Ho et al., 2020, algorithm 2; Song et al., 2021, equation (47).
    """
    weights = {"lower": 0.0, "upper": 1.0}
    if isinstance(variance, str) and variance not in weights:
        raise ValueError(f"got variance={variance!r}; expected 'lower', 'upper' or a number between 0 and 1")
    upper = weights[variance] if isinstance(variance, str) else variance
    if not 0 <= upper <= 1:
        raise ValueError(f"got variance={variance!r}; expected 'lower', 'upper' or a number between 0 and 1")
    reverse = Data(eta=1.0)

    def rows(path: Path) -> list[Op]:
        out = stencil_rows(reverse, stencil.multistep(1), path)
        for i, (u, v) in enumerate(path.moves):
            row = out[i]
            if isinstance(row, Row) and row.s and v.lam > u.lam:  # s_upper / s_lower = sigma_u / sigma_v
                out[i] = replace(row, s=(row.s[0] * (u.sigma / v.sigma) ** upper,))
        return out

    return RowSolver(Description("ancestral", "ancestral", HO, weak_order=1, stochastic=True), rows)


def ddpm(variance: str | float = "upper") -> RowSolver:
    """:func:`ancestral` as Ho et al. published it, by default with the variance beta of the forward transition."""
    solver = ancestral(variance)
    return replace(solver, description=replace(solver.description, name="ddpm"))


def ncsn(variance: str | float = "lower") -> RowSolver:
    """:func:`ancestral` as Song et al., 2021, use it for NCSN, by default with the variance of the posterior."""
    solver = ancestral(variance)
    return replace(solver, description=replace(solver.description, name="ncsn", paper=SONG_2021))


def euler_maruyama(eta: float = 1.0) -> RowSolver:
    r"""The reverse SDE by the Euler-Maruyama method in t.

    .. math:: x_v = x_u + (v - u) \left[ f x_u - \tfrac{1 + \eta}{2} g^2 s(x_u, u) \right]
              + \sqrt{\eta\, g^2\, |v - u|}\, \xi

    The only stochastic solver beside Heun's that also takes an SDE without marginals. Source: Song et al., 2021, section 4.
    """
    if not eta > 0:
        raise ValueError(f"got eta={eta}; expected a positive number (without noise it is the solver 'euler')")
    description = Description("euler-maruyama", "stochastic", SONG_2021, weak_order=1, stochastic=True)
    return replace(compose(description, Time(eta), stencil.euler), general=general.euler_maruyama)


def reverse_diffusion() -> RowSolver:
    r"""Discretize the reverse SDE as the chain discretizes the forward one.

    .. math:: x_v = (2 - a)\, x_u + b\, s(x_u, u) + \sqrt{b}\, \xi, \qquad
              a = \frac{\alpha_u}{\alpha_v},\; b = \sigma_u^2 - a^2 \sigma_v^2

    for the transition x_u = a x_v + sqrt(b) z of the forward chain. Agrees with :func:`ancestral` to second order in b.
    Source: Song et al., 2021, equation (46) and appendix E.
    """

    def rule(u: Point, v: Point) -> Row:
        a = math.exp(u.log_alpha - v.log_alpha)
        b = u.sigma**2 * -math.expm1(-2 * (v.lam - u.lam))
        # N is the score, (alpha m - x) / sigma^2.
        return one_step(u, v, a=2 - a, w=b, s=math.sqrt(b), p=-1 / u.sigma**2, q=u.alpha / u.sigma**2)

    return RowSolver(
        Description("reverse-diffusion", "stochastic", SONG_2021, weak_order=1, stochastic=True),
        lambda path: each_step(rule, path),
    )
