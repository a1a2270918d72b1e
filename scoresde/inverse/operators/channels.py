"""Colorization and other measurements of the channels of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.operators.base import Operator, Singular, constant, decomposed

__all__ = ["Channels", "Grayscale"]


class Channels(Operator):
    """The operator that applies a matrix to the channels, dimension 0 of a state, of every pixel.

    Args:
        matrix: shape ``(channels measured, channels)``.
        event: the shape of one state, ``(channels, ..)``.

    Raises:
        ValueError: for a matrix of another shape.

    Example:
        >>> swap = Channels([[0.0, 1.0], [1.0, 0.0]], (2, 1, 1))
        >>> swap(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)).flatten()
        tensor([2., 1.])
    """

    def __init__(self, matrix: Any, event: Sequence[int]) -> None:
        entries, event = constant(matrix, "a matrix"), torch.Size(event)
        if entries.ndim != 2 or not event or not len(entries) or entries.shape[1] != event[0]:
            raise ValueError(
                f"got a matrix of shape {tuple(entries.shape)} for states of shape {tuple(event)}; expected a column for "
                "each channel, dimension 0 of a state"
            )
        super().__init__(event, (len(entries), *event[1:]))
        self.entries = entries

    def forward(self, x: Tensor) -> Tensor:
        """Return the matrix times the channels of every pixel, shape ``(batch, channels measured, ..)``."""
        return _mixed(self._like("entries", x), self.check_x(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the transposed matrix times the measured channels, shape ``(batch, *event)``."""
        return _mixed(self._like("entries", y).T, self.check_y(y))

    def singular(self) -> Singular:
        """Return the decomposition from that of the matrix."""
        inner = decomposed(self.entries, torch.Size(self.event[:1]), torch.Size(self.measured[:1]))

        def by_pixel(function: Any, shape: Sequence[int]) -> Any:
            def apply(v: Tensor) -> Tensor:
                rows = v.reshape(len(v), -1, self.event[1:].numel()).movedim(1, 2)  # (batch, pixels, channels)
                made = function(rows.flatten(0, 1)).reshape(len(v), rows.shape[1], -1)
                return made.movedim(2, 1).reshape(len(v), *shape)  # type: ignore[no-any-return]

            return apply

        flat = (self.event.numel(),)
        return Singular(
            inner.values.repeat_interleave(self.event[1:].numel()),
            from_x=by_pixel(inner.from_x, flat),
            to_x=by_pixel(inner.to_x, self.event),
            from_y=by_pixel(inner.from_y, flat),
            to_y=by_pixel(inner.to_y, self.measured),
        )


class Grayscale(Channels):
    """The operator of colorization, a weighted sum of the channels of every pixel.

    Args:
        event: the shape of one state, ``(channels, ..)``.
        weights: one for each channel; by default their mean. ``(0.299, 0.587, 0.114)`` is the luma of ITU-R BT.601.

    Example:
        >>> Grayscale((3, 1, 1))(torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)).flatten()
        tensor([2.])
    """

    def __init__(self, event: Sequence[int], weights: Sequence[float] | None = None) -> None:
        if weights is None:
            channels = torch.Size(event)[0] if event else 1
            weights = [1 / channels] * channels
        super().__init__([list(weights)], event)


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,bj...->bi...", matrix, x.to(matrix.dtype)).to(x.dtype)
