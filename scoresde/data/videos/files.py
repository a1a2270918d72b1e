"""Videos from files: folders of frames, GIFs and arrays, cut into clips of one length."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.reading import open_regular
from scoresde.data.arrays import read
from scoresde.data.dataset import Arrays, Dataset, Indices
from scoresde.data.folders import image_names
from scoresde.data.images import ImageFiles, Images

__all__ = ["Videos", "open_videos"]

_LIMIT = 2**30  # bytes of a decoded GIF
_CHANNELS = (1, 3, 4)


@dataclass(eq=False)
class Videos(Dataset):
    """Clips of one length, cut from frames that follow one another.

    Args:
        images: all frames, one video after another, a dataset of ``(channels, height, width)``.
        lengths: the number of frames of each video.
        frames: the number of frames of a clip.
        stride: the number of frames from the start of a clip to that of the next; ``None`` for ``frames``, so that clips
            do not overlap. Frames at the end of a video that do not fill a clip are left out.

    Raises:
        ValueError: for videos of which none is as long as a clip, and lengths that do not add up to the frames.

    Example:
        >>> x = torch.arange(7.0).reshape(7, 1, 1, 1).expand(7, 1, 2, 2)
        >>> clips = Videos(Arrays(x), lengths=(5, 2), frames=2, stride=1)
        >>> clips.event, clips.tensor()[:, 0, :, 0, 0].tolist()
        ((1, 2, 2, 2), [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [5.0, 6.0]])
    """

    images: Dataset
    lengths: tuple[int, ...]
    frames: int
    stride: int | None = None

    def __post_init__(self) -> None:
        self.frames = whole("frames", self.frames, 1)
        stride = self.frames if self.stride is None else whole("stride", self.stride, 1)
        if sum(self.lengths) != len(self.images) or len(self.images.event) != 3:
            raise ValueError(
                f"got videos of {sum(self.lengths)} frames in all for {len(self.images)} samples of shape "
                f"{self.images.event}; expected the frames of all videos, images (channels, height, width)"
            )
        begins = [0, *itertools.accumulate(self.lengths)]
        self._starts = [
            begin + k for begin, n in zip(begins, self.lengths, strict=False) for k in range(0, n - self.frames + 1, stride)
        ]
        if not self._starts:
            raise ValueError(
                f"got videos of at most {max(self.lengths, default=0)} frames to cut into clips of {self.frames}; expected "
                f"one that is as long: frames={max(self.lengths, default=1)} or fewer"
            )
        channels, height, width = self.images.event
        self.event = (channels, self.frames, height, width)

    def __len__(self) -> int:
        return len(self._starts)

    def samples(self, indices: Indices) -> Tensor:
        """Return the clips at ``indices``, in this order, shape ``(batch, channels, frames, height, width)``."""
        chosen = torch.tensor([self._starts[int(i)] for i in torch.as_tensor(indices)], dtype=torch.int64)
        x = self.images.samples((chosen[:, None] + torch.arange(self.frames)).flatten())
        return x.reshape(-1, self.frames, *x.shape[1:]).transpose(1, 2).contiguous()

    def fingerprint(self) -> str:
        """Return a text that identifies the frames and how they are cut."""
        cut = hashlib.blake2b(str((self._starts, self.frames)).encode(), digest_size=8).hexdigest()
        return f"{len(self)} clips {self.event} {cut} of {self.images.fingerprint()}"


def open_videos(
    source: str | Path, frames: int, *, stride: int | None = None, limit: int | None = None, **options: Any
) -> Videos:
    """Open videos as a dataset of clips in [-1, 1].

    ===============================  ==================================================================================
    source                           what it is
    ===============================  ==================================================================================
    a folder with GIFs               each is a video
    a folder of images               the frames of one video, in the order of their numbers; each sub-folder is a video
    a GIF                            one video
    ``.npz``, ``.npy``               an array of bytes, or floats in [-1, 1]: ``(n, frames, height, width)``, or with
                                     channels, ``(n, frames, height, width, c)`` or ``(n, c, frames, height, width)``
    ===============================  ==================================================================================

    Args:
        source: the file or folder.
        frames: the number of frames of a clip.
        stride: see :class:`Videos`.
        limit: largest size in bytes of a file or a GIF after decompression; ``None`` for 2**30.
        options: further arguments of :class:`~scoresde.data.Images`, such as ``size``, for a folder of images.

    Raises:
        ValueError: for a source that cannot be found or read, sizes that differ, and clips that are longer than every video.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/rain.npz", x=np.zeros((3, 10, 8, 8), np.uint8))
        ...     videos = open_videos(f"{folder}/rain.npz", frames=5)
        >>> len(videos), videos.event
        (6, (1, 5, 8, 8))
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"found no {str(source)!r}; expected a folder of frames, a folder of GIFs, a GIF, or .npz or .npy")
    if path.is_dir():
        return _from_folder(path, frames, stride, limit, options)
    if options:
        raise ValueError(
            f"got {', '.join(options)} for {str(source)!r}; expected no such argument: only folders of images are resized"
        )
    if path.suffix.lower() == ".gif":
        made, lengths = _from_gifs([path], limit)
        return Videos(made, lengths, frames, stride)
    array, _ = read(path, limit)
    x = _frames_of(array, path)
    return Videos(Arrays(x.flatten(0, 1)), (x.shape[1],) * len(x), frames, stride)


