"""Functions of the numbers that coefficients are made of: Python floats, or tensors that carry gradients.

A path whose times require gradients has points, and a solver rows, of 0-dim float64 tensors instead of floats. The code
that computes with them is the same: it takes its functions from here instead of from ``math``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Coefficient", "exp", "expm1", "fsum", "isfinite", "log", "log1p", "plain", "sqrt", "value", "vector"]


class Coefficient(Tensor):
    """A 0-dim tensor in the place of a float, which refuses to lose its gradient by becoming one.

    Example:
        >>> math.exp(torch.tensor(1.0).as_subclass(Coefficient))
        Traceback (most recent call last):
        TypeError: a coefficient that carries gradients was used as a Python float...
    """

    def __float__(self) -> float:
        raise TypeError(
            "a coefficient that carries gradients was used as a Python float, which would lose them: this solver does not "
            "support gradients with respect to times; expected functions of scoresde.solvers.scalar in place of math"
        )


def exp(x: float) -> float:
    """e^x."""
    if type(x) is float:  # at once: this one is called a hundred times a step by some
        return math.exp(x)
    return cast(Any, x).exp() if isinstance(x, Tensor) else math.exp(x)


def expm1(x: float) -> float:
    """e^x - 1."""
    return cast(Any, x).expm1() if isinstance(x, Tensor) else math.expm1(x)


def fsum(xs: Iterable[float]) -> float:
    """The sum; of floats it is the float nearest to the true one."""
    terms = list(xs)
    return cast(Any, vector(terms).sum().as_subclass(Coefficient)) if _any_tensor(terms) else math.fsum(terms)


def log(x: float) -> float:
    """The natural logarithm."""
    return cast(Any, x).log() if isinstance(x, Tensor) else math.log(x)


def log1p(x: float) -> float:
    """log(1 + x)."""
    return cast(Any, x).log1p() if isinstance(x, Tensor) else math.log1p(x)


def sqrt(x: float) -> float:
    """The square root."""
    return cast(Any, x).sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def value(x: float) -> float:
    """The number itself, a float, without its gradient."""
    return float(plain(x).detach()) if isinstance(x, Tensor) else x


def isfinite(x: float) -> bool:
    """Whether ``x`` is neither infinite nor NaN."""
    return math.isfinite(value(x))


def plain(x: Any) -> Any:
    """``x`` as an ordinary tensor if it is a coefficient, else as it is."""
    return x.as_subclass(Tensor) if isinstance(x, Coefficient) else x


def vector(xs: Sequence[float]) -> Tensor:
    """Floats and coefficients as one float64 tensor, gradients kept."""
    if _any_tensor(xs):
        return torch.stack([torch.as_tensor(plain(x), dtype=torch.float64) for x in xs])
    return torch.tensor(xs, dtype=torch.float64)


def _any_tensor(xs: Sequence[float]) -> bool:
    return any(issubclass(kind, Tensor) for kind in set(map(type, xs)))  # one look a type: there are many numbers
