"""Nonlinear measurements by any differentiable function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoresde.inverse.operators.base import Operator

__all__ = ["Function"]


class Function(Operator):
    """The operator of any function of the states, whose derivatives come from automatic differentiation.

    Args:
        function: a map of states, ``(batch, *event)``, to measurements, ``(batch, ..)``, each state by itself. A module is
            registered, so that its parameters move with the operator.
        event: the shape of one state.

    Raises:
        ValueError: for a function whose measurement of a state depends on the others of the batch.

    Example:
        >>> A = Function(lambda x: x.square().sum(1, keepdim=True), (3,))
        >>> A(torch.ones(1, 3)), A.linear
        (tensor([[3.]]), False)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], event: Sequence[int]) -> None:
        parameters = function.parameters() if isinstance(function, torch.nn.Module) else iter(())
        like = next((p for p in parameters if p.is_floating_point()), torch.empty(0, dtype=torch.float64))
        made = function(torch.zeros(2, *event).to(like))
        if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != 2:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"got a function that maps states of shape {(2, *event)} to {got}; expected measurements of shape (2, ..): "
                "write one number for each state as (2, 1)"
            )
        super().__init__(event, made.shape[1:], linear=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of the states, shape ``(batch, *measured)``."""
        return self.function(self.check_x(x))
