"""Data: images in [-1, 1] or vectors from arrays, folders of images, tables, published and built-in datasets.

The samples of a :class:`Dataset` are indexed, so that the order of a training is a function of its seed and step alone.
:func:`open` opens every kind of data as a dataset; :func:`load_tensor` reads all samples into one tensor. Bytes are scaled
from 0..255 to [-1, 1]; floats are not scaled. Nothing is ever unpickled.
"""

from scoresde.data.arrays import on_white
from scoresde.data.augmentation import Augmentation
from scoresde.data.captions import CAPTIONS, captions
from scoresde.data.dataset import Arrays, Dataset, Flipped
from scoresde.data.images import ImageFiles, Images
from scoresde.data.loader import batches
from scoresde.data.opening import DATASETS, load_digits, load_tensor, open, split
from scoresde.data.presets import COLLECTIONS, cifar10, fashion_mnist, mnist
from scoresde.data.videos import MovingDigits, Videos, moving_digits, open_videos

__all__ = [
    "CAPTIONS",
    "COLLECTIONS",
    "DATASETS",
    "Arrays",
    "Augmentation",
    "Dataset",
    "Flipped",
    "ImageFiles",
    "Images",
    "MovingDigits",
    "Videos",
    "batches",
    "captions",
    "cifar10",
    "fashion_mnist",
    "load_digits",
    "load_tensor",
    "mnist",
    "moving_digits",
    "on_white",
    "open",
    "open_videos",
    "split",
]
