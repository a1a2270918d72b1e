"""Elementary functions of coefficients, which are Python floats or tensors that carry gradients.

Where the times of a path require gradients, its points and rows hold 0-dim float64 tensors instead of floats. The same code
computes with both, since it takes its functions from here instead of from ``math``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Coefficient", "exp", "expm1", "fsum", "isfinite", "log", "log1p", "plain", "sqrt", "value", "vector"]


class Coefficient(Tensor):
    """A 0-dim tensor in the place of a float; converting it to a float raises, since that would lose its gradient.

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
    """Return e^x."""
    if type(x) is float:  # first, since some solvers call this a hundred times a step
        return math.exp(x)
    return cast(Any, x).exp() if isinstance(x, Tensor) else math.exp(x)


def expm1(x: float) -> float:
    """Return e^x - 1."""
    return cast(Any, x).expm1() if isinstance(x, Tensor) else math.expm1(x)


def fsum(xs: Iterable[float]) -> float:
    """Return the sum; for floats, the float nearest to the true sum."""
    terms = list(xs)
    return cast(Any, vector(terms).sum().as_subclass(Coefficient)) if _any_tensor(terms) else math.fsum(terms)


def log(x: float) -> float:
    """Return the natural logarithm."""
    return cast(Any, x).log() if isinstance(x, Tensor) else math.log(x)


def log1p(x: float) -> float:
    """Return log(1 + x)."""
    return cast(Any, x).log1p() if isinstance(x, Tensor) else math.log1p(x)


def sqrt(x: float) -> float:
    """Return the square root."""
    return cast(Any, x).sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def value(x: float) -> float:
    """Return the number as a float, without its gradient."""
    return float(plain(x).detach()) if isinstance(x, Tensor) else x


def isfinite(x: float) -> bool:
    """Return whether ``x`` is neither infinite nor NaN."""
    return math.isfinite(value(x))


def plain(x: Any) -> Any:
    """Return ``x`` as an ordinary tensor if it is a coefficient, else unchanged."""
    return x.as_subclass(Tensor) if isinstance(x, Coefficient) else x


def vector(xs: Sequence[float]) -> Tensor:
    """Stack floats and coefficients into one float64 tensor that keeps their gradients."""
    if _any_tensor(xs):
        return torch.stack([torch.as_tensor(plain(x), dtype=torch.float64) for x in xs])
    return torch.tensor(xs, dtype=torch.float64)


def _any_tensor(xs: Sequence[float]) -> bool:
    return any(issubclass(kind, Tensor) for kind in set(map(type, xs)))  # one check a type, since there are many numbers
