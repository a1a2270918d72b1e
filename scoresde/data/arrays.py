"""Arrays in files, ``.npy``, ``.npz``, IDX or one of them in ``.gz``, and their conversion to samples and labels."""

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

__all__ = [
    "NPY",
    "VIDEOS",
    "as_labels",
    "as_samples",
    "from_npy",
    "npy_header",
    "on_white",
    "read",
    "read_array",
    "to_float",
]

VIDEOS = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
"""The extensions of videos, which are refused with an error and not silently left out."""

# The type byte of an IDX header: http://yann.lecun.com/exdb/mnist/ describes the format.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHANNELS = (1, 3, 4)
_LONGEST_HEADER = 10_000  # bytes of an .npy header, the bound of NumPy: longer headers are not parsed
_MOST_AXES = 32
_LABELS = ("labels", "label", "y")


def to_float(x: Tensor) -> Tensor:
    """Scale bytes 0..255 to float32 in [-1, 1]; return floats unchanged.

    Example:
        >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def on_white(x: Tensor) -> Tensor:
    """Return images of four channels, RGB and opacity, as RGB on a white ground; others unchanged.

    Args:
        x: images in [-1, 1], shape ``(batch, channels, height, width)``.

    Example:
        >>> on_white(torch.tensor([[[[-1.0]], [[-1.0]], [[-1.0]], [[0.0]]]])).flatten().tolist()  # half opaque black
        [0.0, 0.0, 0.0]
    """
    if x.ndim != 4 or x.shape[1] != 4:
        return x
    opaque = (x[:, 3:] + 1) / 2
    return x[:, :3] * opaque + 1 - opaque


def read(path: Path, limit: int | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Read the samples in a file and, from an ``.npz`` file, the labels, called ``labels``, ``label`` or ``y``.

    Args:
        path: the file.
        limit: largest size in bytes after decompression; ``None`` for 2**30, or eight times the size of the file.

    Returns:
        The array of samples, and the array of labels or ``None``.

    Raises:
        ValueError: for a file that is truncated, of another kind, not a regular file, holds Python objects, or is larger
            than ``limit`` after decompression.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/data.npz", x=np.zeros((2, 3)), labels=np.array([1, 0]))
        ...     x, labels = read(Path(folder, "data.npz"))
        >>> x.shape, labels.tolist()
        ((2, 3), [1, 0])
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
    what = "a video" if path.suffix.lower() in VIDEOS else "of an unknown kind"
    raise ValueError(
        f"{str(path)!r} is {what}; expected .npy, .npz or IDX, or one of them in .gz, .parquet, or a folder of images"
    )


def read_array(path: Path, names: Collection[str], limit: int | None = None) -> np.ndarray[Any, Any] | None:
    """Read the first array of these names in an ``.npz`` file; ``None`` where there is none, or the file is of another kind.

    Args:
        path: the file.
        names: the names.
        limit: largest size in bytes after decompression; ``None`` for 2**30.

    Raises:
        ValueError: for a file that cannot be read, and an array of Python objects or one larger than ``limit``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/data.npz", x=np.zeros((2, 3)), name=np.array(["a", "b"]))
        ...     read_array(Path(folder, "data.npz"), ("caption", "name"))
        array(['a', 'b'], dtype='<U1')
    """
    most = 2**30 if limit is None else limit
    try:
        with open_regular(path) as file:
            if file.read(4) != b"PK\x03\x04":
                return None
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                name = next((name for name in names if name in members), None)
                if name is None:
                    return None
                with archive.open(members[name]) as member:
                    return from_npy(_unpacked(member, most))
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(f"cannot read {str(path)!r}, which may be truncated or damaged: {error}") from error


def _unpacked(file: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """Decompress a file; raise if the result is larger than ``most`` bytes."""
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(_too_large(most))
    return content


def _too_large(most: int) -> str:
    return (
        f"it unpacks to more than {most} bytes, and may be made to exhaust the memory; if you trust the file, allow "
        "more: limit=.. (--limit ..)"
    )


NPY = b"\x93NUMPY"
"""The first bytes of an ``.npy`` file."""


def npy_header(start: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Parse the header of an ``.npy`` file.

    Args:
        start: the first bytes of the file, including the whole header.

    Returns:
        The dtype, the shape, whether the order is Fortran's, and the position of the first value in bytes.

    Raises:
        ValueError: for bytes that are not a header, and for a header that declares Python objects.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
    """
    wide = start[6:7] != b"\1"  # versions 2 and 3 count the bytes of the header in four
    begin = 12 if wide else 10
    if start[:6] != NPY or start[6:8] not in (b"\1\0", b"\2\0", b"\3\0") or len(start) < begin:
        raise ValueError("it does not start with the header of an .npy file")
    end = begin + int.from_bytes(start[8:begin], "little")
    if end - begin > _LONGEST_HEADER or len(start) < end:
        raise ValueError(
            f"the .npy header announces {end - begin} bytes; expected no more than the file has, {_LONGEST_HEADER} at most"
        )
    try:
        header = ast.literal_eval(start[begin:end].decode("utf-8" if start[6:7] == b"\3" else "latin-1").strip())
        shape, fortran, described = header["shape"], header["fortran_order"], header["descr"]
        dtype = np.lib.format.descr_to_dtype(described)
    except Exception as error:  # text that is neither a literal nor a dtype fails in many ways
        raise ValueError(f"the .npy header cannot be read: {error!r}") from error
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects, which are never unpickled; expected numbers: store an array of samples of one shape"
        )
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > _MOST_AXES or type(fortran) is not bool:
        raise ValueError(f"the .npy header announces the shape {_shortened(shape)}; expected whole numbers from 0")
    return dtype, shape, fortran, end


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def from_npy(content: bytes) -> np.ndarray[Any, Any]:
    """Return the array in the content of an ``.npy`` file, without copying.

    Raises:
        ValueError: for a header that cannot be read, and for more or fewer values than it declares.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.array([1, 2]))
        >>> from_npy(file.getvalue())
        array([1, 2])
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
                f"got the arrays {_named(members)}; expected samples called 'x' and, if any, labels called 'labels': "
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
    """Return the array in an IDX file: two zero bytes, the dtype, the number of dimensions, their sizes, the values."""
    if len(content) < 4 or content[2] not in _IDX_TYPES:
        raise ValueError("it does not start with the header of an IDX file")
    dtype, ndim = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"the IDX header announces {ndim} dimensions and ends before their sizes")
    shape = np.frombuffer(content, ">u4", ndim, 4).tolist()
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"got {len(content)} bytes; the IDX header announces {expected}, for the shape {tuple(shape)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def as_samples(array: np.ndarray[Any, Any], source: str | Path) -> Tensor:
    """Convert an array to samples: images ``(n, c, h, w)``, uint8 or float32 in [-1, 1], or vectors ``(n, d)``, float32.

    Raises:
        ValueError: for other shapes, integers other than bytes, values that are not finite, and images of floats outside
            [-1, 1]; names ``source``.

    Example:
        >>> as_samples(np.zeros((5, 28, 28), np.uint8), "zeros.npy").shape
        torch.Size([5, 1, 28, 28])
    """
    name, shape = repr(str(source)), array.shape
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(
            f"{name} has an array of shape {shape}; expected vectors (n, d) or images (n, h, w), (n, c, h, w) or "
            "(n, h, w, c) with at least one sample; from a video, save the frames"
        )
    is_bytes = array.dtype == np.uint8
    if not is_bytes and array.dtype.kind != "f":
        raise ValueError(
            f"{name} has an array of {array.dtype}; expected bytes, which are scaled from 0..255, or floats, "
            "which are not: use array.astype(np.uint8) for whole numbers from 0 to 255"
        )
    with np.errstate(over="ignore"):  # values that overflow are reported below
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
            "[-1, 1], or bytes: scale them, x / 127.5 - 1 from 0..255"
        )
    return _channels_first(x)


def _channels_first(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        return x.permute(0, 3, 1, 2).contiguous()
    return x


def as_labels(array: np.ndarray[Any, Any], n: int, source: str | Path) -> Tensor:
    """Convert an array ``(n,)`` or ``(n, 1)`` to the labels of ``n`` samples, int64.

    Raises:
        ValueError: if the array does not hold ``n`` whole numbers from 0; names ``source``.

    Example:
        >>> as_labels(np.array([[3], [1]], np.uint8), 2, "labels.npy")
        tensor([3, 1])
    """
    values = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    try:
        if values.dtype.kind not in "ui":
            raise ValueError(f"got labels of {values.dtype}; expected whole numbers from 0, one for each sample")
        return check_labels(values.astype(np.int64), n, None)
    except ValueError as error:
        raise ValueError(f"{str(source)!r} has unsuitable labels: {error}") from error
