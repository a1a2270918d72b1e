"""The quality of samples: all scores of one dataset against another, with the floor that other real data reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from scoresde.base.devices import as_device
from scoresde.data import Dataset
from scoresde.evaluation.features import Features
from scoresde.evaluation.moments import frechet
from scoresde.evaluation.scores import kernel_inception_distance, precision_recall
from scoresde.evaluation.summary import Summary, summarize

__all__ = ["Scores", "compare_statistics", "evaluate"]

_NAMES = {
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet": "Fréchet distance",
    "spatial_frechet": "sFID",
    "kernel": "kernel distance (KID)",
    "kernel_deviation": "  its deviation",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception score",
    "inception_deviation": "  its deviation",
}


@dataclass(frozen=True)
class Scores:
    """The scores of ``n`` samples against ``m`` samples of data; scores without the features they need are ``None``.

    Args:
        n, m: the sizes of both datasets.
        sliced_wasserstein: the sliced Wasserstein distance of the samples, over random directions.
        frechet: the Fréchet distance of the features, which is FID for the Inception network.
        spatial_frechet: the Fréchet distance of the spatial features, sFID.
        kernel, kernel_deviation: KID and its standard deviation over subsets.
        precision, recall: improved precision and recall of Kynkäänniemi et al.
        inception_score, inception_deviation: the Inception score of the samples and its standard deviation over parts.
        floor: the scores of other real data against the same ``m``.

    Example:
        >>> print(Scores(n=100, m=200, sliced_wasserstein=0.25, frechet=1.5))
        100 samples against 200
                                   samples
        sliced Wasserstein            0.25
        Fréchet distance               1.5
    """

    n: int
    m: int
    sliced_wasserstein: float
    frechet: float | None = None
    spatial_frechet: float | None = None
    kernel: float | None = None
    kernel_deviation: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score: float | None = None
    inception_deviation: float | None = None
    floor: Scores | None = None

    def __str__(self) -> str:
        head = f"{self.n} samples against {self.m}" + (f"; floor: {self.floor.n} real ones" if self.floor else "")
        lines = [head, f"{'':<22} {'samples':>11}" + (f" {'floor':>11}" if self.floor else "")]
        for field, name in _NAMES.items():
            value = getattr(self, field)
            if value is not None:
                floor = getattr(self.floor, field, None)
                lines.append(f"{name:<22} {value:>11.5g}" + ("" if floor is None else f" {floor:>11.5g}"))
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return all numbers as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def _wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the mean over columns of the distance W_1 of ``(n, directions)`` from ``(m, directions)``."""
    from scipy.stats import wasserstein_distance

    columns = zip(x.double().T.numpy(), y.double().T.numpy(), strict=True)
    distances = [wasserstein_distance(a, b) for a, b in columns]
    return float(sum(distances) / len(distances))


def compare_statistics(x: Summary, y: Summary, *, neighbours: int = 3, subsets: int = 100, seed: int = 0) -> Scores:
    """Return all scores of one summary against another, as far as both have the features.

    Precision, recall and the kernel distance use the features that were kept.

    Args:
        x, y: summaries with the same extractor and directions: those of the samples and of the data to compare with.
        neighbours: the neighbours of precision and recall.
        subsets: the number of subsets for the kernel distance.
        seed: the seed of the choice of subsets.

    Raises:
        ValueError: for summaries of other directions or features.

    Example:
        >>> from scoresde.data import Arrays
        >>> from scoresde.evaluation import summarize
        >>> data = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> x, shifted = (summarize(Arrays(values)) for values in (data, data + torch.tensor([3.0, 4.0, 0.0])))
        >>> round(compare_statistics(shifted, x).frechet, 4)  # the squared distance of the means
        25.0
    """
    features = {len(z.rows[0]) for z in (x, y) if len(z.rows)}
    if x.projections.shape[1] != y.projections.shape[1] or len(features) > 1:
        raise ValueError(
            f"got summaries with {x.projections.shape[1]} and {y.projections.shape[1]} directions and features of "
            f"{x.rows.shape[1]} and {y.rows.shape[1]} components; expected the same of both"
        )
    known = {kind: frechet(x.moments[kind], y.moments[kind]) for kind in x.moments if kind in y.moments}
    kernel = deviation = precision = recall = score = spread = None
    if min(len(x.rows), len(y.rows)) > neighbours:
        generator = torch.Generator().manual_seed(seed)
        size = max(2, min(1000, len(x.rows) // 2, len(y.rows) // 2))  # subsets of all rows would be equal
        kernel, deviation = kernel_inception_distance(x.rows, y.rows, subsets, size, generator=generator)
        precision, recall = precision_recall(x.rows, y.rows, neighbours)
    if x.predictions.shape[1] > 2:
        score, spread = x.inception_score()
    return Scores(
        x.n,
        y.n,
        _wasserstein(x.projections, y.projections),
        known.get("features"),
        known.get("spatial"),
        kernel,
        deviation,
        precision,
        recall,
        score,
        spread,
    )


def evaluate(
    samples: Dataset,
    against: Dataset,
    features: Features | torch.nn.Module | None = None,
    *,
    floor: Dataset | None = None,
    cache: Path | None = None,
    keep: int = 10_000,
    projections: int = 128,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Scores:
    """Compare samples with data.

    Distances of finite datasets are not zero. Give other real data as ``floor`` to see their size, for example the training
    data against the test data. The Fréchet distance is biased upwards by an amount that falls with the number of samples:
    compare datasets of the same size.

    Args:
        samples: the samples to evaluate.
        against: the data to compare with; both are read part by part.
        features: the extractor. Without one, images have no score but the sliced Wasserstein distance, and vectors are
            their own features.
        floor: other real data, compared with ``against`` in the same way.
        cache: a folder in which the statistics of all sets are kept, as for :func:`summarize`.
        keep, projections, seed, batch_size, device, progress: the arguments of :func:`summarize`.

    Raises:
        ValueError: for datasets of different shapes, or of a single sample.

    Example:
        >>> from scoresde.data import Arrays
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> scores = evaluate(Arrays(x[:1000] + 1), Arrays(x[1000:]), floor=Arrays(x[:1000]))
        >>> round(scores.frechet), round(scores.floor.frechet, 1)
        (2, 0.0)
    """
    sets = [samples, against, *([] if floor is None else [floor])]
    if len({data.event for data in sets}) > 1 or min(map(len, sets)) < 2:
        shapes = ", ".join(f"{len(data)} of {data.event}" for data in sets)
        raise ValueError(f"got sets of samples {shapes}; expected one shape, and at least two samples of each set")
    device = as_device(device)
    extractor = Features(features) if isinstance(features, torch.nn.Module) else features

    sizes: dict[str, int] = {"keep": keep, "projections": projections, "seed": seed, "batch_size": batch_size}
    found, real, *other = (
        summarize(data, extractor, device=device, progress=progress, cache=cache, **sizes) for data in sets
    )
    scores = compare_statistics(found, real, seed=seed)
    return replace(scores, floor=compare_statistics(other[0], real, seed=seed)) if other else scores
