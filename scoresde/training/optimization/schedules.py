"""Schedules: the factor of the learning rate as a function of the step."""

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
    """A schedule: any object with ``factor(step)``, the factor of the learning rate after ``step`` steps.

    A training cannot be resumed with another schedule. Schedules are compared by their ``repr``; a frozen dataclass has a
    suitable one.
    """

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate after ``step`` steps."""
        ...


@dataclass(frozen=True)
class Constant:
    """A constant learning rate.

    Example:
        >>> Constant().factor(1000)
        1.0
    """

    def factor(self, step: int) -> float:
        """Return 1."""
        return 1.0


def _check(name: str, steps: int, part: str, value: float) -> None:
    if steps < 1:
        raise ValueError(f"got {name}={steps} for a schedule; expected a whole number of at least 1")
    if not 0 <= value <= 1:
        raise ValueError(f"got {part}={value} for a schedule; expected a fraction of the learning rate between 0 and 1")


@dataclass(frozen=True)
class Linear:
    """A linear decay of the factor from 1 to ``final`` over ``steps`` steps, after which it stays.

    Raises:
        ValueError: for fewer than 1 step, or a ``final`` outside of [0, 1].

    Example:
        >>> [Linear(4).factor(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("steps", self.steps, "final", self.final)

    def factor(self, step: int) -> float:
        r"""Return :math:`1 - (1 - final) \min(n / steps, 1)` after n steps."""
        return 1 - (1 - self.final) * min(step / self.steps, 1)


@dataclass(frozen=True)
class Cosine:
    """A cosine decay of the factor, half a period from 1 to ``final`` over ``steps`` steps, after which it stays.

    Raises:
        ValueError: for fewer than 1 step, or a ``final`` outside of [0, 1].

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
        r"""Return :math:`final + (1 - final) (1 + \cos(\pi \min(n / steps, 1))) / 2` after n steps."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(step / self.steps, 1))) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """EDM2's schedule: the factor is 1 for ``after`` steps, then falls with the square root of the number of steps.

    Raises:
        ValueError: for an ``after`` of less than 1.

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
        r"""Return :math:`1 / \sqrt{\max(n / after, 1)}` after n steps."""
        return 1 / math.sqrt(max(step / self.after, 1))


@dataclass(frozen=True)
class StepDecay:
    """A step decay: the factor is multiplied by ``by`` once in ``every`` steps.

    Raises:
        ValueError: for an ``every`` of less than 1, or a ``by`` outside of [0, 1].

    Example:
        >>> [StepDecay(2, by=0.5).factor(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int
    by: float = 0.1

    def __post_init__(self) -> None:
        _check("every", self.every, "by", self.by)

    def factor(self, step: int) -> float:
        r"""Return :math:`by^{\lfloor n / every \rfloor}` after n steps."""
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
"""The schedules by name; numbers follow the name: ``"cosine-5000"``, ``"linear-5000-0.1"``, ``"inverse-sqrt-70000"``."""

_NAME = re.compile(r"(.+?)(?:-(\d+))?(?:-(\d+(?:\.\d+)?(?:e-?\d+)?))?")


def schedule(given: str | Schedule) -> Schedule:
    """Return the schedule that is given by its name and numbers, or ``given`` itself if it is a schedule.

    Raises:
        ValueError: for an unknown name, or numbers that the schedule does not take.
        TypeError: for an object without ``factor``.

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
