"""Deblurring: an image is measured after a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from scoresde.inverse.operators.base import Copies, Operator, Singular, constant, images
from scoresde.inverse.operators.separable import separable

__all__ = ["Blur"]

_PADDING = {"circular": "circular", "zero": "constant", "reflect": "reflect"}


class Blur(Operator):
    r"""The operator of deblurring, the convolution of every image with one kernel; a measurement has the shape of a state.

    With the circular boundary the discrete Fourier transform diagonalises it, :math:`A = F^* D F`. The orthonormal Hartley
    basis V is its real form, with the singular values :math:`|D|`. The kernel of rank one is the product of two filters, one
    along each axis, whose two matrices are decomposed.

    Args:
        kernel: shape ``(k, l)``, both odd, or the taps of one filter for both axes, shape ``(k,)``: see
            :func:`gaussian_kernel` and :func:`motion_kernel`.
        event: the shape of one state, ``(.., height, width)``.
        boundary: how the image continues beyond its edge: ``"circular"``, ``"zero"`` or ``"reflect"`` (without repeating the
            border pixel).

    Raises:
        ValueError: for a kernel of even size, one that is larger than the boundary permits, or an unknown boundary.

    Example:
        >>> A = Blur([0.25, 0.5, 0.25], (1, 3, 3))
        >>> A(torch.tensor([[0.0, 0, 0], [0, 16, 0], [0, 0, 0]]).reshape(1, 1, 3, 3))
        tensor([[[[1., 2., 1.],
                  [2., 4., 2.],
                  [1., 2., 1.]]]])
    """

    def __init__(self, kernel: Any, event: Sequence[int], boundary: str = "circular") -> None:
        kernel, event = constant(kernel, "a kernel"), images(event)
        if kernel.ndim == 1:
            kernel = torch.outer(kernel, kernel)
        if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise ValueError(
                f"got a kernel of shape {tuple(kernel.shape)}; expected (k, l), both odd, so that it has a centre, or (k,)"
            )
        if boundary not in _PADDING:
            raise ValueError(f"got boundary={boundary!r}; expected one of {', '.join(_PADDING)}")
        most = [2 * (n - (boundary == "reflect")) + 1 for n in event[-2:]]
        if boundary != "zero" and (kernel.shape[0] > most[0] or kernel.shape[1] > most[1]):
            raise ValueError(
                f"got a kernel of shape {tuple(kernel.shape)} for images of {event[-2]} x {event[-1]} pixels with "
                f"boundary={boundary!r}; expected at most {most[0]} x {most[1]}, or boundary='zero'"
            )
        super().__init__(event, event)
        self.kernel, self.boundary = kernel, boundary

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of every image with the kernel, shape of ``x``."""
        kernel = self._like("kernel", x)
        margin = [kernel.shape[1] // 2] * 2 + [kernel.shape[0] // 2] * 2
        flat = self.check_x(x).reshape(-1, 1, *self.event[-2:]).to(kernel.dtype)
        padded = functional.pad(flat, margin, mode=_PADDING[self.boundary])
        return functional.conv2d(padded, kernel.flip(0, 1)[None, None]).reshape(x.shape).to(x.dtype)

    def singular(self) -> Singular:
        """Return the decomposition in the Hartley basis, or from two filters.

        Raises:
            ValueError: for large images with another boundary than the circular one and a kernel that is not separable.
        """
        if self.boundary == "circular":
            return self._hartley()
        filters = _filters(self.kernel)
        if filters is None:
            return super().singular()
        if "singular" not in self._cache:
            rows, columns = (self._along(taps, n) for taps, n in zip(filters, self.event[-2:], strict=True))
            self._cache["singular"] = separable(rows, columns, self.event)
        found: Singular = self._cache["singular"]
        return found

    def _along(self, taps: Tensor, n: int) -> Tensor:
        """Return the matrix of a filter along an axis of ``n`` pixels."""
        padded = functional.pad(
            torch.eye(n, dtype=torch.float64)[:, None], [len(taps) // 2] * 2, mode=_PADDING[self.boundary]
        )
        return functional.conv1d(padded, taps.flip(0)[None, None])[:, 0].T

    def _hartley(self) -> Singular:
        height, width = self.event[-2:]
        (high, wide), spread = self.kernel.shape, torch.zeros(height, width, dtype=torch.float64)
        rows = (torch.arange(high) - high // 2) % height
        columns = (torch.arange(wide) - wide // 2) % width
        spread.index_put_((rows[:, None].expand(high, wide), columns.expand(high, wide)), self.kernel, accumulate=True)
        transfer = torch.fft.fft2(spread)
        size = transfer.abs()
        size = torch.where(size > height * width * torch.finfo(torch.float64).eps * size.max(), size, 0.0)
        phase = torch.where(size > 0, transfer / torch.where(size > 0, size, 1.0), 0.0)
        forth, back = Copies(phase), Copies(phase.conj().resolve_conj())

        def turned(v: Tensor, by: Copies) -> Tensor:
            dtype = torch.promote_types(v.dtype, torch.float32)
            found = torch.fft.ifft2(by(v.device, dtype.to_complex()) * torch.fft.fft2(v.to(dtype))).real
            return cast(Tensor, found.to(v.dtype))

        def image(v: Tensor) -> Tensor:
            return v.reshape(len(v), *self.event)

        return Singular(
            size.expand(*self.event).flatten(),
            from_x=lambda x: hartley(image(x)).flatten(1),
            to_x=lambda c: hartley(image(c)),
            from_y=lambda y: hartley(turned(image(y), back)).flatten(1),
            to_y=lambda c: turned(hartley(image(c)), forth),
        )


def hartley(x: Tensor) -> Tensor:
    """Return the orthonormal Hartley transform of every image, Re F x - Im F x, its own inverse; shape of ``x``."""
    found = torch.fft.fft2(x.to(torch.promote_types(x.dtype, torch.float32)), norm="ortho")
    return cast(Tensor, (found.real - found.imag).to(x.dtype))


def _filters(kernel: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the filters along the height and the width, whose product is the kernel, or None."""
    u, s, vh = torch.linalg.svd(kernel)
    if len(s) > 1 and s[1] > 1e-12 * s[0]:
        return None
    return u[:, 0] * s[0], vh[0]
