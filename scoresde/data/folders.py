"""Folders of images: every image below a folder, with the sub-folders for classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoresde.data.images import Files, Images

__all__ = ["image_names", "open_folder"]


def image_names(folder: Path) -> tuple[str, ...]:
    """The names of the images below ``folder``, relative to it and in order; hidden files are none."""
    from PIL import Image

    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    shown = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return tuple(sorted(path.as_posix() for path in shown))


def open_folder(folder: Path, **options: Any) -> Images:
    """The images below ``folder``; where each lies in a sub-folder, and there are several, those are the classes.

    Args:
        folder: the folder.
        **options: of :class:`Images`.

    Raises:
        ValueError: for a folder without images, and what :class:`Images` refuses.
    """
    names = image_names(folder)
    if not names:
        others = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")][:3]
        holds = f"it holds {', '.join(map(repr, others))}" if others else "it is empty"
        raise ValueError(
            f"found no images in the folder {str(folder)!r}: {holds}; expected .png, .jpg or other images, there or in "
            "sub-folders, or one file: .npy, .npz, .parquet or IDX. Of a published set, name the kind: mnist:FOLDER, "
            "fashion-mnist:FOLDER or cifar10:FOLDER"
        )
    tops = [name.split("/")[0] if "/" in name else "" for name in names]
    classes = tuple(sorted(set(tops)))
    labels = None
    if "" not in classes and len(classes) > 1:
        number = {name: k for k, name in enumerate(classes)}
        labels = torch.tensor([number[top] for top in tops])
    return Images(Files(folder, names), str(folder), labels, classes if labels is not None else (), **options)
