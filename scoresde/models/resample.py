"""Layers that halve or double the resolution of series, images and videos, by a box or a binomial filter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Resample"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Resample(nn.Module):
    r"""A parameter-free layer that halves or doubles every axis of ``(batch, channels, *axes)``.

    With ``fir`` the filter is (1, 3, 3, 1) / 8 along each axis, and the image is zero outside: Karras et al., "Analyzing and
    Improving the Image Quality of StyleGAN", 2020, https://arxiv.org/abs/1912.04958. Otherwise it is the box filter: the
    mean of two neighbours on the way down, the nearest neighbour on the way up.

    Args:
        dims: number of axes, 1 to 3.
        up: double the axes; otherwise halve them.
        fir: use the binomial filter.
        stride: the stride of the filter; 1 filters without a change of resolution.
        padding: the padding of the filter on both sides; values other than 1 add or remove points at the border.

    Example:
        >>> halve = Resample(1, up=False)
        >>> halve(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
        tensor([[[2., 6.]]])
        >>> Resample(1, up=True)(halve(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])))
        tensor([[[2., 2., 6., 6.]]])
    """

    kernel: Tensor

    def __init__(self, dims: int, *, up: bool, fir: bool = False, stride: int = 2, padding: int = 1) -> None:
        super().__init__()
        self.dims, self.up, self.fir, self.stride, self.padding = dims, up, fir, stride, padding
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / (4 if up else 8)  # doubling spreads each point over two
        kernel = torch.ones(())
        for _ in range(dims):
            kernel = kernel[..., None] * line  # (4,), (4, 4), (4, 4, 4)
        self.register_buffer("kernel", kernel[None, None], persistent=False)  # (1, 1, 4, ..)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape ``(batch, channels, *axes)`` with each axis halved or doubled."""
        if not self.fir:
            return F.interpolate(x, scale_factor=2.0) if self.up else _POOL[self.dims](x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, *[-1] * (self.dims + 1))  # (channels, 1, 4, ..)
        apply = _CONV_TRANSPOSE[self.dims] if self.up else _CONV[self.dims]
        return apply(x, kernel, stride=self.stride, padding=self.padding, groups=channels)

    def extra_repr(self) -> str:
        return f"{self.dims}, up={self.up}, fir={self.fir}"
