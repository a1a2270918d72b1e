r"""Paths that go back: churn, ancestral overshoot and restart, for any solver.

A move towards the noise is the exact forward kernel, which keeps the marginals. So these are paths and not solvers. The weak
order on such a path is the order of the solver on its moves towards the data. Levels are given as rho = sigma / alpha, which
is sigma on :class:`~scoresde.EDM` and :class:`~scoresde.VE`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from scoresde.base.numbers import is_whole
from scoresde.sde import GaussianSDE
from scoresde.solvers import scalar, stencil
from scoresde.solvers.methods.exponential import ddim
from scoresde.solvers.methods.runge_kutta import heun
from scoresde.solvers.methods.singlestep import dpm_solver
from scoresde.solvers.path import CLEAN, Path, Point, points
from scoresde.solvers.prediction import Data
from scoresde.solvers.rows import each_step_of, forward_move
from scoresde.solvers.solver import Description, RowSolver, compose, maker
from scoresde.solvers.updates import Jump, Row, Update

__all__ = [
    "churn",
    "detour",
    "dpm2_ancestral",
    "dpmpp_2s_ancestral",
    "edm_stochastic",
    "euler_ancestral",
    "overshoot",
    "restart",
    "restart_heun",
    "student",
]

KARRAS = "Karras et al. 2022, arXiv:2206.00364"
SONG = "Song et al. 2020, arXiv:2010.02502; k-diffusion"
DPM = "Lu et al. 2022, arXiv:2206.00927; k-diffusion"
DPMPP = "Lu et al. 2022, arXiv:2211.01095; k-diffusion"
XU = "Xu et al. 2023, arXiv:2306.14878"


def _rho(p: Point) -> float:
    return scalar.exp(-p.lam)


def _at(sde: GaussianSDE, levels: Sequence[float]) -> list[Point]:
    """Return the points at these levels of rho, each raised to the least level of the SDE if it is below."""
    least = math.exp(-float(sde.lam(0.0)))
    lams = [-scalar.log(max(level, least)) for level in levels]
    return points(sde, sde.time(scalar.vector(lams)).clamp(0.0, sde.span[1])) if lams else []


def churn(path: Path, s_churn: float, s_tmin: float = 0.0, s_tmax: float = math.inf) -> Path:
    r"""Add Karras' churn: before each move from a level within ``[s_tmin, s_tmax]`` go back to (1 + gamma) times that level.

    .. math:: \gamma = \min(s_{churn} / n, \sqrt 2 - 1)

    for a path of n moves. The path never goes back beyond its start, so that the first move does not change. ``s_churn=0``
    leaves the path unchanged. Source: Karras et al., 2022, algorithm 2. Its s_noise is no property of a path; it is an
    argument of :func:`detour` and :func:`edm_stochastic`.

    Raises:
        ValueError: if ``s_churn`` is negative, or not 0 <= s_tmin <= s_tmax.

    Example:
        >>> from scoresde import EDM
        >>> path = churn(Path.from_times(EDM(), [80.0, 10.0, 1.0, 0.0]), s_churn=0.3)
        >>> [round(p.sigma, 3) for p in path.points]
        [80.0, 10.0, 11.0, 1.0, 1.1, 0.0]
    """
    if not s_churn >= 0 or not 0 <= s_tmin <= s_tmax:
        raise ValueError(
            f"got s_churn={s_churn}, s_tmin={s_tmin}, s_tmax={s_tmax}; expected s_churn >= 0 and 0 <= s_tmin <= s_tmax"
        )
    gamma = min(s_churn / len(path), math.sqrt(2) - 1)
    start = path.points[0]
    chosen = [p for p, _ in path.moves[1:] if gamma and s_tmin <= _rho(p) <= s_tmax]
    churned = _at(path.sde, [(1 + gamma) * _rho(p) for p in chosen])
    higher = {p: high if high.lam > start.lam else start for p, high in zip(chosen, churned, strict=True)}
    there = [[p, higher[p]] if p in higher and higher[p].lam < p.lam else [p] for p in path.points]
    return Path(path.sde, tuple(itertools.chain(*there)), path.end)


def overshoot(path: Path, eta: float = 1.0) -> Path:
    r"""Make k-diffusion's ancestral path: each move goes beyond its end, to rho_down, and back by the forward kernel.

    .. math:: \rho_{up} = \eta\, \rho_v \sqrt{1 - \rho_v^2 / \rho_u^2}, \qquad
              \rho_{down} = \sqrt{\rho_v^2 - \rho_{up}^2}

    With eta = 1 a move goes beyond its end by its own length h in lam. No move goes beyond the least noise of the SDE; a
    move from alpha = 0 goes no further than the least time above zero of its span. ``eta=0`` leaves the path unchanged. DDIM
    on this path is DDIM with eta. Source: k-diffusion, ``get_ancestral_step``.

    Raises:
        ValueError: for an eta outside [0, 1].

    Example:
        >>> from scoresde import EDM
        >>> path = overshoot(Path.from_times(EDM(), [8.0, 4.0, 2.0]))
        >>> [round(p.sigma, 3) for p in path.points]
        [8.0, 2.0, 4.0, 1.0, 2.0]
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta={eta}; expected a number between 0 (the path itself) and 1")
    up = [(u, v) for u, v in path.moves if eta and v.sigma > 0 and v.lam > u.lam]
    levels = [_rho(v) * scalar.sqrt(1 - eta**2 * -scalar.expm1(2 * (u.lam - v.lam))) for u, v in up]
    least = math.exp(-float(path.sde.lam(path.sde.span[0])))
    levels = [level if scalar.isfinite(u.lam) else max(level, least) for level, (u, _) in zip(levels, up, strict=True)]
    beyond = dict(zip(up, _at(path.sde, levels), strict=True))
    there = [[beyond[m], m[1]] if m in beyond and beyond[m].lam > m[1].lam else [m[1]] for m in path.moves]
    return Path(path.sde, (path.points[0], *itertools.chain(*there)), path.end)


