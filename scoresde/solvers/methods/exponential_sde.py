r"""Exponential integrators of the reverse SDE: SDE-DPM-Solver, SDE-DPM-Solver++ and SEEDS.

They are the deterministic solvers with ``Data(eta)`` or ``Noise(eta)`` for ``Data()`` or ``Noise()``. eta = 0 is the
probability flow, eta = 1 is the time reversal, and any function eta(lam) has the same marginals. The noise of a step is
exact; only the model is interpolated.

Orders: with one draw per step no method has a strong order above 1, since the draw does not determine the noise within the
step, on which the model depends. The weak order is 2 with two points or more. The stages of a singlestep method contain the
noise of the step. The extrapolation of a multistep method makes up in the next step for the noise that it misses in one. The
parabola of "3m" lowers the error, not the order.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and eps
the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from scoresde.solvers import scalar, stencil
from scoresde.solvers.history import Choice, Rule, exact_rule, finishing, multistep_rows
from scoresde.solvers.methods.exponential import HALF_A_PARABOLA, _exact_to_two, _two_nodes
from scoresde.solvers.path import Path, Point
from scoresde.solvers.prediction import Data, Noise, Prediction
from scoresde.solvers.rows import forward_move, last_move, stencil_rows
from scoresde.solvers.solver import Description, RowSolver, maker
from scoresde.solvers.stencil import Stencil
from scoresde.solvers.updates import Row

__all__ = ["Eta", "per_step", "sde_dpm_solver", "sde_dpmpp", "seeds", "singlestep_rows_per_step"]

DPMPP = "Lu et al. 2022, arXiv:2211.01095"
SEEDS = "Gonzalez et al. 2023, arXiv:2305.14267"

Eta = float | Callable[[float], float]
"""The share of noise: a number, or a function of lam, taken at the start of each step and held constant over it."""


def per_step(kind: type[Data] | type[Noise], eta: Eta, *, at_end: bool = False) -> Choice:
    """Return the prediction of each step u -> v, with ``eta`` at its start, or at its end if lam is infinite there."""
    if not callable(eta):
        if not eta >= 0:
            raise ValueError(f"got eta={eta}; expected a number >= 0 (0: probability flow, 1: time reversal), or a function")
        fixed = kind(float(eta))
        return lambda u, v: fixed

    def choose(u: Point, v: Point) -> Prediction:
        lam = u.lam if scalar.isfinite(u.lam) and not at_end else v.lam
        value = eta(lam)
        if not isinstance(value, scalar.Coefficient):
            value = float(value)
        if not 0 <= value < math.inf:
            raise ValueError(f"got eta(lam={lam:.6g}) = {value}; expected a number >= 0")
        return kind(value)

    return choose


def singlestep_rows_per_step(path: Path, choice: Choice, shape: Stencil) -> list[Row]:
    """Return the rows of a singlestep method with stages, whose prediction is chosen step by step."""
    out: list[Row] = []
    for u, v in path.moves:
        if v.sigma == 0:
            out.append(last_move(path))
        elif v.lam < u.lam:
            out.append(forward_move(u, v))
        else:
            out += stencil_rows(choice(u, v), shape, Path(path.sde, (u, v), "stop"))
    return out


def _rule(published: Rule, variant: str) -> Rule:
    if variant not in ("published", "exact"):
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")
    return published if variant == "published" else exact_rule


def _description(name: str, paper: str, weak_order: float, evaluations: int, eta: Eta, order: int) -> Description:
    if eta == 0:
        return Description(name, "exponential", paper, order=order, evaluations=evaluations)
    return Description(name, "stochastic", paper, weak_order=weak_order, evaluations=evaluations, stochastic=True)


@maker
def sde_dpmpp(kind: str = "2m", eta: Eta = 1.0, variant: str = "published", finish: str = "published") -> RowSolver:
    r"""Return SDE-DPM-Solver++ of kind "1", "2s", "2m" or "3m": the reverse SDE in the data prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} e^{-\eta h} x_u
              + (1 + \eta)\, \alpha_v \int_{\lambda_u}^{\lambda_v} e^{(1 + \eta)(s - \lambda_v)}\, m(s)\, ds
              + \sigma_v \sqrt{1 - e^{-2 \eta h}}\, \xi

    In "1" m is constant. In "2s" it is constant with its value at the middle of the step, a stage that shares the noise of
    the step. In "2m" and "3m" it is extrapolated through the last two or three points. eta = 0 is DPM-Solver++. "1" with
    eta = 1 is the ancestral sampler of DDPM.

    The published "2m" takes the extrapolated line at half the step, and the published "3m" lacks a factor 2 in its second
    difference. ``variant="exact"`` integrates the polynomial. In k-diffusion the solvers are ``sample_dpmpp_sde`` ("2s",
    eta = 1), ``sample_dpmpp_2m_sde`` (published: "midpoint", exact: "heun") and ``sample_dpmpp_3m_sde``.

    The weak order is 1 ("1") or 2 (the others), and the strong order is 1. With eta = 0 the order is 1 or 2. With few steps
    the published "2m" can be more accurate than "3m" and than the exact "2m".

    Args:
        kind: the method, "1", "2s", "2m" or "3m".
        eta: the share of noise, a number or a function of lam.
        variant: the rule, "published" or "exact".
        finish: the finish of "2m" and "3m", see :func:`~scoresde.solvers.finishing`. The default follows k-diffusion's code,
            which keeps the order to the end. diffusers lowers the order of "2m" with fewer than 15 steps by default.

    Source: Lu et al., "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095, appendix B, for which there is no code of the
    authors; k-diffusion.

    Raises:
        ValueError: if ``kind``, ``variant`` or ``finish`` is unknown, ``eta`` is negative, or a ``finish`` is given for
            "2s", whose steps have no history.

    Example:
        >>> from scoresde import EDM, solvers
        >>> row = sde_dpmpp("1").rows(solvers.make_path(EDM(), [4.0, 2.0], end="stop"))[0]
        >>> round(row.a, 6), round(row.w[0], 6), round(row.s[0] ** 2, 6)  # the ancestral sampler
        (0.25, 0.75, 3.0)
    """
    rules: dict[str, Rule] = {"1": exact_rule, "2m": _two_nodes, "3m": _exact_to_two}
    if kind not in (*rules, "2s"):
        raise ValueError(f"got kind={kind!r}; expected one of '1', '2s', '2m', '3m'")
    choice, end = per_step(Data, eta), finishing(finish)
    if kind == "2s":
        _rule(exact_rule, variant)
        if end.kind != "same":
            raise ValueError(f"got finish={finish!r} for kind='2s', whose steps look back on none; expected 'same'")
        description = _description("sde-dpmpp-2s", DPMPP, 2, 2, eta, 2)
        return RowSolver(description, lambda path: _stages(path, choice, eta, stencil.midpoint))
    rule, order = _rule(rules[kind], variant), int(kind[0])
    description = _description(f"sde-dpmpp-{kind}", DPMPP, min(order, 2), 1, eta, min(order, 2))
    return RowSolver(
        replace(description, constants=HALF_A_PARABOLA if kind == "3m" and variant == "published" else None),
        lambda path: multistep_rows(choice, path, (order, rule), finish=end),
    )


@maker
def sde_dpm_solver(order: int = 2, eta: Eta = 1.0, variant: str = "published", finish: str = "published") -> RowSolver:
    r"""Return SDE-DPM-Solver-1 or -2M: the reverse SDE in the noise prediction.

    .. math:: x_v = \frac{\alpha_v}{\alpha_u} x_u
              - (1 + \eta)\, \sigma_v \int_{\lambda_u}^{\lambda_v} e^{\lambda_v - s}\, \epsilon(s)\, ds
              + \sigma_v \sqrt{\eta\, (e^{2h} - 1)}\, \xi

    Order 1 holds eps constant and is SEEDS-1. Order 2 extrapolates eps through two points; the published rule takes the line
    at half the step. The weak order is ``order``. ``finish`` works as in :func:`sde_dpmpp`. Source: Lu et al.,
    "DPM-Solver++", 2022, appendix B.

    Raises:
        ValueError: if ``order`` is not 1 or 2, ``variant`` or ``finish`` is unknown, or ``eta`` is negative.

    Example:
        >>> sde_dpm_solver(2), sde_dpm_solver(2).description.weak_order
        (<solver sde-dpm-2>, 2)
        >>> sde_dpm_solver(2, eta=0.0).stochastic
        False
    """
    if order not in (1, 2):
        raise ValueError(f"got order={order}; expected 1 or 2")
    choice, rule, end = per_step(Noise, eta), _rule(_two_nodes, variant), finishing(finish)
    return RowSolver(
        _description(f"sde-dpm-{order}", DPMPP, order, 1, eta, order),
        lambda path: multistep_rows(choice, path, (order, rule), finish=end),
    )


@maker
def seeds(order: int = 3, eta: Eta = 1.0) -> RowSolver:
    r"""Return SEEDS-1, -2 or -3: the DPM-Solver of that order for the reverse SDE, with stages that share the step's noise.

    It integrates the formula of :func:`sde_dpm_solver`. SEEDS-1 holds eps constant with its value at the start, SEEDS-2 with
    its value at the middle of the step in lam. SEEDS-3 takes eps linear through the start and two thirds of the step. The
    noise of the stages has the exact joint law: SEEDS-2 adds
    :math:`\sigma_v (\sqrt{e^{2h} - e^h}\, \xi_1 + \sqrt{e^h - 1}\, \xi_2)`, and its stage has the noise xi_1.

    The weak orders are 1, 2 and 2; eta = 0 is DPM-Solver. SEEDS needs short steps: in the noise prediction an error grows by
    up to 2 (e^h - 1) a step. Source: Gonzalez et al., "SEEDS", 2023, algorithms 1 to 3.

    Raises:
        ValueError: if ``order`` is not 1, 2 or 3, or ``eta`` is negative.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "lam", 4, end="stop")
        >>> [solvers.evaluations(seeds(order).rows(path)) for order in (1, 2, 3)]
        [4, 8, 12]
    """
    shapes: dict[int, Stencil] = {1: stencil.multistep(1), 2: stencil.midpoint, 3: stencil.radau}
    if order not in shapes:
        raise ValueError(f"got order={order}; expected 1, 2 or 3")
    choice = per_step(Noise, eta)
    return RowSolver(
        _description(f"seeds-{order}", SEEDS, min(order, 2), order, eta, order),
        lambda path: _stages(path, choice, eta, shapes[order]),
    )


def _stages(path: Path, choice: Choice, eta: Eta, shape: Stencil) -> list[Row]:
    if callable(eta):
        return singlestep_rows_per_step(path, choice, shape)
    return stencil_rows(choice(*path.points[:2]), shape, path)
