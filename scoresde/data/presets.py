"""Published datasets, read from their published files in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from scoresde.base.names import Table
from scoresde.data.arrays import as_labels, as_samples, read
from scoresde.data.dataset import Arrays, Dataset

__all__ = ["COLLECTIONS", "cifar10", "fashion_mnist", "mnist"]

_PARTS = ("train", "test")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32  # bytes of a CIFAR-10 record: the label, then red, green and blue, row by row


def _part(split: str) -> str:
    if split not in _PARTS:
        raise ValueError(f"got split={split!r}; expected 'train' or 'test'")
    return split


def _find(folder: Path, names: list[str], what: str) -> Path:
    """Return the first of ``names`` that exists in ``folder`` or in one of its sub-folders."""
    for name in names:
        for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if path.is_file():
                return path
    raise ValueError(
        f"found no {names[0]} in the folder {str(folder)!r}; expected the published files of {what}: "
        "download them into the folder"
    )


def _idx(folder: Path, split: str, what: str, classes: tuple[str, ...]) -> Arrays:
    stem = "train" if _part(split) == "train" else "t10k"
    files = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        # Some archives unpack with a dot in place of the last dash but one.
        names = [f"{stem}-{kind}{gz}" for gz in (".gz", "")] + [
            f"{stem}-{kind.replace('-idx', '.idx')}{gz}" for gz in (".gz", "")
        ]
        files.append(_find(folder, names, what))
    x = as_samples(read(files[0])[0], files[0])
    return Arrays(x, as_labels(read(files[1])[0], len(x), files[1]), classes)


def mnist(folder: Path, split: str = "train") -> Arrays:
    """Read MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28.

    Args:
        folder: the folder of the IDX files, compressed (``.gz``) or not.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: for another ``split``, and for files that are missing or damaged.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", http://yann.lecun.com/exdb/mnist/.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # a single image of 2 x 2 pixels, of a seven
        ...     pixels = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 255, 255, 0])
        ...     _ = Path(folder, "t10k-images-idx3-ubyte").write_bytes(pixels)
        ...     _ = Path(folder, "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
        ...     found = mnist(Path(folder), "test")
        >>> found.samples([0]).tolist(), found.classes[7]
        ([[[[-1.0, 1.0], [1.0, -1.0]]]], '7')
    """
    return _idx(folder, split, "MNIST", tuple("0123456789"))


def fashion_mnist(folder: Path, split: str = "train") -> Arrays:
    """Read Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28.

    Args:
        folder: the folder of the IDX files, which have the same names as those of MNIST, compressed (``.gz``) or not.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: for another ``split``, and for files that are missing or damaged.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    2017, https://arxiv.org/abs/1708.07747.

    Example:
        >>> clothes = fashion_mnist(Path("fashion-mnist"), "test")  # doctest: +SKIP
        >>> len(clothes), clothes.event, clothes.classes[0]  # doctest: +SKIP
        (10000, (1, 28, 28), 'T-shirt/top')
    """
    return _idx(folder, split, "Fashion-MNIST", _CLOTHES)


def cifar10(folder: Path, split: str = "train") -> Arrays:
    """Read CIFAR-10: 50,000 training and 10,000 test photographs, 32 x 32, RGB.

    Args:
        folder: the folder of the binary version.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: for another ``split``, for files that are missing or incomplete, and for the Python version, which is
            pickled.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # two black images of airplanes
        ...     np.zeros((2, 1 + 3 * 32 * 32), np.uint8).tofile(Path(folder, "test_batch.bin"))
        ...     found = cifar10(Path(folder), "test")
        >>> len(found), found.event, found.classes[0]
        (2, (3, 32, 32), 'airplane')
    """
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] if _part(split) == "train" else ["test_batch.bin"]
    pickled = [path for pattern in ("data_batch_1", "*/data_batch_1") for path in folder.glob(pattern)]
    if pickled and not any(folder.rglob("data_batch_1.bin")):
        raise ValueError(
            f"{str(pickled[0])!r} belongs to the Python version of CIFAR-10, which is pickled and could run any code; "
            "expected the binary version: download cifar-10-binary.tar.gz from the same page"
        )
    parts = []
    for path in (_find(folder, [name], "the binary version of CIFAR-10") for name in names):
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % _RECORD:
            raise ValueError(
                f"{str(path)!r} has {len(content)} bytes; expected a multiple of {_RECORD}, the length of a record of "
                "CIFAR-10: it may be truncated; unpack it again"
            )
        parts.append(content.reshape(-1, _RECORD))
    records = np.concatenate(parts)
    labels = as_labels(records[:, 0], len(records), folder)
    return Arrays(torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)).clone(), labels, _OBJECTS)


COLLECTIONS: Table[Callable[[Path, str], Dataset]] = Table(
    "collection of data",
    "scoresde.data.COLLECTIONS",
    {"mnist": mnist, "fashion-mnist": fashion_mnist, "cifar10": cifar10},
    also="hf, or a file or a folder that exists",
    check=callable,
    expects="a function of a folder and the name of a part that returns a Dataset",
)
"""The published datasets by name, opened as ``"mnist:FOLDER"``."""
