"""Inpainting: some of the numbers of a state are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.operators.base import Operator, Singular

__all__ = ["Mask"]


class Mask(Operator):
    r"""The operator of inpainting, which measures the numbers of a state where the mask is true.

    A measurement has these numbers alone, in the order of the flattened state, so that :math:`A A^T = I`. The adjoint places
    them in a state and sets the others to zero: ``A.adjoint(y)`` is the masked image.

    Args:
        mask: true, or not zero, where a number is measured; the shape of a state, or one that broadcasts to ``event``.
        event: the shape of one state, by default that of the mask.

    Raises:
        ValueError: for a mask that does not fit, or that keeps nothing.

    Example:
        >>> A = Mask([[True, False], [True, True]])
        >>> y = A(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> y, A.adjoint(y)
        (tensor([[1., 3., 4.]]), tensor([[[1., 0.],
                 [3., 4.]]]))
    """

    def __init__(self, mask: Any, event: Sequence[int] | None = None) -> None:
        with torch.inference_mode(False):
            kept = torch.as_tensor(mask, device="cpu").detach() != 0
        event = kept.shape if event is None else torch.Size(event)
        try:
            kept = kept.expand(event)
        except RuntimeError:
            raise ValueError(
                f"got a mask of shape {tuple(kept.shape)} for states of shape {tuple(event)}; expected the same shape, or "
                "one that broadcasts to it"
            ) from None
        index = kept.flatten().nonzero()[:, 0]
        if not len(index):
            raise ValueError("got a mask that keeps nothing; expected one that is true for some of the numbers")
        super().__init__(event, (len(index),))
        self.mask, self.index = kept.clone(), index

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers where the mask is true, shape ``(batch, measured)``."""
        return self.check_x(x).flatten(1)[:, self._like("index", x)]

    def adjoint(self, y: Tensor) -> Tensor:
        """Return states that have the measured numbers, and zeros elsewhere."""
        y = self.check_y(y)
        x = torch.zeros(len(y), self.event.numel(), dtype=y.dtype, device=y.device)
        return x.index_copy(1, self._like("index", y), y).reshape(len(y), *self.event)

    def singular(self) -> Singular:
        """Return the decomposition whose basis is that of the states: singular values of one and zero."""
        return Singular(
            self.mask.flatten().double(),
            from_x=lambda x: self.check_x(x).flatten(1),
            to_x=lambda c: c.reshape(len(c), *self.event),
            from_y=lambda y: self.adjoint(y).flatten(1),
            to_y=lambda c: self(c.reshape(len(c), *self.event)),
        )
