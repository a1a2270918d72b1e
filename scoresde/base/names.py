"""What is said of a name that is not known."""

import difflib
from collections.abc import Collection

__all__ = ["near"]


def near(name: object, known: Collection[str], n: int = 2, cutoff: float = 0.6) -> str:
    """The end of a sentence: which of the ``known`` names come nearest, at most ``n``; empty where none does.

    Example:
        >>> near("Huen", ["heun", "ddim"])
        "; did you mean 'heun'?"
        >>> near("ring", ["heun", "ddim"])
        ''
    """
    found = difflib.get_close_matches(str(name).lower(), known, n, cutoff)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