def restart(path: Path, intervals: Sequence[tuple[float, float, int]], n_restart: int | Sequence[int] | None = None) -> Path:
    """Add restarts: where the path first reaches the lower level of an interval, go back to the upper level and repeat.

    Args:
        path: the path.
        intervals: the intervals ``(low, high, k)``: two levels of rho, and the number of repetitions. k = 0 leaves the path
            unchanged. The lower level is taken at the nearest point of the path.
        n_restart: the number of points from the upper level to the lower one, both included, equidistant in rho^(1/7), as in
            the authors' code; one number, or one for each interval. By default the upper level is taken at the nearest point
            of the path too, and the path's own points between are repeated. Two levels at the same point are no interval.

    Source: Xu et al., "Restart Sampling for Improving Generative Processes", 2023, https://arxiv.org/abs/2306.14878,
    algorithm 1, and their code.

    Raises:
        ValueError: for levels that are not 0 < low < high, a number of repetitions that is not a whole number of at least 0,
            or ``n_restart`` below 2 or of another length than ``intervals``.

    Example:
        >>> from scoresde import EDM
        >>> path = restart(Path.from_times(EDM(), [80.0, 10.0, 1.0, 0.1, 0.0]), [(0.1, 10.0, 1)])
        >>> [round(p.sigma, 3) for p in path.points]
        [80.0, 10.0, 1.0, 0.1, 10.0, 1.0, 0.1, 0.0]
        >>> path = restart(Path.from_times(EDM(), [80.0, 10.0, 1.0, 0.1, 0.0]), [(0.1, 5.0, 1)], n_restart=3)
        >>> [round(p.sigma, 3) for p in path.points]
        [80.0, 10.0, 1.0, 0.1, 5.0, 0.926, 0.1, 0.0]
    """
    counts = list(n_restart) if isinstance(n_restart, Sequence) else [n_restart] * len(intervals)
    if len(counts) != len(intervals) or not all(n is None or (is_whole(n) and n >= 2) for n in counts):
        raise ValueError(
            f"got n_restart={n_restart!r} for {len(intervals)} intervals; expected a whole number of at least 2, both ends "
            "included, or one for each interval"
        )
    inner = [p for p in path.points if p.sigma > 0]
    again: dict[int, list[Point]] = {}
    for (low, high, k), n in zip(intervals, counts, strict=True):
        if not 0 < low < high or not is_whole(k) or k < 0:
            raise ValueError(f"got the interval {(low, high, k)}; expected levels 0 < low < high and a whole number k >= 0")
        first, last = (min(range(len(inner)), key=lambda i: abs(_rho(inner[i]) - level)) for level in (high, low))
        there = inner[first : last + 1]
        if n is not None:
            there = _between(path.sde, min(high, _rho(inner[0])), inner[last], int(n))
        again[last] = again.get(last, []) + (there * int(k) if len(there) > 1 else [])
    visited = [[p, *again.get(i, [])] for i, p in enumerate(path.points)]
    return Path(path.sde, tuple(itertools.chain(*visited)), path.end)


def _between(sde: GaussianSDE, high: float, low: Point, n: int) -> list[Point]:
    """Return ``n`` points from the level ``high`` to ``low``, equidistant in rho^(1/7); none where ``high`` is no higher."""
    bottom = scalar.value(_rho(low))
    if not high > bottom:
        return []
    roots = [high ** (1 / 7) + i / (n - 1) * (bottom ** (1 / 7) - high ** (1 / 7)) for i in range(n - 1)]
    return [*_at(sde, [root**7 for root in roots]), low]


