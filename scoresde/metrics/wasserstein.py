"""The Wasserstein distance of order 2 of two samples, by an optimal assignment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.metrics._samples import check_pair
from scoresde.metrics.intervals import Estimate, normal_quantile

__all__ = ["wasserstein", "wasserstein_estimate"]

MOST = 4096
"""The largest sample of which an assignment is computed; its cost grows with the cube."""


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    r"""Return the 2-Wasserstein distance of two samples of one size.

    .. math:: W_2^2 = \min_\pi \frac1n \sum_i |x_i - y_{\pi(i)}|^2

    The assignment is optimal. Two samples of one distribution are apart as well, by an amount that falls like n^(-1/d): the
    floor of the distance, to be shown beside it.

    Args:
        x, y: samples ``(n, *event)``, of at most 4,096.

    Raises:
        ValueError: for samples of two sizes, or more.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> wasserstein(x, x.flip(0) + 3)
        tensor(3., dtype=torch.float64)
    """
    squares, columns = _assigned(*check_pair(x, y))
    return squares[torch.arange(len(x), device=squares.device), columns].mean().sqrt()


def wasserstein_estimate(x: Tensor, y: Tensor, confidence: float = 0.95) -> Estimate:
    r"""Return :func:`wasserstein` with an interval for its expectation at this sample size.

    With the dual potentials u of x and v of y, the variance of the mean square is that of u over n plus that of v
    over n.

    Source: del Barrio and Loubes, "Central Limit Theorems for Empirical Transportation Cost in General Dimension", 2019,
    https://doi.org/10.1214/18-AOP1275.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = wasserstein_estimate(x[:200], x[200:] + 3)
        >>> found.low < 18**0.5 < found.high
        True
    """
    squares, columns = _assigned(*check_pair(x, y))
    paired = squares[:, columns]  # of x_i and the partner of x_j
    own = paired.diagonal()
    u = torch.zeros_like(own)
    for _ in range(len(u)):  # u_i + v_j <= c_ij, with equality for partners: a shortest path
        shorter = (paired - own + u).amin(1)
        if bool((shorter >= u).all()):
            break
        u = torch.minimum(u, shorter)
    variance = float(u.var() + (own - u).var()) / len(u)
    half, mean = normal_quantile(confidence) * math.sqrt(variance), float(own.mean())
    return Estimate(*(math.sqrt(max(value, 0.0)) for value in (mean, mean - half, mean + half)))


def _assigned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return all squared distances, shape ``(n, n)``, and for each x its partner in the optimal assignment."""
    from scipy.optimize import linear_sum_assignment

    if len(x) != len(y) or len(x) > MOST:
        raise ValueError(
            f"got samples of {len(x)} and {len(y)}; expected two samples of one size, at most {MOST:,}: take a part of each"
        )
    squares = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return squares, torch.as_tensor(linear_sum_assignment(squares.detach().cpu())[1], device=x.device)
