"""The autoencoder with quantised latents of latent diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from scoresde.models.autoencoder.base import Autoencoder, Reconstructed
from scoresde.models.autoencoder.codebook import Codebook
from scoresde.models.autoencoder.coder import Decoder, Encoder, style
from scoresde.models.autoencoder.kl import sizes_of

__all__ = ["VQAutoencoder"]


class VQAutoencoder(Autoencoder):
    """The autoencoder whose latents are quantised by a codebook, of VQGAN and of latent diffusion.

    The quantisation belongs to the decoder: :meth:`encode` returns the latents before it, on which diffusion runs, and
    :meth:`decode` quantises.

    Args:
        channels: number of channels of a sample of shape ``(channels, *axes)``.
        latent_channels: number of channels of a latent before the pointwise convolution to the features of a code.
        width, multipliers, dims, blocks, attention, middle_attention, groups, dropout: the same as for
            :class:`KLAutoencoder`.
        codes: number of codes.
        features: number of features of a code, the channels of what diffusion sees; ``None`` for ``latent_channels``.
        commitment, update, decay, revive: the same as for :class:`Codebook`.

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, and channels that the groups do not divide.

    Sources: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021,
    https://arxiv.org/abs/2012.09841; Rombach et al., 2022, https://arxiv.org/abs/2112.10752.

    Example:
        >>> import torch
        >>> net = VQAutoencoder(3, 4, 8, (1, 2), groups=4, codes=16)
        >>> net.decode(net.encode(torch.zeros(2, 3, 16, 16))).shape, net.latent_event((3, 16, 16))
        (torch.Size([2, 3, 16, 16]), (4, 8, 8))
    """

    def __init__(
        self,
        channels: int = 3,
        latent_channels: int = 3,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 4),
        *,
        dims: int = 2,
        blocks: int = 2,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        groups: int = 32,
        dropout: float = 0.0,
        codes: int = 8192,
        features: int | None = None,
        commitment: float = 0.25,
        update: str = "gradient",
        decay: float = 0.99,
        revive: float = 0.03,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        sizes, d = sizes_of(config), latent_channels if features is None else features
        super().__init__(d, 2 ** (len(sizes) - 1))
        self.config: dict[str, Any] = config
        shared, levels, c = style(dims, groups, dropout), config["attention"], latent_channels
        self.encoder = Encoder(channels, c, sizes, blocks, levels, middle_attention, shared)
        self.decoder = Decoder(c, channels, sizes, blocks, levels, middle_attention, shared)
        self.quant: nn.Module = shared.conv(c, d, 1)
        self.post_quant: nn.Module = shared.conv(d, c, 1)
        self.codebook = Codebook(codes, d, commitment=commitment, update=update, decay=decay, revive=revive)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of ``x`` before quantisation, shape ``(batch, features, *axes)``."""
        self.check(x)
        return cast(Tensor, self.quant(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Return the data of the codes nearest to the latents ``z``, shape ``(batch, channels, *axes)``."""
        return cast(Tensor, self.decoder(self.post_quant(self.codebook.lookup(self.codebook.indices(z)))))

    def forward(self, x: Tensor, noise: Tensor) -> Reconstructed:
        """Return the reconstruction of ``x`` from quantised latents, and the penalty of the codebook; no noise is used."""
        quantised, penalty = self.codebook(self.encode(x))
        return Reconstructed(self.decoder(self.post_quant(quantised)), penalty)

    @property
    def last_layer(self) -> Tensor:
        """The weight of the last convolution of the decoder."""
        return cast(Tensor, self.decoder.output.weight)
