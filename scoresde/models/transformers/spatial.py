"""The transformer at one resolution of a U-Net, whose tokens are the points of the image."""

from __future__ import annotations

from torch import Tensor, nn

from scoresde.models.blocks import Style
from scoresde.models.transformers.tokens import TokenBlock

__all__ = ["SpatialTransformer"]


class SpatialTransformer(nn.Module):
    """A residual transformer over the points of an image, which attend to themselves and then to a context sequence.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752, appendix E.

    Args:
        channels: number of channels, which is the number of features of a token.
        style: the settings of the network; ``style.context`` is the number of features of the context, and ``None`` for a
            transformer without.
        depth: number of blocks.

    Example:
        >>> import torch
        >>> from scoresde.models.autoencoder.coder import style
        >>> SpatialTransformer(8, style(2, 4, 0.0), depth=1)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, style: Style, depth: int) -> None:
        super().__init__()
        contexts = (None,) if style.context is None else (None, style.context)
        self.style = style
        self.norm = style.norm(channels, eps=1e-6)
        self.inward, self.outward = nn.Linear(channels, channels), nn.Linear(channels, channels)
        heads = style.heads_of(channels)
        self.blocks = nn.ModuleList([TokenBlock(channels, heads, contexts=contexts) for _ in range(depth)])

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer to ``x`` of shape ``(batch, channels, *axes)``.

        ``context`` has shape ``(batch, tokens, features)``; ``mask``, shape ``(batch, tokens)``, is true for the tokens that
        are attended to.
        """
        h = self.inward(self.norm(x).flatten(2).transpose(1, 2))  # (batch, points, channels)
        for block in self.blocks:
            h = block(h, context, mask)
        return self.style.add(x, self.outward(h).transpose(1, 2).reshape(x.shape))
