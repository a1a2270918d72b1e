"""SA-Solver: a stochastic Adams predictor-corrector method for the reverse SDE with any amount of noise."""

from __future__ import annotations

from collections.abc import Sequence

from scoresde.base.numbers import whole
from scoresde.solvers.history import Finish, constant_weight, exact_rule, finishing, multistep_rows
from scoresde.solvers.methods.exponential_sde import Eta, per_step
from scoresde.solvers.path import Point
from scoresde.solvers.prediction import Data, Prediction
from scoresde.solvers.solver import Description, RowSolver, maker

__all__ = ["sa_solver"]

XUE = "Xue et al. 2023, arXiv:2309.05019"


def _published(prediction: Prediction, u: Point, v: Point, nodes: Sequence[Point]) -> list[float]:
    """Return the authors' weights, which for two nodes integrate theta for e^{-z (1 - theta)} theta in the slope."""
    if len(nodes) != 2:
        return exact_rule(prediction, u, v, nodes)
    other = nodes[0] if nodes[1] == u else nodes[1]  # one of the two is the start of the step
    slope = 0.5 * prediction.gain(v) * (v.lam - u.lam) ** 2 / (other.lam - u.lam)
    of_u = constant_weight(prediction, u, v) - slope
    return [of_u, slope] if nodes[0] == u else [slope, of_u]


@maker
def sa_solver(
    predictor: int = 3, corrector: int = 4, tau: Eta = 1.0, variant: str = "published", finish: str = "published"
) -> RowSolver:
    r"""Return SA-Solver: an exponential Adams-Bashforth predictor and Adams-Moulton corrector in the data prediction.

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} e^{-\tau^2 h} x_u
              + (1 + \tau^2)\, \alpha_v \int_{\lambda_u}^{\lambda_v} e^{(1 + \tau^2)(s - \lambda_v)}\, m(s)\, ds
              + \sigma_v \sqrt{1 - e^{-2 \tau^2 h}}\, \xi

    The predictor takes m through the last ``predictor`` points. The corrector takes m through the predicted state and the
    ``corrector - 1`` points before it, with the same noise. A step costs one evaluation, and the last correction is dropped.
    tau^2 is the eta of :func:`sde_dpmpp`; tau = 0 is the deterministic predictor-corrector.

    Args:
        predictor: the number of points of the predictor, 1 or more.
        corrector: the number of points of the corrector, the end of the step included; 0 for none. The authors' code has 3
            and 4 by default. They recommend 2 and 2 under strong guidance, the default of diffusers.
        tau: the share of noise, a number or a function of lam, which is taken at the end of each step. The authors' code
            asks for a function; they recommend 1 in the middle of the path and 0 at both ends.
        variant: the rule. ``"published"`` changes the weights of two points by terms of third order, as the authors do for
            few steps. ``"exact"`` integrates the polynomial, as they do for many steps.
        finish: the finish. ``"published"`` is ``"lower-order"``, whatever the number of steps; for the others see
            :func:`~scoresde.solvers.finishing`.

    The weak order is 2 if the predictor or the corrector has two points or more, else 1; with tau = 0 the order is the same.
    The first step, which has no history, limits it. A corrector with the whole noise needs short steps; with few steps
    a smaller tau is more accurate.
    Source: Xue et al., "SA-Solver", 2023, https://arxiv.org/abs/2309.05019, algorithm 1, and their code.

    Raises:
        ValueError: if ``predictor`` is not a whole number of at least 1 or ``corrector`` of at least 0, ``variant`` or
            ``finish`` is unknown, or ``tau`` is negative.

    Example:
        >>> from scoresde import VP, solvers
        >>> solvers.evaluations(sa_solver(2, 2).rows(solvers.make_path(VP(), "lam", 10)))  # one a step
        10
        >>> sa_solver(tau=0.0).stochastic
        False
    """
    for name, value, least in (("predictor", predictor, 1), ("corrector", corrector, 0)):
        whole(name, value, least)
    if variant not in ("published", "exact"):
        raise ValueError(f"got variant={variant!r}; expected 'published' or 'exact'")
    if not callable(tau) and not tau >= 0:
        raise ValueError(f"got tau={tau}; expected a number >= 0, or a function of lam")
    choice = per_step(Data, (lambda lam: tau(lam) ** 2) if callable(tau) else tau**2, at_end=True)
    end = finishing(finish, Finish("lower-order"))
    rule = _published if variant == "published" else exact_rule
    best = 2 if max(predictor, corrector) >= 2 else 1
    description = (
        Description("sa", "exponential", XUE, order=best)
        if tau == 0
        else Description("sa", "stochastic", XUE, weak_order=best, stochastic=True)
    )
    pair = (corrector, rule) if corrector else None
    return RowSolver(
        description,
        lambda path: multistep_rows(choice, path, (predictor, rule), pair, finish=end, corrects_end=True),
    )
