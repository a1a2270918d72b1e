"""Summaries of datasets: moments, some features, projections, collected in one pass, part by part.

A summary is the sum of the summaries of at most sixteen parts, always the same ones, in their order. So the processes that
read the parts, one or several, now or after an interruption, make no difference to the result.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.base.processes import share
from scoresde.base.reading import check_regular
from scoresde.data import Dataset
from scoresde.evaluation.features import Features
from scoresde.evaluation.moments import FeatureMoments

__all__ = ["Summary", "eight_bits", "summarize"]

PARTS = 16
"""The largest number of parts of a dataset, which processes share."""

_SPLITS = 10  # the parts of the Inception score, as published
_KEY = "checksum"


def eight_bits(x: Tensor) -> Tensor:
    """Return images as an 8-bit file would hold them: clipped to [-1, 1] and rounded to one of 256 levels.

    Example:
        >>> eight_bits(torch.tensor([-3.0, -1.0, 0.9999, 1.0]))
        tensor([-1., -1.,  1.,  1.])
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class Summary:
    """A summary of a dataset: the statistics from which scores are computed.

    Args:
        n: the number of samples.
        moments: the moments by kind of feature, ``"features"``, ``"spatial"``; empty without an extractor.
        rows: the features of some samples, chosen at random, ``(keep, d)``, float32, for scores of pairs.
        projections: the projections of the samples on random directions, ``(n, directions)``, float32.
        predictions: the sums of a classifier's predictions in each of ten random parts, ``(10, 2 + classes)``: the number of
            samples, the sum of their negative entropies, and the sum of their probabilities.

    Example:
        >>> from scoresde.data import Arrays
        >>> found = summarize(Arrays(torch.tensor([[1.0, 0.0], [3.0, 0.0]])), projections=4)
        >>> found.n, found.moments["features"].mean.tolist(), found.projections.shape
        (2, [2.0, 0.0], torch.Size([2, 4]))
    """

    n: int
    moments: dict[str, FeatureMoments]
    rows: Tensor
    projections: Tensor
    predictions: Tensor

    def __add__(self, after: Summary) -> Summary:
        """Return the summary of two parts of a dataset, this one before the other."""
        moments = {kind: value + after.moments[kind] for kind, value in self.moments.items()}
        rows, projections = (torch.cat([getattr(s, name) for s in (self, after)]) for name in ("rows", "projections"))
        return Summary(self.n + after.n, moments, rows, projections, self.predictions + after.predictions)

    def inception_score(self) -> tuple[float, float]:
        r"""Return the mean and the standard deviation over the parts of :math:`\exp E\, KL(p(y|x) \| p(y))`.

        Source: Salimans et al., "Improved Techniques for Training GANs", 2016, https://arxiv.org/abs/1606.03498.
        """
        parts = self.predictions[self.predictions[:, 0] > 0]
        mean = parts[:, 2:] / parts[:, :1]
        scores = (parts[:, 1] / parts[:, 0] - torch.xlogy(mean, mean).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))

    def save(self, path: Path) -> None:
        """Write the summary with a checksum, whole or not at all."""
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
        """Read a summary that :meth:`save` wrote.

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
        """Return the summary made of these tensors, whose types and shapes must fit each other."""
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
    """Draw directions uniformly on the sphere, as :func:`scoresde.metrics.sliced_wasserstein` does from this seed."""
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
    cache: Path | None = None,
) -> Summary:
    """Read a dataset once, part by part, so that it never sits in memory, and return its summary.

    Vectors are their own features where no extractor is given. Images are first clipped and rounded to 8 bits, as in image
    files.

    Args:
        data: the dataset.
        features: the feature extractor.
        keep: the number of samples whose features are kept for precision, recall and the kernel distance.
        projections: the number of directions of the sliced Wasserstein distance.
        seed: the seed of the choice of samples and directions, and of the parts of the Inception score.
        batch_size: the number of samples at a time; only rounding depends on it.
        device: the device of the extractor.
        progress: a function called with the number of samples after each part.
        cache: a folder in which the summary is kept by the content of the data, the name of the extractor and the arguments.
            An interrupted call continues, and several processes that make one call share the parts of the dataset.

    Raises:
        ValueError: for arguments below 1, and for output of the extractor that is not as in :class:`Features`.

    Example:
        >>> from scoresde.data import Arrays
        >>> summarize(Arrays(torch.eye(3)), keep=2).rows.shape
        torch.Size([2, 3])
    """
    if min(keep, projections, batch_size) < 1:
        raise ValueError(f"got keep={keep}, projections={projections}, batch_size={batch_size}; expected at least 1 of each")
    if features is None and len(data.event) == 1:
        features = Features(lambda x: x, "samples")
    read = _Reading(data, features, keep, projections, seed, batch_size, as_device(device), progress or (lambda n: None))
    parts = _parts(len(data), batch_size)
    if cache is None:
        return functools.reduce(operator.add, map(read.part, parts))
    key = (data.digest(), None if features is None else features.name, keep, projections, seed, batch_size)
    return _shared(cache, hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest(), parts, read.part)


def _parts(n: int, batch_size: int) -> list[range]:
    """Return the parts of ``n`` samples, each of whole batches."""
    size = batch_size * math.ceil(math.ceil(n / batch_size) / PARTS)
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


@dataclass(frozen=True, eq=False)
class _Reading:
    """A dataset, and the arguments of :func:`summarize` by which its parts are read."""

    data: Dataset
    features: Features | None
    keep: int
    projections: int
    seed: int
    batch_size: int
    device: torch.device
    progress: Callable[[int], object]

    @functools.cached_property
    def place(self) -> Tensor:
        """The places of the samples in a random order: datasets may be sorted by class, or alternate between classes."""
        return torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed))

    @functools.cached_property
    def directions(self) -> Tensor:
        """The directions of the projections."""
        return _directions(self.data.event, self.projections, self.seed)

    def part(self, samples: range) -> Summary:
        """Return the summary of some of the samples."""
        n, images = len(self.data), len(self.data.event) > 1
        moments: dict[str, FeatureMoments] = {}
        rows, projected, predictions = [], [], torch.zeros(_SPLITS, 2, dtype=torch.float64)
        for start in range(samples.start, samples.stop, self.batch_size):
            numbers = torch.arange(start, min(start + self.batch_size, samples.stop))
            x = self.data.samples(numbers)
            x = eight_bits(x) if images else x
            projected.append((x.flatten(1).double() @ self.directions.T).float())
            if self.features is not None:
                values = {kind: value.cpu() for kind, value in self.features.to(self.device)(x.to(self.device)).items()}
                rows.append(values["features"][self.place[numbers] < self.keep].float())
                if (logits := values.pop("logits", None)) is not None:
                    predictions = _with_predictions(predictions, logits, self.place[numbers] * _SPLITS // n)
                for kind, value in values.items():
                    found = FeatureMoments.of(value)
                    moments[kind] = moments[kind] + found if kind in moments else found
            self.progress(len(numbers))
        kept = torch.cat(rows) if rows else torch.empty(0, 0)
        return Summary(len(samples), moments, kept, torch.cat(projected), predictions)


def _shared(folder: Path, key: str, parts: Sequence[range], read: Callable[[range], Summary]) -> Summary:
    """Return the sum of the summaries of all parts, which the processes that call this share, and keep it."""
    whole = folder / f"statistics-{key}.safetensors"
    files = {f"{key} {i}": folder / f"part-{i}-of-{key}.safetensors" for i in range(len(parts))}
    folder.mkdir(parents=True, exist_ok=True)

    def work(name: str) -> None:
        if name != key:
            read(parts[list(files).index(name)]).save(files[name])
        elif all(file.exists() for file in files.values()):
            functools.reduce(operator.add, map(Summary.load, files.values())).save(whole)
            for file in files.values():
                file.unlink()

    share([*files, key], folder, lambda name: whole.exists() or (name in files and files[name].exists()), work)
    return Summary.load(whole)


def _with_predictions(sums: Tensor, logits: Tensor, part: Tensor) -> Tensor:
    """Add the predictions for further samples to the sums of :class:`Summary`; ``part`` gives the part of each sample."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    terms = torch.cat([torch.ones(len(p), 1, dtype=p.dtype), (p * log_p).sum(1, keepdim=True), p], 1)
    whole = torch.zeros(_SPLITS, terms.shape[1], dtype=p.dtype)
    whole[:, : sums.shape[1]] = sums  # the number of classes is unknown before the first part
    return whole.index_add(0, part, terms)
