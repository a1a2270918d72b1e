"""Options: fields of a dataclass that carry what else has to be known of them, so that each stands in one place.

A field that :func:`option` makes has a help text, bounds and the name of its option on a command line. The dataclass checks
its values by :func:`check_options`; a command and the keys of a TOML file are derived by :func:`options_of`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from scoresde.base.numbers import whole

__all__ = ["Option", "check_options", "option", "options_of"]


@dataclass(frozen=True)
class Option:
    """What is known of a field beside its name, type and default.

    Args:
        help: one sentence.
        kind: the type of its text on a command line; ``None`` for what no text can say.
        name: of the option, where it is not that of the field.
        least: the smallest whole number.
        above: a bound that the number exceeds.
        choices: all values.
    """

    help: str
    kind: type | None = None
    name: str = ""
    least: int | None = None
    above: float | None = None
    choices: Sequence[str] = ()

    def check(self, name: str, value: Any) -> None:
        """Check a value against the bounds.

        Raises:
            ValueError: naming the field, the value and the bounds.
        """
        if self.least is not None:
            whole(name, value, self.least)
        if self.above is not None:
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or math.isnan(value) or not value > self.above:
                what = "a positive number" if self.above == 0 else f"a number above {self.above:g}"
                raise ValueError(f"got {name}={value!r}; expected {what}")
        if self.choices and value not in self.choices:
            raise ValueError(f"got {name}={value!r}; expected one of {', '.join(self.choices)}")


def option(
    default: Any,
    help: str,
    *,
    kind: type | None = None,
    name: str = "",
    least: int | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Make a field of a dataclass with what :class:`Option` says of it.

    Its ``kind`` is that of the default, unless it is given: of ``None`` and of tuples it has to be.

    Example:
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     steps: int = option(10, "Steps.", least=1)
        ...     def __post_init__(self):
        ...         check_options(self)
        >>> Settings(steps=0)
        Traceback (most recent call last):
            ...
        ValueError: got steps=0; expected a whole number of at least 1
    """
    plain = type(default) if isinstance(default, bool | int | float | str) else None
    about = Option(help, kind or plain, name, least, above, choices)
    return field(default=default, metadata={"option": about})


def options_of(cls: Any) -> list[tuple[Field[Any], Option]]:
    """List the fields of a dataclass, or of an instance, that are options."""
    return [(f, f.metadata["option"]) for f in fields(cls) if "option" in f.metadata]


def check_options(settings: Any) -> None:
    """Check every option of a dataclass; its ``__post_init__`` calls it.

    Raises:
        ValueError: for the first that is out of its bounds.
    """
    for f, about in options_of(settings):
        about.check(f.name, getattr(settings, f.name))
