"""Videos: given frames and the missing ones, videos that are longer than a model's, and training on images as well.

A sample is a video of shape ``(channels, frames, height, width)``. Frames that are known are a measurement by a mask, so
that prediction, interpolation and extension are inverse problems. Every method for these applies: see
:func:`~scoresde.systems.fill`.

Source: Ho et al., "Video Diffusion Models", 2022, https://arxiv.org/abs/2204.03458.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.data import Dataset
from scoresde.inverse import Mask, Observation
from scoresde.models import UNet
from scoresde.sampling import Samples
from scoresde.score import ScoreModel
from scoresde.solvers import sample_seeds
from scoresde.systems.filling import fill

__all__ = ["WithImages", "extend", "from_images", "given_frames", "interpolate_frames", "predict_frames"]


def given_frames(frames: Tensor, at: Sequence[int], total: int, sigma: float = 0.0) -> Observation:
    """Return the observation of some frames of a video.

    Args:
        frames: the frames of one video, shape ``(channels, k, height, width)``, or of several, ``(batch, ..)``.
        at: the number of each in the whole video, counted from 0, or backwards from -1.
        total: the number of frames of the whole video.
        sigma: the standard deviation of the noise of the frames.

    Raises:
        ValueError: for another number of frames than of places, places outside the video, and one that occurs twice.

    Example:
        >>> given_frames(torch.zeros(1, 2, 8, 8), [0, -1], 5).operator.mask[0, :, 0, 0]
        tensor([ True, False, False, False,  True])
    """
    total = whole("total", total, 1)
    if frames.ndim not in (4, 5):
        raise ValueError(
            f"got frames of shape {tuple(frames.shape)}; expected (channels, frames, height, width), or (batch, ..) of "
            "several videos"
        )
    places = [whole("at", i) for i in at]
    if outside := [i for i in places if not -total <= i < total]:
        raise ValueError(
            f"got frame {outside[0]} of a video of {total} frames; expected numbers from 0 to {total - 1}, or, counted from "
            f"the end, from -1 to {-total}: a model of longer videos, or fewer given frames"
        )
    order = sorted(range(len(places)), key=lambda j: places[j] % total)
    known = [places[j] % total for j in order]
    if len(known) != frames.shape[-3] or len(set(known)) < len(known) or not known:
        raise ValueError(
            f"got {frames.shape[-3]} frames at {list(at)} of a video of {total}; expected a place of its own for each frame"
        )
    channels, _, height, width = frames.shape[-4:]
    mask = torch.zeros(total, dtype=torch.bool)
    mask[known] = True
    operator = Mask(mask[:, None, None], (channels, total, height, width))
    return Observation(operator, frames[..., order, :, :].flatten(-4), sigma)


def predict_frames(model: ScoreModel, frames: Tensor, total: int, n: int | None = None, **options: Any) -> Samples:
    """Draw videos that begin with the given frames.

    Args:
        model: a score model of videos of ``total`` frames.
        frames: the first frames, shape ``(channels, k, height, width)`` or ``(batch, ..)``.
        total: the number of frames of a video.
        n: the number of videos; ``None`` for one of each.
        options: further arguments of :func:`~scoresde.systems.fill`, such as ``by="tmpd"``.

    Raises:
        ValueError: for at least as many frames as the video has; see also :func:`given_frames`.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.gaussian_process((1, 4, 2, 2), (0, 3, 1, 1)).model(scoresde.VP())
        >>> predict_frames(model, torch.ones(1, 2, 2, 2), 4, 5, steps=10, progress=False).x.shape
        torch.Size([5, 1, 4, 2, 2])
    """
    if frames.ndim > 3 and frames.shape[-3] >= total:
        raise ValueError(
            f"got {frames.shape[-3]} frames to continue to a video of {total}; expected fewer, or extend(.., total=..) for "
            "videos that are longer than the model's"
        )
    return fill(model, given_frames(frames, range(frames.shape[-3]), total), n, **options)


def interpolate_frames(
    model: ScoreModel, frames: Tensor, total: int, n: int | None = None, *, at: Sequence[int] | None = None, **options: Any
) -> Samples:
    """Draw videos between the given frames.

    Args:
        model: a score model of videos of ``total`` frames.
        frames: the given frames, shape ``(channels, k, height, width)`` or ``(batch, ..)``.
        total: the number of frames of a video.
        n: the number of videos; ``None`` for one of each.
        at: the numbers of the given frames; by default spread evenly from the first frame to the last.
        options: further arguments of :func:`~scoresde.systems.fill`.

    Raises:
        ValueError: see :func:`given_frames`.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.gaussian_process((1, 5, 2, 2), (0, 3, 1, 1)).model(scoresde.VP())
        >>> ends = torch.ones(1, 2, 2, 2)
        >>> interpolate_frames(model, ends, 5, 2, steps=10, progress=False).x[:, :, [0, -1]].unique()
        tensor([1.])
    """
    k = frames.shape[-3]
    if at is None:
        at = [round(j * (total - 1) / max(k - 1, 1)) for j in range(k)]
    return fill(model, given_frames(frames, at, total), n, **options)


def extend(
    model: ScoreModel,
    frames: Tensor,
    total: int,
    window: int,
    overlap: int | None = None,
    *,
    seed: int | Sequence[int] | None = 0,
    **options: Any,
) -> Tensor:
    """Draw videos of any number of frames that begin with the given ones, a window of a model's frames after another.

    Each window is given the last ``overlap`` frames before it. For a Markov chain over the frames and an exact method the
    law is that of one long video; of earlier frames a window does not know.

    Args:
        model: a score model of videos of ``window`` frames.
        frames: the first frames, shape ``(batch, channels, k, height, width)``.
        total: the number of frames of the result.
        window: the number of frames of the model's videos.
        overlap: the number of frames that a window is given, by default as many as there are and at most half a window.
        seed: an integer, or one for each video; a video depends on its own seed.
        options: further arguments of :func:`~scoresde.systems.fill`.

    Returns:
        The videos, shape ``(batch, channels, total, height, width)``.

    Raises:
        ValueError: for another shape of ``frames``, fewer of them than the overlap, an overlap that fills the window, and a
            total of no more than the given frames.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.gaussian_process((1, 4, 2, 2), (0, 3, 1, 1)).model(scoresde.VP())
        >>> extend(model, torch.ones(2, 1, 1, 2, 2), 9, window=4, steps=5, progress=False).shape
        torch.Size([2, 1, 9, 2, 2])
    """
    if frames.ndim != 5:
        raise ValueError(f"got frames of shape {tuple(frames.shape)}; expected (batch, channels, frames, height, width)")
    known, window = frames.shape[2], whole("window", window, 2)
    overlap = max(min(known, window // 2), 1) if overlap is None else whole("overlap", overlap, 1)
    if not overlap < window or known < overlap or total <= known:
        raise ValueError(
            f"got {known} frames to extend to {total} by windows of {window} with an overlap of {overlap}; expected at "
            "least as many frames as the overlap, an overlap shorter than a window, and more frames in total than are given"
        )
    turns = -(-(total - known) // (window - overlap))
    seeds = [sample_seeds(s, turns) for s in sample_seeds(seed, len(frames))]
    for turn in range(turns):
        seen = given_frames(frames[:, :, -overlap:], range(overlap), window)
        found = fill(model, seen, seed=[s[turn] for s in seeds], **options).x
        frames = torch.cat([frames, found[:, :, overlap:].to(frames)], 2)
    return frames[:, :, :total]


# Images --------------------------------------------------------------------------------------------------------------


def from_images(net: UNet) -> UNet:
    """Return a network of videos that begins as a network of images, which sees each frame apart until it is trained.

    Args:
        net: a network of images, ``UNet(.., dims=2)``.

    Raises:
        ValueError: for a network of other data.

    Example:
        >>> net = UNet(1, 8, (1, 2))
        >>> _ = torch.nn.init.normal_(net.output.weight)  # as if it was trained
        >>> x, t = torch.randn(2, 1, 3, 8, 8), torch.rand(2)
        >>> torch.allclose(from_images(net)(x, t)[:, :, 1], net(x[:, :, 1], t), atol=1e-5)
        True
    """
    if not isinstance(net, UNet) or net.config["dims"] != 2:
        raise ValueError(f"got {type(net).__name__} for a network of videos; expected one of images: UNet(.., dims=2)")
    made = UNet(**net.config | {"dims": 3, "temporal": "attention"}).to(next(net.parameters()))
    made.load_state_dict(made.state_dict() | net.state_dict())  # the attention over time is its own
    return made


@dataclass(frozen=True, eq=False)
class WithImages:
    """A dataset of videos, and of images as videos of still frames, for training on both at once.

    So many images as a video has frames are one sample, whose condition ``still`` is true: the attention over time of
    ``UNet(.., dims=3, temporal="attention")`` leaves it out, and each frame trains the network of images. Images that do
    not fill a sample are left out, and so are labels.

    Args:
        videos: a dataset of ``(channels, frames, height, width)``.
        images: a dataset of ``(channels, height, width)``.

    Raises:
        ValueError: for images of another shape than a frame, and fewer of them than a video has frames.

    Example:
        >>> from scoresde.data import Arrays
        >>> both = WithImages(Arrays(torch.zeros(5, 1, 3, 8, 8)), Arrays(torch.ones(10, 1, 8, 8)))
        >>> x, told = both.batch(torch.tensor([0, 7]))
        >>> len(both), x.mean((1, 2, 3, 4)), told["still"]
        (8, tensor([0., 1.]), tensor([False,  True]))
    """

    videos: Dataset
    images: Dataset

    def __post_init__(self) -> None:
        event, image = tuple(self.videos.event), tuple(self.images.event)
        if len(event) != 4 or image != (event[0], *event[2:]):
            raise ValueError(
                f"got images of shape {image} for videos of shape {event}; expected videos (channels, frames, height, "
                "width) and images of the shape of a frame"
            )
        if len(self.images) < event[1]:
            raise ValueError(
                f"got {len(self.images)} images for videos of {event[1]} frames; expected at least as many, since they are "
                "trained on as one sample"
            )

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a video."""
        return tuple(self.videos.event)

    def __len__(self) -> int:
        return len(self.videos) + len(self.images) // self.event[1]

    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the samples at ``indices``, and which of them are images."""
        chosen, frames = torch.as_tensor(indices, dtype=torch.int64), self.event[1]
        still = chosen >= len(self.videos)
        x = torch.empty(len(chosen), *self.event)
        if not bool(still.all()):
            x[~still] = self.videos.samples(chosen[~still])
        if bool(still.any()):
            first = (chosen[still] - len(self.videos)) * frames
            images = self.images.samples((first[:, None] + torch.arange(frames)).flatten())
            x[still] = images.reshape(-1, frames, *images.shape[1:]).transpose(1, 2)
        return x, {"still": still}

    def fingerprint(self) -> str:
        """Return a text that identifies both datasets."""
        return f"{self.videos.fingerprint()} with images {self.images.fingerprint()}"
