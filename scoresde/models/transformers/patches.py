"""Images cut into patches, each of which is one token, and put together again."""

from __future__ import annotations

from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(x: Tensor, patch: int) -> Tensor:
    """Cut images into patches, row by row; the features of a patch are its channels, then its rows, then its columns.

    Args:
        x: images, shape ``(batch, channels, height, width)``; both sizes are multiples of ``patch``.
        patch: height and width of a patch.

    Returns:
        Shape ``(batch, height / patch * width / patch, channels * patch**2)``.

    Example:
        >>> import torch
        >>> pack(torch.arange(8).reshape(1, 1, 2, 4), 2).tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    batch, channels, height, width = x.shape
    h = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return h.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)  # (batch, rows * columns, channels * p * p)


def unpack(h: Tensor, rows: int, patch: int) -> Tensor:
    """Put patches together to images, the inverse of :func:`pack`.

    Args:
        h: patches, shape ``(batch, rows * columns, channels * patch**2)``.
        rows: number of patches above each other.
        patch: height and width of a patch.

    Returns:
        Shape ``(batch, channels, rows * patch, columns * patch)``.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 3, 4, 6)
        >>> torch.equal(unpack(pack(x, 2), 2, 2), x)
        True
    """
    h = h.reshape(len(h), rows, -1, h.shape[2] // patch**2, patch, patch)  # (batch, rows, columns, channels, p, p)
    return h.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
