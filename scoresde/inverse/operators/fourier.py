"""Compressed sensing as in magnetic resonance imaging: some Fourier coefficients are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.inverse.operators.base import Operator, Singular, from_basis, images
from scoresde.inverse.operators.blur import hartley

__all__ = ["Fourier"]


class Fourier(Operator):
    r"""The operator that measures some coefficients of the orthonormal discrete Fourier transform of every real image.

    A measurement has the real and the imaginary part of each coefficient as the last dimension, shape ``(.., m, 2)``, in the
    order of the flattened mask. The coefficients of a real image at k and -k are conjugate. Singular values are therefore 1
    where both are measured, :math:`1/\sqrt2` where one of them is, and 1 where k and -k coincide, as at the zero frequency.

    Args:
        mask: true where a coefficient is measured, shape ``(height, width)``, in the order of :func:`torch.fft.fft2`, the
            zero
            frequency first: shift a centred mask by :func:`torch.fft.ifftshift`.
        event: the shape of one state, ``(.., height, width)``.

    Raises:
        ValueError: for a mask of another shape, or that keeps nothing.

    Example:
        >>> A = Fourier([[True, False], [False, False]], (2, 2))  # the mean, times 2
        >>> A(torch.ones(1, 2, 2))
        tensor([[[2., 0.]]])
    """

    def __init__(self, mask: Any, event: Sequence[int]) -> None:
        with torch.inference_mode(False):
            kept = torch.as_tensor(mask, device="cpu").detach() != 0
        event = images(event)
        if kept.shape != event[-2:]:
            raise ValueError(
                f"got a mask of shape {tuple(kept.shape)} for states of shape {tuple(event)}; expected {tuple(event[-2:])}, "
                "one entry for each frequency"
            )
        index = kept.flatten().nonzero()[:, 0]
        if not len(index):
            raise ValueError("got a mask that keeps nothing; expected one that is true for some of the frequencies")
        super().__init__(event, (*event[:-2], len(index), 2))
        self.mask, self.index = kept.clone(), index

    def forward(self, x: Tensor) -> Tensor:
        """Return the coefficients as real and imaginary parts, shape ``(batch, .., m, 2)``."""
        of = torch.fft.fft2(self.check_x(x).to(torch.promote_types(x.dtype, torch.float32)), norm="ortho")
        return torch.view_as_real(of.flatten(-2)[..., self._like("index", x)]).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the real part of the inverse transform with zeros for other coefficients, shape ``(batch, *event)``."""
        parts = self.check_y(y).to(torch.promote_types(y.dtype, torch.float32))
        of = torch.zeros(*parts.shape[:-2], self.mask.numel(), 2, dtype=parts.dtype, device=y.device)
        of = torch.view_as_complex(of.index_copy(-2, self._like("index", y), parts))
        return cast(Tensor, torch.fft.ifft2(of.reshape(len(y), *self.event), norm="ortho").real.to(y.dtype))

    def singular(self) -> Singular:
        """Return the decomposition in the orthonormal Hartley basis."""
        height, width = self.mask.shape
        opposite = self.mask[(-torch.arange(height)) % height][:, (-torch.arange(width)) % width]
        values = ((self.mask.double() + opposite.double()) / 2).sqrt()
        return from_basis(
            self,
            values.expand(*self.event).flatten(),
            from_x=lambda x: hartley(self.check_x(x)).flatten(1),
            to_x=lambda c: hartley(c.reshape(len(c), *self.event)),
        )
