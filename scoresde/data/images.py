"""Encoded images in files or table cells: their headers are read when the dataset is opened, their pixels on access."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.base.reading import open_regular
from scoresde.data.arrays import VIDEOS, to_float
from scoresde.data.classes import check_labels
from scoresde.data.dataset import Dataset, Indices

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["FORMATS", "Cells", "ImageFiles", "Images", "Sources"]

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
"""The formats that are decoded, by Pillow's names: raster formats that need no external program."""

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_SHOWN = 3  # number of files that a message names
_LIMIT = 2**28  # bytes of a decoded image: about 90 million RGB pixels, from which on Pillow warns


class Sources(Protocol):
    """Indexed encoded images: their number, and the name, the size in bytes and the content of each."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Return the name of image ``i``, for messages."""
        ...

    def size(self, i: int) -> int:
        """Return the size of image ``i`` in bytes."""
        ...

    def open(self, i: int) -> IO[bytes]:
        """Open the encoded image ``i`` as a file."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a folder.

    Args:
        folder: the folder.
        names: the paths of the images relative to the folder.

    Example:
        >>> ImageFiles(Path("birds"), ("owl/1.png",)).name(0)
        'birds/owl/1.png'
    """

    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """Return the path of file ``i``."""
        return str(self.folder / self.names[i])

    def size(self, i: int) -> int:
        """Return the size of file ``i`` in bytes."""
        return (self.folder / self.names[i]).stat().st_size

    def open(self, i: int) -> IO[bytes]:
        """Open file ``i`` for reading."""
        return open_regular(self.folder / self.names[i])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


@contextlib.contextmanager
def _opened(sources: Sources, i: int, limit: int | None) -> Iterator[PILImage]:
    """Open image ``i``; every error becomes a ValueError that names the file."""
    from PIL import Image, UnidentifiedImageError

    name = sources.name(i)
    try:
        if Path(name).suffix.lower() in VIDEOS:
            raise ValueError("it is a video; save its frames as images")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with sources.open(i) as file, _decoder(file, limit) as image:
                _check_size(image, limit)
                yield image
    except Exception as error:  # a damaged image can make Pillow fail in any way
        reason = "it is not an image, or a damaged one" if isinstance(error, UnidentifiedImageError) else error
        if isinstance(error, Image.DecompressionBombError):
            reason = f"{error} If you trust the file, allow its size in bytes: limit=.. (--limit ..)"
        raise ValueError(
            f"cannot read {name!r}: {reason}; remove or replace it, or pass unreadable='skip' (--unreadable skip), which "
            "leaves such files out"
        ) from error


@functools.cache
def _formats() -> list[str]:
    """Return the formats in :data:`FORMATS` that the installed Pillow decodes."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


_LIFTING = threading.Lock()


def _decoder(file: IO[bytes], limit: int | None) -> PILImage:
    """Open the image in a file by its header; a ``limit`` replaces Pillow's own bound on its size."""
    from PIL import Image

    if limit is None:
        return Image.open(file, formats=_formats())
    with _LIFTING:  # the bound is a global of Pillow
        most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = most


def _check_size(image: PILImage, limit: int | None) -> None:
    """Check by the header of an image that it is below the size limit and a single image."""
    size, most = image.width * image.height * len(image.getbands()), _LIMIT if limit is None else limit
    if size > most:
        raise ValueError(
            f"it has {image.height}x{image.width} pixels, {size} bytes when decoded, and may be made to exhaust the memory; "
            f"if you trust the file, allow more than {most} bytes: limit={size} (--limit {size})"
        )
    if getattr(image, "is_animated", False) and image.format != "MPO":  # an MPO file is a photograph and its thumbnails
        raise ValueError(
            "it holds several images, such as the frames of an animation; expected one image: save them in separate files"
        )


def _has_orientation(image: PILImage) -> bool:
    """Return whether to read the EXIF orientation; for a PNG, reading it would need decoding the whole image."""
    return image.format != "PNG"


