"""Data of other libraries, converted for training, and the checks of data before a training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from scoresde.base.identity import digest
from scoresde.discrete import DenoisingModel
from scoresde.score import ScoreModel
from scoresde.training.batches import Batches, Indexed

__all__ = ["Items", "check_apart", "check_range", "samples_of"]

# The largest usual absolute value, of images (True) and of other samples (False): 2.8 for standardised MNIST, 10 for a wide
# grid of points.
_FAR = {True: 4.0, False: 20.0}


@dataclass(eq=False)
class Items:
    """A dataset of ``torch.utils.data`` whose items are samples, or pairs of a sample and its label.

    Args:
        of: the dataset. Its items must not be random, or a resumed training differs from an uninterrupted one.
        labelled: give the labels to the network.
        tokens: the items are whole numbers, for a model on tokens.

    Raises:
        ValueError: for a dataset without a length, and for items that are not tensors of floating-point numbers or tokens.
    """

    of: Any
    labelled: bool
    tokens: bool = False

    def __post_init__(self) -> None:
        if not hasattr(self.of, "__len__"):
            raise ValueError(
                f"got a {type(self.of).__name__} without a length to train on; expected a dataset with a length and indexed "
                "items, since a stream has no order that could be resumed: pass an object with sample(n, generator) instead"
            )
        if len(self):
            self.event = tuple(self._item(0)[0].shape)
        self.classes = tuple(map(str, getattr(self.of, "classes", None) or ())) if self.labelled else ()

    def __len__(self) -> int:
        return len(self.of)

    def _item(self, i: int) -> tuple[Tensor, Any]:
        item = self.of[i]
        x, label = (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x)
        if not isinstance(x, Tensor):
            raise ValueError(
                f"got items of type {type(x).__name__} from a {type(self.of).__name__}; expected tensors, in [-1, 1] for "
                "images: give the dataset a transform that returns one"
            )
        if self.tokens and x.is_floating_point():
            raise ValueError(
                f"got items of dtype {x.dtype} from a {type(self.of).__name__} for a model on tokens; expected integers: "
                "give it a transform, such as x.long()"
            )
        if not (self.tokens or x.is_floating_point()):
            raise ValueError(
                f"got items of dtype {x.dtype} from a {type(self.of).__name__}; expected floats in [-1, 1]: give it "
                "a transform, such as x / 127.5 - 1 for bytes"
            )
        return x, label

    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the samples at ``indices`` and, if the network is conditioned on labels, their labels."""
        items = [self._item(int(i)) for i in indices]
        x = torch.stack([x for x, _ in items])
        if not self.labelled or items[0][1] is None:
            return x, {}
        return x, {"label": torch.tensor([int(label) for _, label in items])}

    def fingerprint(self) -> str:
        """Return a text that identifies the dataset: its class, its length, and a digest of its first and last sample."""
        ends = [self._item(i) for i in (0, len(self) - 1)]
        return f"{type(self.of).__name__} of {len(self)} {digest(ends, libraries=False)[:16]}"


def samples_of(data: Any, model: ScoreModel) -> Any:
    """Convert arrays, mappings of arrays, and datasets and loaders of ``torch.utils.data`` to data for :class:`Batches`.

    Example:
        >>> from scoresde import VP
        >>> samples_of(np.zeros((2, 1)), ScoreModel(lambda x, t: x, VP()))
        tensor([[0.],
                [0.]], dtype=torch.float64)
    """
    if isinstance(data, Mapping):
        return {name: samples_of(values, model) for name, values in data.items()}
    if isinstance(data, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(data))
    if isinstance(data, torch_data.DataLoader):
        data = data.dataset
    if isinstance(data, torch_data.Dataset) and not isinstance(data, Indexed):
        return Items(data, _takes_labels(model), tokens=isinstance(model, DenoisingModel))
    return data


def _takes_labels(model: ScoreModel) -> bool:
    net = model.network
    config = getattr(net, "config", None)
    if isinstance(config, Mapping) and "num_classes" in config:
        return bool(config["num_classes"])
    return "label" in inspect.signature(getattr(net, "forward", net)).parameters


def check_range(batches: Batches) -> None:
    """Warn of data whose values are far from [-1, 1], the range for which networks and learning rates are made."""
    data = batches.data
    if isinstance(data, Tensor):
        x = data
    elif isinstance(data, Indexed):
        x, _ = data.batch(torch.arange(min(len(data), 64)))
    else:
        return
    if not x.is_floating_point():  # tokens, whose range their vocabulary decides
        return
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if max(-low, high) <= _FAR[x.ndim >= 4]:
        return
    scaled = "x / 127.5 - 1" if 100 < high <= 255 and low >= 0 else "(x - x.mean()) / x.std()"
    warnings.warn(
        f"got data between {low:.4g} and {high:.4g}; expected values of about -1 to 1, for which networks, SDEs and "
        f"learning rates are made: train on {scaled}, and invert this for samples",
        stacklevel=4,
    )


def check_apart(data: Any, path: Path) -> None:
    """Check that a training does not write into the folder of its data, where its files would be read as data later.

    Raises:
        ValueError: if ``path`` is inside the folder of the data.
    """
    while hasattr(data, "of"):
        data = data.of
    for holder in (data, getattr(data, "sources", None)):
        for name in (
            "folder",
            "where",
            *(["root"] if hasattr(holder, "imgs") else []),
        ):  # ImageFolder reads all of it
            folder = getattr(holder, name, None)
            if isinstance(folder, str | Path) and Path(folder).is_dir() and is_inside(path, Path(folder)):
                raise ValueError(
                    f"got {path} to write to, inside the folder {folder} of the data; expected a path outside of it, since "
                    "files written there would be read as data the next time: choose another folder"
                )


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether ``path``, which need not exist, is inside ``folder``.

    Example:
        >>> is_inside(Path("data/run/model"), Path("data")), is_inside(Path("runs/model"), Path("data"))
        (True, False)
    """
    return path.resolve().is_relative_to(folder.resolve())
