"""Linear maps that act on the rows and on the columns of an image, each by a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.operators.base import Copies, Operator, Singular, constant, images

__all__ = ["Separable"]


class Separable(Operator):
    r"""The operator :math:`X \mapsto R X C^T` on the last two dimensions of a state.

    Its singular values are the products of those of R and C, and its bases the products of theirs.

    Args:
        rows: R, shape ``(h, H)``, which acts on the height.
        columns: C, shape ``(w, W)``, which acts on the width.
        event: the shape of one state, ``(.., H, W)``.

    Raises:
        ValueError: for matrices of other shapes.

    Example:
        >>> A = Separable([[1.0, 1.0]], torch.eye(3), (2, 3))  # sums the rows
        >>> A(torch.ones(1, 2, 3))
        tensor([[[2., 2., 2.]]])
    """

    def __init__(self, rows: Any, columns: Any, event: Sequence[int]) -> None:
        rows, columns, event = constant(rows, "rows"), constant(columns, "columns"), images(event)
        for name, matrix, size in (("rows", rows, event[-2]), ("columns", columns, event[-1])):
            if matrix.ndim != 2 or not len(matrix) or matrix.shape[1] != size:
                raise ValueError(
                    f"got {name} of shape {tuple(matrix.shape)} for states of shape {tuple(event)}; expected a matrix with "
                    f"{size} columns"
                )
        super().__init__(event, (*event[:-2], len(rows), len(columns)))
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """Return R X C^T of every image, shape ``(batch, .., h, w)``."""
        r, c = self._like("rows", x), self._like("columns", x)
        return (r @ self.check_x(x).to(r.dtype) @ c.T).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return R^T Y C of every measurement, shape ``(batch, .., H, W)``."""
        r, c = self._like("rows", y), self._like("columns", y)
        return (r.T @ self.check_y(y).to(r.dtype) @ c).to(y.dtype)

    def singular(self) -> Singular:
        """Return the decomposition from those of the two matrices."""
        if "singular" not in self._cache:
            self._cache["singular"] = separable(self.rows, self.columns, self.event)
        found: Singular = self._cache["singular"]
        return found


def separable(rows: Tensor, columns: Tensor, event: torch.Size) -> Singular:
    """Return the decomposition of X -> R X C^T."""
    (u, s, v), (w, t, z) = _bases(rows), _bases(columns)
    products = torch.outer(s, t)
    smallest = max(rows.numel(), columns.numel()) * torch.finfo(torch.float64).eps * products.max()
    products = torch.where(products > smallest, products, 0.0)
    measured = (*event[:-2], len(rows), len(columns))
    kept = Copies((products > 0).double())

    def times(left: Tensor, right: Tensor, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        lefts, rights = Copies(left), Copies(right)

        def apply(v: Tensor) -> Tensor:
            dtype = torch.promote_types(v.dtype, torch.float32)
            x = v.reshape(len(v), *shape).to(dtype)
            return (lefts(v.device, dtype) @ x @ rights(v.device, dtype)).to(v.dtype)

        return apply

    def seen(c: Tensor) -> Tensor:
        return c * kept(c.device, c.dtype)

    from_x, to_x = times(v.T, z, event), times(v, z.T, event)
    from_y, to_y = times(u.T, w, measured), times(u, w.T, event)
    return Singular(
        products.expand(*event).flatten(),
        from_x=lambda x: from_x(x).flatten(1),
        to_x=to_x,
        from_y=lambda y: seen(from_y(y)).flatten(1),
        to_y=lambda c: to_y(seen(c.reshape(len(c), *event))),
    )


def _bases(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U of shape (m, d), padded with zeros, the d singular values, and V of shape (d, d)."""
    m, d = matrix.shape
    u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
    left, values = torch.zeros(m, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    left[:, : len(s)], values[: len(s)] = u[:, : len(s)], s
    return left, values, vh.T
