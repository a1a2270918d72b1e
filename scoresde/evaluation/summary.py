"""What is kept of a set of samples: moments, some features, projections; collected in one pass, part by part."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.base.reading import check_regular
from scoresde.data import Dataset
from scoresde.evaluation.features import Features
from scoresde.evaluation.moments import FeatureMoments

__all__ = ["Summary", "eight_bits", "stored", "summarize"]

_SPLITS = 10  # of the Inception score, as published
_KEY = "checksum"


def eight_bits(x: Tensor) -> Tensor:
    """Images as a file of them would hold: clipped to [-1, 1] and rounded to one of 256 levels.

    Example:
        >>> eight_bits(torch.tensor([-3.0, -1.0, 0.9999, 1.0]))
        tensor([-1., -1.,  1.,  1.])
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class Summary:
    """A set of samples, as far as scores need it.

    Args:
        n: how many samples.
        moments: by kind: ``"features"``, ``"spatial"``; empty without an extractor.
        rows: the features of some samples, chosen at random, ``(keep, d)``, float32, for scores of pairs.
        projections: the samples along random directions, ``(n, directions)``, float32.
        predictions: of a classifier: in each of ten parts, drawn at random, the number of samples, the sum of their negative
            entropies, and that of their probabilities, ``(10, 2 + classes)``.
    """

    n: int
    moments: dict[str, FeatureMoments]
    rows: Tensor
    projections: Tensor
    predictions: Tensor

    def inception_score(self) -> tuple[float, float]:
        r"""The mean and the deviation over the parts of :math:`\exp E\, KL(p(y|x) \| p(y))`.

        Source: Salimans et al., "Improved Techniques for Training GANs", 2016, https://arxiv.org/abs/1606.03498.
        """
        parts = self.predictions[self.predictions[:, 0] > 0]
        mean = parts[:, 2:] / parts[:, :1]
        scores = (parts[:, 1] / parts[:, 0] - torch.xlogy(mean, mean).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))

    def save(self, path: Path) -> None:
        """Write it, whole or not at all, with a checksum."""
        from safetensors.torch import save

        tensors = {"n": torch.tensor(self.n), "rows": self.rows, "projections": self.projections}
        tensors["predictions"] = self.predictions
        for kind, moments in self.moments.items():
            tensors[f"{kind}.mean"], tensors[f"{kind}.products"] = moments.mean, moments.products
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={_KEY: digest(sorted(tensors.items()))}))

    @classmethod
    def load(cls, path: Path) -> Summary:
        """Read it.

        Raises:
            ValueError: for a file that is damaged, of another kind, or has tensors of other types and shapes.
        """
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get(_KEY) != digest(sorted(tensors.items())):
                raise ValueError("its checksum is of other values")
            return cls._of(tensors)
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise ValueError(f"cannot read the statistics in {str(path)!r}: {error}; remove the file") from error

    @classmethod
    def _of(cls, tensors: dict[str, Tensor]) -> Summary:
        """The summary of these tensors, whose types and shapes must fit each other."""
        _check("n", tensors["n"], torch.int64, ())
        size = int(tensors["n"])
        moments = {}
        if alone := [name for name in tensors if name.endswith(".products") and f"{name[:-9]}.mean" not in tensors]:
            raise ValueError(f"it has {alone[0]} without a mean")
        for kind in (name.removesuffix(".mean") for name in tensors if name.endswith(".mean")):
            mean, products = tensors[f"{kind}.mean"], tensors[f"{kind}.products"]
            moments[kind] = FeatureMoments(size, mean, products)
            _check(f"{kind}.products", products, torch.float64, (*mean.shape, *mean.shape))
            _check(f"{kind}.mean", mean, torch.float64, (-1,))
        _check("rows", tensors["rows"], torch.float32, (-1, -1))
        _check("projections", tensors["projections"], torch.float32, (size, -1))
        _check("predictions", tensors["predictions"], torch.float64, (_SPLITS, -1))
        return cls(size, moments, tensors["rows"], tensors["projections"], tensors["predictions"])


