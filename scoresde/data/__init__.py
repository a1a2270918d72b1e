"""Reading data: images in [-1, 1] or vectors, from names, arrays, folders of images, tables and published sets.

A :class:`Dataset` gives samples by their number, so that the order of a training is a function of its seed and step and
nothing else. :func:`open` opens all kinds; :func:`load` reads all of it into one tensor. Arrays of bytes become images
scaled from 0..255 to [-1, 1]; arrays of floats are taken as they are. Nothing is ever unpickled.
"""

from scoresde.data.augmentation import Augmentation
from scoresde.data.dataset import Arrays, Dataset, Flipped
from scoresde.data.images import Files, Images
from scoresde.data.loader import batches
from scoresde.data.opening import DATASETS, digits, load, open, split
from scoresde.data.presets import COLLECTIONS, cifar10, fashion_mnist, mnist

__all__ = [
    "COLLECTIONS",
    "DATASETS",
    "Arrays",
    "Augmentation",
    "Dataset",
    "Files",
    "Flipped",
    "Images",
    "batches",
    "cifar10",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "open",
    "split",
]
