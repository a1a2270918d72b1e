r"""Exact mean and covariance of a solver's samples on Gaussian data, without Monte Carlo.

On data :math:`N(\mu, C)` the data prediction is affine in the state,

.. math:: E[x_0 \mid x] = \mu + \alpha C (\alpha^2 C + \sigma^2 I)^{-1} (x - \alpha \mu),

so a solver with linear rows maps Gaussian starts to Gaussian ends. In the eigenbasis of C the coordinates are independent.
The state of a coordinate is an affine form: a constant and the coefficients of the start and of each draw of noise. Its
variance is the sum of the squares of these coefficients, without the constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.problems import Gaussian, Problem
from scoresde.solvers.drivers.states import Allocating
from scoresde.solvers.path import Path, Point
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get
from scoresde.solvers.updates import Update, run

__all__ = ["Moments", "moments", "root"]


@dataclass(frozen=True)
class Moments:
    """The mean and covariance of a Gaussian.

    Args:
        mean: shape ``(d,)``, float64.
        covariance: shape ``(d, d)``, float64.

    Example:
        >>> Moments(torch.zeros(1), torch.eye(1)).distance(Moments(torch.ones(1), torch.eye(1)))
        1.0
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, problem: Problem[Any]) -> Moments:
        """Return the mean and covariance of a problem's distribution.

        Example:
            >>> from scoresde.problems import Gaussian
            >>> Moments.of(Gaussian([0.0], 4.0)).covariance.item()
            4.0
        """
        return cls(problem.mean.flatten(), problem.covariance)

    def wasserstein(self, other: Moments) -> float:
        r"""Return the 2-Wasserstein distance of the two Gaussians.

        With roots :math:`C = R R^T` it is :math:`(|\mu - \mu'|^2 + \min_Q |R - R' Q|^2)^{1/2}` over orthogonal matrices Q.
        The singular vectors of :math:`R'^T R` give the best Q. Nothing cancels for close covariances.

        Source: Schönemann, "A Generalized Solution of the Orthogonal Procrustes Problem", 1966,
        https://doi.org/10.1007/BF02289451; Gelbrich, "On a Formula for the L2 Wasserstein Metric between Measures on
        Euclidean and Hilbert Spaces", 1990, https://doi.org/10.1002/mana.19901470121.

        Example:
            >>> one = torch.eye(2, dtype=torch.float64)
            >>> far = Moments(torch.tensor([3.0, 0.0]), 9 * one)
            >>> Moments(torch.zeros(2), one).wasserstein(far) ** 2  # 3^2 + 2 (3 - 1)^2
            17.0
        """
        mine, theirs = root(self.covariance), root(other.covariance)
        u, _, vt = torch.linalg.svd(theirs.T @ mine)
        apart = (mine - theirs @ u @ vt).square().sum()
        return float(((self.mean - other.mean).square().sum() + apart).sqrt())

    def distance(self, other: Moments) -> float:
        """Return the root of the summed squares of the differences of the means and of the covariances."""
        of_mean = (self.mean - other.mean).square().sum()
        return float((of_mean + (self.covariance - other.covariance).square().sum()).sqrt())