@maker
def detour(
    solver: RowSolver, transform: Callable[[Path], Path], description: Description | None = None, s_noise: float = 1.0
) -> RowSolver:
    """Run ``solver`` on the transformed path, with the noise of moves towards the noise times ``s_noise``; 1 is exact.

    Raises:
        ValueError: if ``s_noise`` is negative.

    Example:
        >>> from scoresde import EDM
        >>> solver = detour(ddim(), lambda path: churn(path, s_churn=0.3))
        >>> [row.goes_back for row in solver.rows(Path.from_times(EDM(), [80.0, 10.0, 1.0]))]
        [False, True, False]
    """
    if not s_noise >= 0:
        raise ValueError(f"got s_noise={s_noise}; expected a number >= 0 (1 keeps the marginals)")

    def rows(path: Path) -> list[Update]:
        out = solver.rows(transform(path))
        if s_noise == 1:
            return list(out)
        return [replace(r, s=tuple(s_noise * s for s in r.s)) if isinstance(r, Row) and r.goes_back else r for r in out]

    return RowSolver(description or replace(solver.description, stochastic=True), rows)


def _stochastic(name: str, paper: str, weak_order: int, evaluations: int | None) -> Description:
    return Description(name, "ancestral", paper, weak_order=weak_order, evaluations=evaluations, stochastic=True)


@maker
def euler_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> RowSolver:
    r"""Return Euler a: DDIM (Euler in rho) on the path of :func:`overshoot`; its samples have the law of ``ddim(eta)``.

    .. math:: x_v / \alpha_v = x_u / \alpha_u + (\rho_{down} - \rho_u)\, \epsilon + \rho_{up}\, \xi

    Weak order 1. Source: k-diffusion, ``sample_euler_ancestral``; with eta = 1 it is DDPM's step, Song et al., 2020.

    Example:
        >>> from scoresde import EDM
        >>> rows = euler_ancestral().rows(Path.from_times(EDM(), [8.0, 4.0]))  # down to 2, and up to 4 with new noise
        >>> [(round(row.to.sigma, 3), row.goes_back) for row in rows]
        [(2.0, False), (4.0, True)]
    """
    return detour(ddim(), lambda path: overshoot(path, eta), _stochastic("euler-a", SONG, 1, 1), s_noise)


@maker
def dpm2_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> RowSolver:
    """Return DPM2 a: DPM-Solver-2 on the path of :func:`overshoot`.

    Weak order 2; k-diffusion's ``sample_dpm_2_ancestral``.

    Example:
        >>> from scoresde import EDM
        >>> rows = dpm2_ancestral().rows(Path.from_times(EDM(), [8.0, 4.0]))  # a stage, a step down to 2, and noise up to 4
        >>> [(round(row.to.sigma, 3), row.goes_back) for row in rows]
        [(4.0, False), (2.0, False), (4.0, True)]
    """
    return detour(dpm_solver(2), lambda path: overshoot(path, eta), _stochastic("dpm2-a", DPM, 2, 2), s_noise)


@maker
def dpmpp_2s_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> RowSolver:
    """Return DPM++ 2S a: DPM-Solver++(2S), the midpoint in the data prediction, on the path of :func:`overshoot`.

    Weak order 2; k-diffusion's ``sample_dpmpp_2s_ancestral``.

    Example:
        >>> from scoresde import EDM
        >>> rows = dpmpp_2s_ancestral(eta=0.0).rows(Path.from_times(EDM(), [8.0, 4.0]))  # a stage and the step
        >>> [(round(row.to.sigma, 3), row.goes_back) for row in rows]
        [(5.657, False), (4.0, False)]
    """
    description = _stochastic("dpmpp-2s-a", DPMPP, 2, 2)
    return detour(compose(description, Data(), stencil.midpoint), lambda path: overshoot(path, eta), description, s_noise)


@maker
def edm_stochastic(s_churn: float = 40.0, s_tmin: float = 0.05, s_tmax: float = 50.0, s_noise: float = 1.0) -> RowSolver:
    r"""Return EDM's stochastic sampler: Heun in rho on the path of :func:`churn`, with the authors' levels for ImageNet.

    Weak order 2 with ``s_noise=1``, the exact noise. The authors' 1.003 adds a little more against the loss of detail. Its
    error does not fall with the step, so that no order is claimed then. ``s_churn=0`` is Heun's method.
    Source: Karras et al., 2022, algorithm 2 and table 5.

    Example:
        >>> from scoresde import EDM
        >>> rows = edm_stochastic(s_churn=0.3).rows(Path.from_times(EDM(), [80.0, 10.0, 1.0, 0.1]))
        >>> [round(row.to.sigma, 3) for row in rows if row.goes_back]  # 1.1 times the levels within [0.05, 50]
        [11.0, 1.1]
    """
    weak = 2 if s_noise == 1 else None
    description = Description("edm", "stochastic", KARRAS, weak_order=weak, evaluations=2, stochastic=True)
    return detour(heun("rho"), lambda path: churn(path, s_churn, s_tmin, s_tmax), description, s_noise)


