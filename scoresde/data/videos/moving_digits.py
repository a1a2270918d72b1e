"""Moving digits: videos of digits that move at a constant speed and are reflected at the borders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.data.dataset import Dataset, Indices
from scoresde.data.opening import open

__all__ = ["MovingDigits", "Tracks", "moving_digits"]


class Tracks(NamedTuple):
    """The digits of a video and where they are.

    Attributes:
        chosen: the index of each digit in the images, shape ``(digits,)``.
        places: the row and the column of the upper left corner of each digit, shape ``(digits, frames, 2)``, float64.
    """

    chosen: Tensor
    places: Tensor


@dataclass(eq=False)
class MovingDigits(Dataset):
    """Videos of moving digits in [-1, 1], each a function of the seed and of its own number.

    The directions are uniform, and so are the first places. A place between pixels is drawn by linear interpolation. Where
    digits overlap, the brighter one is seen.

    Args:
        images: images to choose from, a dataset of ``(1, h, w)`` in [-1, 1].
        n: number of videos.
        frames: number of frames.
        size: height and width of a frame, at least those of an image.
        digits: number of digits in a video.
        speed: pixels from one frame to the next.
        seed: seed of the videos.

    With one digit in each video the labels are those of the images.

    Raises:
        ValueError: for images with several channels or larger than a frame, and a speed that is negative.

    Source: Srivastava et al., "Unsupervised Learning of Video Representations using LSTMs", 2015,
    https://arxiv.org/abs/1502.04681.

    Example:
        >>> videos = moving_digits(n=10, frames=5, size=16)
        >>> videos.samples([3]).shape
        torch.Size([1, 1, 5, 16, 16])
    """

    images: Dataset
    n: int = 1000
    frames: int = 16
    size: int = 32
    digits: int = 1
    speed: float = 1.0
    seed: int = 0
    _seed: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("frames", 1), ("size", 1), ("digits", 1), ("seed", 0)):
            setattr(self, name, whole(name, getattr(self, name), least))
        event = tuple(self.images.event)
        if len(event) != 3 or event[0] != 1 or max(event[1:]) > self.size:
            raise ValueError(
                f"got images of shape {event} for frames of {self.size} x {self.size}; expected (1, h, w), no larger: "
                f"size={max(event[-2:])} or more, or smaller images"
            )
        if not 0 <= self.speed < float("inf"):
            raise ValueError(f"got speed={self.speed}; expected a number of pixels for each frame, at least 0")
        self.event = (1, self.frames, self.size, self.size)
        self._seed = int.from_bytes(hashlib.blake2b(f"digits {self.seed}".encode(), digest_size=7).digest(), "big")
        if self.digits == 1 and self.images.labels is not None:
            self.labels = self.images.labels[torch.cat([self._chosen(i)[0] for i in range(self.n)])]
            self.classes = self.images.classes

    def __len__(self) -> int:
        return self.n

    def tracks(self, i: int) -> Tracks:
        """Return the digits of video ``i`` and their places, which the reflections keep inside the frame.

        Example:
            >>> places = moving_digits(n=2, frames=9, size=10, speed=3.0).tracks(1).places
            >>> bool((places >= 0).all() and (places <= 2).all())  # digits of 8 x 8 pixels
            True
        """
        chosen, generator = self._chosen(i)
        u = torch.rand(self.digits, 3, generator=generator, dtype=torch.float64)
        angle = 2 * torch.pi * u[:, 2]
        velocity = self.speed * torch.stack([angle.sin(), angle.cos()], 1)  # (digits, 2)
        room = self.size - torch.tensor(self.images.event[1:], dtype=torch.float64)
        straight = u[:, None, :2] * room + torch.arange(self.frames)[:, None] * velocity[:, None]  # (digits, frames, 2)
        period = 2 * room.clamp(min=1e-9)
        return Tracks(chosen, torch.minimum(straight % period, period - straight % period).minimum(room))

    def _chosen(self, i: int) -> tuple[Tensor, torch.Generator]:
        """Return the images of video ``i``, and the generator of its further random numbers."""
        generator = torch.Generator().manual_seed(self._seed + i)
        return torch.randint(len(self.images), (self.digits,), generator=generator), generator

    def samples(self, indices: Indices) -> Tensor:
        """Return the videos at ``indices``, in this order, shape ``(batch, 1, frames, size, size)``, float32 in [-1, 1]."""
        return torch.stack([self._video(int(i)) for i in torch.as_tensor(indices)])

    def _video(self, i: int) -> Tensor:
        """Return video ``i``, shape ``event``."""
        chosen, places = self.tracks(range(self.n)[i])
        ink = 0.5 * (self.images.samples(chosen)[:, 0] + 1)  # (digits, h, w)
        pixel = torch.arange(self.size, dtype=torch.float64)[:, None]
        rows, columns = (
            (1 - (pixel - torch.arange(n, dtype=torch.float64) - places[:, :, axis, None, None]).abs()).clamp(min=0).float()
            for axis, n in enumerate(ink.shape[1:])
        )  # (digits, frames, size, h) and (digits, frames, size, w): the weights of linear interpolation
        moved = rows @ ink[:, None] @ columns.mT  # (digits, frames, size, size)
        return (2 * moved.amax(0) - 1)[None]

    def fingerprint(self) -> str:
        """Return the settings and the fingerprint of the images."""
        told = f"{self.n} x {self.event}, {self.digits} digits, speed {self.speed:g}, seed {self.seed}"
        return f"moving digits {told} of {self.images.fingerprint()}"


def moving_digits(
    source: str | Path | Dataset = "digits",
    n: int = 1000,
    *,
    frames: int = 16,
    size: int = 32,
    digits: int = 1,
    speed: float = 1.0,
    seed: int = 0,
) -> MovingDigits:
    """Make videos of moving digits.

    Args:
        source: the images of the digits: a name or a file for :func:`open`, ``"mnist:FOLDER"``, or a dataset. The default
            is the 8 x 8 digits of scikit-learn.
        n, frames, size, digits, speed, seed: see :class:`MovingDigits`.

    Raises:
        ValueError: see :class:`MovingDigits` and :func:`open`.

    Example:
        >>> a, b = (moving_digits(n=n, frames=3, size=12, digits=2, seed=1) for n in (5, 50))
        >>> torch.equal(a.samples([4]), b.samples([4])), a.labels is None
        (True, True)
    """
    images = source if isinstance(source, Dataset) else open(source)
    return MovingDigits(images, n, frames, size, digits, speed, seed)
