"""The probability flow by Runge-Kutta methods, in the time of the SDE or in rho = sigma / alpha.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scoresde.solvers import stencil
from scoresde.solvers.methods import drift_diffusion
from scoresde.solvers.prediction import Drift, Prediction, Rho
from scoresde.solvers.solver import Description, RowSolver, compose, maker

__all__ = ["euler", "explicit_midpoint", "heun", "rk3", "rk4"]

SONG_2021 = "Song et al. 2021, arXiv:2011.13456"
KARRAS = "Karras et al. 2022, arXiv:2206.00364"

_CLOCKS: dict[str, Callable[[], Prediction]] = {"t": Drift, "rho": Rho}


def _clock(clock: str) -> Prediction:
    if clock not in _CLOCKS:
        raise ValueError(f"got clock={clock!r}; expected one of {', '.join(_CLOCKS)}")
    return _CLOCKS[clock]()


@maker
def euler(clock: str = "t") -> RowSolver:
    r"""Return Euler's method for the probability flow in ``t``, or in ``rho`` = sigma / alpha, where it is DDIM.

    .. math:: x_v = x_u + (v - u) \left. \frac{dx}{dt} \right|_u,
              \qquad \frac{dx}{dt} = f x - \tfrac12 g^2\, s(x, t)

    Source: Song et al., 2021, equation (13).

    Example:
        >>> from scoresde import VP, solvers
        >>> solvers.evaluations(euler().rows(solvers.make_path(VP(), "t", 10)))
        10
        >>> euler("rho").description.order
        1
    """
    return compose(Description("euler", "runge-kutta", SONG_2021, order=1), _clock(clock), stencil.euler)


@maker
def heun(clock: str = "t") -> RowSolver:
    r"""Return Heun's second-order method for the probability flow: an Euler step, then the average of both slopes.

    In ``t`` on :class:`~scoresde.EDM`, or in ``rho`` on any SDE, it is the deterministic sampler of Karras et al., 2022
    (algorithm 1).

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = heun().rows(solvers.make_path(EDM(), [4.0, 2.0], end="stop"))
        >>> [(row.at.t, row.w) for row in rows]  # a step of -2, then with the average of both slopes
        [(4.0, (-2.0,)), (2.0, (-1.0, -1.0))]
    """
    solver = compose(Description("heun", "runge-kutta", KARRAS, order=2, evaluations=2), _clock(clock), stencil.trapezoid)
    return replace(solver, general=drift_diffusion.heun)


@maker
def explicit_midpoint(clock: str = "t") -> RowSolver:
    r"""Return the explicit midpoint method: half an Euler step, then the whole step with the slope there.

    .. math:: x_v = x_u + (v - u) \left. \frac{dx}{dt} \right|_{(u + v) / 2}

    It solves the probability flow. The midpoint is taken in the clock, ``t`` or ``rho``. With the geometric mean of both
    rho the method would be DPM-Solver-2, k-diffusion's DPM2. Source: Runge, 1895; Karras et al., 2022, appendix D, where it
    is alpha = 1/2.

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = explicit_midpoint().rows(solvers.make_path(EDM(), [4.0, 2.0], end="stop"))
        >>> [(row.at.t, row.w) for row in rows]  # half a step of -2, then the whole step with the slope at 3
        [(4.0, (-1.0,)), (3.0, (-2.0,))]
    """
    description = Description("midpoint", "runge-kutta", "Runge 1895", order=2, evaluations=2)
    return compose(description, _clock(clock), stencil.midpoint)


@maker
def rk3(clock: str = "t") -> RowSolver:
    """Return Kutta's method of order 3 for the probability flow, which ends with Simpson's rule (Kutta, 1901).

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = rk3().rows(solvers.make_path(EDM(), [8.0, 2.0], end="stop"))
        >>> [round(w, 6) for w in rows[-1].w]  # Simpson's rule: 1/6, 4/6 and 1/6 of the step of -6
        [-1.0, -4.0, -1.0]
    """
    return compose(Description("rk3", "runge-kutta", "Kutta 1901", order=3, evaluations=3), _clock(clock), stencil.rk3)


@maker
def rk4(clock: str = "t") -> RowSolver:
    """Return the classical Runge-Kutta method of order 4 for the probability flow (Kutta, 1901).

    Example:
        >>> from scoresde import EDM, solvers
        >>> rows = rk4().rows(solvers.make_path(EDM(), [8.0, 2.0], end="stop"))
        >>> [round(w, 6) for w in rows[-1].w]  # 1/6, 2/6, 2/6 and 1/6 of the step of -6
        [-1.0, -2.0, -2.0, -1.0]
    """
    return compose(Description("rk4", "runge-kutta", "Kutta 1901", order=4, evaluations=4), _clock(clock), stencil.rk4)
