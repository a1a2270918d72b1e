r"""Predictor-corrector methods: UniPC, and Adams-Bashforth-Moulton in the data, the noise and the velocity.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction. A
step predicts :math:`\tilde x_v` from the history, evaluates :math:`\tilde m_v` there, and corrects to :math:`x_v` with it.
The evaluation enters the history of the next step, so that a step costs one evaluation (PEC).
"""

from __future__ import annotations

from collections.abc import Sequence

from scoresde.solvers import stencil
from scoresde.solvers.history import (
    Finish,
    constant_weight,
    exact_rule,
    finishing,
    high_order,
    multistep_rows,
    step_stencils,
)
from scoresde.solvers.path import Point
from scoresde.solvers.prediction import Data, Noise, Prediction, Velocity
from scoresde.solvers.rows import stencil_rows
from scoresde.solvers.solver import Description, RowSolver, maker
from scoresde.solvers.stencil import Stage, Stencil

__all__ = ["adams_moulton", "exp_adams_moulton", "unipc"]

ZHAO = "Zhao et al. 2023, arXiv:2302.04867"
HAIRER = "Hairer et al. 1993, doi:10.1007/978-3-540-78862-1"
HOCHBRUCK = "Hochbruck & Ostermann 2011, doi:10.1007/s10543-011-0332-6"

_PREDICTIONS: dict[str, type[Data] | type[Noise]] = {"data": Data, "noise": Noise}


def _prediction(name: str) -> Prediction:
    if name not in _PREDICTIONS:
        raise ValueError(f"got prediction={name!r}; expected 'data' or 'noise'")
    return _PREDICTIONS[name]()


