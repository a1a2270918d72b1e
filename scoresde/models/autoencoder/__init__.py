"""Autoencoders, the first stage of latent diffusion: interface, networks, codebook, and the discriminator of patches."""

from scoresde.models.autoencoder.base import Autoencoder, Reconstructed
from scoresde.models.autoencoder.codebook import Codebook
from scoresde.models.autoencoder.discriminator import PatchDiscriminator
from scoresde.models.autoencoder.kl import KLAutoencoder
from scoresde.models.autoencoder.presets import AUTOENCODERS
from scoresde.models.autoencoder.vq import VQAutoencoder

__all__ = [
    "AUTOENCODERS",
    "Autoencoder",
    "Codebook",
    "KLAutoencoder",
    "PatchDiscriminator",
    "Reconstructed",
    "VQAutoencoder",
]
