"""A noise-conditional multilayer perceptron, for vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.models.embedding import NoiseEmbedding, TimeFeatures
from scoresde.models.labels import Label
from scoresde.models.layers import modulate, zero

__all__ = ["MLP"]


class MLP(nn.Module):
    """A multilayer perceptron whose hidden layers are scaled and shifted by an embedding of time.

    Args:
        features: number of components of a sample; an event of any shape is flattened to a vector.
        out_features: number of components of the output, a vector; by default the output has the shape of the sample.
        hidden: width of each hidden layer.
        time_features: number of :class:`~scoresde.models.embedding.TimeFeatures`.
        time_scale: about the length of the interval of the times: 1 for times in [0, 1] and for the logarithm of the noise
            level of EDM, n for the steps of a chain of n.
        jumps: whether the network takes a second time, ``to``, at which a jump ends. Without it a call is a jump of no
            length.
        num_classes: number of class labels; ``None`` for an unconditional network.
        unconditional: whether a network with classes also accepts "no label", index ``num_classes``. If not, every call
            needs a label.
        dropout: probability of zeroing a hidden feature in training.

    The output is zero at initialisation. :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive.

    Example:
        >>> net = MLP(2, hidden=(64, 64))
        >>> net(torch.randn(5, 2), torch.rand(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (128, 128, 128),
        *,
        out_features: int | None = None,
        time_features: int = 64,
        time_scale: float = 1.0,
        jumps: bool = False,
        num_classes: int | None = None,
        unconditional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if features < 1 or (out_features is not None and out_features < 1) or not hidden or min(hidden) < 1:
            raise ValueError(f"got features={features} and hidden={tuple(hidden)}; expected positive sizes")
        self.config: dict[str, Any] = {
            "features": features,
            "hidden": list(hidden),
            "out_features": out_features,
            "time_features": time_features,
            "time_scale": time_scale,
            "jumps": jumps,
            "num_classes": num_classes,
            "unconditional": unconditional,
            "dropout": dropout,
        }
        width = max(hidden)
        self.features = features
        of_time = TimeFeatures(time_features, time_scale=time_scale)
        self.embedding = NoiseEmbedding(of_time, width, num_classes=num_classes, unconditional=unconditional)
        self.jumps = jumps
        self.ending = NoiseEmbedding(TimeFeatures(time_features, time_scale=time_scale), width) if jumps else None
        sizes = [features, *hidden]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.modulations = nn.ModuleList([zero(nn.Linear(width, 2 * size)) for size in hidden])
        self.dropout = nn.Dropout(dropout)
        self.output = zero(nn.Linear(sizes[-1], features if out_features is None else out_features))

    def forward(self, x: Tensor, t: Tensor, label: Label | None = None, to: Tensor | None = None) -> Tensor:
        """Return the output at ``x`` of shape ``(batch, *event)``; ``t``, ``label`` and ``to`` have shape ``(batch,)``.

        It has the shape of ``x``, or ``(batch, out_features)``.
        """
        h = x.flatten(1)  # (batch, features)
        if h.shape[1] != self.features:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}, {h.shape[1]} components a sample, for an MLP of {self.features}; "
                f"expected {self.features} a sample: build MLP({h.shape[1]}, ..) for these data"
            )
        embedding = self.embedding(t, label)
        if self.ending is not None:
            embedding = embedding + self.ending(t if to is None else to)
        elif to is not None:
            raise ValueError("got the end of a jump, to=.., for a network without; build it with jumps=True")
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            h = self.dropout(torch.nn.functional.silu(modulate(layer(h), modulation(embedding))))
        out: Tensor = self.output(h)
        return out.reshape(x.shape) if self.config["out_features"] is None else out
