"""Things named with settings, as text: ``"ve: sigma_max=100.0"``, ``"edm-ddpmpp-cifar10: width=32, multipliers=[1, 2]"``."""

from __future__ import annotations

import tomllib
from typing import Any

__all__ = ["parse"]


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
    try:
        (read,) = tomllib.loads(f"settings = {{{settings}}}").values()  # not what follows a brace of the text's own
        return name.strip(), read
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise ValueError(
            f"got {text[:200]!r}; expected a name and settings as in TOML, such as 'NAME: size=3, list=[1, 2]' ({error})"
        ) from error
