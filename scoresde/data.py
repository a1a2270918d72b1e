"""Reading data: one tensor of images in [-1, 1] or of vectors, from a name or a file.

Arrays of bytes become images scaled from 0..255 to [-1, 1]; arrays of floats are taken as they are. Nothing is ever
unpickled.
"""

from __future__ import annotations

import difflib
import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DATASETS", "digits", "load", "split"]

# The type byte of an IDX header: http://yann.lecun.com/exdb/mnist/ describes the format.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHANNELS = (1, 3, 4)


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 handwritten digits that come with scikit-learn, as images and labels.

    Returns:
        Images in [-1, 1], shape ``(1797, 1, 8, 8)``, float32, and the digits they show, shape ``(1797,)``, int64.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998,
    https://doi.org/10.24432/C50P49; the pixels count up to 16 points of ink each.

    Example:
        >>> images, labels = digits()
        >>> images.shape, labels[:3]
        (torch.Size([1797, 1, 8, 8]), tensor([0, 1, 2]))
    """
    from sklearn.datasets import load_digits

    ink, labels = load_digits(return_X_y=True)
    return torch.from_numpy(ink).float().reshape(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels).long()


DATASETS: dict[str, Callable[[], Tensor]] = {"digits": lambda: digits()[0]}
"""The data that :func:`load` knows by name."""


def split(n: int, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of a training part and of a held-out part of ``n`` samples, the same for the same arguments.

    Args:
        n: the number of samples, at least 2.
        held_out: the fraction held out, strictly between 0 and 1; at least one sample lies on either side.
        seed: chooses the shuffle.

    Returns:
        Two vectors of indices, disjoint and together all of 0..n-1, each in increasing order.

    Example:
        >>> training, held_out = split(10)
        >>> len(training), len(held_out)
        (8, 2)
    """
    if not isinstance(n, int) or n < 2 or not 0 < held_out < 1:
        raise ValueError(
            f"got n={n!r} samples and held_out={held_out}; expected at least 2 samples and a fraction between 0 and 1"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    size = min(max(round(held_out * n), 1), n - 1)
    return order[size:].sort().values, order[:size].sort().values


def load(source: str | Path) -> Tensor:
    """The data named ``source``, or in the file ``source``.

    Files are recognised by their content: ``.npy``; ``.npz``, with an array named ``x`` or only one; IDX, the format
    of MNIST; and any of them inside ``.gz``.

    Returns:
        Images in [-1, 1], shape ``(n, c, h, w)``, or vectors, shape ``(n, d)``; float32. An array ``(n, h, w)`` gets
        one channel, and channels that stand last, where only the last dimension is 1, 3 or 4, are moved forward.

    Raises:
        ValueError: for an unknown name (with the nearest ones), a file that is missing, truncated or of another kind,
            Python objects, integers other than bytes, shapes that are neither vectors nor images, values that are not
            finite, and images of floats outside [-1, 1].

    Example:
        >>> x = load("digits")
        >>> x.shape, x.min().item(), x.max().item()
        (torch.Size([1797, 1, 8, 8]), -1.0, 1.0)
    """
    if isinstance(source, str) and source in DATASETS:
        return DATASETS[source]()
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"got the folder {str(path)!r}; expected a file: .npy, .npz or IDX, or one of them in .gz")
    if not path.exists():
        near = difflib.get_close_matches(str(source), DATASETS, n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"found no file {str(source)!r}, and the data known by name are: {', '.join(DATASETS)}{hint}")
    return _as_samples(_read(path), path)


def _read(path: Path) -> np.ndarray[Any, Any]:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if content[:6] == b"\x93NUMPY":
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
        if content[:4] == b"PK\x03\x04":
            return _from_npz(content)
        if content[:2] == b"\0\0":
            return _from_idx(content)
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{str(path)!r} holds Python objects, which are never unpickled; store an array of numbers, with "
                "samples of one shape"
            ) from error
        raise ValueError(f"cannot read {str(path)!r}, which may be truncated: {error}") from error
    raise ValueError(f"{str(path)!r} is of no known kind; expected .npy, .npz or IDX, or one of them in .gz")


def _from_npz(content: bytes) -> np.ndarray[Any, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        names = archive.files
        if "x" not in names and len(names) != 1:
            raise ValueError(f"got the arrays {', '.join(names) or 'none'}; expected one named 'x', or only one")
        return np.asarray(archive["x" if "x" in names else names[0]])


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


def _as_samples(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    name, shape = repr(str(path)), array.shape
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
        x = torch.from_numpy(array.astype(np.float32))
    if is_bytes:
        x = x / 127.5 - 1
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(f"{name} has {bad} of {x.numel()} values that are not finite in float32; remove or replace them")
    if x.ndim > 2 and float(x.abs().max()) > 1 + 1e-6:
        raise ValueError(
            f"{name} has images with values from {float(x.min()):.4g} to {float(x.max()):.4g}; expected floats in "
            "[-1, 1], or bytes"
        )
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS:
        return x.permute(0, 3, 1, 2).contiguous()
    return x