def moments(
    solver: str | Solver, path: Path, mean: Any, covariance: Any, *, start: str = "marginal", corrector: str = "refuse"
) -> Moments:
    r"""Compute the exact mean and covariance of a solver's samples for the data N(``mean``, ``covariance``).

    Args:
        solver: a name in :data:`scoresde.solvers.SOLVERS` or a solver that makes rows.
        path: the path of times.
        mean: the mean of the data, of any event shape, which is flattened.
        covariance: the covariance of the data: a variance, a diagonal or a full matrix, see
            :class:`scoresde.problems.Gaussian`.
        start: ``"marginal"`` starts from the distribution of the noised data, so that the solver makes all of the error;
            ``"prior"`` starts from N(0, sigma^2 I), as ``sample`` does.
        corrector: the treatment of a Langevin correction whose step :math:`2\, \mathrm{scale}\, (\mathrm{snr}\, \|\xi\| /
            \|s\|)^2` depends on the state, so that it is not a linear map. ``"refuse"`` raises. ``"mean-field"`` replaces
            :math:`\|\xi\|^2 / \|s\|^2` by :math:`d / E \|s\|^2`, which is exact in the limit of many dimensions: if each
            coordinate is repeated k times independently, both norms are sums of k independent terms, and the relative
            fluctuations of their ratio are of order :math:`k^{-1/2}`. Corrections with a fixed step (annealed Langevin
            dynamics) are linear rows and always exact.

    Returns:
        The mean, shape ``(d,)``, and the covariance, shape ``(d, d)``, of the last state; float64.

    Raises:
        ValueError: for a solver without rows, for a learned variance, and for a correction that depends on the state unless
            ``corrector="mean-field"``.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import make_path
        >>> end = moments("ddpm", make_path(VP(), "t", 10, end="stop"), [0.0, 0.0], 1.0)
        >>> bool(torch.allclose(end.covariance, torch.eye(2, dtype=torch.float64)))  # exact for white data
        True
    """
    if start not in ("marginal", "prior"):
        raise ValueError(f"got start={start!r}; expected 'marginal' or 'prior'")
    if corrector not in ("refuse", "mean-field"):
        raise ValueError(f"got corrector={corrector!r}; expected 'refuse' or 'mean-field'")
    method = get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, RowSolver):
        raise ValueError(
            f"got solver {method.name!r}, which makes no rows; expected a solver with fixed steps: draw samples for this one"
        )
    rows, problem, begin = method.rows(path), Gaussian(mean, covariance), path.points[0]
    variances, basis = torch.linalg.eigh(problem.covariance)
    variances = variances.clamp(min=0)
    centre = basis.T @ problem.mean.flatten()
    if any(row.learned for row in rows):
        raise ValueError("got a step with a learned variance, which depends on the model; pass variance='lower' or 'upper'")
    draws = sum(row.draws for row in rows)
    x = torch.zeros(len(centre), 2 + draws, dtype=torch.float64)
    if start == "marginal":
        x[:, 0], x[:, 1] = begin.alpha * centre, (begin.alpha**2 * variances + begin.sigma**2).sqrt()
    else:
        x[:, 1] = begin.sigma
    on = _Affine(rows, x, centre, variances, corrector == "mean-field")
    for _ in run(rows, on):
        pass
    end = on.x
    return Moments(basis @ end[:, 0], (basis * end[:, 1:].square().sum(1)) @ basis.T)


def exact(path: Path, mean: Any, covariance: Any) -> Moments:
    """Return the moments of the noised data at the end of ``path``, the exact result.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.solvers import make_path
        >>> exact(make_path(VP(), "lam", 4), [1.0], 0.25)
        Moments(mean=tensor([1.], dtype=torch.float64), covariance=tensor([[0.2500]], dtype=torch.float64))
    """
    problem, end = Gaussian(mean, covariance), path.points[-1]
    noise = end.sigma**2 * torch.eye(problem.event.numel(), dtype=torch.float64)
    return Moments(end.alpha * problem.mean.flatten(), end.alpha**2 * problem.covariance + noise)


def root(covariance: Tensor) -> Tensor:
    """Return a matrix R with R R^T = C.

    Example:
        >>> root(torch.tensor([[4.0]])).square()
        tensor([[4.]])
    """
    values, vectors = torch.linalg.eigh(covariance)
    made: Tensor = vectors * values.clamp(min=0).sqrt()
    return made


class _Affine(Allocating):
    """States as affine forms, shape ``(d, 2 + draws)``, in which each draw of noise has a column."""

    def __init__(self, rows: Sequence[Update], x: Tensor, centre: Tensor, variances: Tensor, mean_field: bool) -> None:
        predictions = (partial(_predict, row.at, centre, variances) for row in rows if row.at is not None)
        super().__init__(rows, predictions, x, self._column)
        self.column, self.mean_field = 1, mean_field

    def _column(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        self.column += 1
        out.zero_()[:, self.column] = 1
        return out

    def ratio(self, xi: Tensor, score: Tensor, norm: str) -> Tensor:
        if not self.mean_field:
            raise ValueError(
                "got a Langevin correction whose step depends on the state: its output is not Gaussian; pass "
                "corrector='mean-field' for its limit in many dimensions, or take a correction with a fixed step"
            )
        return (len(score) / score.square().sum()).sqrt()


def _predict(at: Point, centre: Tensor, variances: Tensor, y: Tensor) -> Tensor:
    """Return the data prediction at an affine form, which is an affine form too."""
    gain = at.alpha * variances / (at.alpha**2 * variances + at.sigma**2)
    m = gain[:, None] * y
    m[:, 0] += centre * (1 - gain * at.alpha)
    return m
