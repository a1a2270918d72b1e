r"""A starting step that gives the noise of the prior the mean of the noised data, for any solver of rows.

A run starts from :math:`N(0, \sigma_T^2 I)`, while the noised data have the mean :math:`\alpha_T \mu` and the covariance
:math:`\alpha_T^2 C + \sigma_T^2 I`. The probability flow carries the missing mean to the data as
:math:`C^{1/2} \mu\, \alpha_T / \sigma_T`, to first order in :math:`\alpha_T / \sigma_T`: for data of unit variance and
``EDM(sigma_max=80)`` that is :math:`\mu / 80`. No number of steps makes it smaller. The data prediction at the start tells
the mean, to :math:`(\alpha_T / \sigma_T)^2`. So the start

.. math:: x \leftarrow x + \alpha_T\, \hat x_0(x, T)

leaves an error of the second order, that of the covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scoresde.solvers.path import Path
from scoresde.solvers.solver import RowSolver, maker
from scoresde.solvers.table import get
from scoresde.solvers.updates import Row, Update

__all__ = ["centred"]


@maker
def centred(solver: str | RowSolver) -> RowSolver:
    r"""Return a solver that gives its start the mean of the noised data first, for one evaluation more.

    It is for starts that are drawn from the prior. A start that is noised data, as for editing, has its mean already. On a
    path that starts at alpha = 0 nothing is missing, and the solver is the same.

    What is missing matters where the mean depends on a condition or a measurement, which no centring of the data can mend,
    and more the less noise there is at the start: :math:`\sigma_T / \alpha_T` is 50 for ``VE()``, 80 for ``EDM()``, 148 for
    ``VP()``.

    Args:
        solver: a name in :data:`SOLVERS`, or a solver that makes rows.

    Raises:
        ValueError: for an unknown name, and for a solver that makes no rows.

    Example:
        >>> import scoresde
        >>> from scoresde.analysis import Moments, law
        >>> data = scoresde.problems.Gaussian([3.0, 0.0], 1.0)
        >>> found = [law(data.model(scoresde.EDM()), (2,), s, 40) for s in ("dpmpp-3m", centred("dpmpp-3m"))]
        >>> off = [each.wasserstein(Moments.of(data)) for each in found]  # 3 / 80 without the mean
        >>> 0.035 < off[0] < 0.04, off[1] < 0.005
        (True, True)
    """
    method = get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, RowSolver):
        raise ValueError(
            f"got solver {getattr(method, 'name', method)!r}, which makes no rows for a starting step to precede; expected "
            "one with fixed steps, such as 'dpmpp-2m'"
        )

    def rows(path: Path) -> Sequence[Update]:
        first = path.points[0]
        found = method.rows(path)
        return found if first.alpha == 0 else [Row(to=first, at=first, a=1.0, w=(first.alpha,)), *found]

    description = replace(method.description, name=f"centred {method.name}")
    return replace(method, description=description, rows=rows)
