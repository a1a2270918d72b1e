"""Langevin dynamics: as a corrector after any solver, annealed by itself, and at one level of noise.

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

__all__ = ["annealed_langevin", "langevin", "predictor_corrector", "sgld", "underdamped_corrector"]

LEIMKUHLER = "Leimkuhler & Matthews 2013, arXiv:1203.5428; Cheng et al. 2018, arXiv:1707.03663"
NCSN_2019 = "Song & Ermon 2019, arXiv:1907.05600"
ROBERTS = "Roberts & Tweedie 1996, doi:10.2307/3318418"
WELLING = "Welling & Teh 2011, ICML"
SONG_2021 = "Song et al. 2021, arXiv:2011.13456"


@maker
def predictor_corrector(
    predictor: RowSolver | None = None,
    corrections: int = 1,
    snr: float = 0.16,
    norm: str = "sample",
    order: str = "predictor-first",
) -> RowSolver:
    r"""Return a predictor-corrector solver: any solver, followed at each point by Langevin corrections to the marginal.

    .. math:: x \leftarrow x + \epsilon\, s(x) + \sqrt{2 \epsilon}\, \xi, \qquad
              \epsilon = 2 a^2 \left( \mathrm{snr}\, \frac{\|\xi\|}{\|s(x)\|} \right)^2

    with a the factor of the forward transition into the point (1 for variance-exploding SDEs).

    Args:
        predictor: the solver, which must make rows; by default :func:`reverse_diffusion`.
        corrections: the number of Langevin steps at each point but the clean end.
        snr: the signal-to-noise ratio of a Langevin step.
        norm: the norms in the step size. ``"sample"`` takes the two norms of each sample, so that a sample does not depend
            on its batch. ``"batch"`` takes their averages over the batch, as in the authors' code.
        order: the place of the corrections. With ``"predictor-first"``, as in the paper, they follow each step, at its end.
            With ``"corrector-first"``, as in the authors' code, they come before each step, at its start; then the start of
            the path is corrected too, and its end is not.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, algorithms 2 to 5, and their code.

    Raises:
        ValueError: if ``predictor`` does not make rows, ``corrections`` is not a whole number of at least 1, ``snr`` is not
            positive, or ``norm`` or ``order`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "t", 3)
        >>> for order in ("predictor-first", "corrector-first"):
        ...     print("".join("PC"[isinstance(row, Langevin)] for row in predictor_corrector(order=order).rows(path)))
        PCPCP
        CPCPCP
    """
    base = _predictor(predictor, corrections)
    if not snr > 0:
        raise ValueError(f"got snr={snr}; expected a positive number")
    if norm not in ("sample", "batch"):
        raise ValueError(f"got norm={norm!r}; expected 'sample' or 'batch'")
    if order not in ("predictor-first", "corrector-first"):
        raise ValueError(f"got order={order!r}; expected 'predictor-first' or 'corrector-first'")

    def rows(path: Path) -> list[Update]:
        below = dict(path.moves)

        def corrected(at: Point) -> list[Update]:
            towards_data = below.get(at, at)
            scale = scalar.exp(2 * (at.log_alpha - towards_data.log_alpha)) if at.log_alpha != -math.inf else 1.0
            return [Langevin(at, snr, scale, norm)] * corrections

        made = base.rows(path)
        out: list[Update] = corrected(path.points[0]) if order == "corrector-first" else []
        for i, row in enumerate(made):
            out.append(row)
            last = order == "corrector-first" and i == len(made) - 1
            if row.ends_step and row.to.sigma > 0 and not last:
                out += corrected(row.to)
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
    r"""Return a predictor-corrector solver with underdamped Langevin dynamics, which have a velocity, as the corrector.

    In units of sigma, x = sigma z, the dynamics

    .. math:: dz = v\, d\tau, \qquad dv = \sigma\, s(x)\, d\tau - \gamma v\, d\tau + \sqrt{2 \gamma}\, dW

    have a stationary law: the marginal at the noise level of the point, and a standard normal velocity. A velocity is drawn
    at each point. The splitting OBABO then makes ``corrections`` steps of length h, with half a step of friction and noise
    (O) and of force (B) on both sides of the drift (A):

    .. math:: v \leftarrow v + \tfrac h2 \sigma s(x), \qquad x \leftarrow x + h \sigma v, \qquad
              v \leftarrow v + \tfrac h2 \sigma s(x), \qquad
              v \leftarrow e^{-\gamma h} v + \sqrt{1 - e^{-2 \gamma h}}\, \xi

    On Gaussian data of noised covariance V the stationary covariance is :math:`V (I - h^2 \sigma^2 V^{-1} / 4)^{-1}`,
    whatever the friction and the number of steps. The bias of order h^2 is the same as in overdamped Langevin dynamics with
    steps :math:`\epsilon = h^2 \sigma^2 / 2`, the limit of infinite friction. A velocity that lasts crosses a direction of
    standard deviation L sigma in about L / h steps, instead of about (L / h)^2.

    The velocity is eliminated from the rows, which are linear, so that all drivers run them.

    Args:
        predictor: the solver, which must make rows; by default :func:`reverse_diffusion`.
        corrections: the number of evaluations at each point but the clean end.
        step: the step h, below 2. From 2 on the narrowest possible direction, of standard deviation sigma, is unstable.
        friction: the friction gamma, in the same units. 2 / L is critical for a direction of standard deviation L sigma.

    Sources: Leimkuhler and Matthews, "Rational Construction of Stochastic Numerical Methods for Molecular Sampling", 2013,
    https://arxiv.org/abs/1203.5428; Cheng et al., "Underdamped Langevin MCMC", 2018, https://arxiv.org/abs/1707.03663.

    Raises:
        ValueError: if ``predictor`` does not make rows, ``corrections`` is not a whole number of at least 1, ``step`` is not
            between 0 and 2, or ``friction`` is negative.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "t", 3)
        >>> solvers.evaluations(underdamped_corrector(corrections=3).rows(path))  # 3 steps, 3 corrections at 2 points
        9
    """
    base = _predictor(predictor, corrections)
    if not 0 < step < 2:
        raise ValueError(f"got step={step}; expected a number between 0 and 2, from which on the dynamics are unstable")
    if not friction >= 0:
        raise ValueError(f"got friction={friction}; expected a number of at least 0")

    def rows(path: Path) -> list[Update]:
        out: list[Update] = []
        evaluated: list[int] = []  # for each evaluation of the predictor, its number among all evaluations
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
    """Return ``count`` steps at ``u``, with position and velocity as sums over evaluations and draws, oldest first."""
    keep = math.exp(-friction * step)
    spread = math.sqrt(-math.expm1(-2 * friction * step))
    p, q = Noise().mix(u)  # minus N is sigma s
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
    """Spread the factors, newest first, of the entries with the numbers ``where`` over all ``total`` entries."""
    if not factors:
        return ()
    slots = [0.0] * (total - where[-len(factors)])
    for factor, number in zip(factors, reversed(where), strict=False):
        slots[total - 1 - number] = factor
    return tuple(slots)


@maker
def langevin(step: float = 0.2, decay: float = 0.0) -> RowSolver:
    r"""Return plain Langevin dynamics at the last level of the path before sigma = 0, one iteration for each of its moves.

    .. math:: x \leftarrow x + \tfrac12 r_k \sigma^2 s(x) + \sqrt{r_k}\, \sigma\, \xi, \qquad r_k = r\, (1 + k)^{-\gamma}

    with k = 0, 1, .. the number of the iteration. The path gives the start, whose x / alpha is kept, the level, and the
    number of iterations. Its other points do not matter. A path that goes back has one such run after each move towards
    the noise.

    It samples the marginal of that level if it runs for long enough. With few iterations it is far from it where the data
    have separate modes, which is the reason for :func:`annealed_langevin`. With a constant step the samples keep a bias of
    the order of the step. A step that falls with gamma between 1/2 and 1 removes the bias: see :func:`sgld`.

    Args:
        step: the step r, in units of the variance of the level, below 4.
        decay: the exponent gamma, from 0 (a constant step) to 1.

    Sources: Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
    1996, https://doi.org/10.2307/3318418; Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
    Distribution", 2019, https://arxiv.org/abs/1907.05600, section 3.2, for the reason of its failure.

    Raises:
        ValueError: if ``step`` is not between 0 and 4, or ``decay`` is not between 0 and 1.

    Example:
        >>> from scoresde import VE, solvers
        >>> [row.at.t for row in langevin().rows(solvers.make_path(VE(), [0.9, 0.5, 0.3, 0.0])) if row.at]
        [0.3, 0.3, 0.3]
    """
    if not 0 < step < 4:
        raise ValueError(f"got step={step}; expected a number between 0 and 4, beyond which Langevin dynamics diverge")
    if not 0 <= decay <= 1:
        raise ValueError(f"got decay={decay}; expected a number between 0 (a constant step) and 1")

    def rows(path: Path) -> list[Update]:
        out: list[Update] = []
        begins, run = path.points[0], list[Point]()
        for u, v in path.moves:
            rises = v.sigma > 0 and v.lam > u.lam
            if rises:
                run.append(v)
            if run and (not rises or v is path.points[-1]):
                out += _at_one_level(begins, run[-1], len(run), step, decay)
                run = []
            if not rises:
                out.append(last_move(path) if v.sigma == 0 else forward_move(u, v))
                begins = v
        return out

    name = "sgld" if decay else "langevin"
    paper = WELLING if decay else ROBERTS
    return RowSolver(Description(name, "langevin", paper, stochastic=True), rows)


def _at_one_level(u: Point, v: Point, count: int, step: float, decay: float) -> list[Update]:
    """Return ``count`` iterations at ``v``; they start from x / alpha at ``u``, or from a first move where alpha = 0."""
    if u.log_alpha == -math.inf:
        start = replace(first_move(u, v), ends_step=False)
    else:
        start = Row(to=v, at=None, a=scalar.exp(v.log_alpha - u.log_alpha), ends_step=False)
    first, *rest = (_iteration(v, step * (1 + k) ** -decay) for k in range(count))
    return [start, replace(first, a=start.a, w=(*first.w, *start.w)), *rest]


@maker
def sgld(step: float = 0.2, decay: float = 0.55) -> RowSolver:
    """Return stochastic gradient Langevin dynamics: :func:`langevin` with a step that falls as a power of the iteration.

    The gradient is stochastic if the model is: a network's estimate of the score, or an estimate from a part of the data.
    Source: Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011,
    https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf, with the power of 0.55 used there.

    Raises:
        ValueError: if ``decay`` is not above 0 and at most 1, or ``step`` is not between 0 and 4.

    Example:
        >>> from scoresde import VE, solvers
        >>> rows = sgld().rows(solvers.make_path(VE(), [0.9, 0.5, 0.3, 0.0]))
        >>> [row.at.t for row in rows if row.at]  # all iterations are at one level
        [0.3, 0.3, 0.3]
    """
    if not decay > 0:
        raise ValueError(f"got decay={decay}; expected a positive number (with a constant step it is the solver 'langevin')")
    return langevin(step, decay)


@maker
def annealed_langevin(steps_per_level: int = 5, step: float = 0.2) -> RowSolver:
    r"""Return annealed Langevin dynamics: at each noise level of the path, with steps proportional to the level's variance.

    .. math:: x \leftarrow x + \tfrac12 r \sigma^2 s(x) + \sqrt{r}\, \sigma\, \xi

    The update is repeated ``steps_per_level`` times, with r = ``step``. x / alpha is kept from level to level. The authors'
    epsilon is r times the square of the smallest level: 2e-5 at 0.01 is r = 0.2. Source: Song and Ermon, 2019, algorithm 1.

    Raises:
        ValueError: if ``steps_per_level`` is not a whole number of at least 1, or ``step`` is not between 0 and 4.

    Example:
        >>> from scoresde import VE, solvers
        >>> rows = annealed_langevin(2).rows(solvers.make_path(VE(), [0.9, 0.5, 0.3, 0.0]))
        >>> [row.at.t for row in rows if row.at]
        [0.9, 0.9, 0.5, 0.5, 0.3, 0.3, 0.3]
    """
    steps_per_level = whole("steps_per_level", steps_per_level, 1)
    if not 0 < step < 4:
        raise ValueError(f"got step={step}; expected a number between 0 and 4, beyond which Langevin dynamics diverge")

    def rows(path: Path) -> list[Update]:
        out: list[Update] = []
        for u, v in path.moves:
            out += [_iteration(u, step)] * steps_per_level
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


def _iteration(u: Point, step: float) -> Row:
    """Return the row x + r sigma^2 s(x) / 2 + sqrt(r) sigma xi at ``u``, with N the score."""
    return one_step(
        u,
        u,
        a=1.0,
        w=0.5 * step * u.sigma**2,
        s=scalar.sqrt(step) * u.sigma,
        p=-1 / u.sigma**2,
        q=u.alpha / u.sigma**2,
    )
