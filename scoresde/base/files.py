"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["leftovers", "replacing"]

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path``, of the same suffix, which becomes ``path`` where the block ends without error.

    At every instant, a power cut included, ``path`` is the file that was there or the new one: the content is on the disk
    before it takes its name, and the name before the block is left. Any number of writers may replace one path at once; the
    last one wins.

    Raises:
        OSError: if the file cannot be written; a full disk is said to be one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:  # on the disk, before it takes the name of what was there before
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: cannot write {path}; make room on its disk, or give a place on another. "
            + ("The file of that name is as it was" if path.exists() else "There is no file of that name"),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a system whose folders cannot be opened keeps their names itself
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def leftovers(path: Path, rest: str = "") -> Iterator[Path]:
    """Yield the temporary files beside ``path`` that a process which is gone left when it was killed in :func:`replacing`.

    Args:
        path: the file that was being written.
        rest: a regular expression of what may follow the stem of ``path``, for a family of files.
    """
    pattern = re.compile(re.escape(f".{path.stem}") + rest + r"\.(?P<process>\d+)\.[0-9a-f]{8}" + re.escape(path.suffix))
    for file in path.parent.glob(".*") if path.parent.is_dir() else ():
        found = pattern.fullmatch(file.name)
        if found and not _lives(int(found["process"])):
            yield file


def _lives(process: int) -> bool:
    if process == os.getpid():
        return False  # no block is open while its own leftovers are looked for
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