@maker
def restart_heun(
    intervals: Sequence[tuple[float, float, int]] = ((0.06, 0.3, 2),),
    n_restart: int | Sequence[int] | None = 3,
    s_noise: float = 1.0,
) -> RowSolver:
    """Return Restart sampling: Heun in rho on the path of :func:`restart`.

    The default is the authors' ``{"0": [3, 2, 0.06, 0.30]}`` for CIFAR-10 with few evaluations; they scale the noise by
    1.003. With ``n_restart=None``, where an interval repeats the points of the path, the weak order is 2. With a fixed
    number of points an error stays, however many steps the path has.

    Source: Xu et al., "Restart Sampling for Improving Generative Processes", 2023, https://arxiv.org/abs/2306.14878.

    Example:
        >>> from scoresde import EDM
        >>> path = Path.from_times(EDM(), [80.0, 1.0, 0.3, 0.06])
        >>> [round(row.to.sigma, 3) for row in restart_heun().rows(path) if row.goes_back]  # two repetitions
        [0.3, 0.3]
    """
    weak = 2 if n_restart is None and s_noise == 1 else None
    description = Description("restart", "stochastic", XU, weak_order=weak, evaluations=None, stochastic=True)
    return detour(heun("rho"), lambda path: restart(path, intervals, n_restart), description, s_noise)


SALIMANS = "Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512; Kim et al., 2023, https://arxiv.org/abs/2310.02279"


@maker
def student(gamma: float = 0.0) -> RowSolver:
    r"""Return the solver of distilled models: one jump for each move of the path, which the model is told.

    A jump is a step of DDIM whose prediction may depend on its end: see :class:`scoresde.solvers.updates.Jump`. With any
    model that predicts the data at one time this solver is DDIM, the sampler of progressive distillation. The path
    ``"straight"`` suits it, which spends no evaluation at the smallest time.

    With ``gamma > 0`` a jump goes further, to the level :math:`\sqrt{1 - \gamma^2}\, \sigma_v / \alpha_v`, and noise leads
    back from there. ``gamma=1`` jumps to the data and noises them anew: the multistep sampler of consistency models, whose
    only jump is to the data.

    Args:
        gamma: the share of the noise that is drawn anew, from 0 to 1.

    Raises:
        ValueError: for another ``gamma``.

    Sources: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512; Song et al., "Consistency Models", 2023, https://arxiv.org/abs/2303.01469, algorithm 1;
    Kim et al., "Consistency Trajectory Models", 2023, https://arxiv.org/abs/2310.02279, algorithm 3, for gamma.

    Example:
        >>> from scoresde import VP, solvers
        >>> rows = student(gamma=1.0).rows(solvers.make_path(VP(), "straight", 3))
        >>> [(round(row.to.t, 2), row.at is not None) for row in rows]
        [(0.0, True), (0.39, False), (0.0, True), (0.14, False), (0.0, True)]
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"got gamma={gamma}; expected a number from 0 (deterministic) to 1 (all noise drawn anew)")

    def rows(path: Path) -> list[Row]:
        def rule(u: Point, v: Point) -> list[Row]:
            if gamma == 0:
                return [_jump(u, v)]
            w = CLEAN if gamma == 1 else _less_noisy(path, v, 0.5 * math.log1p(-(gamma**2)))
            return [_jump(u, w), forward_move(w, v)]

        made = each_step_of(rule, path)
        if path.ends_clean and path.end == "denoise":
            made[-1] = _jump(*path.points[-2:])
        return made

    claims = {"weak_order": None} if gamma else {"order": 1}
    return RowSolver(Description("student", "student", SALIMANS, stochastic=gamma > 0, **claims), rows)


def _jump(u: Point, v: Point) -> Jump:
    a = scalar.exp(v.log_sigma - u.log_sigma) if v.log_sigma > -math.inf else 0.0
    return Jump(to=v, at=u, a=a, w=(v.alpha - u.alpha * a,))


def _less_noisy(path: Path, v: Point, log_factor: float) -> Point:
    """Return the point at which the level of noise is that at ``v`` times a factor below 1."""
    time = path.sde.time(scalar.vector([v.lam - log_factor]))
    return points(path.sde, time.clamp(0.0, path.sde.span[1]))[0]
