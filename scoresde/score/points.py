r"""Score models of point sets, in the subspace where the centre of mass is zero.

The SDE of a point set lives in the subspace of zero centre of mass, of dimension (M - 1) n for M points in n dimensions, and
beside it in all dimensions of the features. Let P be the orthogonal projection onto the subspace. The isotropic SDE of the
surrounding space splits into that of the subspace and independent noise outside of it, and a prediction
:math:`m(x) = P\, m(P x)` leaves the two apart. A row of a solver, :math:`y = a x + \sum_j w_j N_j + s\, \xi` with
:math:`N = p x + q m`, then becomes

.. math:: P y = a\, P x + \sum_j w_j\, P N_j + s\, P \xi ,

the same row with noise in the subspace. So every solver, path and driver runs in the subspace as it is, and a padded point
set needs no basis of its own. Only the projection of the result remains, and the density of the noise outside of the
subspace, which a likelihood leaves out. Two kinds of solvers see the noise outside all the same, in the length of their
steps: Langevin correctors and stochastic adaptive methods, which take it from norms of the whole state.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import centred, check_points, present
from scoresde.score.model import ScoreModel
from scoresde.score.wrapper import Wrapper
from scoresde.sde import Time

__all__ = ["PointModel"]


class PointModel(Wrapper):
    r"""A score model of point sets whose centre of mass is zero, with rows of padding where sets differ in size.

    States have the shape ``(batch, points, dims + features)``. The condition ``mask``, booleans of shape
    ``(batch, points)``, tells the points from the padding; without it all rows are points. Training,
    :func:`scoresde.sample` and :func:`scoresde.log_likelihood` work in the subspace, of dimension (M - 1) n plus the
    features for a set of M points. With a network that commutes with rotations, reflections and permutations, such as
    :class:`scoresde.models.EGNN`, the density is invariant under them.

    States in callbacks carry noise outside of the subspace where the solver draws noise; :meth:`project` removes it.

    Args:
        model: any score model of such states.
        dims: the number of coordinates of a position, n, in the first columns of a state.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for ``dims`` below 1.

    Source: Hoogeboom et al., "Equivariant Diffusion for Molecule Generation in 3D", 2022, https://arxiv.org/abs/2203.17003.

    Example:
        >>> import torch, scoresde
        >>> model = PointModel(ScoreModel(scoresde.models.EGNN(width=8, depth=1), scoresde.VP(), "v"))
        >>> mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
        >>> x = scoresde.sample(model, (2, 4, 3), steps=5, conditions={"mask": mask}, progress=False).x
        >>> bool(x.sum(1).abs().max() < 1e-5), bool((x[0, 3] == 0).all())
        (True, True)
    """

    def __init__(self, model: ScoreModel, dims: int = 3) -> None:
        super().__init__(model)
        self.dims = whole("dims", dims, 1)
        self.predicts, self.dropped = model.predicts, model.dropped

    def project(self, x: Tensor, *, mask: Tensor | None = None, **conditions: Any) -> Tensor:
        """Return the orthogonal projection of states onto the subspace, shape of ``x``."""
        return centred(check_points(x, self.dims), self.dims, present(x, mask))

    def outside(self, x: Tensor, *, mask: Tensor | None = None, **conditions: Any) -> Tensor:
        """Return the number of dimensions outside of the subspace for each sample, shape ``(batch,)``."""
        points = present(x, mask).sum(1)
        return x[0].numel() - points * x.shape[2] + self.dims

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction, of a state in the subspace and in the subspace; shape of ``x``."""
        m = self.model.x0(self.project(x, **conditions), t, **conditions)
        return centred(m, self.dims, conditions.get("mask"))  # whose mask was checked with the state

    def check_data(self, data: Tensor) -> Tensor:
        """Return data to train on after a check that they are point sets."""
        return check_points(super().check_data(data), self.dims)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that is no batch of point sets, and a mask that leaves fewer than two points."""
        present(check_points(x, self.dims), conditions.get("mask"))
        super().check_start(x, **conditions)
