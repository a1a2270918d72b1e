"""Arrays of numbers in files: ``.npy``, ``.npz`` and IDX, or any of them in ``.gz``; and what makes an array data."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_labels", "as_samples", "read", "to_float"]

# The type byte of an IDX header: http://yann.lecun.com/exdb/mnist/ describes the format.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHANNELS = (1, 3, 4)
_LABELS = ("labels", "label", "y")


def to_float(x: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]; floats as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def read(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The array in a file and, of an ``.npz``, that of the labels: ``labels``, ``label`` or ``y``.

    Raises:
        ValueError: for a file that is truncated, of another kind, or holds Python objects.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if content[:6] == b"\x93NUMPY":
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False)), None
        if content[:4] == b"PK\x03\x04":
            return _from_npz(content)
        if content[:2] == b"\0\0":
            return _from_idx(content), None
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{str(path)!r} holds Python objects, which are never unpickled; store an array of numbers, with "
                "samples of one shape"
            ) from error
        raise ValueError(f"cannot read {str(path)!r}, which may be truncated: {error}") from error
    raise ValueError(f"{str(path)!r} is of no known kind; expected .npy, .npz or IDX, or one of them in .gz")


def _from_npz(content: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        names = archive.files
        if "x" not in names and len(names) != 1:
            raise ValueError(f"got the arrays {', '.join(names) or 'none'}; expected one named 'x', or only one")
        labels = [name for name in _LABELS if name in names and "x" in names]
        return np.asarray(archive["x" if "x" in names else names[0]]), np.asarray(archive[labels[0]]) if labels else None


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
            "(n, h, w, c), at least one"
        )
    is_bytes = array.dtype == np.uint8
    if not is_bytes and array.dtype.kind != "f":
        raise ValueError(
            f"{name} has an array of {array.dtype}; expected bytes (uint8), scaled from 0..255, or floats, taken as they are"
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
    """Labels of ``n`` samples, int64.

    Raises:
        ValueError: unless they are ``n`` whole numbers from 0.
    """
    values = array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
    if values.dtype.kind not in "ui" or values.shape != (n,) or (n and values.min() < 0):
        raise ValueError(
            f"{str(source)!r} has labels of {array.dtype} and shape {array.shape}; expected {n} whole numbers from 0, one "
            "for each sample"
        )
    return torch.from_numpy(values.astype(np.int64))
