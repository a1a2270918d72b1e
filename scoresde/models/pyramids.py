"""Pyramids: the shrunken input that enters each level of a U-Net, and the output that each level contributes to."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.blocks import Resampled, Style

__all__ = ["PYRAMIDS", "InputPyramid", "OutputPyramid"]

PYRAMIDS = ("none", "skip", "residual")
"""The kinds of both."""


class InputPyramid(nn.Module):
    """The image at the next resolution, joined to what the network made of it.

    "skip": the shrunken image through a 1x1 convolution, added. "residual": shrunken by a convolution, added, and the sum
    is the image that is shrunken next.
    """

    def __init__(self, kind: str, c_image: int, c: int, style: Style) -> None:
        super().__init__()
        self.kind, self.style = kind, style
        self.shrink = style.resample(up=False) if kind == "skip" else Resampled(c_image, c, style, up=False)
        self.conv = style.conv(c_image, c, 1) if kind == "skip" else nn.Identity()

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The features ``h`` of a level joined by the ``image`` of the one above, and the image of this level."""
        image = self.shrink(image)
        if self.kind == "skip":
            return h + self.conv(image), image
        h = self.style.add(image, h)
        return h, h


class OutputPyramid(nn.Module):
    """The output of the resolutions so far, joined by this one's.

    "skip": the enlarged output plus a convolution of this resolution's features. "residual": enlarged by a convolution
    and added to the features, which go on with the sum. The first, at the lowest resolution, has nothing to enlarge.
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
        """The features ``h`` with which the network goes on, and the ``output`` of the levels so far and this one."""
        if self.norm is not None and self.conv is not None:
            written = self.conv(F.silu(self.norm(h)))
            return h, written if output is None or self.enlarge is None else self.enlarge(output) + written
        assert self.enlarge is not None
        h = self.style.add(self.enlarge(output), h)
        return h, h
