"""Images in files or in the cells of a table: inspected when the set is opened, decoded when they are asked for."""

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

__all__ = ["FORMATS", "Cells", "Files", "Images", "Sources"]

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
"""The formats that are decoded, by Pillow's names: pictures of pixels. None of them calls another programme."""

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa")
_TURNED = (5, 6, 7, 8)  # orientations of EXIF that exchange height and width
_SHOWN = 3  # how many files a message names
_LIMIT = 2**28  # bytes of a decoded image: about 90 million pixels in colour, where Pillow begins to warn


class Sources(Protocol):
    """Encoded images by their number: how many there are, what each is called, how large it is, and its bytes."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...

    def size(self, i: int) -> int: ...

    def open(self, i: int) -> IO[bytes]: ...


@dataclass(frozen=True)
class Files:
    """The images of a folder, by their names relative to it."""

    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The path of the file."""
        return str(self.folder / self.names[i])

    def size(self, i: int) -> int:
        """Its length in bytes."""
        return (self.folder / self.names[i]).stat().st_size

    def open(self, i: int) -> IO[bytes]:
        """The file, open for reading."""
        return open_regular(self.folder / self.names[i])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


@contextlib.contextmanager
def _opened(sources: Sources, i: int, limit: int | None) -> Iterator[PILImage]:
    """Image ``i``; whatever Pillow makes of bytes that are none becomes a ValueError that names the file."""
    from PIL import Image, UnidentifiedImageError

    name = sources.name(i)
    try:
        if Path(name).suffix.lower() in VIDEOS:
            raise ValueError("it is a video, of which frames must be saved as images first")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with sources.open(i) as file, _decoder(file, limit) as image:
                _check_size(image, limit)
                yield image
    except Exception as error:  # a damaged image can make Pillow fail in any way
        reason = "it is not an image, or a damaged one" if isinstance(error, UnidentifiedImageError) else error
        if isinstance(error, Image.DecompressionBombError):
            reason = f"{error} Where it is to be trusted, allow its bytes: limit=.. (--limit ..)"
        raise ValueError(
            f"cannot read {name!r}: {reason}; remove or replace it, or take unreadable='skip' (--unreadable skip), which "
            "leaves such files out"
        ) from error


