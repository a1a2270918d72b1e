"""Pyramids: the downsampled input that enters each level of a U-Net, and the output to which each level contributes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Resampled, Style

__all__ = ["PYRAMIDS", "InputPyramid", "OutputPyramid"]

PYRAMIDS = ("none", "skip", "residual")
"""The kinds of input and output pyramids."""


class InputPyramid(nn.Module):
    """The input pyramid, which adds the downsampled image to the features of a level.

    "skip" downsamples the image, applies a 1x1 convolution and adds the result. "residual" downsamples the image by a
    convolution and adds the result; the sum is the image that the next level downsamples.
    """

    def __init__(self, kind: str, c_image: int, c: int, style: Style) -> None:
        super().__init__()
        self.kind, self.style = kind, style
        self.shrink = style.resample(up=False) if kind == "skip" else Resampled(c_image, c, style, up=False)
        self.conv = style.conv(c_image, c, 1) if kind == "skip" else nn.Identity()

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``h`` of a level with the ``image`` of the level above added, and the image of this level."""
        image = self.shrink(image)
        if self.kind == "skip":
            return h + self.conv(image), image
        h = self.style.add(image, h)
        return h, h


class OutputPyramid(nn.Module):
    """The output pyramid, which adds the contribution of a resolution to the output of the lower resolutions.

    "skip" upsamples the output and adds a convolution of the features at this resolution. "residual" upsamples the output by
    a convolution and adds it to the features; the network continues with the sum. At the lowest resolution there is no
    output yet.
    """

    def __init__(self, kind: str, c_before: int | None, c: int, c_out: int, style: Style) -> None:
        super().__init__()
        self.kind, self.style = kind, style
        first = c_before is None
        self.enlarge: nn.Module | None = None
        if c_before is not None:
            self.enlarge = style.resample(up=True) if kind == "skip" else Resampled(c_before, c, style, up=True)
        writes = kind == "skip" or first
        self.norm = style.norm(c) if writes else None
        self.conv = style.conv(c, c_out if kind == "skip" else c) if writes else None

    def forward(self, h: Tensor, output: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features with which the network continues, and the ``output`` including this level."""
        if self.norm is not None and self.conv is not None:
            written = self.conv(F.silu(self.norm(h)))
            return h, written if output is None or self.enlarge is None else self.enlarge(output) + written
        assert self.enlarge is not None
        h = self.style.add(self.enlarge(output), h)
        return h, h
