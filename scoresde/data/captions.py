"""Captions: a text for each sample, in the file of the samples."""

from __future__ import annotations

from pathlib import Path

from scoresde.data.arrays import read_array

__all__ = ["CAPTIONS", "captions"]

CAPTIONS = ("caption", "captions", "text", "texts", "name", "names")
"""The names under which an ``.npz`` file holds captions, the first that it has."""


def captions(source: str | Path, limit: int | None = None) -> list[str] | None:
    """Return the captions in an ``.npz`` file, or ``None`` for one without captions and for data of another kind.

    Args:
        source: the file.
        limit: largest size in bytes after decompression; see :func:`scoresde.data.open`.

    Raises:
        ValueError: for a file that cannot be read, and captions that are no vector of texts.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/data.npz", x=np.zeros((2, 3)), name=np.array(["red apple", "house"]))
        ...     captions(f"{folder}/data.npz")
        ['red apple', 'house']
    """
    path = Path(source)
    found = read_array(path, CAPTIONS, limit) if path.is_file() else None
    if found is None:
        return None
    if found.dtype.kind not in "US" or found.ndim != 1:
        raise ValueError(
            f"{str(path)!r} has captions of {found.dtype} and shape {found.shape}; expected one text for each sample: "
            "np.savez(file, x=.., caption=np.array([..]))"
        )
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in found.tolist()]
