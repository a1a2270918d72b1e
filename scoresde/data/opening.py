"""Opening of data: a name, a file or a folder becomes a :class:`Dataset`."""

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

__all__ = ["DATASETS", "load_digits", "load_tensor", "open", "split"]


def load_digits() -> tuple[Tensor, Tensor]:
    """Return the images and labels of the handwritten digits in scikit-learn.

    Returns:
        Images in [-1, 1], shape ``(1797, 1, 8, 8)``, float32, and their labels, the digits, shape ``(1797,)``, int64.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998,
    https://doi.org/10.24432/C50P49. A pixel there is a number of ink points from 0 to 16.

    Example:
        >>> images, labels = load_digits()
        >>> images.shape, labels[:3]
        (torch.Size([1797, 1, 8, 8]), tensor([0, 1, 2]))
    """
    from sklearn import datasets

    ink, labels = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(ink).float().reshape(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels).long()


def _digits() -> Dataset:
    return Arrays(*load_digits(), classes=tuple("0123456789"))


DATASETS: Table[Callable[[], Dataset]] = Table(
    "data",
    "scoresde.data.DATASETS",
    {"digits": _digits},
    also="a file or a folder that exists, or with a colon mnist:FOLDER, fashion-mnist:FOLDER, cifar10:FOLDER or hf:NAME",
    check=callable,
    expects="a function without arguments that returns a Dataset",
)
"""The built-in datasets by name. The published datasets in :data:`COLLECTIONS` also need the folder of their files."""


def split(n: int, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split the indices of ``n`` samples at random into a training part and a held-out part.

    The same arguments give the same split.

    Args:
        n: the number of samples, at least 2.
        held_out: the fraction of held-out samples, strictly between 0 and 1; each part has at least one sample.
        seed: seed of the shuffling.

    Returns:
        Two vectors of indices in increasing order, disjoint and together 0..n-1.

    Raises:
        ValueError: for fewer than 2 samples, or a fraction that is not between 0 and 1.

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
    """Open the data with the name, in the file or in the folder ``source`` as a dataset.

    ========================================  =========================================================================
    source                                    what it is
    ========================================  =========================================================================
    ``digits``                                the digits of scikit-learn
    ``mnist:FOLDER``, ``fashion-mnist:..``,   the published files of MNIST, Fashion-MNIST, CIFAR-10 (binary version)
    ``cifar10:FOLDER``
    ``hf:NAME``, ``hf:FOLDER``                a dataset of Hugging Face, from the hub or written by ``save_to_disk``
    a folder                                  all images in it, with its sub-folders as classes; or its parquet files
    a file                                    .npy, .npz, IDX or one of them in .gz, recognised by content; .parquet
    ========================================  =========================================================================

    The name of a part of the dataset may follow a colon: ``FOLDER:train``, ``mnist:FOLDER:test``, ``hf:NAME:train``.

    Args:
        source: the name, file or folder.
        split: the name of the part. It is "train" (default) or "test" for ``mnist:``, ``fashion-mnist:`` and ``cifar10:``,
            any part of the dataset for ``hf:``, and for a folder with several sub-folders or tables called train, val, test
            or the like, one of these.
        size: height and width to which encoded images are resized, or one number for both; see
            :class:`~scoresde.data.Images`, also for ``fit``, ``unreadable`` and ``cache``.
        fit: ``"crop"`` or ``"stretch"`` encoded images to ``size``.
        unreadable: ``"raise"`` for image files that cannot be read, or ``"skip"`` them.
        cache: bytes of decoded images to keep in memory.
        limit: largest size in bytes of a file after decompression, by default 2**30 or eight times the compressed size, and
            of a decoded image, by default 2**28. It protects from files that are made to exhaust the memory.
        flips: add the mirror image of each image.

    Raises:
        ValueError: for data that cannot be found or read; says what to do.

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
            f"got size={size} for samples of shape {data.event}; expected no size, since arrays "
            "are not resized: resize the array yourself"
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
            raise ValueError(
                f"got {str(source)!r}, and {rest!r} is not a folder; expected the folder of its files: {kind}:FOLDER"
            )
        return COLLECTIONS[kind](Path(rest), split or "train")
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, split, options)
    if not path.exists():
        if colon and near(kind, COLLECTIONS):
            raise COLLECTIONS.unknown(kind)
        return DATASETS[str(source)]()  # another spelling, or an entry of an installed package; raises for an unknown name
    if split is not None:
        raise ValueError(
            f"got split={split!r} for {str(source)!r}, which has no parts; expected a folder, {', '.join(COLLECTIONS)} "
            "or hf, with a colon: mnist:FOLDER. For a single file pass no split, but the file of the part"
        )
    with open_regular(path) as file:
        if file.read(4) == b"PAR1" or path.suffix == ".parquet":
            return open_parquet([path], path.parent, **options)
    array, labels = read(path, options["limit"])
    x = as_samples(array, path)
    return Arrays(x, None if labels is None or labels.dtype.kind not in "ui" else as_labels(labels, len(x), path))


def _open_folder(folder: Path, split: str | None, options: dict[str, Any]) -> Dataset:
    """Open the images below a folder, or its parquet files if there are no images."""
    tables = [] if image_names(folder) else [name for name in file_names(folder) if name.endswith(".parquet")]
    if not tables:
        return open_folder(folder, split, **options)
    of = {name: _part_of(name) for name in tables}
    parts = {part for part in of.values() if part}
    part = choose_part(parts if all(of.values()) else (), split, str(folder))
    return open_parquet([folder / name for name in tables if part in (None, of[name])], folder, **options)


def _part_of(table: str) -> str:
    """Return the part of a dataset in the name of a table: ``train/0.parquet``, ``train-00000-of-00002.parquet``."""
    folder, stem = Path(table).parts[0], Path(table).stem
    return next((name for name in (folder, re.split("[-_.]", stem)[0]) if is_part(name)), "")


def load_tensor(source: str | Path) -> Tensor:
    """Read all samples of the data with the name, in the file or in the folder ``source`` into one tensor.

    Args:
        source: see :func:`open`.

    Returns:
        Images in [-1, 1], shape ``(n, c, h, w)``, or vectors, shape ``(n, d)``; float32. Bytes are scaled from 0..255.
        Floats are not scaled. An array ``(n, h, w)`` gets one channel. If only the last dimension has length 1, 3 or 4, it
        is taken for the channels and moved forward.

    Raises:
        ValueError: for an unknown name (with the nearest ones); for a file that is missing, truncated or of another kind;
            for Python objects, integers other than bytes, shapes that are neither vectors nor images, values that are not
            finite, and images of floats outside [-1, 1].

    Example:
        >>> x = load_tensor("digits")
        >>> x.shape, x.min().item(), x.max().item()
        (torch.Size([1797, 1, 8, 8]), -1.0, 1.0)
    """
    return open(source).tensor()
