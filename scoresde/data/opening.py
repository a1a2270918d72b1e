"""One door for all data: a name, a file or a folder becomes a :class:`Dataset`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.base.names import Table, near
from scoresde.base.numbers import is_whole
from scoresde.base.reading import open_regular
from scoresde.data.arrays import as_labels, as_samples, read
from scoresde.data.dataset import Arrays, Dataset, Flipped
from scoresde.data.folders import file_names, image_names, open_folder
from scoresde.data.parts import choose_part, is_part, split_off
from scoresde.data.presets import COLLECTIONS
from scoresde.data.tables import open_hugging_face, open_parquet

__all__ = ["DATASETS", "digits", "load", "open", "split"]


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


def _digits() -> Dataset:
    return Arrays(*digits(), classes=tuple("0123456789"))


DATASETS: Table[Callable[[], Dataset]] = Table(
    "data",
    "scoresde.data.DATASETS",
    {"digits": _digits},
    also="a file or a folder that exists, or with a colon mnist:FOLDER, fashion-mnist:FOLDER, cifar10:FOLDER or hf:NAME",
    check=callable,
    expects="a function without arguments that returns a Dataset",
)
"""The data that are known by name alone. Those in :data:`COLLECTIONS` need the folder of their files after a colon."""


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
    if not is_whole(n) or n < 2 or not 0 < held_out < 1:
        raise ValueError(
            f"got n={n!r} samples and held_out={held_out}; expected at least 2 samples and a fraction between 0 and 1"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    size = min(max(round(held_out * n), 1), n - 1)
    return order[size:].sort().values, order[:size].sort().values


def open(
    source: str | Path,
    *,
    split: str | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    unreadable: str = "raise",
    cache: int = 2**28,
    limit: int | None = None,
    flips: bool = False,
) -> Dataset:
    """The data named ``source``, or in the file or folder ``source``.

    ========================================  =========================================================================
    source                                    what it is
    ========================================  =========================================================================
    ``digits``                                the digits of scikit-learn
    ``mnist:FOLDER``, ``fashion-mnist:..``,   the published files of MNIST, Fashion-MNIST, CIFAR-10 (binary version)
    ``cifar10:FOLDER``
    ``hf:NAME``, ``hf:FOLDER``                a set of Hugging Face, from the hub or written by ``save_to_disk``
    a folder                                  all images in it; sub-folders are the classes; or its parquet files
    a file                                    .npy, .npz, IDX, any of them in .gz, known by their content; .parquet
    ========================================  =========================================================================

    A part may follow a colon: ``FOLDER:train``, ``mnist:FOLDER:test``, ``hf:NAME:train``.

    Args:
        source: the data.
        split: the part. Of ``mnist:``, ``fashion-mnist:`` and ``cifar10:`` "train", the default, or "test"; of ``hf:``
            whatever parts it has; of a folder one of its sub-folders or tables called train, val or test (or the like),
            where it has several.
        size, fit, unreadable, cache: of encoded images; see :class:`~scoresde.data.Images`.
        limit: bytes that one compressed file, or one image, may unpack to, against files that are made to exhaust the
            memory: by default 2**30 (or eight times the length of the file) and 2**28.
        flips: add the mirror image of each image.

    Raises:
        ValueError: for what cannot be found or read, with the remedy.

    Example:
        >>> data = open("digits")
        >>> x, conditions = data.batch([1, 5])
        >>> len(data), data.event, x.shape, conditions["label"]
        (1797, (1, 8, 8), torch.Size([2, 1, 8, 8]), tensor([1, 5]))
    """
    if split is None:
        source, split = split_off(str(source))
    data = _open(source, split, {"size": size, "fit": fit, "unreadable": unreadable, "cache": cache, "limit": limit})
    if isinstance(data, Arrays) and size is not None and data.event[1:] != ((size, size) if isinstance(size, int) else size):
        raise ValueError(
            f"got size={size} for samples of shape {data.event}; expected none: only images in files of their own are scaled"
        )
    return Flipped(data) if flips else data


def _open(source: str | Path, split: str | None, options: dict[str, Any]) -> Dataset:
    if isinstance(source, str) and source in tuple(DATASETS):
        return DATASETS[source]()
    kind, colon, rest = str(source).partition(":")
    if colon and kind == "hf":
        return open_hugging_face(rest, split or "train", **options)
    if colon and kind in COLLECTIONS:
        if not Path(rest).is_dir():
            raise ValueError(f"got {str(source)!r}, and {rest!r} is not a folder; expected the folder of its files")
        return COLLECTIONS[kind](Path(rest), split or "train")
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, split, options)
    if not path.exists():
        if colon and near(kind, COLLECTIONS):
            raise COLLECTIONS.unknown(kind)
        return DATASETS[str(source)]()  # by another spelling or from an installed package; else it refuses the name
    if split is not None:
        raise ValueError(
            f"got split={split!r} for {str(source)!r}, which has no parts; they belong to folders, {', '.join(COLLECTIONS)} "
            "and hf, with a colon: mnist:FOLDER. Name the file of the part itself"
        )
    with open_regular(path) as file:
        if file.read(4) == b"PAR1" or path.suffix == ".parquet":
            return open_parquet([path], path.parent, **options)
    array, labels = read(path, options["limit"])
    x = as_samples(array, path)
    return Arrays(x, None if labels is None or labels.dtype.kind not in "ui" else as_labels(labels, len(x), path))


def _open_folder(folder: Path, split: str | None, options: dict[str, Any]) -> Dataset:
    """The images below a folder or, where there are none, its tables."""
    tables = [] if image_names(folder) else [name for name in file_names(folder) if name.endswith(".parquet")]
    if not tables:
        return open_folder(folder, split, **options)
    of = {name: _part_of(name) for name in tables}
    parts = {part for part in of.values() if part}
    part = choose_part(parts if all(of.values()) else (), split, str(folder))
    return open_parquet([folder / name for name in tables if part in (None, of[name])], folder, **options)


def _part_of(table: str) -> str:
    """The part that a table belongs to, by its folder or its name: ``train/0.parquet``, ``train-00000-of-00002.parquet``."""
    folder, stem = Path(table).parts[0], Path(table).stem
    return next((name for name in (folder, re.split("[-_.]", stem)[0]) if is_part(name)), "")


def load(source: str | Path) -> Tensor:
    """All samples that :func:`open` finds, as one tensor.

    Returns:
        Images in [-1, 1], shape ``(n, c, h, w)``, or vectors, shape ``(n, d)``; float32. Bytes are scaled from 0..255;
        floats are taken as they are. An array ``(n, h, w)`` gets one channel, and channels that stand last, where only the
        last dimension is 1, 3 or 4, are moved forward.

    Raises:
        ValueError: for an unknown name (with the nearest ones), a file that is missing, truncated or of another kind,
            Python objects, integers other than bytes, shapes that are neither vectors nor images, values that are not
            finite, and images of floats outside [-1, 1].

    Example:
        >>> x = load("digits")
        >>> x.shape, x.min().item(), x.max().item()
        (torch.Size([1797, 1, 8, 8]), -1.0, 1.0)
    """
    return open(source).tensor()