@dataclass(eq=False)
class Images(Dataset):
    """A dataset of encoded images that are decoded on access, so that it may be larger than the memory.

    All headers are read at once, so that different sizes and files that are not images are found before a training. If all
    images are grey they have one channel, else all have three (RGB). Transparent images are put on a white background.
    Images other than PNG are rotated to their EXIF orientation.

    Args:
        sources: the encoded images.
        where: the folder or file, for messages.
        labels: the label of each image, whole numbers from 0, or ``None``.
        classes: the names of the classes in the order of their labels, or ``None``.
        size: height and width to which all images are resized, or one number for both.
        fit: ``"crop"`` scales an image until its shorter side fits and crops the centre; ``"stretch"`` changes its aspect.
        unreadable: ``"raise"`` for files that cannot be read. Damage after the header is then found when a file is decoded.
            ``"skip"`` decodes each file once, leaves out files that fail, names them in a warning, and lists them in
            ``skipped``.
        cache: bytes of decoded images to keep in memory, filled in the order of access; each worker process has its own.
        limit: largest size of a decoded image in bytes; ``None`` for 2**28, about 90 million RGB pixels.

    Raises:
        ValueError: for files that cannot be read, images of several sizes without ``size``, images smaller than ``size`` and
            images of more than 8 bits. The message names files and says what to do.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (8, 6)).save(f"{folder}/owl.png")
        ...     Images(ImageFiles(Path(folder), ("owl.png",)), folder, size=4).samples([0]).shape
        torch.Size([1, 1, 4, 4])
    """

    sources: Sources
    where: str
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    size: int | tuple[int, int] | None = None
    fit: str = "crop"
    unreadable: str = "raise"
    cache: int = 2**28
    limit: int | None = None
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "stretch") or self.unreadable not in ("raise", "skip"):
            raise ValueError(
                f"got fit={self.fit!r} and unreadable={self.unreadable!r}; expected 'crop' or 'stretch', and 'raise' "
                "or 'skip'"
            )
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(
                f"got size={self.size}; expected a positive whole number, or a height and a width, such as (32, 48)"
            )
        numbers, shapes, modes = self._scan()
        if not numbers:
            raise ValueError(
                f"found no readable image in {self.where!r}: {len(self.sources)} files cannot be read; expected images "
                f"in the formats {', '.join(_formats())}"
            )
        self._check_modes(numbers, modes)
        self._numbers = numbers
        height, width = self._common(numbers, shapes, size)
        self._grey = all(mode in _GREY for mode in modes)
        self.event = (1 if self._grey else 3, height, width)
        if self.labels is not None:
            self.labels = check_labels(self.labels, len(self.sources), self.classes)[torch.tensor(numbers)]

    def _scan(self) -> tuple[list[int], list[tuple[int, int]], list[str]]:
        """Return the indices of the readable images, their heights and widths, and their modes."""
        numbers, shapes, modes, bad = [], [], [], []
        for i in range(len(self.sources)):
            try:
                with _opened(self.sources, i, self.limit) as image:
                    if self.unreadable == "skip":
                        image.load()
                    turned = _has_orientation(image) and image.getexif().get(0x0112) in _TURNED
                    shape, mode = (image.size if turned else image.size[::-1]), image.mode
            except ValueError:
                if self.unreadable == "raise":
                    raise
                bad.append(self.sources.name(i))
                continue
            numbers.append(i)
            shapes.append((shape[0], shape[1]))
            modes.append(mode)
        if bad:
            self.skipped = tuple(bad)
            warnings.warn(f"left out {len(bad)} files that cannot be read: {_listed(bad)}", stacklevel=2)
        return numbers, shapes, modes

    def _check_modes(self, numbers: list[int], modes: list[str]) -> None:
        deep = [self.sources.name(i) for i, mode in zip(numbers, modes, strict=True) if mode not in _GREY + _COLOUR]
        if deep:
            raise ValueError(
                f"{_listed(deep)} have pixels of more than 8 bits, or neither grey nor RGB; expected 8 bits: convert the "
                "images, or store an array of floats in [-1, 1] (.npy)"
            )

    def _common(self, numbers: list[int], shapes: list[tuple[int, int]], size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            counts = Counter(shapes).most_common()
            if len(counts) > 1:
                first = {shape: self.sources.name(i) for i, shape in reversed(list(zip(numbers, shapes, strict=True)))}
                kinds = "; ".join(f"{n} of {h}x{w}, such as {first[h, w]!r}" for (h, w), n in counts[:_SHOWN])
                least = min(min(shape) for shape in shapes)
                raise ValueError(
                    f"the images of {self.where!r} differ in height x width: {kinds}; expected one size: pass "
                    f"size={least} (--size {least}), to which all are scaled and cropped, or remove those that differ"
                )
            return counts[0][0]
        small = [i for i, shape in zip(numbers, shapes, strict=True) if shape[0] < size[0] or shape[1] < size[1]]
        if small:
            least = min(min(shape) for shape in shapes)
            raise ValueError(
                f"{len(small)} images are smaller than {size[0]}x{size[1]}: "
                f"{_listed([self.sources.name(i) for i in small])}; expected no smaller images, since scaling up "
                f"invents detail: pass size={least} (--size {least}) or less, or remove them"
            )
        return size

    def __len__(self) -> int:
        return len(self._numbers)

    def samples(self, indices: Indices) -> Tensor:
        """Return the images at ``indices``, in this order, shape ``(batch, c, h, w)``, float32 in [-1, 1]."""
        return to_float(torch.stack([self._pixels(int(i)) for i in torch.as_tensor(indices)]))

    def _pixels(self, i: int) -> Tensor:
        """Return image ``i`` as bytes, shape ``event``."""
        i = range(len(self))[i]
        if i in self._kept:
            return self._kept[i]
        with _opened(self.sources, self._numbers[i], self.limit) as image:
            x = torch.from_numpy(self._decode(image))
        if (len(self._kept) + 1) * x.numel() <= self.cache:
            self._kept[i] = x
        return x

    def _decode(self, image: PILImage) -> np.ndarray[Any, Any]:
        from PIL import Image, ImageOps

        turned = ImageOps.exif_transpose(image) if _has_orientation(image) else image
        if turned.has_transparency_data:
            turned = turned.convert("RGBA")
            white = Image.new("RGBA", turned.size, "white")
            turned = Image.alpha_composite(white, turned)
        turned = turned.convert("L" if self._grey else "RGB")
        height, width = self.event[1:]
        if turned.size != (width, height):
            method = Image.Resampling.BICUBIC
            whole = self.fit == "stretch"
            turned = turned.resize((width, height), method) if whole else ImageOps.fit(turned, (width, height), method)
        pixels = np.array(turned, dtype=np.uint8)
        return pixels[None] if self._grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def fingerprint(self) -> str:
        """Return a text with a digest of file names, file sizes, resizing and labels; the contents are not read."""
        digest = hashlib.blake2b(f"{self.event} {self.fit}".encode(), digest_size=8)
        for i in self._numbers:
            digest.update(f"\0{Path(self.sources.name(i)).name} {self.sources.size(i)}".encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return f"{len(self)} images {self.event} {digest.hexdigest()}"


@dataclass(frozen=True, eq=False)
class Cells:
    """The images in a column of an Arrow table, which holds bytes, or structures with ``bytes`` and ``path``.

    Args:
        column: the column.
        where: the table, for messages.
        folder: the folder in which a ``path`` must be, so that a table cannot make other files readable.
    """

    column: Any
    where: str
    folder: Path

    def __len__(self) -> int:
        return len(self.column)

    def name(self, i: int) -> str:
        """Return the table and the row of image ``i``."""
        return f"{self.where}, row {i}"

    def size(self, i: int) -> int:
        """Return the size of image ``i`` in bytes."""
        cell = self.column[i]
        inside = cell["bytes"] if hasattr(cell, "keys") and cell.is_valid else cell
        return inside.as_buffer().size if inside.is_valid else 0

    def open(self, i: int) -> IO[bytes]:
        """Open the bytes of image ``i`` as a file.

        Raises:
            ValueError: for an empty cell, and for a path outside the folder.
        """
        cell = self.column[i].as_py()
        if isinstance(cell, dict):
            if cell.get("bytes") is None and cell.get("path"):
                return self._open_path(str(cell["path"]))
            cell = cell.get("bytes")
        if not isinstance(cell, bytes) or not cell:
            raise ValueError("the cell is empty; expected the bytes of an image")
        return io.BytesIO(cell)

    def _open_path(self, path: str) -> IO[bytes]:
        place = (self.folder / path).resolve()
        if not place.is_relative_to(self.folder.resolve()):
            raise ValueError(f"its path {path!r} leads out of the folder {str(self.folder)!r}; expected a file inside it")
        return open_regular(place)
