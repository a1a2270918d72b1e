"""A U-Net that is given the embedding of an image: the decoder of unCLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.unet import UNet

__all__ = ["ImageEmbedded"]


class ImageEmbedded(nn.Module):
    """A U-Net that is given the embedding of an image, and tokens of a text where it takes them.

    The embedding is added to that of time, and becomes ``tokens`` further tokens after those of the text.

    Args:
        channels: number of channels of a sample.
        unet: further arguments of :class:`UNet`: ``{"width": 64, "multipliers": [1, 2, 4]}``.
        embedding: number of features of the embedding of an image.
        text: number of features of a token of the text; 0 for a network without text.
        tokens: number of tokens that the embedding becomes.

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, arguments of the U-Net that are set here, and those that it refuses.

    Source: Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents", 2022,
    https://arxiv.org/abs/2204.06125, section 2.1.

    Example:
        >>> net = ImageEmbedded(1, {"width": 8, "multipliers": [1, 2]}, embedding=5, text=6)
        >>> x, told = torch.zeros(2, 1, 8, 8), {"context": torch.randn(2, 7, 6)}
        >>> net(x, torch.rand(2), embedding=torch.randn(2, 5), **told).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, channels: int, unet: Mapping[str, Any], embedding: int = 768, text: int = 0, tokens: int = 4) -> None:
        super().__init__()
        if taken := sorted({"channels", "context", "pooled"} & unet.keys()):
            raise ValueError(f"got {taken[0]!r} for the U-Net of an ImageEmbedded, which sets it itself; leave it out")
        if min(embedding, tokens) < 1 or text < 0:
            raise ValueError(
                f"got embedding={embedding}, tokens={tokens}, text={text}; expected positive numbers, and text=0 for none"
            )
        self.text, self.tokens = text, tokens
        self.unet = UNet(channels, context=text or embedding, pooled=embedding, **unet)
        self.more = nn.Linear(embedding, tokens * (text or embedding))
        own = {"channels": channels, "unet": dict(unet), "embedding": embedding, "text": text, "tokens": tokens}
        self.config: dict[str, Any] = own

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        embedding: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Return the output at ``x``.

        Args:
            x: samples, shape ``(batch, channels, *axes)``.
            t: times, shape ``(batch,)``.
            embedding: embeddings of images, shape ``(batch, embedding)``; zeros stand for none.
            context: tokens of texts, shape ``(batch, length, text)``, for a network that takes them.
            context_mask: the tokens that are attended to, shape ``(batch, length)``; ``None`` for all of them.
            conditions: further conditions of the U-Net.
        """
        if embedding.shape != (len(x), self.config["embedding"]):
            raise ValueError(
                f"got an embedding of shape {tuple(embedding.shape)} for {len(x)} samples; expected "
                f"({len(x)}, {self.config['embedding']})"
            )
        if (context is None) != (self.text == 0):
            raise ValueError(
                f"got {'no context' if context is None else 'a context'} for a network with text={self.text}; expected "
                "context=.. where text is not 0"
            )
        own = self.more(embedding).unflatten(1, (self.tokens, -1))  # (batch, tokens, features)
        mask = None
        if context is not None:
            own = torch.cat([context.to(own), own], 1)
            mask = None if context_mask is None else F.pad(context_mask.bool(), (0, self.tokens), value=True)
        return cast(Tensor, self.unet(x, t, context=own, context_mask=mask, pooled=embedding, **conditions))
