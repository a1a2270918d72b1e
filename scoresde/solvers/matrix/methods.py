r"""The solvers of SDEs with matrix coefficients: gDDIM, exponential Adams and singlestep methods, SSCS, Euler-Maruyama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from scoresde.base.numbers import whole
from scoresde.sde.linear import ConstantMatrices, van_loan
from scoresde.solvers import stencil
from scoresde.solvers.history import high_order
from scoresde.solvers.matrix.flow import root_of
from scoresde.solvers.matrix.path import MatrixPath, MatrixPoint
from scoresde.solvers.matrix.prediction import MatrixData, MatrixNoise, MatrixPrediction
from scoresde.solvers.matrix.rows import MatrixRow, MatrixSolver, denoising, matrix_rows, noising
from scoresde.solvers.solver import Description, maker
from scoresde.solvers.stencil import Stencil

__all__ = ["em", "exponential", "gddim", "sscs"]

ZHANG = "Zhang, Tao & Chen 2023, arXiv:2206.05564"
DOCKHORN = "Dockhorn, Vahdat & Kreis 2022, arXiv:2112.07068"
LU = "Lu et al. 2022, arXiv:2211.01095; Zhang & Chen 2023, arXiv:2204.13902, with matrices"
"""The papers of the exponential integrators, which have numbers for coefficients."""


@maker
def gddim(order: int = 1, eta: float = 0.0) -> MatrixSolver:
    r"""Return gDDIM, for the flow with ``order`` nodes, or for the SDE with one.

    The flow: Adams-Bashforth in t on the noise :math:`\epsilon = R^{-1} (z - \psi m)`, which is constant along the flow of a
    single data point,

    .. math:: z_v = \Psi(v, u) z_u
              + \sum_j \Big[ \int_u^v \tfrac12 \Psi(v, \tau) G G^T R_\tau^{-T} \ell_j(\tau)\, d\tau \Big] \epsilon_j .

    The SDE, with the data prediction held constant over a step, the transition :math:`\hat\Psi` of
    :math:`F + \tfrac{1 + \eta}{2} G G^T \Sigma^{-1}` and the covariance P of its noise:

    .. math:: z_v \sim N\big( \psi_v m + \hat\Psi(v, u) (z_u - \psi_u m),\; P \big) .

    The first steps have fewer nodes, as published, which limits the order to two. Both are DDIM where the coefficients are
    numbers.

    Args:
        order: the number of nodes, 1 to 4. The authors count the degree q of the polynomial, which is one less.
        eta: the noise, the square of the paper's lambda: 0 for the flow, 1 for the time reversal.

    Raises:
        ValueError: for another order, a negative eta, and more than one node with noise, which the paper does not have;
            ``exponential("data", order, eta)`` does.

    Source: Zhang, Tao and Chen, "gDDIM: Generalized Denoising Diffusion Implicit Models", 2023,
    https://arxiv.org/abs/2206.05564, propositions 4 and 6.

    Example:
        >>> gddim(2), gddim(eta=1.0).stochastic
        (<solver gddim-2>, True)
    """
    order = whole("order", order, 1, 4)
    name = f"gddim-{order}" if order > 1 else "gddim"
    if eta:
        if order > 1:
            raise ValueError(
                f"got order={order} and eta={eta} for gDDIM, which has one node where there is noise; expected order=1, or "
                "exponential('data', order, eta)"
            )
        described = Description("gddim", "matrix", ZHANG, weak_order=1.0, stochastic=True)
        return MatrixSolver(described, lambda path: matrix_rows(MatrixData(eta), stencil.euler, path))
    described = Description(name, "matrix", ZHANG, order=min(order, 2))
    prediction = MatrixNoise(clock="t")
    return MatrixSolver(described, lambda path: matrix_rows(prediction, stencil.multistep(order), path))


COORDINATES_OF = {"data": "", "noise": "flow", "root": "root", "score": "score"}
"""The coordinates of the noise for each quantity that is interpolated, none for the data."""

STAGES: dict[str, tuple[Stencil, int]] = {
    "midpoint": (stencil.midpoint, 2),
    "trapezoid": (stencil.trapezoid, 2),
    "radau": (stencil.radau, 3),
}


@maker
def exponential(
    predicts: str = "data",
    order: int = 2,
    eta: float = 0.0,
    *,
    stages: str = "",
    clock: str = "lam",
    start: str = "published",
) -> MatrixSolver:
    r"""Return an exponential integrator: a prediction and a stencil, with matrices for coefficients.

    With ``predicts="data"`` it is DPM-Solver++ and its SDE versions without their approximations, with ``"noise"`` DEIS. On
    an SDE of one variable it equals ``stencil_rows`` of the scalar prediction.

    Args:
        predicts: the quantity that is interpolated, ``"data"``, ``"noise"``, ``"root"`` or ``"score"``; see
            :mod:`scoresde.solvers.matrix.prediction`.
        order: the number of nodes of the multistep method, 1 to 4.
        eta: the noise, 0 for the flow and 1 for the time reversal.
        stages: a singlestep method in place of the multistep one: ``"midpoint"``, ``"trapezoid"`` or ``"radau"``.
        clock: the variable of the interpolating polynomial, ``"lam"`` or ``"t"``.
        start: ``"published"`` starts with fewer nodes, which limits the order to two; ``"high-order"`` starts with
            singlestep steps.

    Raises:
        ValueError: for any other choice.

    Example:
        >>> exponential("data", 3, start="high-order").description.order
        3
    """
    if predicts not in COORDINATES_OF:
        raise ValueError(f"got predicts={predicts!r}; expected one of {', '.join(map(repr, COORDINATES_OF))}")
    coordinates = COORDINATES_OF[predicts]
    prediction: MatrixPrediction = MatrixNoise(eta, clock, coordinates) if coordinates else MatrixData(eta, clock)
    name = ("sde-" if eta else "") + predicts
    if stages:
        if stages not in STAGES:
            raise ValueError(f"got stages={stages!r}; expected one of {', '.join(map(repr, STAGES))}")
        shape, reached = STAGES[stages]
        described = Description(f"{name}-{stages}", "matrix", LU, evaluations=len(shape))
        opening: list[Stencil] = [shape]
    else:
        order = whole("order", order, 1, 4)
        opening = [*high_order(order, start), stencil.multistep(order)]
        reached = order if start == "high-order" else min(order, 2)
        described = Description(f"{name}-{order}", "matrix", LU)
    described = replace(
        described, order=None if eta else reached, weak_order=float(min(reached, 2)) if eta else None, stochastic=eta > 0
    )
    return MatrixSolver(described, lambda path: matrix_rows(prediction, opening, path))


@maker
def sscs() -> MatrixSolver:
    r"""Return the symmetric splitting sampler of Langevin diffusions (SSCS), for the reverse SDE.

    With the stationary covariance S, the reverse SDE is an Ornstein-Uhlenbeck process and a rest that vanishes where the
    states are N(0, S): with s counted backwards in time,

    .. math:: dz = -(F + G G^T S^{-1}) z\, ds + G\, dw \;+\; G G^T (\nabla \log p_t + S^{-1} z)\, ds .

    A step is half a step of the first, exactly, a whole Euler step of the second with the score at the time at which the
    step starts, and half a step of the first. The Euler step limits the weak order to one.

    Raises:
        ValueError: for an SDE that has no constant matrices.

    Source: Dockhorn, Vahdat and Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", 2022,
    https://arxiv.org/abs/2112.07068, algorithm 1.

    Example:
        >>> sscs().description.weak_order
        1.0
    """
    described = Description("sscs", "matrix", DOCKHORN, weak_order=1.0, stochastic=True)

    def rows(path: MatrixPath) -> list[MatrixRow]:
        sde = path.sde
        if not isinstance(sde, ConstantMatrices):
            raise ValueError(
                f"got {type(sde).__name__} for 'sscs', which splits off the relaxation to a stationary law; expected an SDE "
                "with constant matrices, such as CLD()"
            )
        return _along(path, lambda u, v: _split(sde, u, v))

    return MatrixSolver(described, rows)


def _along(path: MatrixPath, rule: Callable[[MatrixPoint, MatrixPoint], list[MatrixRow]]) -> list[MatrixRow]:
    """Apply a rule of rows a step along a path."""
    rows: list[MatrixRow] = []
    for u, v in path.moves:
        if v.t == 0:
            rows.append(denoising(path.sde, u, v))
        elif path.noises(u, v):
            rows.append(noising(path.sde, u, v))
        else:
            rows += rule(u, v)
    return rows


def _split(sde: ConstantMatrices, u: MatrixPoint, v: MatrixPoint) -> list[MatrixRow]:
    s = sde.stationary_covariance
    noise = sde.noise_matrix @ sde.noise_matrix.mT
    half = 0.5 * (sde.elapsed(u.t) - sde.elapsed(v.t))
    relaxation = torch.linalg.solve(s, sde.drift_matrix @ s).mT  # S F^T S^-1 = -(F + G G^T S^-1)
    turned, added = van_loan(relaxation, noise, half)
    root = root_of(added)
    factors = sde.factors(u.t)
    precision = torch.cholesky_inverse(factors.root)
    p = noise @ (torch.linalg.inv(s) - precision)
    q = noise @ precision @ factors.psi
    first = MatrixRow(to=u, at=None, a=sde.map(turned), s=(sde.map(root),), draw=(u, v), ends_step=False)
    second = MatrixRow(
        to=v,
        at=u,
        a=sde.map(turned @ turned),
        w=(sde.map(2 * half * turned),),
        s=(sde.map(root), sde.map(turned @ root)),
        p=sde.map(p),
        q=sde.map(q, of_state=False),
        draw=(u, v),
    )
    return [first, second]


@maker
def em(eta: float = 1.0) -> MatrixSolver:
    r"""Return Euler-Maruyama on the reverse SDE, or Euler's method on the flow for ``eta=0``.

    .. math:: z_v = z_u + (v - u) \Big[ F z - \tfrac{1 + \eta}{2} G G^T \nabla \log p \Big] + \sqrt{\eta\, |v - u|}\; G\, \xi

    Args:
        eta: the noise.

    Raises:
        ValueError: for a negative eta.

    Example:
        >>> em().stochastic, em(0.0).name
        (True, 'euler')
    """
    if not eta >= 0:
        raise ValueError(f"got eta={eta}; expected a number >= 0 (0: probability flow, 1: time reversal)")
    paper, weak = "Song et al. 2021, arXiv:2011.13456", 1.0 if eta else None
    described = Description("em" if eta else "euler", "matrix", paper, None if eta else 1, weak, stochastic=eta > 0)

    def rows(path: MatrixPath) -> list[MatrixRow]:
        return _along(path, lambda u, v: [_euler(path, u, v, eta)])

    return MatrixSolver(described, rows)


def _euler(path: MatrixPath, u: MatrixPoint, v: MatrixPoint, eta: float) -> MatrixRow:
    sde, h = path.sde, v.t - u.t
    drift, noise = sde.rates(u.t)
    factors = sde.factors(u.t)
    whitening = sde.whitening(factors.root)
    pulled = 0.5 * (1 + eta) * noise @ whitening.mT @ whitening
    return MatrixRow(
        to=v,
        at=u,
        a=1.0,
        w=(h,),
        s=(sde.map(root_of(eta * abs(h) * noise)),) if eta else (),
        p=sde.map(drift + pulled),
        q=sde.map(-pulled @ factors.psi, of_state=False),
        draw=(u, v) if eta else None,
    )
