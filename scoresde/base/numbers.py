"""Whole numbers: Python's, NumPy's and torch's alike, checked where they come in."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["is_whole", "whole"]


def is_whole(value: Any) -> bool:
    """Tell whether ``value`` is one integer: a Python or NumPy integer or an integer tensor of shape ``()``, no truth value.

    Example:
        >>> import numpy, torch
        >>> [is_whole(value) for value in (3, numpy.int64(3), torch.tensor(3), 3.0, True, "3")]
        [True, True, True, False, False, False]
    """
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" in kind or getattr(value, "ndim", 0) != 0:
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return ``value`` as a Python integer, if it is a whole number from ``least`` to ``most``.

    Args:
        name: what the sentence of the error calls it.
        value: see :func:`is_whole`.
        least, most: the bounds, each of which is allowed itself; None for none.

    Raises:
        ValueError: for any other value, also for a float such as 3.0.

    Example:
        >>> import numpy
        >>> whole("n", numpy.int32(3), 1)
        3
        >>> whole("n", 2.5, 1)
        Traceback (most recent call last):
        ...
        ValueError: got n=2.5; expected a whole number of at least 1
    """
    number = operator.index(value) if is_whole(value) else None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        bounds = {
            (False, False): "",
            (True, False): f" of at least {least}",
            (False, True): f" of at most {most}",
            (True, True): f" from {least} to {most}",
        }[least is not None, most is not None]
        shown = value if number is None else number
        raise ValueError(f"got {name}={shown!r}; expected a whole number{bounds}")
    return number
