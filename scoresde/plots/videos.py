"""Videos as files that play, and in TensorBoard."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.plots.encoding import BORDER, gif, write_frames
from scoresde.plots.images import tile

__all__ = ["log_video", "save_video"]


def save_video(
    videos: Tensor, path: str | os.PathLike[str], *, fps: float = 8, columns: int | None = None, scale: int | None = None
) -> None:
    """Write videos in a grid, which play at once, to a file that plays.

    Args:
        videos: in [-1, 1], shape ``(n, c, frames, h, w)`` with one channel or three; ``(c, frames, h, w)`` for one video.
        path: the file, ``.gif``, ``.mp4`` or ``.html``. MP4 needs the extra ``video``, which brings an encoder.
        fps: frames in a second.
        columns: the number of videos in a row, by default up to 8.
        scale: the size of a pixel in pixels of the file, by default as large as makes the grid about 400 wide.

    One channel is drawn as in the other figures: dark on light. A GIF keeps equal frames that follow one another as one
    frame that is shown for longer.

    Raises:
        ValueError: for videos of another shape, another suffix, and MP4 where no encoder is installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_video(torch.zeros(4, 1, 5, 8, 8), f"{folder}/grey.gif")
        ...     os.listdir(folder)
        ['grey.gif']
    """
    write_frames(_frames(videos, columns, scale), path, fps, alt="videos")


def log_video(writer: Any, tag: str, videos: Tensor, step: int = 0, *, fps: float = 8, columns: int | None = None) -> None:
    """Show videos in TensorBoard, among the images, where they play.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.
        tag: the name of the videos.
        videos, fps, columns: see :func:`save_video`.
        step: the step of the training.

    Raises:
        ValueError: for videos of another shape.

    Example:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter  # doctest: +SKIP
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:  # doctest: +SKIP
        ...     log_video(writer, "samples", torch.zeros(4, 1, 5, 8, 8), step=100)
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    frames = _frames(videos, columns, None)
    image = Summary.Image(height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=gif(frames, fps))
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _frames(videos: Tensor, columns: int | None, scale: int | None) -> np.ndarray[Any, Any]:
    """Return the frames of the grid as RGB bytes, shape ``(frames, height, width, 3)``."""
    if videos.ndim == 4:
        videos = videos[None]
    if videos.ndim != 5 or videos.shape[1] not in (1, 3) or not videos.numel():
        raise ValueError(
            f"got videos of shape {tuple(videos.shape)}; expected (n, 1, frames, h, w) or (n, 3, frames, h, w), not empty"
        )
    columns = min(len(videos), 8) if columns is None else whole("columns", columns, 1)
    x = videos.detach().float().cpu()
    pages = torch.stack([tile(x[:, :, i], columns) for i in range(x.shape[2])])  # (frames, c, height, width)
    size = max(1, round(400 / pages.shape[3])) if scale is None else whole("scale", scale, 1)
    pages = -pages if pages.shape[1] == 1 else pages
    levels = (127.5 * (pages.clamp(-1, 1) + 1)).round().nan_to_num(BORDER).to(torch.uint8)
    levels = levels.repeat_interleave(size, 2).repeat_interleave(size, 3).expand(-1, 3, -1, -1)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()