@functools.cache
def _formats() -> list[str]:
    """Those of the formats that the installed Pillow decodes."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


_LIFTING = threading.Lock()


def _decoder(file: IO[bytes], limit: int | None) -> PILImage:
    """The image in a file, by its header; Pillow's own bound on its size gives way to a ``limit`` of the user's."""
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
    """Refuse, by its header, an image that is too large to be decoded, and one that is several."""
    size, most = image.width * image.height * len(image.getbands()), _LIMIT if limit is None else limit
    if size > most:
        raise ValueError(
            f"it has {image.height}x{image.width} pixels, {size} bytes when decoded, and may be made to exhaust the memory; "
            f"where it is to be trusted, allow more than {most} bytes: limit={size} (--limit {size})"
        )
    if getattr(image, "is_animated", False) and image.format != "MPO":  # which is a photograph and its thumbnails
        raise ValueError("it holds several images, such as the frames of an animation; expected one: save them in files")


def _has_orientation(image: PILImage) -> bool:
    """Photographs may be stored on their side; that a PNG is not, only decoding all of it would tell."""
    return image.format != "PNG"


@dataclass(eq=False)
class Images(Dataset):
    """Images that are read when they are asked for, so that a set may be larger than the memory.

    Every header is read at once: sizes must agree, and what is no image is found before a training begins. Grey images get
    one channel where all are grey, and three elsewhere; transparent ones lie on white; photographs (not PNG) are turned as
    they say.

    Args:
        sources: the encoded images.
        where: the folder or file, for messages.
        labels, classes: see :class:`Dataset`.
        size: height and width to bring all images to, or one number for both.
        fit: ``"crop"``, scale until the shorter side fits and take the middle; or ``"stretch"``.
        unreadable: ``"raise"``, or ``"skip"``: decode every file once, leave out those that fail, with a warning that names
            them, and list them in ``skipped``. With ``"raise"`` a damage beyond the header shows when the file is decoded.
        cache: bytes of decoded images to keep, the first ones that are asked for; worker processes keep their own.
        limit: bytes that one decoded image may take; ``None`` for 2**28, about 90 million pixels in colour.

    Raises:
        ValueError: for files that cannot be read, images of several sizes without ``size``, images smaller than ``size``
            or of more than 8 bits; each names files and a remedy.
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
            raise ValueError(f"got size={self.size}; expected a positive whole number, or a height and a width")
        numbers, shapes, modes = self._scan()
        if not numbers:
            raise ValueError(f"found no readable image in {self.where!r}: {len(self.sources)} files cannot be read")
        self._check_modes(numbers, modes)
        self._numbers = numbers
        height, width = self._common(numbers, shapes, size)
        self._grey = all(mode in _GREY for mode in modes)
        self.event = (1 if self._grey else 3, height, width)
        if self.labels is not None:
            self.labels = check_labels(self.labels, len(self.sources), self.classes)[torch.tensor(numbers)]

    def _scan(self) -> tuple[list[int], list[tuple[int, int]], list[str]]:
        """The numbers of the readable images, their heights and widths, and their modes."""
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
                f"{_listed(deep)} have pixels of more than 8 bits, or of another kind than grey and colour; expected 8 "
                "bits: convert them, or store an array of floats in [-1, 1] (.npy)"
            )

    def _common(self, numbers: list[int], shapes: list[tuple[int, int]], size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            counts = Counter(shapes).most_common()
            if len(counts) > 1:
                first = {shape: self.sources.name(i) for i, shape in reversed(list(zip(numbers, shapes, strict=True)))}
                kinds = "; ".join(f"{n} of {h}x{w}, such as {first[h, w]!r}" for (h, w), n in counts[:_SHOWN])
                least = min(min(shape) for shape in shapes)
                raise ValueError(
                    f"the images of {self.where!r} differ in height x width: {kinds}; expected one size: give "
                    f"size={least} (--size {least}), to which all are scaled and cropped, or remove those that differ"
                )
            return counts[0][0]
        small = [i for i, shape in zip(numbers, shapes, strict=True) if shape[0] < size[0] or shape[1] < size[1]]
        if small:
            least = min(min(shape) for shape in shapes)
            raise ValueError(
                f"{len(small)} images are smaller than {size[0]}x{size[1]}: "
                f"{_listed([self.sources.name(i) for i in small])}; expected none, since scaling up invents detail: take a "
                f"size of at most {least}, or remove them"
            )
        return size

    def __len__(self) -> int:
        return len(self._numbers)

    def samples(self, indices: Indices) -> Tensor:
        """See :meth:`Dataset.samples`."""
        return to_float(torch.stack([self._pixels(int(i)) for i in torch.as_tensor(indices)]))

    def _pixels(self, i: int) -> Tensor:
        """Sample ``i`` as bytes, shape ``event``."""
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
        """A digest of the names and lengths of the files, and of what is made of them: the contents are not read."""
        digest = hashlib.blake2b(f"{self.event} {self.fit}".encode(), digest_size=8)
        for i in self._numbers:
            digest.update(f"\0{Path(self.sources.name(i)).name} {self.sources.size(i)}".encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return f"{len(self)} images {self.event} {digest.hexdigest()}"


@dataclass(frozen=True, eq=False)
class Cells:
    """The images of a column of an Arrow table: bytes, or a structure with ``bytes`` and ``path``.

    Args:
        column: the column.
        where: the table, for messages.
        folder: the folder that a ``path`` may lead into: what a table says is no reason to read other files.
    """

    column: Any
    where: str
    folder: Path

    def __len__(self) -> int:
        return len(self.column)

    def name(self, i: int) -> str:
        """Where the image is."""
        return f"{self.where}, row {i}"

    def size(self, i: int) -> int:
        """Its length in bytes."""
        cell = self.column[i]
        inside = cell["bytes"] if hasattr(cell, "keys") and cell.is_valid else cell
        return inside.as_buffer().size if inside.is_valid else 0

    def open(self, i: int) -> IO[bytes]:
        """The bytes, as an open file.

        Raises:
            ValueError: for an empty cell, and a path to a place outside the folder.
        """
        cell = self.column[i].as_py()
        if isinstance(cell, dict):
            if cell.get("bytes") is None and cell.get("path"):
                return self._open_path(str(cell["path"]))
            cell = cell.get("bytes")
        if not isinstance(cell, bytes) or not cell:
            raise ValueError("the cell is empty")
        return io.BytesIO(cell)

    def _open_path(self, path: str) -> IO[bytes]:
        place = (self.folder / path).resolve()
        if not place.is_relative_to(self.folder.resolve()):
            raise ValueError(f"its path {path!r} leads out of the folder {str(self.folder)!r}; expected a file below it")
        return open_regular(place)
