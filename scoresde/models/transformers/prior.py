"""The prior of unCLIP: a causal transformer that predicts the embedding of an image from that of its text."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.models.embedding import VectorEmbedding
from scoresde.models.embedding import time_features as features_of
from scoresde.models.layers import check_mask, zero
from scoresde.models.transformers.tokens import TokenBlock

__all__ = ["EmbeddingPrior"]


class EmbeddingPrior(nn.Module):
    r"""The diffusion prior of unCLIP, a network on the embeddings of images.

    Its tokens are those of the text, the embedding of the text, the time, the noised embedding of the image and a learned
    one, in this order; each attends to itself and those before it. The output is read from the last. Source: Ramesh et al.,
    "Hierarchical Text-Conditional Image Generation with CLIP Latents", 2022, https://arxiv.org/abs/2204.06125, section 2.2.

    Args:
        features: number of features of the embedding of an image.
        context: number of features of a token of the text.
        tokens: number of tokens of the text.
        pooled: number of features of the embedding of the text.
        width: number of features of a token of the network, even and a multiple of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        time: the kind of time features, as in :class:`~scoresde.models.UNet`; there are ``width`` of them.
        time_scale: the unit of time.

    The buffers ``mean`` and ``std``, 0 and 1 unless they were loaded, are those of the embeddings before they were
    normalized; :meth:`denormalized` undoes this. The output is zero at initialisation. :attr:`config` holds the arguments as
    plain values.

    Raises:
        ValueError: for sizes that are not positive, or that are not the required multiples.

    Example:
        >>> net = EmbeddingPrior(6, 5, 7, pooled=4, width=16, depth=1, heads=2)
        >>> net(torch.randn(2, 6), torch.rand(2), context=torch.randn(2, 7, 5), pooled=torch.randn(2, 4)).shape
        torch.Size([2, 6])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: int = 768,
        context: int = 768,
        tokens: int = 77,
        *,
        pooled: int = 768,
        width: int = 2048,
        depth: int = 20,
        heads: int = 32,
        time: str = "octaves",
        time_scale: float = 1.0,
    ) -> None:
        self_config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = self_config
        sizes = ("features", "context", "tokens", "pooled", "width", "depth", "heads")
        if bad := [name for name in sizes if self_config[name] < 1]:
            raise ValueError(f"got {bad[0]}={self_config[bad[0]]}; expected a positive number")
        self.time_features = features_of(time, width, time_scale=time_scale)
        self.time = VectorEmbedding(width, width)
        self.noised, self.context, self.pooled = (nn.Linear(n, width) for n in (features, context, pooled))
        self.last = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(tokens + 4, width))
        self.blocks = nn.ModuleList([TokenBlock(width, heads, bias=True, gated=False) for _ in range(depth)])
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, features)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        for parameter in (self.last, self.positions):
            nn.init.normal_(parameter, std=0.02)
        zero(self.output)

    def denormalized(self, x: Tensor) -> Tensor:
        """Return embeddings in their own units, std x + mean, for normalized ones ``x``; shape ``(batch, features)``."""
        return self.std * x + self.mean

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        pooled: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the output at noised embeddings ``x``.

        Args:
            x: noised embeddings of images, shape ``(batch, features)``.
            t: times, shape ``(batch,)``.
            context: tokens of the text, shape ``(batch, tokens, context)``.
            pooled: embeddings of the text, shape ``(batch, pooled)``.
            context_mask: the tokens of the text that are attended to, shape ``(batch, tokens)``; ``None`` for all of them.

        Returns:
            The output, shape ``(batch, features)``.
        """
        config, batch = self.config, len(x)
        expected = {
            "x": (batch, config["features"]),
            "context": (batch, config["tokens"], config["context"]),
            "pooled": (batch, config["pooled"]),
        }
        for name, value in (("x", x), ("context", context), ("pooled", pooled)):
            if value is None or value.shape != expected[name]:
                found = "no" if value is None else f"shape {tuple(value.shape)} for"
                raise ValueError(f"got {found} {name} in a prior; expected {name}=.. of shape {expected[name]}")
        check_mask(context_mask, context)
        features = self.time_features(t).to(x.dtype)
        told = [self.pooled(pooled), self.time(features), self.noised(x), self.last.expand(batch, -1)]  # (batch, width) each
        h = torch.cat([self.context(context), torch.stack(told, dim=1)], dim=1) + self.positions
        mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()[None]
        if context_mask is not None:
            mask = mask & nn.functional.pad(context_mask.bool(), (0, 4), value=True)[:, None]
        for block in self.blocks:
            h = block(h, own_mask=mask)
        return cast(Tensor, self.output(self.norm(h[:, -1])))
