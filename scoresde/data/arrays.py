"""Arrays of numbers in files: ``.npy``, ``.npz`` and IDX, or any of them in ``.gz``; and what makes an array data."""

from __future__ import annotations

import ast
import gzip
import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.reading import open_regular
from scoresde.data.classes import check_labels

__all__ = ["NPY", "VIDEOS", "as_labels", "as_samples", "from_npy", "npy_header", "read", "to_float"]

VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
"""The endings of files that are refused as videos, in place of being left out in silence."""

# The type byte of an IDX header: http://yann.lecun.com/exdb/mnist/ describes the format.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHANNELS = (1, 3, 4)
_LONGEST_HEADER = 10_000  # of an .npy file, as NumPy has it: longer ones are not parsed
_MOST_AXES = 32
_LABELS = ("labels", "label", "y")


def to_float(x: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]; floats as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def read(path: Path, limit: int | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Return the array in a file and, of an ``.npz``, that of the labels: ``labels``, ``label`` or ``y``.

    Args:
        path: the file.
        limit: bytes that a compressed file may unpack to; ``None`` for 2**30, or eight times its own length.

    Raises:
        ValueError: for a file that is truncated, of another kind, no regular file, or holds Python objects; and one that
            unpacks to more than ``limit``.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
        most = max(2**30, 8 * len(content)) if limit is None else limit
        if content[:2] == b"\x1f\x8b":
            content = _unpacked(gzip.GzipFile(fileobj=io.BytesIO(content)), most)
        if content[:6] == NPY:
            return from_npy(content), None
        if content[:4] == b"PK\x03\x04":
            return _from_npz(content, most)
        if content[:2] == b"\0\0":
            return _from_idx(content), None
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from error
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(f"cannot read {str(path)!r}, which may be truncated or damaged: {error}") from error
    what = "a video" if path.suffix.lower() in VIDEOS else "of no known kind"
    raise ValueError(
        f"{str(path)!r} is {what}; expected .npy, .npz or IDX, or one of them in .gz, .parquet, or a folder of images"
    )


def _unpacked(file: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """Read a compressed file, as far as it may go."""
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(_too_large(most))
    return content


def _too_large(most: int) -> str:
    return (
        f"it unpacks to more than {most} bytes, and may be made to exhaust the memory; where it is to be trusted, allow "
        "more: limit=.. (--limit ..)"
    )


NPY = b"\x93NUMPY"
"""How a file ``.npy`` begins."""


def npy_header(start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Return what the header of a file ``.npy`` declares: type, shape, order of Fortran or not, and where the values begin.

    Args:
        start: the first bytes of the file, all of its header among them.

    Raises:
        ValueError: for a header that is none, or declares Python objects.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
    """
    wide = start[6:7] != b"\1"  # versions 2 and 3 count the bytes of the header in four
    begin = 12 if wide else 10
    if start[:6] != NPY or start[6:8] not in (b"\1\0", b"\2\0", b"\3\0") or len(start) < begin:
        raise ValueError("the header is not that of an .npy file")
    end = begin + int.from_bytes(start[8:begin], "little")
    if end - begin > _LONGEST_HEADER or len(start) < end:
        raise ValueError(
            f"the .npy header announces {end - begin} bytes; expected what the file has, {_LONGEST_HEADER} at most"
        )
    try:
        header = ast.literal_eval(start[begin:end].decode("utf-8" if start[6:7] == b"\3" else "latin-1").strip())
        shape, fortran, described = header["shape"], header["fortran_order"], header["descr"]
        dtype = np.lib.format.descr_to_dtype(described)
    except Exception as error:  # text that is no literal, or no type, fails in many ways
        raise ValueError(f"the .npy header cannot be read: {error!r}") from error
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects, which are never unpickled; store an array of numbers, with samples of one shape"
        )
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > _MOST_AXES or type(fortran) is not bool:
        raise ValueError(f"the .npy header announces the shape {_shortened(shape)}; expected whole numbers from 0")
    return dtype, shape, fortran, end


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def from_npy(content: bytes) -> np.ndarray[Any, Any]:
    """Return the array of a file ``.npy``, whose length must be what its header declares; nothing is copied.

    Raises:
        ValueError: for a header that cannot be read, and more or fewer values than it declares.
    """
    dtype, shape, fortran, start = npy_header(content[: _LONGEST_HEADER + 12])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"got {len(content)} bytes; the .npy header announces {expected}, for the shape {_shortened(shape)}"
        )
    if not dtype.itemsize or not math.prod(shape):
        return np.empty(shape, dtype)
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _from_npz(content: bytes, most: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        others = [name for name in members if name not in _LABELS]
        if "x" not in members and len(others) != 1:
            raise ValueError(
                f"got the arrays {_named(members)}; expected one called 'x' and, for labels, one called 'labels': "
                "np.savez(file, x=.., labels=..)"
            )

        def array(name: str) -> np.ndarray[Any, Any]:
            if members[name].file_size > most:  # without unpacking any of it
                raise ValueError(f"the array {_shortened(name)}: {_too_large(most)}")
            with archive.open(members[name]) as file:
                return from_npy(_unpacked(file, most))

        labels = next((name for name in _LABELS if name in members), None)
        return array("x" if "x" in members else others[0]), None if labels is None else array(labels)


def _named(members: Collection[str]) -> str:
    names = list(members)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(map(_shortened, names[:5])) or "none") + more


def _from_idx(content: bytes) -> np.ndarray[Any, Any]:
    """The array of an IDX file: two zero bytes, the type, the number of dimensions, their sizes, the values."""
    if len(content) < 4 or content[2] not in _IDX_TYPES:
        raise ValueError("the header is not that of an IDX file")
    dtype, ndim = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"the IDX header announces {ndim} dimensions and ends before them")
    shape = np.frombuffer(content, ">u4", ndim, 4).tolist()
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"got {len(content)} bytes; the IDX header announces {expected}, for the shape {tuple(shape)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def as_samples(array: np.ndarray[Any, Any], source: str | Path) -> Tensor:
    """An array as samples: images ``(n, c, h, w)``, uint8 or float32 in [-1, 1], or vectors ``(n, d)``, float32.

    Raises:
        ValueError: for shapes that are neither, integers other than bytes, values that are not finite, and images of
            floats outside [-1, 1]; it names ``source``.
    """
    name, shape = repr(str(source)), array.shape
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(
            f"{name} has an array of shape {shape}; expected vectors (n, d) or images (n, h, w), (n, c, h, w) or "
            "(n, h, w, c), at least one; of videos, the frames"
        )
    is_bytes = array.dtype == np.uint8
    if not is_bytes and array.dtype.kind != "f":
        raise ValueError(
            f"{name} has an array of {array.dtype}; expected bytes, scaled from 0..255, or floats, taken as they "
            "are: use array.astype(np.uint8) for whole numbers from 0 to 255"
        )
    with np.errstate(over="ignore"):  # what overflows is reported below
        x = torch.from_numpy(np.array(array) if is_bytes and array.ndim > 2 else array.astype(np.float32))
    if is_bytes:
        return _channels_first(x if x.ndim > 2 else x / 127.5 - 1)
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(f"{name} has {bad} of {x.numel()} values that are not finite in float32; remove or replace them")
    if x.ndim > 2 and float(x.abs().max()) > 1 + 1e-6:
        raise ValueError(
            f"{name} has images with values from {float(x.min()):.4g} to {float(x.max()):.4g}; expected floats in "
            "[-1, 1], or bytes"
        )
    return _channels_first(x)


def _channels_first(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        return x.permute(0, 3, 1, 2).contiguous()
    return x


def as_labels(array: np.ndarray[Any, Any], n: int, source: str | Path) -> Tensor:
    """Labels of ``n`` samples, int64, from an array ``(n,)`` or ``(n, 1)``.

    Raises:
        ValueError: unless they are ``n`` whole numbers from 0; it names ``source``.
    """
    values = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    try:
        if values.dtype.kind not in "ui":
            raise ValueError(f"got labels of {values.dtype}; expected whole numbers from 0, one for each sample")
        return check_labels(values.astype(np.int64), n, None)
    except ValueError as error:
        raise ValueError(f"{str(source)!r} has labels of another kind: {error}") from error
