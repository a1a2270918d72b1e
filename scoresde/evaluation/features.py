"""Feature extractors: their input and output, and their names on the command line."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.names import Table

__all__ = ["EXTRACTORS", "Features", "find_features", "inception"]

_KINDS = ("features", "spatial", "logits")


@dataclass(frozen=True, eq=False)
class Features:
    """A feature extractor: a network, or any function, in whose values distances are measured.

    Args:
        function: the map from samples, ``(batch, *event)``, float32, images in [-1, 1], to features ``(batch, d)`` or to a
            mapping. The mapping has ``"features"``. It may have ``"spatial"``, features that keep the place in the image,
            ``(batch, ..)``, for sFID, and ``"logits"`` of a classifier, ``(batch, classes)``, for the Inception score.
        name: the name by which stored statistics are kept apart from those of other extractors; by default a digest of the
            weights of a module. Give a name that changes when the code of a module does.

    Raises:
        ValueError: for a function without a name that is no module.

    Example:
        >>> features = Features(lambda x: x.flatten(1), "pixels")
        >>> {kind: value.shape for kind, value in features(torch.zeros(4, 1, 3, 3)).items()}
        {'features': torch.Size([4, 9])}
    """

    function: Callable[[Tensor], Tensor | Mapping[str, Tensor]]
    name: str = ""

    def __post_init__(self) -> None:
        if self.name:
            return
        if not isinstance(self.function, nn.Module):
            raise ValueError(f"got the function {self.function!r} without a name; expected name=.., to tell it from others")
        digest = hashlib.blake2b(digest_size=8)
        for key, value in self.function.state_dict().items():
            digest.update(key.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "name", f"{type(self.function).__name__} {digest.hexdigest()}")

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the values at samples, each ``(batch, d)``."""
        found = self.function(x)
        values = dict(found) if isinstance(found, Mapping) else {"features": found}
        wrong = sorted(set(values) - set(_KINDS))
        if "features" not in values or wrong:
            raise ValueError(f"the extractor {self.name} returned {', '.join(values)}; expected {', '.join(_KINDS)}")
        for kind, value in values.items():
            if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != len(x):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the extractor {self.name} returned {kind}: {got}; expected ({len(x)}, ..)")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"the extractor {self.name} returned {kind} that are not all finite")
        return {kind: value.flatten(1) for kind, value in values.items()}

    def to(self, device: torch.device | str) -> Features:
        """Return the extractor on a device and in evaluation mode, where it is a module."""
        if isinstance(self.function, nn.Module):
            self.function.to(device).eval()
        return self


class _Inception(nn.Module):
    """The network of torch-fidelity for images in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features, logits = self.network(levels.expand(-1, 3, -1, -1))
        return {"features": features, "logits": logits}


def inception(weights: str | Path) -> Features:
    """Load the Inception network of FID, KID and the Inception score from torch-fidelity; grey images become RGB.

    Args:
        weights: the published file, ``weights-inception-2015-12-05-6726825d.pth``; nothing is downloaded.

    Raises:
        ValueError: without torch-fidelity, or for a file that is missing, damaged, or holds anything but tensors.

    Source: https://github.com/toshas/torch-fidelity.

    Example:
        >>> features = inception("weights-inception-2015-12-05-6726825d.pth")  # doctest: +SKIP
        >>> features(torch.zeros(2, 1, 32, 32))["features"].shape  # doctest: +SKIP
        torch.Size([2, 2048])
    """
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"found no file {str(path)!r}; expected the weights of Inception that torch-fidelity publishes")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the Inception network needs torch-fidelity, and {error.name} is missing: pip install torch-fidelity, "
            "or give an extractor of your own"
        ) from error
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the network below would unpickle anything
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(f"{str(path)!r} does not hold the weights of Inception of torch-fidelity: {error}") from error
    return Features(_Inception(network))


EXTRACTORS: Table[Callable[[str], Features]] = Table(
    "extractor",
    "scoresde.evaluation.EXTRACTORS",
    {"inception": inception},
    also="package.module:name or file.py:name",
    check=callable,
    expects="a function of the text after the colon that returns a Features",
)
"""The extractors by name: functions of the text after the name and a colon, such as the file of the weights."""


def find_features(where: str) -> Features:
    """Return the extractor that a command line names: ``inception:FILE``, with its weights, or the user's own code.

    Such a name is a name of :data:`EXTRACTORS`, or ``package.module:name`` or ``file.py:name``. There ``name`` is a
    :class:`Features`, a module, or a function without arguments that returns one of them.

    Raises:
        ValueError: if nothing is found under the name.

    Example:
        >>> extractor = find_features("torch.nn:Flatten")
        >>> extractor(torch.zeros(2, 1, 3, 3))["features"].shape
        torch.Size([2, 9])
    """
    kind, colon, rest = where.partition(":")
    if kind in EXTRACTORS:
        return EXTRACTORS[kind](rest)
    place, colon, name = where.rpartition(":")
    if not colon or not place or not name:
        raise EXTRACTORS.unknown(where)
    found = getattr(_module(place, where), name, None)
    if callable(found) and not isinstance(found, Features | nn.Module):
        found = found()
    if not isinstance(found, Features | nn.Module):
        raise ValueError(
            f"{where!r} is {type(found).__name__}; expected a Features, a module, or a function without arguments that "
            "returns one of them"
        )
    return found if isinstance(found, Features) else Features(found)


def _module(place: str, where: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ValueError(f"cannot import {place!r} for the extractor {where!r}: {error}") from error
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"found no file {place!r} for the extractor {where!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look up their own module
    spec.loader.exec_module(module)
    return module
