"""Things named with settings, as text: ``"ve: sigma_max=100.0"``, ``"edm-ddpmpp-cifar10: width=32, multipliers=[1, 2]"``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

__all__ = ["check_types", "parse"]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``text`` into the name and the settings that follow it as the inside of an inline table of TOML.

    Raises:
        ValueError: if they are none.

    Example:
        >>> parse("adam: eps=1e-12, betas=[0.9, 0.99]")
        ('adam', {'eps': 1e-12, 'betas': [0.9, 0.99]})
        >>> parse("adam")
        ('adam', {})
    """
    name, _, settings = text.partition(":")
    if not settings.strip():
        return name.strip(), {}
    import tomllib

    try:
        (read,) = tomllib.loads(f"settings = {{{settings}}}").values()  # not what follows a brace of the text's own
        return name.strip(), read
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise ValueError(
            f"got {text[:200]!r}; expected a name and settings as in TOML, such as 'NAME: size=3, list=[1, 2]' ({error})"
        ) from error


def check_types(what: str, settings: Mapping[str, Any], make: Callable[..., object]) -> None:
    """Refuse settings of other types than the arguments of ``make`` are declared with, as far as they are.

    A whole number passes for a float; what is declared as anything but numbers, text, truth values and sequences of them is
    left to ``make``.

    Raises:
        ValueError: for a setting of another type, by name.

    Example:
        >>> def make(size: int, rate: float = 1.0): ...
        >>> check_types("the thing", {"size": 3, "rate": 2}, make)
        >>> check_types("the thing", {"rate": True}, make)
        Traceback (most recent call last):
        ValueError: got rate=True for the thing: Expected `float`, got `bool`
    """
    import msgspec

    try:
        hints = get_type_hints(make if inspect.isroutine(make) else make.__init__)
    except (NameError, TypeError, AttributeError):  # annotations that cannot be read, or a callable without any
        return
    for name, value in settings.items():
        if name not in hints:
            continue
        try:
            msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"got {name}={value!r:.60} for {what}: {error}") from error
        except TypeError:  # a type that says nothing of plain values, such as a tensor
            continue
