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
        order: ``"predictor-first"``, as in the paper: the corrections follow each step, at its end; or
            ``"corrector-first"``, as in the authors' code: they come before each step, at its start, so that the start of
            the path is corrected too, and its end is not.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, algorithms 2 to 5, and their code.

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
def langevin(step: float = 0.2, decay: float = 0.0) -> RowSolver:
    r"""Plain Langevin dynamics at the last level of the path before sigma = 0, one iteration for each of its moves.

    .. math:: x \leftarrow x + \tfrac12 r_k \sigma^2 s(x) + \sqrt{r_k}\, \sigma\, \xi, \qquad r_k = r\, (1 + k)^{-\gamma}

    with k = 0, 1, .. the number of the iteration. The path gives the start, whose x / alpha is kept, the level, and the
    number of iterations; its other points do not matter. A path that goes back has one such run after each move towards the
    noise.

    It samples the marginal of that level if it runs for long enough, and with few iterations is far from it where the data
    have modes apart: the reason for :func:`annealed_langevin`, which has the same fields. With a constant step the samples
    keep a bias of the order of the step; a step that falls with gamma between 1/2 and 1 loses it, :func:`sgld`.

    Args:
        step: r, in units of the variance of the level, below 4.
        decay: gamma, between 0, a constant step, and 1.

    Sources: Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
    1996, https://doi.org/10.2307/3318418; Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
    Distribution", 2019, https://arxiv.org/abs/1907.05600, section 3.2, for why it fails.

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
    """``count`` iterations at ``v``, the first from x / alpha carried there from ``u``, or from a step where alpha = 0."""
    if u.log_alpha == -math.inf:
        start = replace(first_move(u, v), ends_step=False)
    else:
        start = Row(to=v, at=None, a=scalar.exp(v.log_alpha - u.log_alpha), ends_step=False)
    first, *rest = (_iteration(v, step * (1 + k) ** -decay) for k in range(count))
    return [start, replace(first, a=start.a, w=(*first.w, *start.w)), *rest]


@maker
def sgld(step: float = 0.2, decay: float = 0.55) -> RowSolver:
    """Stochastic gradient Langevin dynamics: :func:`langevin` with a step that falls as a power of the iteration.

    What is stochastic about the gradient is up to the model: a network's estimate of the score, or one from a few data.
    Source: Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011,
    https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf, whose power of 0.55 this is.
    """
    if not decay > 0:
        raise ValueError(f"got decay={decay}; expected a positive number (with a constant step it is the solver 'langevin')")
    return langevin(step, decay)


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
    """x + r sigma^2 s(x) / 2 + sqrt(r) sigma xi at ``u``, with N the score."""
    return one_step(
        u,
        u,
        a=1.0,
        w=0.5 * step * u.sigma**2,
        s=scalar.sqrt(step) * u.sigma,
        p=-1 / u.sigma**2,
        q=u.alpha / u.sigma**2,
    )
