"""The cheapest chain of steps over a grid of times, by dynamic programming."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cheapest_chain"]


def cheapest_chain(costs: Tensor, steps: int, coefficient: float = 1.0) -> list[int]:
    r"""Return the indices :math:`0 = i_0 < i_1 < \dots < i_k = n - 1` of a chain of ``steps`` steps with the least cost.

    .. math:: \sum_{s=0}^{k-1} \gamma^s\, \mathrm{cost}(i_s, i_{s+1})

    Args:
        costs: the cost of a step from i to j > i, shape ``(n, n)``; other entries do not count.
        steps: k, from 1 to n - 1.
        coefficient: gamma; more than 1 makes late steps dear, so that there are more of them.

    Raises:
        ValueError: for a matrix that is not square, and more steps than it has room for.

    Example:
        >>> cheapest_chain((torch.arange(9.0) - torch.arange(9.0)[:, None]) ** 2, 4)  # even steps are the cheapest
        [0, 2, 4, 6, 8]
    """
    n = len(costs)
    if costs.ndim != 2 or costs.shape != (n, n) or not 1 <= steps < n:
        raise ValueError(
            f"got costs of shape {tuple(costs.shape)} and steps={steps}; expected (n, n), and from 1 to n - 1 steps"
        )
    later = torch.ones(n, n, dtype=torch.bool, device=costs.device).triu(1)
    each = torch.where(later, costs.double(), torch.inf)
    best, following = each[:, -1], []
    for _ in range(steps - 1):
        best, to = (each + coefficient * best).min(1)
        following.append(to)
    chain = [0]
    for to in reversed(following):
        chain.append(int(to[chain[-1]]))
    return [*chain, n - 1]
