"""Whatever is chosen by name: the table it stands in, how a name may be spelled, and what is said of an unknown one."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar, overload

from scoresde.base.settings import check_types, parse

__all__ = ["Table", "UnknownNameError", "check_names", "near"]

T = TypeVar("T")
R = TypeVar("R")

_UNGIVEN: Any = object()

MOST_LISTED = 20
"""The longest table whose names an error lists; of a longer one it says where they stand."""


def near(name: object, known: Collection[str], n: int = 2, cutoff: float = 0.6) -> str:
    """Return the end of a sentence: which of the ``known`` names come nearest, at most ``n``; empty where none does.

    Example:
        >>> near("Huen", ["heun", "ddim"])
        "; did you mean 'heun'?"
        >>> near("ring", ["heun", "ddim"])
        ''
    """
    spellings = {_spelled(each): each for each in known}
    found = difflib.get_close_matches(_spelled(str(name)), spellings, n, cutoff)
    return f"; did you mean {' or '.join(repr(spellings[each]) for each in found)}?" if found else ""


def _spelled(name: str) -> str:
    """A name without what may be spelled in several ways: case, ``_`` and blanks for ``-``, ``++`` for ``pp``."""
    return "-".join(name.lower().replace("_", "-").replace("++", "pp").split())


def check_names(what: str, settings: Collection[str], make: Callable[..., object]) -> None:
    """Refuse ``settings`` that ``make`` has no arguments for.

    Raises:
        ValueError: with the nearest names.
    """
    parameters = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in settings:
        if name not in known:
            expected = f"its arguments: {', '.join(known)}" if known else "no settings, for it takes none"
            raise ValueError(f"got {name!r} for {what}; expected {expected}{near(name, known)}")


class UnknownNameError(KeyError, ValueError):
    """A name that a table does not have. Its sentence says which names come nearest."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the sentence in quotes


