"""Solvers of the reverse SDE: ancestral sampling, Euler-Maruyama, stochastic Heun and reverse diffusion.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from scoresde.solvers import scalar, stencil
from scoresde.solvers.methods import drift_diffusion
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Data, Drift
from scoresde.solvers.rows import each_step, first_move, forward_move, last_move, one_step, stencil_rows
from scoresde.solvers.solver import Description, RowSolver, compose, maker
from scoresde.solvers.updates import LearnedNoise, Row, Update

__all__ = ["analytic_dpm", "ancestral", "ddpm", "euler_maruyama", "ncsn", "reverse_diffusion", "sde_heun"]

BAO = "Bao et al. 2022, arXiv:2201.06503"
HO = "Ho et al. 2020, arXiv:2006.11239"
KLOEDEN = "Kloeden & Platen 1992"
SONG_2021 = "Song et al. 2021, arXiv:2011.13456"


@maker
def ancestral(variance: str | float = "lower") -> RowSolver:
    r"""Return DDPM's and NCSN's ancestral sampler: the posterior of a step with the data replaced by their prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} e^{-h} x_u + \alpha_v (1 - e^{-2h})\, m + s\, \xi

    which on a variance-preserving chain is :math:`(x - \beta \epsilon / \sigma_u) / \sqrt{1 - \beta} + s\, \xi`.

    Args:
        variance: the variance of the noise. ``"lower"`` is the variance of the posterior,
            :math:`s = \sigma_v \sqrt{1 - e^{-2h}}`. ``"upper"`` is the variance of the forward transition,
            :math:`s = \sigma_u \sqrt{1 - e^{-2h}}`. A number between 0 and 1 is the weight of the upper bound in the mean of
            their logarithms. With ``"learned"`` the model gives this weight, for each number of a sample by itself. The
            bounds belong to the step, also with fewer steps than the model was trained with.

    Sources: Ho et al., 2020, algorithm 2; Song et al., 2021, equation (47); Nichol and Dhariwal, 2021,
    https://arxiv.org/abs/2102.09672, for the learned variance.

    Raises:
        ValueError: if ``variance`` is neither one of the three names nor a number between 0 and 1.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 2.0], end="stop")
        >>> [round(ancestral(variance).rows(path)[0].s[0] ** 2, 6) for variance in ("lower", "upper")]
        [3.0, 12.0]
    """
    weights = {"lower": 0.0, "upper": 1.0, "learned": 0.0}
    upper = weights.get(variance, -1.0) if isinstance(variance, str) else variance
    if not 0 <= upper <= 1:
        raise ValueError(f"got variance={variance!r}; expected 'lower', 'upper', 'learned' or a number between 0 and 1")
    reverse = Data(eta=1.0)

    def rows(path: Path) -> list[Update]:
        return [
            reweighted(u, v, row) if row.s and v.lam > u.lam else row
            for (u, v), row in zip(path.moves, stencil_rows(reverse, stencil.multistep(1), path), strict=True)
        ]

    def reweighted(u: Point, v: Point, row: Row) -> Update:
        ratio = u.sigma / v.sigma  # of the upper to the lower standard deviation
        if variance == "learned":
            return LearnedNoise(u, v, row.a, row.w[0], lower=row.s[0], upper=row.s[0] * ratio)
        return replace(row, s=(row.s[0] * ratio**upper,))

    return RowSolver(Description("ancestral", "ancestral", HO, weak_order=1, stochastic=True), rows)


@maker
def ddpm(variance: str | float = "upper") -> RowSolver:
    """Return :func:`ancestral` as in Ho et al., by default with the variance beta of the forward transition.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 2.0], end="stop")
        >>> round(ddpm().rows(path)[0].s[0] ** 2, 6)  # sigma_u^2 - sigma_v^2, the variance of the forward transition
        12.0
    """
    solver = ancestral(variance)
    return replace(solver, description=replace(solver.description, name="ddpm"))


@maker
def ncsn(variance: str | float = "lower") -> RowSolver:
    """Return :func:`ancestral` as in Song et al., 2021, for NCSN, by default with the variance of the posterior.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 2.0], end="stop")
        >>> round(ncsn().rows(path)[0].s[0] ** 2, 6)  # the variance of the posterior, a quarter of ddpm's here
        3.0
    """
    solver = ancestral(variance)
    return replace(solver, description=replace(solver.description, name="ncsn", paper=SONG_2021))


@maker
def analytic_dpm(squared_score: Callable[[float], float], eta: float = 1.0) -> RowSolver:
    r"""Return Analytic-DPM: DDIM with ``eta`` and the optimal variance, from the mean squared norm of the score.

    .. math:: s^2 = s_{lower}^2 + w^2\, \frac{\sigma_u^2}{\alpha_u^2} \left( 1 - \sigma_u^2 \Gamma(u) \right),
              \qquad \Gamma(t) = \frac{1}{d}\, E \| \nabla \log p_t(x_t) \|^2

    with w the factor of m in the step, and s_lower = eta sigma_v sqrt(1 - e^{-2h}) the noise of DDIM. The second term adds
    the variance of the data given the state to the noise of the posterior given the data. The bracket is kept within
    [0, 1], where it lies for the true score. On isotropic Gaussian data every step is exact, however long.

    Args:
        squared_score: the function Gamma of t: the average over noised data of the squared score, divided by the number of
            its components.
        eta: the share of noise, between 0 and 1; 1 is the ancestral sampler of DDPM, 0 is Analytic-DDIM.

    Weak order 1 with eta = 1. Source: Bao et al., 2022, theorem 1.

    Raises:
        ValueError: if ``eta`` is not between 0 and 1.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import make_path
        >>> white = analytic_dpm(lambda t: 1.0)  # data N(0, 1), whose score is -x at all times
        >>> row = white.rows(make_path(VP(), "t", 2, end="stop"))[0]
        >>> upper = ddpm().rows(make_path(VP(), "t", 2, end="stop"))[0]
        >>> abs(row.s[0] - upper.s[0]) < 1e-12
        True
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta={eta}; expected a number between 0 (deterministic mean) and 1 (DDPM's noise)")

    def rule(u: Point, v: Point) -> Row:
        lower = eta**2 * v.sigma**2 * -scalar.expm1(-2 * (v.lam - u.lam))
        a = scalar.sqrt(v.sigma**2 - lower) / u.sigma
        w = v.alpha - a * u.alpha
        if u.log_alpha == -math.inf:  # where the score says nothing of the data
            return first_move(u, v, eta)
        spread = min(max(1 - u.sigma**2 * float(squared_score(u.t)), 0.0), 1.0)
        return one_step(u, v, a=a, w=w, s=scalar.sqrt(lower + (w * u.sigma / u.alpha) ** 2 * spread))

    return RowSolver(
        Description("analytic-dpm", "ancestral", BAO, weak_order=1, stochastic=True), lambda path: each_step(rule, path)
    )


@maker
def euler_maruyama(eta: float = 1.0) -> RowSolver:
    r"""Return the Euler-Maruyama method in t for the reverse SDE.

    .. math:: x_v = x_u + (v - u) \left[ f x_u - \tfrac{1 + \eta}{2} g^2 s(x_u, u) \right]
              + \sqrt{\eta\, g^2\, |v - u|}\, \xi

    Of the stochastic solvers that make rows, it is the only one that also integrates an SDE without marginals. Source: Song
    et al., 2021, section 4.

    Raises:
        ValueError: if ``eta`` is not positive.

    Example:
        >>> from scoresde import EDM, solvers
        >>> path = solvers.make_path(EDM(), [4.0, 2.0], end="stop")
        >>> round(euler_maruyama().rows(path)[0].s[0] ** 2, 6)  # g^2 |v - u|, where g^2 = 2 t
        16.0
    """
    if not eta > 0:
        raise ValueError(f"got eta={eta}; expected a positive number (without noise it is the solver 'euler')")
    description = Description("euler-maruyama", "stochastic", SONG_2021, weak_order=1, stochastic=True)
    return replace(compose(description, Drift(eta), stencil.euler), general=drift_diffusion.euler_maruyama)


@maker
def sde_heun(eta: float = 1.0) -> RowSolver:
    r"""Return the stochastic Heun method in t for the reverse SDE: Euler-Maruyama, then the average of both ends.

    .. math:: \bar x = x_u + (v - u)\, b(x_u, u) + c_u \sqrt{|v - u|}\, \xi, \qquad
              x_v = x_u + \tfrac{v - u}{2} \left[ b(x_u, u) + b(\bar x, v) \right]
              + \tfrac12 (c_u + c_v) \sqrt{|v - u|}\, \xi

    The average is taken of the drifts and of the noises. The noise is additive, so that the Ito and the Stratonovich
    integral agree. Weak order 2, strong order 1; ``eta=0`` would be Heun's method in t.
    Source: Kloeden and Platen, "Numerical Solution of Stochastic Differential Equations", 1992,
    section 15.1, equation (1.5).

    Raises:
        ValueError: if ``eta`` is not positive.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = sde_heun().rows(solvers.make_path(EDM(), [4.0, 2.0], end="stop"))
        >>> [(row.at.t, row.w) for row in rows]  # an Euler step, then the average of both ends
        [(4.0, (-2.0,)), (2.0, (-1.0, -1.0))]
    """
    if not eta > 0:
        raise ValueError(f"got eta={eta}; expected a positive number (without noise it is the solver 'heun')")
    drift = Drift(eta)

    def rows(path: Path) -> list[Row]:
        out: list[Row] = []
        for u, v in path.moves:
            if v.sigma == 0 or v.lam < u.lam:
                out.append(last_move(path) if v.sigma == 0 else forward_move(u, v))
                continue
            if u.log_alpha == -math.inf:
                out.append(first_move(u, v, eta))
                continue
            step, (p, q), (p_end, q_end) = v.t - u.t, drift.mix(u), drift.mix(v)
            there, back = drift.noise(u, v), drift.noise(v, u)
            out += [
                Row(to=v, at=u, a=1.0, w=(step,), s=(there,), p=p, q=q, draw=(u, v), ends_step=False),
                Row(to=v, at=v, a=1.0, w=(0.5 * step, 0.5 * step), s=(0.5 * (there + back),), p=p_end, q=q_end),
            ]
        return out

    return RowSolver(Description("sde-heun", "stochastic", KLOEDEN, weak_order=2, evaluations=2, stochastic=True), rows)


@maker
def reverse_diffusion() -> RowSolver:
    r"""Return reverse diffusion, which discretizes the reverse SDE as the chain discretizes the forward SDE.

    .. math:: x_v = (2 - a)\, x_u + b\, s(x_u, u) + \sqrt{b}\, \xi, \qquad
              a = \frac{\alpha_u}{\alpha_v},\; b = \sigma_u^2 - a^2 \sigma_v^2

    for the transition x_u = a x_v + sqrt(b) z of the forward chain. It agrees with :func:`ancestral` to second order in b.
    Source: Song et al., 2021, equation (46) and appendix E.

    Example:
        >>> from scoresde import EDM, solvers
        >>> row = reverse_diffusion().rows(solvers.make_path(EDM(), [4.0, 2.0], end="stop"))[0]
        >>> round(row.a, 6), round(row.w[0], 6), round(row.s[0] ** 2, 6)  # b = 16 - 4
        (1.0, 12.0, 12.0)
    """

    def rule(u: Point, v: Point) -> Row:
        if u.log_alpha == -math.inf:
            return first_move(u, v, 1.0)
        a = scalar.exp(u.log_alpha - v.log_alpha)
        b = u.sigma**2 * -scalar.expm1(-2 * (v.lam - u.lam))
        # N is the score, (alpha m - x) / sigma^2.
        return one_step(u, v, a=2 - a, w=b, s=scalar.sqrt(b), p=-1 / u.sigma**2, q=u.alpha / u.sigma**2)

    return RowSolver(
        Description("reverse-diffusion", "stochastic", SONG_2021, weak_order=1, stochastic=True),
        lambda path: each_step(rule, path),
    )