def _check(name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another type or shape, where -1 stands for any number."""
    same = len(shape) == value.ndim and all(want in (-1, n) for want, n in zip(shape, value.shape, strict=True))
    if value.dtype != dtype or not same:
        wanted = tuple("any" if n == -1 else n for n in shape)
        raise ValueError(f"its {name} are {value.dtype} of shape {tuple(value.shape)}; expected {dtype} of shape {wanted}")


def _directions(event: tuple[int, ...], projections: int, seed: int) -> Tensor:
    """Uniform on the sphere; those of :func:`scoresde.metrics.sliced_wasserstein` for a generator with this seed."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(projections, math.prod(event), generator=generator, dtype=torch.float64)
    unit: Tensor = direction / direction.norm(dim=1, keepdim=True)
    return unit


@torch.no_grad()
def summarize(
    data: Dataset,
    features: Features | None = None,
    *,
    keep: int = 10_000,
    projections: int = 128,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Summary:
    """Read a set once, part by part, so that it never sits in memory.

    Vectors are their own features where no extractor is given. Images are clipped and rounded to 8 bits first, as files of
    them are.

    Args:
        data: the set.
        features: the extractor.
        keep: of how many samples to keep the features, for precision, recall and the kernel distance.
        projections: the number of directions of the sliced Wasserstein distance.
        seed: of the choice of both, and of the parts of the Inception score.
        batch_size: samples at a time; nothing but rounding depends on it.
        device: where the extractor runs.
        progress: called with the number of samples after each part.

    Raises:
        ValueError: for arguments below 1, and what the extractor returns against its promise.
    """
    if min(keep, projections, batch_size) < 1:
        raise ValueError(f"got keep={keep}, projections={projections}, batch_size={batch_size}; expected at least 1 of each")
    device = as_device(device)
    n, images = len(data), len(data.event) > 1
    if features is None and not images:
        features = Features(lambda x: x, "samples")
    # Sets may be sorted by their classes, or take them in turn: neither part nor choice may follow the order.
    place = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    chosen, part = place < keep, place * _SPLITS // n
    directions = _directions(data.event, projections, seed)
    moments: dict[str, FeatureMoments] = {}
    rows, projected, predictions = [], [], torch.zeros(_SPLITS, 2, dtype=torch.float64)
    for start in range(0, n, batch_size):
        numbers = torch.arange(start, min(start + batch_size, n))
        x = data.samples(numbers)
        x = eight_bits(x) if images else x
        projected.append((x.flatten(1).double() @ directions.T).float())
        if features is not None:
            values = {kind: value.cpu() for kind, value in features.to(device)(x.to(device)).items()}
            rows.append(values["features"][chosen[numbers]].float())
            if (logits := values.pop("logits", None)) is not None:
                predictions = _with_predictions(predictions, logits, part[numbers])
            for kind, value in values.items():
                found = FeatureMoments.of(value)
                moments[kind] = moments[kind] + found if kind in moments else found
        if progress is not None:
            progress(len(numbers))
    return Summary(n, moments, torch.cat(rows) if rows else torch.empty(0, 0), torch.cat(projected), predictions)


def _with_predictions(sums: Tensor, logits: Tensor, part: Tensor) -> Tensor:
    """The sums of :class:`Summary` with those of further samples, of which ``part`` tells the part."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    terms = torch.cat([torch.ones(len(p), 1, dtype=p.dtype), (p * log_p).sum(1, keepdim=True), p], 1)
    whole = torch.zeros(_SPLITS, terms.shape[1], dtype=p.dtype)
    whole[:, : sums.shape[1]] = sums  # before the first part no classes are known
    return whole.index_add(0, part, terms)


def stored(
    folder: Path | None, data: Dataset, features: Features | None, make: Callable[[], Summary], *key: object
) -> Summary:
    """``make()``, or what it gave before for data of the same content, the same extractor and the same ``key``."""
    if folder is None:
        return make()
    name = repr((data.digest(), None if features is None else features.name, *key))
    path = folder / f"statistics-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.safetensors"
    if path.exists():
        return Summary.load(path)
    summary = make()
    summary.save(path)
    return summary