class Table(Mapping[str, T]):
    """The things of one kind that are chosen by name; a read-only mapping to which anyone may add entries.

    A name is found however it is spelled: ``"DPM++_2M"`` is ``"dpmpp-2m"``. A name that is missing is looked for in the
    installed packages, among the entry points of the group ``"scoresde."`` with the table's name in small letters, before
    it is refused. Such an entry point is a value to register under its own name, or a module that registers its values when
    it is imported. It is loaded once a process.

    Args:
        kind: the field's word for one entry, as errors say it: ``"solver"``.
        place: where users import the table from: ``"scoresde.solvers.SOLVERS"``.
        entries: the first names and values.
        also: what is accepted in place of a name, as errors say it: ``"a solver object"``.
        check: whether a value may be registered; by default any may.
        expects: what ``check`` asks for, as errors say it.

    Example:
        >>> colours = Table("colour", "palette.COLOURS", {"red": (255, 0, 0), "dark-red": (139, 0, 0)})
        >>> colours["Dark_Red"], colours.name("RED"), "green" in colours
        ((139, 0, 0), 'red', False)
        >>> colours.register("green", (0, 128, 0))
        (0, 128, 0)
        >>> colours["grene"]
        Traceback (most recent call last):
        scoresde.base.names.UnknownNameError: got colour 'grene'; expected one of red, dark-red, green; did you mean 'green'?
    """

    def __init__(
        self,
        kind: str,
        place: str,
        entries: Mapping[str, T],
        *,
        also: str = "",
        check: Callable[[Any], bool] | None = None,
        expects: str = "",
    ) -> None:
        self.kind = kind
        self.place = place
        self.also = also
        self._check = check
        self._expects = expects
        self._entries = dict(entries)
        self._spellings = {_spelled(name): name for name in entries}
        self._loaded: tuple[str, ...] | None = None

    @property
    def group(self) -> str:
        """The group of entry points that installed packages list their entries under: ``"scoresde.solvers"``."""
        return f"scoresde.{self.place.rpartition('.')[2].lower()}"

    def name(self, spelling: object) -> str:
        """Return the name that ``spelling`` stands for, as the table has it.

        Raises:
            UnknownNameError: if the table has none.
        """
        found = self._find(spelling)
        if found is None and isinstance(spelling, str):
            self.load()
            found = self._find(spelling)
        if found is None:
            raise self.unknown(spelling)
        return found

    def _find(self, spelling: object) -> str | None:
        return self._spellings.get(_spelled(spelling)) if isinstance(spelling, str) else None

    def __getitem__(self, name: str) -> T:
        return self._entries[self.name(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{self.place}: {', '.join(self)}>"

    def unknown(self, name: object) -> UnknownNameError:
        """Return the error for ``name``: what was got, what is expected, and which names come nearest."""
        few = len(self) <= MOST_LISTED
        expected = f"one of {', '.join(self)}" if few else f"one of the {len(self)} names in list({self.place})"
        also = f", or {self.also}" if self.also else ""
        return UnknownNameError(f"got {self.kind} {name!r}; expected {expected}{also}{near(name, self, n=3)}")

    def make(self: Table[Callable[..., R]], text: str) -> R:
        """Make what ``text`` names, with the settings that follow the name as in a table of TOML.

        Raises:
            UnknownNameError: for an unknown name.
            ValueError: for settings that it does not take, or that are missing.

        Example:
            >>> shapes = Table("shape", "palette.SHAPES", {"ones": lambda rows, columns=2: [[1] * columns] * rows})
            >>> shapes.make("ones: rows=1, columns=3")
            [[1, 1, 1]]
        """
        if not isinstance(text, str):
            raise self.unknown(text)
        spelling, settings = parse(text)
        name = self.name(spelling)
        maker = self[name]
        if settings:
            check_names(f"{self.kind} {name!r}", settings, maker)
            check_types(f"{self.kind} {name!r}", settings, maker)
        try:
            return maker(**settings)
        except TypeError as error:
            signature = inspect.signature(maker)
            try:
                signature.bind(**settings)
            except TypeError as missing:
                raise ValueError(f"got {self.kind} {text!r}: {missing}; expected '{name}: NAME=VALUE, ..'") from missing
            if not settings:
                raise
            raise ValueError(f"got {self.kind} {text!r}: {error}; expected settings of the types {signature}") from error

    # Entries that come and go -------------------------------------------------------------------------------------------

    @overload
    def register(self, name: str) -> Callable[[R], R]: ...

    @overload
    def register(self, name: str, value: T) -> T: ...

    def register(self, name: str, value: Any = _UNGIVEN) -> Any:
        """Add ``value`` under ``name``, and return it; without a value, return a decorator that does.

        Raises:
            ValueError: for a name that is taken, however it is spelled, or that could not be read back from text, and for a
                value of another kind.
        """
        if value is _UNGIVEN:
            return lambda decorated: self.register(name, decorated)
        if not isinstance(name, str) or not name or name != name.strip() or ":" in name:
            raise ValueError(f"got {name!r} as the name of a {self.kind}; expected a word without a colon")
        if (taken := self._find(name)) is not None:
            raise ValueError(
                f"got a second {self.kind} {taken!r}; expected a name that is not taken: choose another one, or call "
                f"{self.place}.unregister({taken!r}) first"
            )
        if self._check is not None and not self._check(value):
            raise ValueError(f"got {value!r:.60} for the {self.kind} {name!r}; expected {self._expects}")
        self._entries[name] = value
        self._spellings[_spelled(name)] = name
        return value

    def unregister(self, name: str) -> T:
        """Remove an entry, and return its value.

        Raises:
            UnknownNameError: if there is none of this name.
        """
        known = self.name(name)
        del self._spellings[_spelled(known)]
        return self._entries.pop(known)

    def load(self) -> tuple[str, ...]:
        """Load the entries that installed packages list under :attr:`group`, once, and return their names.

        An entry point that cannot be loaded or registered is left out with a warning.
        """
        if self._loaded is None:
            self._loaded = ()  # an entry point may look names up while it is loaded
            found = metadata.entry_points(group=self.group)
            for entry in found:
                self._enter(entry)
            self._loaded = tuple(entry.name for entry in found)
        return self._loaded

    def _enter(self, entry: metadata.EntryPoint) -> None:
        try:
            value = entry.load()
            if not isinstance(value, ModuleType) and self._entries.get(entry.name) is not value:
                self.register(entry.name, value)
        except Exception as error:  # whatever is wrong with it, the other names are as good as before
            warnings.warn(
                f"the {self.kind} {entry.name!r} of an installed package, {entry.value!r} in the group {self.group!r}, was "
                f"left out: {type(error).__name__}: {error}",
                stacklevel=4,
            )
