"""The embedding of time, label and augmentation of the published networks."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FourierFeatures", "LabelTable", "NoiseEmbedding", "PositionalFeatures"]


def _check_time(t: Tensor) -> None:
    if t.ndim != 1:
        raise ValueError(f"got t of shape {tuple(t.shape)}; expected one time per sample, shape (batch,)")


class PositionalFeatures(nn.Module):
    r"""Features :math:`\cos, \sin(f_k (t - t_0) / s)` with :math:`f_k = 10000^{-k / n}` for k = 0..m-1, 2m of them.

    n is m - 1 with ``endpoint``, so that the lowest frequency is 1/10000, and m without. Vaswani et al., "Attention Is
    All You Need", 2017, https://arxiv.org/abs/1706.03762; without endpoint in improved DDPM and its successors.

    Args:
        features: how many, an even number of at least 4.
        endpoint: as above.
        time_scale: s, the unit of time: 1 for the steps of a chain, 1/999 for times in [0, 1] that stand for them;
            negative for a network that counts backwards.
        time_shift: t_0.

    Example:
        >>> PositionalFeatures(4)(torch.tensor([0.0]))
        tensor([[1., 1., 0., 0.]])
    """

    frequencies: Tensor

    def __init__(self, features: int, *, endpoint: bool = False, time_scale: float = 1.0, time_shift: float = 0.0) -> None:
        super().__init__()
        half = _half(features)
        self.time_scale, self.time_shift = _unit(time_scale), time_shift
        steps = torch.arange(half, dtype=torch.float64) / (half - 1 if endpoint else half)
        self.register_buffer("frequencies", (10000.0**-steps).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Features of ``t`` of shape ``(batch,)``, shape ``(batch, features)``."""
        _check_time(t)
        unit = (t - self.time_shift) / self.time_scale
        angle = unit[:, None] * self.frequencies.to(t)  # (batch, features / 2)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierFeatures(nn.Module):
    r"""Features :math:`\cos, \sin(2 \pi f_k (t - t_0) / s)` with frequencies drawn once from :math:`N(0, 16^2)`.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2020,
    https://arxiv.org/abs/2006.10739. The frequencies are kept with the weights; a network starts with those of seed 0.
    The published networks get for t the logarithm of the noise level.

    Args:
        features: how many, an even number of at least 4.
        time_scale: s, the unit of time.
        time_shift: t_0.

    Example:
        >>> FourierFeatures(4)(torch.tensor([0.0])).abs()
        tensor([[1., 1., 0., 0.]])
    """

    frequencies: Tensor

    def __init__(self, features: int, *, time_scale: float = 1.0, time_shift: float = 0.0) -> None:
        super().__init__()
        self.time_scale, self.time_shift = _unit(time_scale), time_shift
        # On the CPU whatever the default device: the draw is the same everywhere.
        draw = torch.randn(_half(features), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        self.register_buffer("frequencies", 16 * draw.to(torch.empty(0).device))

    def forward(self, t: Tensor) -> Tensor:
        """Features of ``t`` of shape ``(batch,)``, shape ``(batch, features)``."""
        _check_time(t)
        unit = (t - self.time_shift) / self.time_scale
        angle = unit[:, None] * (2 * math.pi * self.frequencies).to(t)  # (batch, features / 2)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def _unit(time_scale: float) -> float:
    if not (math.isfinite(time_scale) and time_scale):
        raise ValueError(
            f"got time_scale={time_scale}; expected a number other than 0: 1 for the steps of a chain, 1/999 for times in "
            "[0, 1] that stand for 1000 of them"
        )
    return time_scale


def _half(features: int) -> int:
    if features < 4 or features % 2:
        raise ValueError(f"got {features} time features; expected an even number of at least 4")
    return features // 2


class LabelTable(nn.Module):
    """The embedding of class labels, with a row for "no label" where the network knows that case.

    Args:
        num_classes: number of labels.
        width: of the embedding.
        label_dropout: the probability, in training, of hiding a label; ``None`` for a network that needs its label, and
            then there is no row for "no label".

    Example:
        >>> LabelTable(10, 4, label_dropout=None).weight.shape, LabelTable(10, 4, label_dropout=0.1).weight.shape
        (torch.Size([10, 4]), torch.Size([11, 4]))
    """

    def __init__(self, num_classes: int, width: int, label_dropout: float | None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"got num_classes={num_classes}; expected at least 1, or None for a network without labels")
        if label_dropout is not None and not 0 <= label_dropout <= 1:
            raise ValueError(f"got label_dropout={label_dropout}; expected a probability, or None")
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.weight = nn.Parameter(torch.empty(num_classes + (label_dropout is not None), width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, label: Tensor | None, t: Tensor) -> Tensor:
        """Embed labels, integers of the shape of ``t``, ``(batch,)``, or ``None``: shape ``(batch, width)``."""
        if label is None:
            if self.label_dropout is None:
                raise ValueError(
                    f"got no label for a network that needs one; pass label=.., integers from 0 to {self.num_classes - 1}, "
                    "or build it with label_dropout"
                )
            label = torch.full(t.shape, self.num_classes, device=t.device)
        elif label.shape != t.shape or label.is_floating_point():
            raise ValueError(
                f"got labels of shape {tuple(label.shape)} and dtype {label.dtype}; "
                f"expected integers of shape {tuple(t.shape)}, one per sample"
            )
        elif self.training and self.label_dropout:
            hidden = torch.rand(t.shape, device=t.device) < self.label_dropout
            label = torch.where(hidden, self.num_classes, label)
        return F.embedding(label, self.weight)


class NoiseEmbedding(nn.Module):
    """silu(linear(silu(linear(features of time)))), joined by the embeddings of label and augmentation.

    Args:
        features: the module of time's features.
        num_features: how many they are.
        width: of the embedding.
        num_classes, label_dropout: of :class:`LabelTable`; ``None`` for a network without labels.
        early_label: add the label's embedding to the features of time, and not to the result of the second layer.
        augment: size of a vector that describes how a sample was augmented, added to the features of time; 0 for none.
    """

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        width: int,
        *,
        num_classes: int | None,
        label_dropout: float | None,
        early_label: bool,
        augment: int,
    ) -> None:
        super().__init__()
        self.early_label = early_label
        self.features = features
        self.layer1, self.layer2 = nn.Linear(num_features, width), nn.Linear(width, width)
        size = num_features if early_label else width
        self.label = None if num_classes is None else LabelTable(num_classes, size, label_dropout)
        self.augment = nn.Linear(augment, num_features, bias=False) if augment else None

    def forward(self, t: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """Embed times ``(batch,)``, labels ``(batch,)`` and descriptions ``(batch, augment)``: ``(batch, width)``."""
        if label is not None and self.label is None:
            raise ValueError("got a label for a network without classes; build it with num_classes")
        if augment is not None and self.augment is None:
            raise ValueError("got a description of the augmentation for a network without; build it with augment")
        h = self.features(t)  # (batch, features)
        told = None if self.label is None else self.label(label, t)
        if told is not None and self.early_label:
            h = h + told
        if augment is not None:
            h = h + cast(nn.Linear, self.augment)(augment)
        h = self.layer2(F.silu(self.layer1(h)))  # (batch, width)
        if told is not None and not self.early_label:
            h = h + told
        return F.silu(h)
