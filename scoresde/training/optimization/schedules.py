"""Schedules: by what the step size is multiplied, as a function of the step alone."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scoresde.base.names import Table

__all__ = ["SCHEDULES", "Constant", "Cosine", "InverseSqrt", "Linear", "Schedule", "StepDecay", "schedule"]


@runtime_checkable
class Schedule(Protocol):
    """Anything with ``factor(step)``, by which the step size is multiplied after ``step`` steps.

    A training is described by its ``repr``, so that one resumed with another schedule is refused: a frozen dataclass has
    a good one.
    """

    def factor(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The factor 1."""

    def factor(self, step: int) -> float:
        """1."""
        return 1.0


def _check(name: str, steps: int, part: str, value: float) -> None:
    if steps < 1:
        raise ValueError(f"got {name}={steps} for a schedule; expected a whole number of at least 1")
    if not 0 <= value <= 1:
        raise ValueError(f"got {part}={value} for a schedule; expected a part of the step size, between 0 and 1")


@dataclass(frozen=True)
class Linear:
    """A straight line from 1 to ``final`` over so many steps, and ``final`` from there on.

    Example:
        >>> [Linear(4).factor(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("steps", self.steps, "final", self.final)

    def factor(self, step: int) -> float:
        r""":math:`1 - (1 - final) \min(n / steps, 1)` after n steps."""
        return 1 - (1 - self.final) * min(step / self.steps, 1)


@dataclass(frozen=True)
class Cosine:
    """Half a period of a cosine from 1 to ``final`` over so many steps, and ``final`` from there on.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
    https://arxiv.org/abs/1608.03983, without the restarts.

    Example:
        >>> [round(Cosine(4, final=0.2).factor(step), 3) for step in range(6)]
        [1.0, 0.883, 0.6, 0.317, 0.2, 0.2]
    """

    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("steps", self.steps, "final", self.final)

    def factor(self, step: int) -> float:
        r""":math:`final + (1 - final) (1 + \cos(\pi \min(n / steps, 1))) / 2` after n steps."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(step / self.steps, 1))) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """1 for the first ``after`` steps, and falling with the root of their number from there on: EDM2's.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
    https://arxiv.org/abs/2312.02696, equation 67: 70000 batches of 2048 for most networks of ImageNet-512.

    Example:
        >>> [InverseSqrt(100).factor(step) for step in (0, 100, 400)]
        [1.0, 1.0, 0.5]
    """

    after: int

    def __post_init__(self) -> None:
        _check("after", self.after, "final", 0.0)

    def factor(self, step: int) -> float:
        r""":math:`1 / \sqrt{\max(n / after, 1)}` after n steps."""
        return 1 / math.sqrt(max(step / self.after, 1))


@dataclass(frozen=True)
class StepDecay:
    """Multiplied by ``by`` after every so many steps.

    Example:
        >>> [StepDecay(2, by=0.5).factor(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int
    by: float = 0.1

    def __post_init__(self) -> None:
        _check("every", self.every, "by", self.by)

    def factor(self, step: int) -> float:
        r""":math:`by^{\lfloor n / every \rfloor}` after n steps."""
        return float(self.by ** (step // self.every))


SCHEDULES: Table[Callable[..., Schedule]] = Table(
    "schedule",
    "scoresde.training.optimization.schedules.SCHEDULES",
    {
        "constant": Constant,
        "linear": Linear,
        "cosine": Cosine,
        "inverse-sqrt": InverseSqrt,
        "step": StepDecay,
    },
    also="one of them with its numbers, such as cosine-5000 or linear-5000-0.1, or an object with factor(step)",
    check=callable,
    expects="a class or a function of a number of steps and another number that returns an object with factor(step)",
)
"""The schedules by name, which their numbers follow: ``"cosine-5000"``, ``"linear-5000-0.1"``, ``"inverse-sqrt-70000"``."""

_NAME = re.compile(r"(.+?)(?:-(\d+))?(?:-(\d+(?:\.\d+)?(?:e-?\d+)?))?")


def schedule(given: str | Schedule) -> Schedule:
    """The schedule of a name and its numbers, or ``given`` itself where it is one already.

    Raises:
        ValueError: for another name, or numbers that do not belong to it.
        TypeError: for what has no ``factor``.

    Example:
        >>> schedule("linear-5000-0.1")
        Linear(steps=5000, final=0.1)
    """
    if not isinstance(given, str):
        if not isinstance(given, Schedule):
            raise TypeError(f"got a schedule of type {type(given).__name__}; expected a name or an object with factor(step)")
        return given
    found = _NAME.fullmatch(given)
    if found is None or found[1] not in SCHEDULES:
        raise SCHEDULES.unknown(given)
    numbers = [kind(text) for kind, text in ((int, found[2]), (float, found[3])) if text is not None]
    make = SCHEDULES[found[1]]
    try:
        inspect.signature(make).bind(*numbers)
    except TypeError as error:
        raise ValueError(
            f"got schedule {given!r}: {error}; expected constant, or a name with its numbers, such as cosine-5000, "
            "linear-5000, linear-5000-0.1, inverse-sqrt-70000 or step-1000-0.5"
        ) from error
    return make(*numbers)
