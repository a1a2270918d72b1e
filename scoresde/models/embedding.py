"""The embedding of time, label and augmentation, on which all networks are conditioned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.base.names import Table
from scoresde.models.labels import Label, LabelTable

__all__ = [
    "TIME_FEATURES",
    "FourierFeatures",
    "NoiseEmbedding",
    "PositionalFeatures",
    "TimeFeatures",
    "VectorEmbedding",
    "Waves",
    "time_features",
]

# Features of time -----------------------------------------------------------------------------------------------------


class Waves(nn.Module):
    r"""Base of the time features, :math:`\cos, \sin(\omega_k (t - t_0) / s)`.

    Args:
        frequencies: f_k, shape ``(features / 2,)``.
        turn: the angle of one unit of frequency, :math:`\omega_k = \mathrm{turn} \cdot f_k`.
        time_scale, time_shift: s and t_0.
        kept: whether the frequencies are stored with the weights.
    """

    frequencies: Tensor

    def __init__(
        self, frequencies: Tensor, turn: float, time_scale: float, time_shift: float, *, kept: bool = False
    ) -> None:
        super().__init__()
        if not (math.isfinite(time_scale) and time_scale):
            raise ValueError(
                f"got time_scale={time_scale}; expected a number other than 0, by which times are divided: for octaves the "
                "length of their interval, 1 or the steps of a chain; for positional ones 1, or 1/999 for times in [0, 1]"
            )
        self.turn, self.time_scale, self.time_shift = turn, time_scale, time_shift
        self.register_buffer("frequencies", frequencies.float(), persistent=kept)

    @property
    def features(self) -> int:
        """The number of features."""
        return 2 * len(self.frequencies)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Waves:
        """Follow the network to another device, and stay in float32 at least: bfloat16 would round 999 cycles to 1000."""
        before = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frequencies.dtype.itemsize < torch.float32.itemsize:
            self.frequencies = before.to(self.frequencies.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        """Return the features of ``t``, shape ``(batch,)``, as ``(batch, features)`` in float32; float64 if ``t`` is."""
        if t.ndim != 1:
            raise ValueError(f"got t of shape {tuple(t.shape)}; expected one time per sample, shape (batch,)")
        unit = (t.to(torch.promote_types(t.dtype, torch.float32)) - self.time_shift) / self.time_scale
        angle = unit[:, None] * (self.turn * self.frequencies).to(unit)  # (batch, features / 2)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def _half(features: int) -> int:
    if features < 4 or features % 2:
        raise ValueError(f"got {features} time features; expected an even number of at least 4")
    return features // 2


class TimeFeatures(Waves):
    r"""Features :math:`\cos, \sin(2 \pi f_k (t - t_0) / s)` with frequencies spaced evenly over nine octaves.

    The frequencies run from 1/8 to 64 cycles per ``time_scale``, so that times a hundredth of it apart are well separated.
    They are not random: a network is determined by its arguments and its weights.

    Args:
        features: the number of features, even and at least 4.
        time_scale: s, about the length of the interval of times: 1 for times in [0, 1] and for the logarithm of the noise
            level of EDM, n for the steps of a chain of n.
        time_shift: t_0.

    Example:
        >>> TimeFeatures(4)(torch.tensor([0.0, 1.0]))[0]
        tensor([1., 1., 0., 0.])
    """

    def __init__(self, features: int, *, time_scale: float = 1.0, time_shift: float = 0.0) -> None:
        cycles = torch.logspace(-3, 6, _half(features), base=2.0, dtype=torch.float64)
        super().__init__(2 * math.pi * cycles, 1.0, time_scale, time_shift)


class PositionalFeatures(Waves):
    r"""Features :math:`\cos, \sin(f_k (t - t_0) / s)` with :math:`f_k = 10000^{-k / n}` for k = 0..m-1, 2m of them.

    n is m, or m - 1 with ``endpoint``, which makes 1/10000 the lowest frequency. Source: Vaswani et al., "Attention Is All
    You Need", 2017, https://arxiv.org/abs/1706.03762. Improved DDPM and its successors have no endpoint.

    Args:
        features: the number of features, even and at least 4.
        endpoint: whether n is m - 1.
        time_scale: s, the unit of time: 1 for the steps of a chain, 1/999 for times in [0, 1] that stand for 1000 steps;
            negative for a network that counts backwards.
        time_shift: t_0.

    Example:
        >>> PositionalFeatures(4)(torch.tensor([0.0]))
        tensor([[1., 1., 0., 0.]])
    """

    def __init__(self, features: int, *, endpoint: bool = False, time_scale: float = 1.0, time_shift: float = 0.0) -> None:
        half = _half(features)
        steps = torch.arange(half, dtype=torch.float64) / (half - 1 if endpoint else half)
        super().__init__(10000.0**-steps, 1.0, time_scale, time_shift)


class FourierFeatures(Waves):
    r"""Features :math:`\cos, \sin(2 \pi f_k (t - t_0) / s)` with frequencies drawn once from :math:`N(0, 16^2)`.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2020,
    https://arxiv.org/abs/2006.10739. The frequencies are stored with the weights; a new network draws them with seed 0. The
    published networks take the logarithm of the noise level for t.

    Args:
        features: the number of features, even and at least 4.
        time_scale: s, the unit of time.
        time_shift: t_0.

    Example:
        >>> FourierFeatures(4)(torch.tensor([0.0])).abs()
        tensor([[1., 1., 0., 0.]])
    """

    def __init__(self, features: int, *, time_scale: float = 1.0, time_shift: float = 0.0) -> None:
        # Drawn on the CPU whatever the default device, so that the draw is the same everywhere.
        draw = torch.randn(_half(features), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        super().__init__(16 * draw.to(torch.empty(0).device), 2 * math.pi, time_scale, time_shift, kept=True)


TIME_FEATURES: Table[Callable[..., Waves]] = Table(
    "embedding of time",
    "scoresde.models.embedding.TIME_FEATURES",
    {"octaves": TimeFeatures, "positional": PositionalFeatures, "fourier": FourierFeatures},
    check=callable,
    expects="a class or a function of the number of features, time_scale and time_shift",
)
"""The time features by name, the values of the argument ``time`` of the networks."""


def time_features(time: str, features: int, *, endpoint: bool = False, time_scale: float, time_shift: float = 0.0) -> Waves:
    """Return the time features called ``time``, a key of :data:`TIME_FEATURES`; only positional ones use ``endpoint``.

    Raises:
        ValueError: for an unknown name, a number of features that is odd or below 4, and a ``time_scale`` of 0.

    Example:
        >>> time_features("octaves", 8, time_scale=1000.0).features
        8
    """
    make = TIME_FEATURES[time]
    own = {"endpoint": endpoint} if make is PositionalFeatures else {}
    return make(features, time_scale=time_scale, time_shift=time_shift, **own)


# All of it together --------------------------------------------------------------------------------------------------


class VectorEmbedding(nn.Module):
    """The embedding of a vector, linear(silu(linear(vector))).

    Args:
        features: number of features of the vector.
        width: number of features of the embedding.

    Example:
        >>> VectorEmbedding(3, 8)(torch.ones(2, 3)).shape
        torch.Size([2, 8])
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, vector: Tensor) -> Tensor:
        """Embed ``vector``, shape ``(batch, features)``: shape ``(batch, width)``."""
        return cast(Tensor, self.layer2(F.silu(self.layer1(vector.to(self.layer1.weight.dtype)))))


