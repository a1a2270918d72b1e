"""The RefineNet of NCSNv2: dilated convolutions with large receptive fields, refined from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.labels import Label

__all__ = ["NCSNv2"]


class _InstanceNorm(nn.Module):
    """Instance normalization that adds back the means of the channels, normalized over channels (InstanceNorm++)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.gamma = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.beta = nn.Parameter(torch.zeros(channels))
        for parameter in (self.alpha, self.gamma):
            nn.init.normal_(parameter, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))  # (batch, channels)
        variance, mean = torch.var_mean(means, dim=1, keepdim=True)
        means = (means - mean) * torch.rsqrt(variance + 1e-5)
        shift = torch.addcmul(self.beta, self.gamma * self.alpha, means)  # (batch, channels)
        return torch.addcmul(shift[:, :, None, None], F.instance_norm(x), self.gamma[:, None, None])


def _conv(c_in: int, c_out: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation, bias=bias)


class _Residual(nn.Module):
    """A residual block, x + conv(elu(norm(conv(elu(norm(x)))))).

    The first block of a stage halves the resolution or, if it is dilated, keeps it.
    """

    def __init__(self, c_in: int, c_out: int, dilation: int, *, enters: bool) -> None:
        super().__init__()
        self.halves = enters and dilation == 1
        self.norm1, self.conv1 = _InstanceNorm(c_in), _conv(c_in, c_in, dilation)
        self.norm2, self.conv2 = _InstanceNorm(c_in), _conv(c_in, c_out, dilation)
        self.skip: nn.Module = nn.Identity()
        if enters:
            self.skip = nn.Conv2d(c_in, c_out, 1) if self.halves else _conv(c_in, c_out, dilation)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x)))
        h = self.skip(x) + self.conv2(F.elu(self.norm2(h)))
        return F.avg_pool2d(h, 2) if self.halves else cast(Tensor, h)


class _Units(nn.Module):
    """A sequence of ``n`` residual units of two convolutions without normalization."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv(channels, channels, bias=False) for _ in range(2 * n)])

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = x + second(F.elu(first(F.elu(x))))
        return x


class _Refine(nn.Module):
    """A refinement block, which adds the features of a stage to the refined ones and pools over growing windows."""

    def __init__(self, c_in: Sequence[int], c_out: int, *, last: bool) -> None:
        super().__init__()
        self.adapt = nn.ModuleList([_Units(c, 2) for c in c_in])
        self.fuse = nn.ModuleList([_conv(c, c_out) for c in c_in] if len(c_in) > 1 else [])
        self.pooled = nn.ModuleList([_conv(c_out, c_out, bias=False) for _ in range(2)])
        self.output = _Units(c_out, 3 if last else 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Refine ``inputs``; the result has the resolution of the first one."""
        h, *coarser = [adapt(x) for adapt, x in zip(self.adapt, inputs, strict=True)]
        if coarser:
            size = h.shape[2:]
            h = self.fuse[0](h)
            for conv, x in zip(self.fuse[1:], coarser, strict=True):
                h = h + F.interpolate(conv(x), size=size, mode="bilinear", align_corners=True)
        h = path = F.elu(h)
        for conv in self.pooled:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            h = h + path
        return cast(Tensor, self.output(h))


class NCSNv2(nn.Module):
    r"""The RefineNet of NCSNv2, which is not conditioned on the time: f(x) estimates the noise at every noise level.

    The score is -f(x) divided by the noise level, as ``predicts="eps"`` computes it. This is technique 3 of Song and Ermon,
    "Improved Techniques for Training Score-Based Generative Models", 2020, https://arxiv.org/abs/2006.09011. The defaults
    are the network for CIFAR-10.

    Args:
        channels: number of channels of an image.
        width: number of channels that the multipliers of the stages multiply.
        stages: the multiplier and the dilation of each stage. A stage of dilation 1, other than the first, halves the
            resolution; a dilated stage keeps it.

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, and for no stages.

    Example:
        >>> net = NCSNv2(1, 8, ((1, 1), (2, 1), (2, 2)))
        >>> net(torch.randn(3, 1, 8, 8), torch.rand(3)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        width: int = 128,
        stages: Sequence[tuple[int, int]] = ((1, 1), (2, 1), (2, 2), (2, 4)),
    ) -> None:
        super().__init__()
        if not stages or min(channels, width, *(n for stage in stages for n in stage)) < 1:
            raise ValueError(
                f"got channels={channels}, width={width}, stages={tuple(stages)}; expected positive sizes and at least one "
                "stage"
            )
        self.config: dict[str, Any] = {"channels": channels, "width": width, "stages": [list(stage) for stage in stages]}
        self.channels = channels
        self.factor = 2 ** sum(dilation == 1 for _, dilation in stages[1:])
        sizes = [width * multiplier for multiplier, _ in stages]
        self.stem = _conv(channels, sizes[0])
        self.stages = nn.ModuleList()
        c = sizes[0]
        for i, (size, (_, dilation)) in enumerate(zip(sizes, stages, strict=True)):
            entry = _Residual(c, size, dilation, enters=i > 0)
            self.stages.append(nn.Sequential(entry, _Residual(size, size, dilation, enters=False)))
            c = size
        self.refines = nn.ModuleList()
        refined: list[int] = []
        for i in reversed(range(len(sizes))):
            c = sizes[max(i - 1, 0)]
            self.refines.append(_Refine([sizes[i], *refined], c, last=i == 0))
            refined = [c]
        self.norm, self.output = _InstanceNorm(sizes[0]), _conv(sizes[0], channels)

    def forward(self, x: Tensor, t: Tensor, label: Label | None = None) -> Tensor:
        """Return f at images ``x``, shape of ``x``; the times ``t``, shape ``(batch,)``, are not used.

        Raises:
            ValueError: for images of a wrong number of channels or size, and for a label, as the network has no classes.
        """
        if label is not None:
            raise ValueError("got a label for an NCSNv2, a network without classes; leave label=.. out")
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {self.channels}, height, width) with height and width "
                f"multiples of {self.factor}: pad the images"
            )
        h = self.stem(x)
        found = []
        for stage in self.stages:
            h = stage(h)
            found.append(h)
        refined: list[Tensor] = []
        for refine in self.refines:
            refined = [refine(found.pop(), *refined)]
        return cast(Tensor, self.output(F.elu(self.norm(refined[0]))))
