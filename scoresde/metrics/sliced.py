"""The sliced Wasserstein distance of two samples."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.metrics._samples import check_pair, rows_at_once
from scoresde.metrics.intervals import Estimate, jackknife

__all__ = ["sliced_wasserstein", "sliced_wasserstein_estimate"]


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, *, generator: torch.Generator) -> Tensor:
    r"""Return the sliced Wasserstein distance of order 1, the mean of :math:`W_1` over random directions.

    On a line :math:`W_1 = \int |F_x - F_y|`, which is computed exactly for samples of any two sizes. The estimate is biased
    upwards, so compare samples of the same size.

    Source: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015,
    https://doi.org/10.1007/s10851-014-0506-3.

    Args:
        x, y: samples ``(n, *event)`` and ``(m, *event)``.
        projections: the number of directions, uniform on the sphere.
        generator: the only source of the directions.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> sliced_wasserstein(x, x + 3, generator=torch.Generator().manual_seed(0))
        tensor(3., dtype=torch.float64)
    """
    x, y = check_pair(x, y)
    return _on_directions(x, y, _directions(x, projections, generator)).mean()


def sliced_wasserstein_estimate(
    x: Tensor, y: Tensor, projections: int = 128, *, generator: torch.Generator, confidence: float = 0.95
) -> Estimate:
    """Return :func:`sliced_wasserstein` with an interval for its expectation at these sample sizes.

    The variance is that of the jackknife, on the same directions throughout, plus that of the mean over directions.

    Example:
        >>> x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = sliced_wasserstein_estimate(x[:100], x[100:] + 3, generator=torch.Generator().manual_seed(0))
        >>> found.low < 3 < found.high
        True
    """
    x, y = check_pair(x, y)
    directions = _directions(x, projections, generator)
    # On a line there is only one direction; with a single projection the variance over directions is unknown.
    several = min(x.shape[1], projections) > 1
    spread = float(_on_directions(x, y, directions).var()) / projections if several else 0.0
    return jackknife(lambda a, b: _on_directions(a, b, directions).mean(), x, y, confidence=confidence, variance=spread)


def _directions(x: Tensor, projections: int, generator: torch.Generator) -> Tensor:
    if projections < 1:
        raise ValueError(f"got projections={projections}; expected at least 1")
    direction = torch.randn(projections, x.shape[1], generator=generator, dtype=torch.float64, device=generator.device)
    unit: Tensor = direction / direction.norm(dim=1, keepdim=True)
    return unit.to(x.device)


def _on_directions(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Return W_1 along each direction, shape ``(projections,)``."""
    parts = torch.split(directions, rows_at_once(len(x) + len(y)))
    return torch.cat([_wasserstein(d @ x.T, d @ y.T) for d in parts])


def _wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Return W_1 between each row of ``x``, shape ``(rows, n)``, and the same row of ``y``, shape ``(rows, m)``."""
    x, y = x.sort(1).values, y.sort(1).values
    points = torch.cat([x, y], 1).sort(1).values
    left = points[:, :-1].contiguous()
    # The distribution functions on each interval between neighbouring points, where they are constant.
    f_x, f_y = (torch.searchsorted(z, left, right=True).to(z.dtype) / z.shape[1] for z in (x, y))
    return ((f_x - f_y).abs() * points.diff(dim=1)).sum(1)
