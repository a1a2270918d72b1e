"""A small bidirectional transformer over sequences of tokens, or of vectors that stand for tokens."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.embedding import NoiseEmbedding
from scoresde.models.embedding import time_features as features_of
from scoresde.models.labels import Label
from scoresde.models.layers import zero

__all__ = ["TokenTransformer"]


class _Layer(nn.Module):
    """Attention and a perceptron, each after a normalization and before a gate; an embedding may modulate both."""

    def __init__(self, width: int, heads: int, dropout: float, modulated: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.qkv, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = zero(nn.Linear(width, 6 * width)) if modulated else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        if self.modulation is None or embedding is None:
            h = h + self._dropped(self._attend(self.norm1(h)))
            return h + self._dropped(self.output(F.gelu(self.hidden(self.norm2(h)))))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        h = h + (1 + gate1) * self._dropped(self._attend(self.norm1(h) * (1 + scale1) + shift1))
        inner = F.gelu(self.hidden(self.norm2(h) * (1 + scale2) + shift2))
        return cast(Tensor, h + (1 + gate2) * self._dropped(self.output(inner)))

    def _attend(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch, heads, length, c)
        return cast(Tensor, self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    def _dropped(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training)


class TokenTransformer(nn.Module):
    """A bidirectional transformer that maps noised tokens to logits of each token.

    Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762, with adaptive layer normalization by
    the time as in DiT, https://arxiv.org/abs/2212.09748, where there is one.

    Args:
        states: number of states of a token at the input, the mask included, ``process.states``.
        length: number of tokens of a sequence.
        outputs: number of logits of each token, the vocabulary; ``None`` for ``states``.
        width: number of features of a token, a multiple of ``heads``.
        depth: number of layers.
        heads: number of attention heads.
        dropout: probability of zeroing a feature in training.
        timed: whether the network is told the time. In the absorbing process the exact prediction does not depend on it.
        time_features: number of time features.
        num_classes: number of class labels; ``None`` for an unconditional network.
        features: number of features of a token at the input, for a network on vectors of shape ``(batch, length,
            features)`` instead of tokens; ``None`` for tokens.

    The logits are zero at initialisation. :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, or a width that is no multiple of the heads.

    Example:
        >>> net = TokenTransformer(27, 8, outputs=26, width=32, depth=2)
        >>> net(torch.full((3, 8), 26), torch.rand(3)).shape
        torch.Size([3, 8, 26])
    """

    def __init__(
        self,
        states: int,
        length: int,
        *,
        outputs: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        timed: bool = False,
        time_features: int = 64,
        num_classes: int | None = None,
        features: int | None = None,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if min(states, length, width, depth, heads, outputs or 1, features or 1) < 1 or width % heads:
            raise ValueError(
                f"got states={states}, length={length}, outputs={outputs}, width={width}, depth={depth}, heads={heads}, "
                f"features={features}; expected positive sizes, and a width that is a multiple of the heads"
            )
        self.config: dict[str, Any] = config
        self.states, self.length, self.features = states, length, features
        self.stem = nn.Embedding(states, width) if features is None else nn.Linear(features, width)
        # As large as the embedding of a token: else all masks look alike, and places are learned very slowly.
        self.places = nn.Parameter(torch.randn(length, width))
        modulated = timed or num_classes is not None
        self.embedding = (
            NoiseEmbedding(features_of("octaves", time_features, time_scale=1.0), width, num_classes=num_classes)
            if modulated
            else None
        )
        self.timed = timed
        self.layers = nn.ModuleList([_Layer(width, heads, dropout, modulated) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.logits = zero(nn.Linear(width, states if outputs is None else outputs))

    def forward(self, x: Tensor, t: Tensor, label: Label | None = None) -> Tensor:
        """Return logits ``(batch, length, outputs)`` at tokens or vectors ``x``, for ``t`` and ``label`` of ``(batch,)``."""
        event = (self.length,) if self.features is None else (self.length, self.features)
        if x.shape[1:] != event:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {', '.join(map(str, event))}): a TokenTransformer has "
                "the length that it was built with"
            )
        if label is not None and self.embedding is None:
            raise ValueError("got labels for a network without classes; expected none, or one built with num_classes=..")
        embedding = None
        if self.embedding is not None:
            embedding = self.embedding(t if self.timed else torch.zeros_like(t), label)
        h = self.stem(x) + self.places  # (batch, length, width)
        for layer in self.layers:
            h = layer(h, embedding)
        return cast(Tensor, self.logits(self.norm(h)))
