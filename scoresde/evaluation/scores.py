"""Scores of features in memory: the kernel distance, precision and recall."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.metrics import mmd

__all__ = ["kernel_inception_distance", "precision_recall"]

_CHUNK = 2**22  # the size of a temporary matrix: 32 MiB in float64


def _check(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(
            f"got features of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, d) and (m, d) with at least "
            f"{least} rows each"
        )


def kernel_inception_distance(
    x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, *, generator: torch.Generator
) -> tuple[float, float]:
    r"""Return KID, the squared maximum mean discrepancy with kernel :math:`(x \cdot y / d + 1)^3`, and its deviation.

    The result is the mean of unbiased estimates over random subsets and their standard deviation, as published. The mean is
    about zero, of either sign, for two datasets from one distribution, whatever their sizes.

    Args:
        x, y: features, ``(n, d)`` and ``(m, d)``.
        subsets: the number of subsets.
        size: the number of rows of each subset, drawn without replacement; at most n and m.
        generator: the random generator that chooses the subsets.

    Raises:
        ValueError: for shapes that do not fit, or fewer than two rows.

    Source: Bińkowski et al., "Demystifying MMD GANs", 2018, https://arxiv.org/abs/1801.01401.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
        >>> generator = torch.Generator().manual_seed(0)
        >>> kernel_inception_distance(x, y, 2, generator=generator)  # 1 + 343 - 2 (1 + 1 + 27 + 64) / 4
        (297.5, 0.0)
    """
    _check(x, y, 2)
    if subsets < 1 or size < 2:
        raise ValueError(f"got subsets={subsets} and size={size}; expected at least 1 and at least 2")
    x, y, size = x.double(), y.double(), min(size, len(x), len(y))
    values = []
    for _ in range(subsets):
        a, b = (z[torch.randperm(len(z), generator=generator)[:size].to(z.device)] for z in (x, y))
        values.append(mmd(a, b, "polynomial"))
    found = torch.stack(values)
    return float(found.mean()), float(found.std(correction=0))


def precision_recall(x: Tensor, y: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return the precision, the fraction of samples that lie among the data, and the recall, the fraction of data covered.

    Each dataset is taken for the union of balls about its points, whose radius is the distance to the k-th nearest
    neighbour. Precision is the fraction of samples inside the balls of the data. Recall is the fraction of data inside the
    balls of the samples. Both grow with the number of points, so compare datasets of the same size.

    Args:
        x: the features of the samples, ``(n, d)``.
        y: the features of the data, ``(m, d)``.
        neighbours: the number k of the neighbour that gives the radius.

    Raises:
        ValueError: for shapes that do not fit, or fewer than k + 1 rows.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019,
    https://arxiv.org/abs/1904.06991.

    Example:
        >>> y = torch.arange(8.0)[:, None]
        >>> precision_recall(torch.tensor([[0.5], [1.5], [2.5], [90.0]]), y, neighbours=1)
        (0.75, 1.0)
    """
    if neighbours < 1:
        raise ValueError(f"got neighbours={neighbours}; expected at least 1")
    _check(x, y, neighbours + 1)
    x, y = x.double(), y.double()
    return _inside(x, y, neighbours), _inside(y, x, neighbours)


def _inside(points: Tensor, centres: Tensor, neighbours: int) -> float:
    """Return the fraction of points inside a ball about any of the centres."""
    rows = max(1, _CHUNK // len(centres))
    # The nearest point of a dataset to one of its points is that point itself.
    radii = torch.cat([torch.cdist(c, centres).kthvalue(neighbours + 1).values for c in torch.split(centres, rows)])
    inside = [(torch.cdist(p, centres) <= radii).any(1) for p in torch.split(points, rows)]
    return float(torch.cat(inside).double().mean())