class NoiseEmbedding(nn.Module):
    """The embedding of time, silu(linear(silu(linear(features)))), to which all else of a sample is added.

    Args:
        features: the time features.
        width: number of features of the embedding.
        num_classes, unconditional: arguments of :class:`LabelTable`; ``num_classes=None`` for a network without labels.
        early_label: add the embedding of the label to the time features, and not to the result of the second layer.
        augment: size of the augmentation vector, whose embedding is added to the time features; 0 for none.
        pooled: number of features of a vector for each sample, such as the pooled embedding of a text, which is embedded by
            two layers of its own and added to the result of the second layer; 0 for none.
        guidance: whether the network is told a guidance scale, embedded like the time with layers of its own.

    Example:
        >>> embedding = NoiseEmbedding(TimeFeatures(8), 16, num_classes=3)
        >>> t = torch.rand(2)
        >>> torch.equal(embedding(t), embedding(t, torch.tensor([3, 3])))  # index num_classes is "no label"
        True
    """

    def __init__(
        self,
        features: Waves,
        width: int,
        *,
        num_classes: int | None = None,
        unconditional: bool = True,
        early_label: bool = False,
        augment: int = 0,
        pooled: int = 0,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        n = features.features
        self.early_label = early_label
        self.features = features
        self.layer1, self.layer2 = nn.Linear(n, width), nn.Linear(width, width)
        size = n if early_label else width
        self.label = None if num_classes is None else LabelTable(num_classes, size, unconditional=unconditional)
        self.augment = nn.Linear(augment, n, bias=False) if augment else None
        self.pooled = VectorEmbedding(pooled, width) if pooled else None
        self.guidance = VectorEmbedding(n, width) if guidance else None

    def forward(
        self,
        t: Tensor,
        label: Label | None = None,
        augment: Tensor | None = None,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Embed times, and what else the network is told, as ``(batch, width)``.

        Times, labels and guidance scales have shape ``(batch,)``, augmentation vectors ``(batch, augment)`` and pooled
        vectors ``(batch, pooled)``. The time features have the precision of ``t``, float32 at least; the layers have the
        precision of the weights.
        """
        if label is not None and self.label is None:
            raise ValueError("got a label for a network without classes; build it with num_classes")
        if augment is not None and self.augment is None:
            raise ValueError("got a description of the augmentation for a network without; build it with augment")
        self._check_pooled(pooled, len(t))
        if (guidance is None) != (self.guidance is None):
            raise ValueError(
                "got no guidance scale for a network that is told one; pass guidance=.., one for each sample"
                if guidance is None
                else "got a guidance scale for a network that is told none; build it with guidance=True"
            )
        h = self.features(t).to(self.layer1.weight.dtype)  # (batch, features)
        told = None if self.label is None else self.label(label, t)
        if told is not None and self.early_label:
            h = h + told
        if augment is not None:
            h = h + cast(nn.Linear, self.augment)(augment.to(h))
        h = self.layer2(F.silu(self.layer1(h)))  # (batch, width)
        if told is not None and not self.early_label:
            h = h + told
        if self.guidance is not None:
            h = h + self.guidance(self.features(cast(Tensor, guidance).to(t).expand(len(t))))
        if self.pooled is not None:
            h = h + self.pooled(pooled)
        return F.silu(h)

    def _check_pooled(self, pooled: Tensor | None, batch: int) -> None:
        if (pooled is None) != (self.pooled is None):
            raise ValueError(
                f"got {'no pooled vector' if pooled is None else 'a pooled vector'} for a network "
                f"{'with' if pooled is None else 'without'} one; pass pooled=.. of shape (batch, features), or build the "
                f"network {'without' if pooled is None else 'with pooled=<features>'}"
            )
        if self.pooled is not None and pooled is not None:
            expected = (batch, self.pooled.layer1.in_features)
            if pooled.shape != expected:
                raise ValueError(
                    f"got pooled vectors of shape {tuple(pooled.shape)}; expected {expected}, one for each sample"
                )
