"""Videos as data: folders of frames, GIF and npz files, and digits that move, made from images of digits."""

from scoresde.data.videos.files import Videos, open_videos
from scoresde.data.videos.moving_digits import MovingDigits, moving_digits

__all__ = ["MovingDigits", "Videos", "moving_digits", "open_videos"]
