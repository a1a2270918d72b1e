"""The diffusion transformer (DiT), a transformer over patches of an image with adaptive normalizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.embedding import NoiseEmbedding
from scoresde.models.embedding import time_features as features_of
from scoresde.models.labels import Label
from scoresde.models.layers import zero
from scoresde.models.transformers.positions import grid, sines

__all__ = ["DiT"]


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + scale) h + shift for h of shape (batch, patches, width) and the others (batch, width)."""
    return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


class _Block(nn.Module):
    """Attention and a perceptron, each after an adaptive normalization and before a gate that the embedding sets."""

    def __init__(self, width: int, heads: int, ratio: float, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, int(ratio * width)), nn.Linear(int(ratio * width), width)
        self.modulation = nn.Linear(embedding, 6 * width)

    def _attend(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch, heads, patches, c)
        h = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.output(h.transpose(1, 2).flatten(2)))  # (batch, patches, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding).chunk(6, dim=1)  # (batch, width) each
        h = h + gate1[:, None] * self._attend(_modulate(self.norm(h), shift1, scale1))
        inner = F.gelu(self.hidden(_modulate(self.norm(h), shift2, scale2)), approximate="tanh")
        return cast(Tensor, h + gate2[:, None] * self.back(inner))


class DiT(nn.Module):
    r"""The diffusion transformer with adaptive layer normalization whose blocks start as the identity (adaLN-Zero).

    The image is cut into patches, each a token; the embedding of time and label scales, shifts and gates every branch.
    Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023, https://arxiv.org/abs/2212.09748.

    Args:
        channels: number of channels of an image.
        size: height and width of an image, or one number for both; multiples of ``patch``.
        patch: height and width of a patch.
        width: number of features of a token, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        ratio: number of hidden features of the perceptron, divided by ``width``.
        out_channels: number of channels of the output; ``None`` for the number of channels of an image.
        time: the kind of time features, as in :class:`UNet`: "octaves", for all times in an interval; "positional", for the
            steps of a chain; or "fourier".
        time_features: number of time features.
        time_scale: the unit of time, as in :class:`UNet`: 1 for octaves of times in [0, 1] and for positional features of
            the steps of a chain.
        num_classes: number of class labels; ``None`` for an unconditional network.
        unconditional: whether a network with classes also accepts "no label", index ``num_classes``. If not, every call
            needs a label.

    The output is zero at initialisation. :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, or that are not the required multiples.

    Example:
        >>> net = DiT(1, 8, width=32, depth=2, heads=4, num_classes=10)
        >>> net(torch.randn(3, 1, 8, 8), torch.rand(3), label=torch.tensor([4, 0, 9])).shape
        torch.Size([3, 1, 8, 8])
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        patch: int = 2,
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        out_channels: int | None = None,
        time: str = "octaves",
        time_features: int = 256,
        time_scale: float = 1.0,
        num_classes: int | None = None,
        unconditional: bool = True,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        height, wide = (size, size) if isinstance(size, int) else size
        if min(channels, height, wide, patch, width, depth, heads) < 1 or ratio <= 0:
            raise ValueError(
                f"got channels={channels}, size={size}, patch={patch}, width={width}, depth={depth}, heads={heads}, "
                f"ratio={ratio}; expected positive sizes"
            )
        if height % patch or wide % patch:
            raise ValueError(f"got size={size} for patches of {patch}; expected a multiple of the patch: pad the images")
        if width % 4 or width % heads:
            raise ValueError(f"got width={width} with {heads} heads; expected a multiple of 4 and of the heads")
        self.config: dict[str, Any] = config | {"size": [height, wide]}
        self.shape, self.patch = (channels, height, wide), patch
        self.grid = (height // patch, wide // patch)
        self.register_buffer("positions", sines(grid(*self.grid), width), persistent=False)
        of_time = features_of(time, time_features, time_scale=time_scale)
        self.embedding = NoiseEmbedding(of_time, width, num_classes=num_classes, unconditional=unconditional)
        self.stem = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.ModuleList([_Block(width, heads, ratio, width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, patch**2 * (channels if out_channels is None else out_channels))
        self._initialize()

    def _initialize(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        # The first layer takes a patch as one vector, so its fan-in and fan-out are those of a linear layer.
        nn.init.xavier_uniform_(self.stem.weight.view(self.stem.out_channels, -1))
        nn.init.zeros_(cast(Tensor, self.stem.bias))
        for part in (self.embedding.layer1, self.embedding.layer2):
            nn.init.normal_(part.weight, std=0.02)
        for block in cast(list[_Block], self.blocks):
            zero(block.modulation)
        zero(self.modulation)
        zero(self.output)

    def forward(self, x: Tensor, t: Tensor, label: Label | None = None) -> Tensor:
        """Return the output ``(batch, out_channels, ..)`` at images ``x``, for ``t`` and ``label`` of shape ``(batch,)``."""
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"got x of shape {tuple(x.shape)}; expected (batch, {', '.join(map(str, self.shape))}): a DiT has the size "
                "that it was built with"
            )
        embedding = self.embedding(t, label)
        h = self.stem(x).flatten(2).transpose(1, 2) + self.positions.to(x.dtype)  # (batch, patches, width)
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulation(embedding).chunk(2, dim=1)  # (batch, width) each
        h = self.output(_modulate(self.norm(h), shift, scale))  # (batch, patches, patch * patch * out_channels)
        h = h.unflatten(1, self.grid).unflatten(3, (self.patch, self.patch, -1))  # (batch, rows, columns, p, p, c)
        return cast(Tensor, h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))  # (batch, c, height, width)
