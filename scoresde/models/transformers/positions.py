r"""Positions of tokens: sines and cosines that are added, and rotations of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["grid", "rotate", "rotations", "sines"]


def grid(rows: int, columns: int, *, device: torch.device | None = None) -> Tensor:
    """Return the row and the column of each patch of an image, row by row, float64, shape ``(rows * columns, 2)``.

    Example:
        >>> grid(2, 2).int().tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    places = [torch.arange(n, dtype=torch.float64, device=device) for n in (rows, columns)]
    return torch.cartesian_prod(*places).reshape(-1, 2)


def sines(positions: Tensor, features: int) -> Tensor:
    r"""Return sines and cosines of the positions of patches, half of them for the column and half for the row.

    The frequencies are :math:`10000^{-k / n}` for k = 0..n-1 with n a quarter of ``features``.

    Args:
        positions: rows and columns, shape ``(patches, 2)``.
        features: number of features, a multiple of 4.

    Returns:
        Float32, shape ``(patches, features)``.

    Example:
        >>> sines(grid(1, 2), 4)[0]
        tensor([0., 1., 0., 1.])
    """
    quarter = features // 4
    steps = torch.arange(quarter, dtype=torch.float64, device=positions.device)
    row, column = positions.double().unbind(1)
    angles = [place[:, None] * 10000.0 ** -(steps / quarter) for place in (column, row)]  # (patches, features / 4) each
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


def rotations(positions: Tensor, axes: Sequence[int], base: float = 10000.0) -> tuple[Tensor, Tensor]:
    r"""Return the cosines and sines of rotary positions, one angle for each pair of features.

    The features of a head are divided among the axes of position; along an axis with d features the angles are the position
    times :math:`\mathrm{base}^{-2 k / d}` for k = 0..d/2-1. The product of a rotated query and a rotated key depends on the
    difference of their positions alone. Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
    2021, https://arxiv.org/abs/2104.09864.

    Args:
        positions: the positions along each axis, shape ``(tokens, len(axes))``.
        axes: number of features for each axis, even numbers.
        base: the ratio of the highest frequency to the lowest.

    Returns:
        Cosines and sines, float32, shape ``(tokens, sum(axes) / 2)`` each.

    Example:
        >>> cos, sin = rotations(torch.tensor([[0.0], [1.0]]), [4])
        >>> cos.shape, cos[0].tolist()
        (torch.Size([2, 2]), [1.0, 1.0])
    """
    angles = []
    for place, features in zip(positions.double().unbind(1), axes, strict=True):
        steps = torch.arange(0, features, 2, dtype=torch.float64, device=positions.device)
        angles.append(place[:, None] * base ** -(steps / features))
    angle = torch.cat(angles, dim=1)  # (tokens, features / 2)
    return angle.cos().float(), angle.sin().float()


def rotate(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of neighbouring features by the angle of its token; see :func:`rotations`.

    Args:
        h: queries or keys, shape ``(batch, heads, tokens, features)``.
        cos, sin: shape ``(tokens, features / 2)`` each.

    Returns:
        The rotated features, shape and dtype of ``h``.

    Example:
        >>> quarter = torch.tensor([[0.0]]), torch.tensor([[1.0]])
        >>> rotate(torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), *quarter).flatten().tolist()
        [0.0, 1.0]
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    a, b = h.to(wide).reshape(*h.shape[:3], -1, 2).unbind(4)  # (batch, heads, tokens, features / 2) each
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=4).flatten(3).to(h.dtype)