@maker
def unipc(
    order: int = 3,
    b: str = "bh1",
    prediction: str = "data",
    variant: str = "published",
    start: str = "published",
    finish: str = "published",
) -> RowSolver:
    r"""Return UniPC: a predictor through ``order`` nodes (UniP), and a corrector through these and the new node (UniC).

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v (1 - e^{-h})\, m_u
              + \alpha_v B(h) \sum_k \frac{c_k}{r_k} (m_k - m_u), \qquad r_k = \frac{\lambda_k - \lambda_u}{h}

    where the c_k make the rule exact on polynomials in lam, whatever B is. B matters only in two shortcuts, which set
    c = 1/2 where there is one difference: in the predictor of two nodes, and in the corrector of the first step.

    Args:
        order: the number of nodes of the predictor, 1 to 4. The order of the corrected method is one more, but at most 4,
            the limit of the starting procedure; it is 2 with the published finish.
        b: the function B of the shortcuts: ``"bh1"``, B = h, the default of the authors' code, or ``"bh2"``,
            B = 1 - e^{-h}, the default of diffusers.
        prediction: the interpolated quantity, ``"data"`` for m or ``"noise"`` for eps.
        variant: the rule: ``"published"`` with the shortcuts, or ``"exact"`` without, which is exponential PEC.
        start: the starting procedure. ``"published"``: the order grows with the history after a corrected first step, which
            limits the method to order 3. ``"high-order"``: singlestep steps first, until the history is long enough.
        finish: the finish. ``"published"`` is ``"lower-order"``, whatever the number of steps; for the others see
            :func:`~scoresde.solvers.finishing`.

    The last correction is dropped. UniPC-2 with "bh2" is DPM-Solver++(2M) with a corrector. High orders need small steps in
    lam: with few steps a lower order can be the more accurate.
    Source: Zhao et al., "UniPC", 2023, https://arxiv.org/abs/2302.04867, algorithms 5 to 8, and their code.

    Raises:
        ValueError: if ``order`` is not 1, 2, 3 or 4, or ``b``, ``prediction``, ``variant``, ``start`` or ``finish`` is
            unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> solvers.evaluations(unipc(3).rows(solvers.make_path(VP(), "lam", 10)))  # a corrected step costs one
        10
        >>> unipc(2, "bh2")
        <solver unipc-2>
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"got order={order!r}; expected 1, 2, 3 or 4")
    if b not in ("bh1", "bh2"):
        raise ValueError(f"got b={b!r}; expected 'bh1' or 'bh2'")
    if variant not in ("published", "exact"):
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")

    def rule(p: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
        corrects = nodes[0] is v
        if variant == "exact" or len(nodes) != 2 or (not corrects and order == 1):
            return exact_rule(p, u, v, nodes)
        constant = constant_weight(p, u, v)
        scale = constant if b == "bh2" else p.gain(v) * (v.lam - u.lam)
        other = nodes[0] if corrects else nodes[1]
        w = 0.5 * scale * (v.lam - u.lam) / (other.lam - u.lam)
        return [w, constant - w] if corrects else [constant - w, w]

    kind, opening = _prediction(prediction), high_order(min(order + 1, 4), start)[: order - 1]
    end = finishing(finish, Finish("lower-order"))
    return RowSolver(
        Description(f"unipc-{order}", "exponential", ZHAO, order=_reached(order + 1, start, end)),
        lambda path: multistep_rows(kind, path, (order, rule), (order + 1, rule), opening, finish=end),
    )


def _reached(order: int, start: str, end: Finish) -> int:
    """Return the order of a corrected method, which the local errors of its first step and of a last DDIM step limit."""
    return min(order, 2 if end.kind == "lower-order" else 4 if start == "high-order" else 3)


@maker
def exp_adams_moulton(
    order: int = 3,
    mode: str = "pec",
    prediction: str = "data",
    start: str = "published",
    finish: str = "published",
) -> RowSolver:
    r"""Return exponential Adams-Bashforth-Moulton: a predictor and a corrector, both exact interpolations in lam.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \alpha_v \int_{\lambda_u}^{\lambda_v} e^{s - \lambda_v} P(s)\, ds

    The polynomial P goes through the newest ``order`` nodes in the predictor. In the corrector it goes through the end of
    the step and the ``order`` - 1 nodes before it.

    Args:
        order: the number of nodes, 2, 3 or 4.
        mode: the evaluations of a step. ``"pec"`` makes one, and drops the last correction. ``"pece"`` makes two, the second
            at the corrected state, with a predictor of one node less.
        prediction: the interpolated quantity, ``"data"`` for m or ``"noise"`` for eps.
        start: the starting procedure, see :func:`unipc`; the published one limits the order to 3.
        finish: the finish, see :func:`unipc`. Here ``"published"`` is ``"same"``, since there is no code to follow.

    Order 2 with ``"pece"`` is Heun's method in lam, the exponential trapezoid. Source: Hochbruck and Ostermann,
    "Exponential multistep methods of Adams-type", 2011.

    Raises:
        ValueError: if ``order`` is not 2, 3 or 4, or ``mode``, ``prediction``, ``start`` or ``finish`` is unknown.

    Example:
        >>> from scoresde import VP, solvers
        >>> path = solvers.make_path(VP(), "lam", 10)
        >>> [solvers.evaluations(exp_adams_moulton(3, mode).rows(path)) for mode in ("pec", "pece")]
        [10, 19]
    """
    if order not in (2, 3, 4):
        raise ValueError(f"got order={order!r}; expected 2, 3 or 4")
    if mode not in ("pec", "pece"):
        raise ValueError(f"got mode={mode!r}; expected 'pec' or 'pece'")
    kind, opening, end = _prediction(prediction), high_order(order, start), finishing(finish)
    reached = _reached(order, start, end)
    description = Description(f"expam-{order}", "exponential", HOCHBRUCK, order=reached, evaluations=1 + (mode == "pece"))
    if mode == "pec":
        pair = order, exact_rule
        return RowSolver(description, lambda path: multistep_rows(kind, path, pair, pair, opening, finish=end))
    return RowSolver(
        description, lambda path: stencil_rows(kind, step_stencils(path, opening, order, _predict_and_correct, end), path)
    )


@maker
def adams_moulton(order: int = 3, start: str = "published", finish: str = "published") -> RowSolver:
    r"""Return Adams-Bashforth-Moulton in the velocity eps - m, with the clock :math:`\tau = \sigma / (\alpha + \sigma)`.

    .. math:: \frac{x_v}{\alpha_v + \sigma_v} = \frac{x_u}{\alpha_u + \sigma_u} + \int_{\tau_u}^{\tau_v} P(\tau)\, d\tau

    The polynomial P goes through the newest ``order`` velocities in the predictor, which is
    :func:`~scoresde.solvers.velocity`. In the corrector it goes through the velocity at the predicted end of the step and
    the ``order`` - 1 before it. A step makes one evaluation (PEC), at its predicted end, with which the next step starts.
    Like the velocity methods it serves every SDE and can start at alpha = 0. Since tau = 0 at sigma = 0, it can also end
    there by its own rule: ``end="extrapolate"`` of :func:`scoresde.sample`.

    Args:
        order: the number of nodes, 2, 3 or 4.
        start: the starting procedure, see :func:`unipc`; the published one limits the order to 3.
        finish: the finish, see :func:`unipc`. Here ``"published"`` is ``"same"``, since there is no code to follow.

    Source: Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I", 1993, section III.1, for the pair of
    rules.

    Raises:
        ValueError: if ``order`` is not 2, 3 or 4, or ``start`` or ``finish`` is unknown.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import evaluations, make_path
        >>> evaluations(adams_moulton(3).rows(make_path(VP(), "lam", 10)))
        10
    """
    if order not in (2, 3, 4):
        raise ValueError(f"got order={order!r}; expected 2, 3 or 4")
    pair, opening, end = (order, exact_rule), high_order(order, start), finishing(finish)
    return RowSolver(
        Description(f"abm-{order}", "multistep", HAIRER, order=_reached(order, start, end)),
        lambda path: multistep_rows(Velocity(), path, pair, pair, opening, finish=end),
    )


def _predict_and_correct(order: int) -> Stencil:
    past = tuple(range(0, 1 - order, -1))
    return (Stage(1.0, past), Stage(1.0, (1, *past))) if past else stencil.euler
