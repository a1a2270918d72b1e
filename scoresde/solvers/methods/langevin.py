"""Langevin dynamics: as a corrector after any solver, and annealed by itself.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scoresde.base.numbers import whole
from scoresde.solvers import scalar
from scoresde.solvers.methods.ancestral import reverse_diffusion
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Noise
from scoresde.solvers.rows import first_move, forward_move, last_move, one_step
from scoresde.solvers.solver import Description, RowSolver, maker
from scoresde.solvers.updates import Langevin, Row, Update

__all__ = ["annealed_langevin", "predictor_corrector", "underdamped_corrector"]

LEIMKUHLER = "Leimkuhler & Matthews 2013, arXiv:1203.5428; Cheng et al. 2018, arXiv:1707.03663"
NCSN_2019 = "Song & Ermon 2019, arXiv:1907.05600"
SONG_2021 = "Song et al. 2021, arXiv:2011.13456"


@maker
def predictor_corrector(
    predictor: RowSolver | None = None, corrections: int = 1, snr: float = 0.16, norm: str = "sample"
) -> RowSolver:
    r"""Any solver, followed at each point by Langevin corrections of the marginal there.

    .. math:: x \leftarrow x + \epsilon\, s(x) + \sqrt{2 \epsilon}\, \xi, \qquad
              \epsilon = 2 a^2 \left( \mathrm{snr}\, \frac{\|\xi\|}{\|s(x)\|} \right)^2

    with a the factor of the forward transition into that point (1 for variance-exploding SDEs).

    Args:
        predictor: a solver that makes rows; by default :func:`reverse_diffusion`.
        corrections: number of Langevin steps at each point but the clean end.
        snr: the signal-to-noise ratio of a Langevin step.
        norm: ``"sample"`` takes the two norms of each sample, so that a sample does not depend on its batch;
            ``"batch"`` their averages over the batch, as in the authors' code.

    Source: Song et al., 2021, algorithms 2 to 5.
    """
    base = _predictor(predictor, corrections)
    if not snr > 0:
        raise ValueError(f"got snr={snr}; expected a positive number")
    if norm not in ("sample", "batch"):
        raise ValueError(f"got norm={norm!r}; expected 'sample' or 'batch'")

    def rows(path: Path) -> list[Update]:
        below = dict(path.moves)
        out: list[Update] = []
        for row in base.rows(path):
            out.append(row)
            if row.ends_step and row.to.sigma > 0:
                towards_data = below.get(row.to, row.to)
                scale = scalar.exp(2 * (row.to.log_alpha - towards_data.log_alpha))
                out += [Langevin(row.to, snr, scale, norm)] * corrections
        return out

    evaluations = None if base.description.evaluations is None else base.description.evaluations + corrections
    return RowSolver(Description("pc", "langevin", SONG_2021, evaluations=evaluations, stochastic=True), rows)


def _predictor(predictor: RowSolver | None, corrections: int) -> RowSolver:
    base = reverse_diffusion() if predictor is None else predictor
    if not isinstance(base, RowSolver):
        raise ValueError(f"got predictor {base!r}; expected a solver that makes rows (an adaptive or outside one does not)")
    whole("corrections", corrections, 1)
    return base


@maker
def underdamped_corrector(
    predictor: RowSolver | None = None, corrections: int = 3, step: float = 0.4, friction: float = 1.0
) -> RowSolver:
    r"""Any solver, followed at each point by Langevin dynamics with a velocity, at the noise level there.

    In units of sigma, x = sigma z, the dynamics

    .. math:: dz = v\, d\tau, \qquad dv = \sigma\, s(x)\, d\tau - \gamma v\, d\tau + \sqrt{2 \gamma}\, dW

    have the marginal at the level and a standard normal velocity for their stationary law. A velocity is drawn at each
    point, and ``corrections`` steps of length h are made by the splitting OBABO, half a step of friction and noise (O) and
    of force (B) on both sides of the drift (A):

    .. math:: v \leftarrow v + \tfrac h2 \sigma s(x), \qquad x \leftarrow x + h \sigma v, \qquad
              v \leftarrow v + \tfrac h2 \sigma s(x), \qquad
              v \leftarrow e^{-\gamma h} v + \sqrt{1 - e^{-2 \gamma h}}\, \xi

    On Gaussian data of noised covariance V it leaves :math:`V (I - h^2 \sigma^2 V^{-1} / 4)^{-1}` unchanged, whatever the
    friction and the number of steps: a bias of order h^2, the one of overdamped Langevin dynamics with steps
    :math:`\epsilon = h^2 \sigma^2 / 2`, which these are for infinite friction. A velocity that lasts crosses a direction
    of deviation L sigma in about L / h steps, instead of about (L / h)^2.

    The velocity is eliminated from the rows, which are linear: all drivers run them.

    Args:
        predictor: a solver that makes rows; by default :func:`reverse_diffusion`.
        corrections: number of evaluations at each point but the clean end.
        step: h, below 2, from which on the narrowest direction possible, of deviation sigma, is unstable.
        friction: gamma, in the same units; critical for a direction of deviation L sigma at 2 / L.

    Sources: Leimkuhler and Matthews, "Rational Construction of Stochastic Numerical Methods for Molecular Sampling", 2013,
    https://arxiv.org/abs/1203.5428; Cheng et al., "Underdamped Langevin MCMC", 2018, https://arxiv.org/abs/1707.03663.
    """
    base = _predictor(predictor, corrections)
    if not 0 < step < 2:
        raise ValueError(f"got step={step}; expected a number between 0 and 2, from which on the dynamics are unstable")
    if not friction >= 0:
        raise ValueError(f"got friction={friction}; expected a number of at least 0")

    def rows(path: Path) -> list[Update]:
        out: list[Update] = []
        evaluated: list[int] = []  # of each evaluation of the predictor, its number among all
        drawn: list[int] = []
        total, draws = 0, 0
        for row in base.rows(path):
            if isinstance(row, Row):
                if row.at is not None:
                    evaluated.append(total)
                    total += 1
                if row.draw is not None:
                    drawn.append(draws)
                    draws += 1
                row = replace(row, w=_later(row.w, evaluated, total), s=_later(row.s, drawn, draws))
            out.append(row)
            if row.ends_step and row.to.sigma > 0:
                out += _obabo(row.to, corrections, step, friction)
                total += corrections
                draws += corrections
        return out

    evaluations = None if base.description.evaluations is None else base.description.evaluations + corrections
    return RowSolver(Description("pc-underdamped", "langevin", LEIMKUHLER, evaluations=evaluations, stochastic=True), rows)


def _obabo(u: Point, count: int, step: float, friction: float) -> list[Row]:
    """``count`` steps at ``u``; position and velocity are sums over the evaluations and draws so far, oldest first."""
    keep = math.exp(-friction * step)
    spread = math.sqrt(-math.expm1(-2 * friction * step))
    p, q = Noise().mix(u)  # minus this is sigma s
    x_n, x_xi, v_n, v_xi = ([0.0] * count for _ in range(4))
    rows = []
    for k in range(count):
        if k == 0:
            v_xi[0] = 1.0
        else:
            v_n[k] = 0.5 * step  # the second half of the force, now that it is known; then friction
            v_n, v_xi = [keep * c for c in v_n], [keep * c for c in v_xi]
            v_xi[k] = spread
        v_n[k] += 0.5 * step
        x_n = [x + step * v for x, v in zip(x_n, v_n, strict=True)]
        x_xi = [x + step * v for x, v in zip(x_xi, v_xi, strict=True)]
        w, s = (tuple(u.sigma * c for c in reversed(values[: k + 1])) for values in (x_n, x_xi))
        rows.append(Row(to=u, at=u, a=1.0, w=w, s=s, p=-p, q=-q, draw=(u, u), ends_step=k + 1 == count))
    return rows


def _later(factors: tuple[float, ...], where: list[int], total: int) -> tuple[float, ...]:
    """Factors of the newest of ``where``, newest first, as factors of the newest of all ``total``."""
    if not factors:
        return ()
    slots = [0.0] * (total - where[-len(factors)])
    for factor, number in zip(factors, reversed(where), strict=False):
        slots[total - 1 - number] = factor
    return tuple(slots)


@maker
def annealed_langevin(steps_per_level: int = 5, step: float = 0.2) -> RowSolver:
    r"""Langevin dynamics at each noise level of the path in turn, with the step proportional to the level's variance.

    .. math:: x \leftarrow x + \tfrac12 r \sigma^2 s(x) + \sqrt{r}\, \sigma\, \xi

    repeated ``steps_per_level`` times, with r = ``step``; x / alpha is kept from level to level. The authors' epsilon is
    r times the square of the smallest level: 2e-5 at 0.01 is r = 0.2. Source: Song and Ermon, 2019, algorithm 1.
    """
    steps_per_level = whole("steps_per_level", steps_per_level, 1)
    if not 0 < step < 4:
        raise ValueError(f"got step={step}; expected a number between 0 and 4, beyond which Langevin dynamics diverge")

    def rows(path: Path) -> list[Update]:
        out: list[Update] = []
        for u, v in path.moves:
            correction = one_step(
                u,
                u,
                a=1.0,
                w=0.5 * step * u.sigma**2,
                s=scalar.sqrt(step) * u.sigma,
                p=-1 / u.sigma**2,
                q=u.alpha / u.sigma**2,
            )
            out += [correction] * steps_per_level
            if v.sigma == 0:
                out.append(last_move(path))
            elif v.lam < u.lam:
                out.append(forward_move(u, v))
            elif u.log_alpha == -math.inf:
                out.append(first_move(u, v))
            elif v.log_alpha != u.log_alpha:
                out.append(Row(to=v, at=None, a=scalar.exp(v.log_alpha - u.log_alpha)))
        return out

    return RowSolver(
        Description("annealed-langevin", "langevin", NCSN_2019, evaluations=steps_per_level, stochastic=True), rows
    )
