"""A lock on a file that several processes may want to write, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

__all__ = ["InUseError", "Lock"]


class InUseError(OSError):
    """The error for a file that another process is writing."""


class Lock:
    """A lock on the file ``path``, held by at most one writer, in this process or in any other.

    It is a lock of the operating system (``flock``) on ``file``, by default ``.NAME.lock`` beside ``path``. The system
    releases it when its process ends for any reason, so a lock never outlives its process. Processes forked from the holder
    do not hold it. On a system without such locks, such as Windows, every :meth:`acquire` succeeds.

    :meth:`acquire` refuses at once where the lock is taken. As a context, the lock is waited for.

    Args:
        path: the file to write.
        file: the file that carries the lock.
        what: the kind of writer, for messages, such as ``"training"``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one, two = Lock(Path(folder) / "model"), Lock(Path(folder) / "model")
        ...     one.acquire()
        ...     try:
        ...         two.acquire()
        ...     except InUseError as error:
        ...         print("in use")
        ...     one.release()
        ...     two.acquire()
        ...     two.release()
        in use
        >>> with tempfile.TemporaryDirectory() as folder, Lock(Path(folder) / "model") as lock:
        ...     lock.file.exists()
        True
    """

    def __init__(self, path: Path, file: Path | None = None, what: str = "training") -> None:
        self.path = path
        self.what = what
        self.file = file or path.with_name(f".{path.name}.lock")
        self._handle: int | None = None

    def acquire(self, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: whether to wait for another writer to release it.

        Raises:
            InUseError: if another writer has the lock and ``wait`` is false; names its process.
        """
        try:
            import fcntl
        except ImportError:
            return
        while self._handle is None:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError) as error:
                holder = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
                os.close(handle)
                raise InUseError(
                    f"{self.path} is being written by another {self.what} (process {holder}); wait until it ends, or choose "
                    "another place for this one"
                ) from error
            except OSError as error:
                os.close(handle)
                raise OSError(
                    error.errno, f"{error.strerror}: cannot lock {self.file}; give a folder on a file system with locks"
                ) from error
            except BaseException:  # interrupted while it waited
                os.close(handle)
                raise
            if not _is(handle, self.file):  # the holder removed the file after this process opened it
                os.close(handle)
                continue
            with contextlib.suppress(OSError):  # a full disk: the name of the holder is for messages alone
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
            self._handle = handle
            _HELD.add(handle)

    def __enter__(self) -> Lock:
        self.acquire(wait=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock, and remove its file."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            self.file.unlink()  # before the lock is released: a process that has opened the file sees that it is gone
        _HELD.discard(self._handle)
        os.close(self._handle)
        self._handle = None


_HELD: set[int] = set()


def _is(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Close the parent's locks in a forked process; otherwise they would be held after the parent has ended."""
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
