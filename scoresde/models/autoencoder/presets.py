"""The published autoencoders: their arguments, their numbers of parameters, and the sources of both."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from scoresde.base.names import Table
from scoresde.models.autoencoder.kl import KLAutoencoder
from scoresde.models.autoencoder.vq import VQAutoencoder
from scoresde.models.presets import PublishedNetwork

__all__ = ["AUTOENCODERS"]

_LDM = "Rombach et al., 2022, https://arxiv.org/abs/2112.10752, appendix D; configs of CompVis/latent-diffusion"
_SD3 = "Esser et al., 2024, https://arxiv.org/abs/2403.03206; vae/config.json of Stable Diffusion 3"


def _kl(parameters: int, source: str, **config: Any) -> PublishedNetwork:
    return PublishedNetwork(KLAutoencoder, parameters, source, MappingProxyType(config))


def _vq(parameters: int, source: str, **config: Any) -> PublishedNetwork:
    return PublishedNetwork(VQAutoencoder, parameters, source, MappingProxyType(config))


AUTOENCODERS: Table[PublishedNetwork] = Table(
    "autoencoder",
    "scoresde.models.autoencoder.AUTOENCODERS",
    {
        "kl-f4": _kl(55_312_063, _LDM, latent_channels=3, multipliers=(1, 2, 4)),
        "kl-f8": _kl(83_653_863, _LDM),
        "kl-f8-16": _kl(83_819_683, _SD3, latent_channels=16, quant=False),
        "vq-f4": _vq(55_322_782, _LDM),
        "vq-f8": _vq(67_717_295, _LDM, latent_channels=4, multipliers=(1, 2, 2, 4), attention=(-1,), codes=16384),
    },
    check=lambda value: isinstance(value, PublishedNetwork),
    expects="a scoresde.models.PublishedNetwork",
)
"""The published autoencoders by name: ``AUTOENCODERS["kl-f8"].build()`` is that of Stable Diffusion, whose latents have an
eighth of the height and width of an image."""