def _from_folder(folder: Path, frames: int, stride: int | None, limit: int | None, options: dict[str, Any]) -> Videos:
    """Open a folder of GIFs, of images, or of folders of images."""
    names = image_names(folder)
    gifs = [name for name in names if name.lower().endswith(".gif")]
    if not names or (gifs and len(gifs) < len(names)):
        raise ValueError(
            f"found {len(gifs)} GIFs and {len(names) - len(gifs)} other images in the folder {str(folder)!r}; expected "
            "GIFs, each a video, or images, each a frame"
        )
    if gifs:
        made, lengths = _from_gifs([folder / name for name in gifs], limit)
        return Videos(made, lengths, frames, stride)
    groups = [(parent, list(group)) for parent, group in itertools.groupby(names, lambda name: str(Path(name).parent))]
    groups = sorted(groups, key=lambda item: names.index(item[1][0]))
    ordered = tuple(name for _, group in groups for name in group)
    images = Images(ImageFiles(folder, ordered), str(folder), limit=limit, **options)
    return Videos(images, tuple(len(group) for _, group in groups), frames, stride)


def _from_gifs(paths: list[Path], limit: int | None) -> tuple[Arrays, tuple[int, ...]]:
    """Decode GIFs to bytes; return all frames and the number of each video's."""
    videos, left = [], _LIMIT if limit is None else limit
    for path in paths:
        try:
            frames = list(_decoded(path, left))
        except Exception as error:  # a damaged file can make Pillow fail in any way
            raise ValueError(f"cannot read the GIF {str(path)!r}: {error}") from error
        left -= sum(frame.nbytes for frame in frames)
        videos.append(np.stack(frames))
    if len({video.shape[1:] for video in videos}) > 1:
        sizes = {video.shape[1:3]: path.name for video, path in zip(videos, paths, strict=True)}
        told = ", ".join(f"{h} x {w} ({name!r})" for (h, w), name in sizes.items())
        raise ValueError(f"the GIFs differ in height x width: {told}; expected one size")
    x = torch.from_numpy(np.concatenate(videos)).permute(0, 3, 1, 2)  # (frames, 3, height, width)
    grey = bool((x[:, :1] == x).all())
    return Arrays((x[:, :1] if grey else x).contiguous()), tuple(len(video) for video in videos)


def _decoded(path: Path, most: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the frames of a GIF as RGB bytes, ``(height, width, 3)``; transparent pixels are white."""
    from PIL import Image, ImageSequence

    with open_regular(path) as file, Image.open(file, formats=["GIF"]) as image:
        for frame in ImageSequence.Iterator(image):
            most -= 3 * image.size[0] * image.size[1]
            if most < 0:
                raise ValueError("it unpacks to more bytes than are allowed; if you trust the file, allow more: limit=..")
            opaque = frame.convert("RGBA")
            white = Image.new("RGBA", opaque.size, "white")
            yield np.array(Image.alpha_composite(white, opaque).convert("RGB"), dtype=np.uint8)


def _frames_of(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    """Convert an array to frames, shape ``(n, frames, channels, height, width)``, bytes or float32."""
    shape, is_bytes = array.shape, array.dtype == np.uint8
    if array.ndim not in (4, 5) or not array.size or not (is_bytes or array.dtype.kind == "f"):
        raise ValueError(
            f"{str(path)!r} has an array of shape {shape} and dtype {array.dtype}; expected videos (n, frames, height, "
            "width), (n, frames, height, width, channels) or (n, channels, frames, height, width), bytes or floats"
        )
    x = torch.from_numpy(np.array(array) if is_bytes else array.astype(np.float32))
    if not is_bytes and not (bool(torch.isfinite(x).all()) and float(x.abs().max()) <= 1 + 1e-6):
        raise ValueError(f"{str(path)!r} has values that are not in [-1, 1]; expected floats in [-1, 1], or bytes")
    if x.ndim == 4:
        return x[:, :, None]
    if shape[4] in _CHANNELS and shape[1] not in _CHANNELS:
        return x.permute(0, 1, 4, 2, 3)
    if shape[1] in _CHANNELS:
        return x.transpose(1, 2)
    raise ValueError(f"{str(path)!r} has an array of shape {shape}; expected 1, 3 or 4 channels, second or last")
