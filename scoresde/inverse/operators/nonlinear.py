"""Published nonlinear measurements: phase retrieval, quantisation as in JPEG, and high dynamic range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from scoresde.inverse.operators.base import images
from scoresde.inverse.operators.function import Function

__all__ = ["high_dynamic_range", "jpeg", "phase_retrieval"]


def phase_retrieval(event: Sequence[int], oversampling: float = 2.0) -> Function:
    """Return the operator that measures the size of the Fourier coefficients of an image padded with zeros.

    Args:
        event: the shape of one state, ``(.., height, width)``.
        oversampling: how many times larger the padded image is, in height and in width, at least 1.

    Raises:
        ValueError: for a smaller oversampling.

    Source: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
    https://arxiv.org/abs/2209.14687.

    Example:
        >>> A, x = phase_retrieval((1, 4, 4)), torch.ones(1, 1, 4, 4)
        >>> bool(torch.allclose(A(x), A(-x)))  # the sign is lost
        True
    """
    event = images(event)
    if not 1 <= oversampling < math.inf:
        raise ValueError(f"got oversampling={oversampling}; expected a number of at least 1")
    return Function(_Amplitude(tuple(round(n * oversampling) for n in event[-2:])), event)


def high_dynamic_range(event: Sequence[int], gain: float = 2.0) -> Function:
    """Return the operator that measures an image of overexposure, clamp(gain x, -1, 1).

    Its derivative is zero where a number is clamped.

    Args:
        event: the shape of one state.
        gain: the factor of exposure, positive.

    Raises:
        ValueError: for a gain that is not positive.

    Source: Mardani et al., "A Variational Perspective on Solving Inverse Problems with Diffusion Models", 2024,
    https://arxiv.org/abs/2305.04391.

    Example:
        >>> high_dynamic_range((2,))(torch.tensor([[0.25, 0.75]]))
        tensor([[0.5000, 1.0000]])
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"got gain={gain}; expected a positive number")
    return Function(_Clamped(gain), event)


def jpeg(event: Sequence[int], quality: int = 10) -> Function:
    """Return the operator that rounds the discrete cosine transform of each block of 8 x 8 pixels as JPEG does.

    States lie in [-1, 1]. Every channel is rounded by the luminance table of the standard, without a change of colour space
    and without subsampling. The derivative is that without rounding (the straight-through estimate), since that of a rounded
    number is zero.

    Args:
        event: the shape of one state, ``(.., height, width)``, both multiples of 8.
        quality: from 1 to 100, with the scale of libjpeg.

    Raises:
        ValueError: for an image whose sides are not multiples of 8, or another quality.

    Source: ITU-T Recommendation T.81, 1992, annex K, https://www.w3.org/Graphics/JPEG/itu-t81.pdf.

    Example:
        >>> x = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
        >>> 0 < (jpeg((8, 8))(x) - x).abs().max().item() < 0.2
        True
    """
    event = images(event)
    if event[-2] % 8 or event[-1] % 8:
        raise ValueError(f"got images of {event[-2]} x {event[-1]} pixels; expected multiples of 8, the blocks of JPEG")
    if quality not in range(1, 101):
        raise ValueError(f"got quality={quality}; expected a whole number from 1 to 100")
    return Function(_Blocks(quality), event)


class _Amplitude(nn.Module):
    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        of = torch.fft.fft2(x.to(torch.promote_types(x.dtype, torch.float32)), s=self.size, norm="ortho")
        return cast(Tensor, of.abs().to(x.dtype))


class _Clamped(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(-1, 1)


class _Blocks(nn.Module):
    def __init__(self, quality: int) -> None:
        super().__init__()
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        table = torch.tensor(_LUMINANCE, dtype=torch.float64).reshape(8, 8)
        self.steps = ((scale * table + 50) / 100).floor().clamp(1, 255).tolist()

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        k = torch.arange(8, dtype=torch.float64)
        basis = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) / 2
        basis[0] /= math.sqrt(2)
        basis, steps = basis.to(device=x.device, dtype=dtype), torch.tensor(self.steps, dtype=dtype, device=x.device)
        rows, columns = x.shape[-2] // 8, x.shape[-1] // 8
        blocks = (127.5 * x.to(dtype)).reshape(*x.shape[:-2], rows, 8, columns, 8).movedim(-3, -2)
        coefficients = basis @ blocks @ basis.T / steps
        rounded = coefficients + (coefficients.round() - coefficients).detach()
        made = (basis.T @ (rounded * steps) @ basis).movedim(-2, -3).reshape(x.shape)
        return (made / 127.5).to(x.dtype)


_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
