r"""The autoencoder with Gaussian latents of latent diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from scoresde.models.autoencoder.base import Autoencoder, Reconstructed
from scoresde.models.autoencoder.coder import Decoder, Encoder, style
from scoresde.models.layers import widths

__all__ = ["LOG_VARIANCES", "KLAutoencoder", "kl", "sizes_of"]

LOG_VARIANCES = (-30.0, 20.0)
"""The bounds to which the logarithms of variances are clamped, as published."""


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return the divergence of N(mean, variance) from N(0, 1), summed over a sample; shape ``(batch,)``.

    .. math:: \tfrac12 \sum_i \left( \mu_i^2 + v_i - 1 - \log v_i \right)

    Example:
        >>> import torch
        >>> kl(torch.ones(2, 3), torch.zeros(2, 3))
        tensor([1.5000, 1.5000])
    """
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def sizes_of(config: dict[str, Any]) -> list[int]:
    """Return the numbers of channels of the levels of an autoencoder with these arguments.

    Raises:
        ValueError: for sizes that are not positive, other numbers of axes than 1 to 3, and levels that do not exist.
    """
    levels, sizes = len(config["multipliers"]), widths(config["width"], config["multipliers"])
    least = [config[name] for name in ("channels", "latent_channels", "width", "blocks", "groups")]
    if not levels or min(*least, *sizes) < 1:
        raise ValueError(
            f"got channels={config['channels']}, latent_channels={config['latent_channels']}, width={config['width']}, "
            f"multipliers={tuple(config['multipliers'])}, blocks={config['blocks']}, groups={config['groups']}; expected "
            "positive sizes and at least one level"
        )
    if config["dims"] not in (1, 2, 3):
        raise ValueError(f"got dims={config['dims']}; expected 1 for series, 2 for images or 3 for videos")
    if bad := sorted(set(config["attention"]) - set(range(-levels, levels))):
        raise ValueError(f"got attention at levels {bad}; expected levels from {-levels} to {levels - 1}")
    config["attention"] = sorted(i % levels for i in config["attention"])
    config["multipliers"] = list(config["multipliers"])
    return sizes


class KLAutoencoder(Autoencoder):
    r"""The autoencoder with Gaussian latents, lightly pulled towards N(0, 1), of latent diffusion and Stable Diffusion.

    The encoder gives the mean and the logarithm of the variance of a latent, clamped to [-30, 20]. Training decodes a draw,
    :math:`z = \mu + e^{\frac12 \log v}\, \epsilon`; :meth:`encode` returns the mean. The penalty is the divergence from
    N(0, 1), summed over the latent and divided by the number of numbers of a sample, the unit of a loss that is a mean over
    the sample.

    Args:
        channels: number of channels of a sample of shape ``(channels, *axes)``.
        latent_channels: number of channels of a latent.
        width: number of channels that ``multipliers`` multiply.
        multipliers: one multiplier per level; each level but the last halves the resolution.
        dims: number of axes: 1 for series, 2 for images, 3 for videos.
        blocks: number of residual blocks per level of the encoder; the decoder has one more.
        attention: the levels with attention, 0 for the full resolution, -1 for the lowest.
        middle_attention: apply attention at the lowest resolution, between encoder and latents.
        quant: apply pointwise convolutions to the moments and to the latents, as Stable Diffusion 1 to XL do.
        groups: number of groups of each normalization, at most the number of channels.
        dropout: probability of zeroing a feature of a residual block in training.

    :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive, and channels that the groups do not divide.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752.

    Example:
        >>> import torch
        >>> net = KLAutoencoder(3, 4, 8, (1, 2), groups=4)
        >>> net.encode(torch.zeros(2, 3, 16, 16)).shape, net.latent_event((3, 16, 16))
        (torch.Size([2, 4, 8, 8]), (4, 8, 8))
    """

    def __init__(
        self,
        channels: int = 3,
        latent_channels: int = 4,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 4, 4),
        *,
        dims: int = 2,
        blocks: int = 2,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        quant: bool = True,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        sizes = sizes_of(config)
        super().__init__(latent_channels, 2 ** (len(sizes) - 1))
        self.config: dict[str, Any] = config
        shared, levels, c = style(dims, groups, dropout), config["attention"], latent_channels
        self.encoder = Encoder(channels, 2 * c, sizes, blocks, levels, middle_attention, shared)
        self.decoder = Decoder(c, channels, sizes, blocks, levels, middle_attention, shared)
        self.quant = shared.conv(2 * c, 2 * c, 1) if quant else nn.Identity()
        self.post_quant = shared.conv(c, c, 1) if quant else nn.Identity()

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the clamped logarithm of the variance of the latents of ``x``."""
        self.check(x)
        mean, log_variance = self.quant(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def encode(self, x: Tensor) -> Tensor:
        """Return the means of the latents of ``x``, shape ``(batch, latent_channels, *axes)``."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the data of the latents ``z``, shape ``(batch, channels, *axes)``."""
        return cast(Tensor, self.decoder(self.post_quant(z)))

    def forward(self, x: Tensor, noise: Tensor) -> Reconstructed:
        """Return the reconstruction of ``x`` from drawn latents, and their divergence per number of a sample."""
        mean, log_variance = self.moments(x)
        z = mean + (0.5 * log_variance).exp() * noise
        return Reconstructed(self.decode(z), kl(mean, log_variance) / x[0].numel())

    @property
    def last_layer(self) -> Tensor:
        """The weight of the last convolution of the decoder."""
        return cast(Tensor, self.decoder.output.weight)
