"""Updates whose coefficients belong to the coordinates of a state, with a constant beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.solvers.path import Point
from scoresde.solvers.updates import Row, States, Update

__all__ = ["Affine"]


@dataclass(frozen=True, eq=False)
class Affine(Update):
    """The update y = a x + sum_j w_j N_j + c with N = p y + q m, whose a, w, c and p are tensors of the shape of an event.

    Attributes:
        to: the point of y after the update.
        at: the point at which the model is evaluated first, or ``None``.
        a, w: the factors of the state and of the history, newest first.
        c: the constant.
        p, q: the factors in N = p y + q m.
        ends_step: whether y becomes the state from which the next updates start.

    Example:
        >>> from scoresde import EDM, problems, solvers
        >>> u, v = solvers.make_path(EDM(), [4.0, 2.0], end="stop").points
        >>> row = Affine(v, u, torch.tensor([2.0, 3.0]), (torch.zeros(2),), torch.tensor([0.0, 1.0]), torch.zeros(2))
        >>> model = problems.ring().model(EDM())
        >>> [state.x for state in solvers.readable([row], model, torch.ones(1, 2), None)]
        [tensor([[2., 4.]])]
    """

    to: Point
    at: Point | None
    a: Tensor
    w: tuple[Tensor, ...]
    c: Tensor
    p: Tensor
    q: float = -1.0
    ends_step: bool = True
    in_place: ClassVar[bool] = False

    def apply(self, on: States) -> None:
        m = on.predict() if self.at is not None else None
        cast: list[Any] = [value.to(on.y) for value in (self.a, self.c, self.p, *self.w)]  # a row may hold tensors
        a, c, p, *w = cast
        on.combine(Row(self.to, self.at, a, tuple(w), p=p, q=self.q, ends_step=False), m)
        if self.ends_step:
            on.replace(on.y + c, self.to, True)
        else:
            on.y = on.y + c

    @property
    def lookback(self) -> tuple[int, int]:
        return len(self.w), 0

    @property
    def draws(self) -> bool:
        return False

    @property
    def shown(self) -> bool:
        return self.ends_step

    def __str__(self) -> str:
        at = f"{self.at.t:9.5f}" if self.at is not None else " " * 9
        w = " ".join(f"{float(torch.as_tensor(x).mean()):.6g}" for x in self.w)
        mean = [float(value.mean()) for value in (self.a, self.p)]
        return f"{'*' if self.ends_step else ' '} {at} {self.to.t:9.5f} {mean[0]:11.6g} {mean[1]:11.6g} {self.q:11.6g}  {w}"
