"""Folders of images, whose sub-folders are classes or parts of the dataset."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from scoresde.data.arrays import VIDEOS
from scoresde.data.classes import natural, numbered
from scoresde.data.images import FORMATS, ImageFiles, Images
from scoresde.data.parts import choose_part, is_part

__all__ = ["file_names", "image_names", "open_folder"]

_MOST_WAYS = 8  # bound of the paths to one folder: links to links could otherwise make a small tree endless


def file_names(folder: Path) -> list[str]:
    """Return the names of the files below ``folder``, relative to it, in natural order; links are followed.

    Hidden files and folders are left out.

    Raises:
        ValueError: for a link that leads back to a folder above it, for too many links to a folder, and for a folder that
            cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.png", "9.png", ".hidden"):
        ...         Path(folder, name).touch()
        ...     file_names(Path(folder))
        ['9.png', '10.png']
    """
    found: list[str] = []
    ways: Counter[tuple[int, int]] = Counter()
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = os.stat(folder / place)
            entries = list(os.scandir(folder / place))
        except OSError as error:
            raise ValueError(
                f"cannot read the folder {str(folder / place)!r}: {error.strerror}; remove it, or make it readable"
            ) from error
        identity = (status.st_dev, status.st_ino)
        ways[identity] += 1
        if identity in above:
            raise ValueError(
                f"the link {str(folder / place)!r} leads back to a folder that it lies in, so that reading it would never "
                "end; remove the link"
            )
        if ways[identity] > _MOST_WAYS:
            raise ValueError(f"more than {_MOST_WAYS} links lead to the folder {str(folder / place)!r}; remove some of them")
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{place}/{entry.name}" if place else entry.name
            if _is_folder(entry):
                waiting.append((name, (*above, identity)))
            else:
                found.append(name)
    return sorted(found, key=natural)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def image_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the images below ``folder``, and of videos, which are refused when they are opened.

    Raises:
        ValueError: for a name that is not text in UTF-8, and for the reasons of :func:`file_names`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("owl.png", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     image_names(Path(folder))
        ('owl.png',)
    """
    from PIL import Image

    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS} | VIDEOS
    names = tuple(name for name in file_names(folder) if Path(name).suffix.lower() in suffixes)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the folder {str(folder)!r} has a file whose name is not text in UTF-8: {os.fsencode(name)!r}; rename it"
            ) from error
    return names


def open_folder(folder: Path, split: str | None = None, **options: Any) -> Images:
    """Open the images below ``folder`` as a dataset.

    If every image is in a sub-folder, and there are several sub-folders, these are the classes. Sub-folders that are all
    called train, val, test or the like are parts of the dataset instead. The classes of all parts are numbered together.

    Args:
        folder: the folder.
        split: the part to open, needed if there are several.
        **options: further arguments of :class:`Images`.

    Raises:
        ValueError: for a folder without images, an unknown part, several parts without ``split``, and images that
            :class:`Images` refuses.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 6)).save(f"{folder}/owl.png")
        ...     open_folder(Path(folder)).event
        (3, 6, 8)
    """
    names = image_names(folder)
    if not names:
        others = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")][:3]
        holds = f"it holds {', '.join(map(repr, others))}" if others else "it is empty"
        raise ValueError(
            f"found no images in the folder {str(folder)!r}: {holds}; expected .png, .jpg or other images, there or in "
            "sub-folders, or one file: .npy, .npz, .parquet or IDX. For a published dataset name the kind: mnist:FOLDER, "
            "fashion-mnist:FOLDER or cifar10:FOLDER"
        )
    tops = Counter(name.partition("/")[0] if "/" in name else "" for name in names)
    folders = [top for top in tops if top]
    parts = folders if all(map(is_part, folders)) else []
    part = choose_part(parts, split, str(folder), {"": tops[""]} if tops[""] else None)
    if part is not None:
        below = [name.partition("/")[2] for name in names if "/" in name]
        names = tuple(name for name in names if name.startswith(f"{part}/"))
        own = [name.partition("/")[2] for name in names]
    else:
        below = own = list(names)
    among = {name.partition("/")[0] for name in below if "/" in name}
    if len(among) < 2 or not all("/" in name for name in own):
        return Images(ImageFiles(folder, names), str(folder), **options)
    labels, classes = numbered([name.partition("/")[0] for name in own], among)
    return Images(ImageFiles(folder, names), str(folder), labels, classes, **options)
