"""Things named with settings, as text: ``"ve: sigma_max=100.0"``, ``"edm-ddpmpp-cifar10: width=32, multipliers=[1, 2]"``."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Collection
from typing import Any

from scoresde.base.names import near

__all__ = ["check_names", "parse"]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name, and the settings that follow it as the inside of an inline table of TOML.

    Raises:
        ValueError: if they are none.

    Example:
        >>> parse("adam: eps=1e-12, betas=[0.9, 0.99]")
        ('adam', {'eps': 1e-12, 'betas': [0.9, 0.99]})
        >>> parse("adam")
        ('adam', {})
    """
    name, _, settings = text.partition(":")
    try:
        return name.strip(), tomllib.loads(f"settings = {{{settings}}}")["settings"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"got {text!r}; expected a name and settings as in TOML, such as 'NAME: size=3, list=[1, 2]' ({error})"
        ) from error


def check_names(what: str, settings: Collection[str], make: Callable[..., object]) -> None:
    """Refuse ``settings`` that ``make`` has no arguments for.

    Raises:
        ValueError: with the nearest names.
    """
    known = [
        name for name, p in inspect.signature(make).parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    for name in settings:
        if name not in known:
            raise ValueError(f"got {name!r} for {what}; expected its arguments: {', '.join(known)}{near(name, known)}")
