"""Files as others wrote them: regular ones only, and JSON held against a description of what it should say."""

from __future__ import annotations

import io
import os
import stat
from typing import IO, TypeVar

__all__ = ["check_regular", "decode_json", "open_regular"]

T = TypeVar("T")
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is no regular file: opening a pipe waits for ever, and a device never ends.

    Raises:
        ValueError: for a folder, a pipe, a socket or a device, by name.
        OSError: where there is nothing, or nothing that may be seen.

    Example:
        >>> check_regular("/dev/null")
        Traceback (most recent call last):
        ValueError: '/dev/null' is a device; expected a file
    """
    kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    if kind is not None:
        raise ValueError(f"{os.fspath(path)!r} is {kind}; expected a file")


class _Bounded(io.BufferedReader):
    """A file that makes no room for more bytes than it has, whatever a damaged length in it asks for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(-1 if size is None or size < 0 else min(size, self._size))


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading; see :func:`check_regular`."""
    check_regular(path)
    return _Bounded(path)


def decode_json(content: bytes, kind: type[T]) -> T:
    """Read JSON as a value of ``kind``, a dataclass or another type that says what each entry is.

    Entries that ``kind`` does not name are left out.

    Raises:
        ValueError: for what is no JSON, is nested too deeply, lacks an entry, or has one of another type.

    Example:
        >>> decode_json(b'{"width": 32}', dict[str, int])
        {'width': 32}
        >>> decode_json(b'{"width": "32"}', dict[str, int])
        Traceback (most recent call last):
        ValueError: Expected `int`, got `str` - at `$[...]`
    """
    import msgspec

    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
