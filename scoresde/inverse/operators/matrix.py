"""Any linear map, given by its matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scoresde.inverse.operators.base import Operator, constant

__all__ = ["Matrix"]


class Matrix(Operator):
    """The linear operator of a matrix on the flattened states.

    Args:
        matrix: shape ``(m, d)``.
        event: the shape of one state, of d numbers; by default ``(d,)``.

    Raises:
        ValueError: for a matrix of another shape.

    Example:
        >>> import torch
        >>> A = Matrix([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> A(torch.ones(1, 3)), A.pinv(torch.ones(1, 2))
        (tensor([[1., 2.]]), tensor([[1.0000, 0.5000, 0.0000]]))
    """

    def __init__(self, matrix: Any, event: Sequence[int] | None = None) -> None:
        entries = constant(matrix, "a matrix")
        if entries.ndim != 2 or entries.numel() == 0:
            raise ValueError(f"got a matrix of shape {tuple(entries.shape)}; expected (measurements, numbers of a state)")
        super().__init__((entries.shape[1],) if event is None else event, (len(entries),))
        if self.event.numel() != entries.shape[1]:
            raise ValueError(
                f"got a matrix of shape {tuple(entries.shape)} for states of shape {tuple(self.event)}; expected "
                f"{self.event.numel()} columns, one for each number of a state"
            )
        self.entries = entries

    def forward(self, x: Tensor) -> Tensor:
        """Return the matrix times each flattened state, shape ``(batch, m)``."""
        entries = self._like("entries", x)
        return (self.check_x(x).flatten(1).to(entries.dtype) @ entries.T).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transposed matrix times each measurement, shape ``(batch, *event)``."""
        entries = self._like("entries", y)
        return (self.check_y(y).to(entries.dtype) @ entries).reshape(len(y), *self.event).to(y.dtype)

    def matrix(self) -> Tensor:
        """Return the matrix, float64."""
        return self.entries.clone()
