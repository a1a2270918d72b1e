"""What the networks share: features of time, embeddings of labels, and how both reach a layer."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["Embedding", "TimeFeatures", "modulate", "zero"]

M = TypeVar("M", bound=nn.Module)


def zero(module: M) -> M:
    """``module`` with all its parameters set to zero: a layer that starts by saying nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """(1 + scale) h + shift, by channel, for ``scale_shift`` of shape ``(batch, 2 channels)``."""
    scale_shift = scale_shift.reshape(*scale_shift.shape, *[1] * (h.ndim - 2))  # (batch, 2 channels, 1, ..)
    scale, shift = scale_shift.chunk(2, dim=1)  # (batch, channels, 1, ..) each
    return torch.addcmul(shift, h, 1 + scale)


class TimeFeatures(nn.Module):
    r"""Fourier features :math:`\cos, \sin(2 \pi f_k t / s)` of time at fixed frequencies.

    The frequencies are log-spaced from 1/8 to 64 cycles per ``time_scale``, not random, so that a network is
    determined by its arguments and its weights alone.

    Args:
        features: how many, an even number.
        time_scale: s, about the length of the interval that t runs through.

    Example:
        >>> TimeFeatures(4)(torch.tensor([0.0, 1.0]))[0]
        tensor([1., 1., 0., 0.])
    """

    frequencies: Tensor

    def __init__(self, features: int, time_scale: float = 1.0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"got {features} time features; expected an even number of at least 2")
        if not (math.isfinite(time_scale) and time_scale > 0):
            raise ValueError(
                f"got time_scale={time_scale}; expected a positive number: 1 for times in [0, 1], n for the steps of a "
                "chain of n"
            )
        frequencies = torch.logspace(-3, 6, features // 2, base=2.0, dtype=torch.float64) / time_scale
        self.register_buffer("frequencies", (2 * math.pi * frequencies).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Features of ``t`` of shape ``(batch,)``, shape ``(batch, features)``."""
        if t.ndim != 1:
            raise ValueError(f"got t of shape {tuple(t.shape)}; expected one time per sample, shape (batch,)")
        angle = t[:, None] * self.frequencies.to(t)  # (batch, features / 2)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Embedding(nn.Module):
    """The embedding of time and, where there are classes, of the label: shape ``(batch, width)``.

    Args:
        width: its size.
        time_features, time_scale: of :class:`TimeFeatures`.
        num_classes: number of labels; ``None`` for a network without.
        label_dropout: the probability, in training, with which a label is hidden, so that the network also learns the
            unconditional score, which it returns for ``label=None``.
    """

    def __init__(
        self, width: int, time_features: int, time_scale: float, num_classes: int | None, label_dropout: float
    ) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"got num_classes={num_classes}; expected at least 1, or None for a network without labels")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"got label_dropout={label_dropout}; expected a probability")
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.time = nn.Sequential(
            TimeFeatures(time_features, time_scale),
            nn.Linear(time_features, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, width)  # the last: no label

    def forward(self, t: Tensor, label: Tensor | None) -> Tensor:
        """Embed times of shape ``(batch,)`` and labels, integers of shape ``(batch,)`` or ``None``."""
        embedding = cast(Tensor, self.time(t))
        if self.label is None or self.num_classes is None:
            if label is not None:
                raise ValueError("got a label for a network without classes; build it with num_classes")
            return nn.functional.silu(embedding)
        if label is None:
            label = torch.full(t.shape, self.num_classes, device=t.device)
        elif label.shape != t.shape or label.is_floating_point():
            raise ValueError(
                f"got labels of shape {tuple(label.shape)} and dtype {label.dtype}; "
                f"expected integers of shape {tuple(t.shape)}, one per sample"
            )
        if self.training and self.label_dropout:
            hidden = torch.rand(t.shape, device=t.device) < self.label_dropout
            label = torch.where(hidden, self.num_classes, label)
        return nn.functional.silu(embedding + self.label(label))
