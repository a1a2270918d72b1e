"""Networks ``net(x, t, **conditions)``, which are independent of SDEs and solvers."""

from scoresde.models.autoencoder import (
    AUTOENCODERS,
    Autoencoder,
    Codebook,
    KLAutoencoder,
    PatchDiscriminator,
    Reconstructed,
    VQAutoencoder,
)
from scoresde.models.conditioned import ImageEmbedded, Inpainting, SuperResolution
from scoresde.models.labels import Label
from scoresde.models.mlp import MLP
from scoresde.models.ncsnv2 import NCSNv2
from scoresde.models.points import EGNN
from scoresde.models.presets import NETWORKS, PublishedNetwork, build
from scoresde.models.text import Contrastive, ContrastiveImages, Text, TextEncoder
from scoresde.models.token_transformer import TokenTransformer
from scoresde.models.transformers import DiT, EmbeddingPrior, MMDiT
from scoresde.models.unet import UNet

__all__ = [
    "AUTOENCODERS",
    "EGNN",
    "MLP",
    "NETWORKS",
    "Autoencoder",
    "Codebook",
    "Contrastive",
    "ContrastiveImages",
    "DiT",
    "EmbeddingPrior",
    "ImageEmbedded",
    "Inpainting",
    "KLAutoencoder",
    "Label",
    "MMDiT",
    "NCSNv2",
    "PatchDiscriminator",
    "PublishedNetwork",
    "Reconstructed",
    "SuperResolution",
    "Text",
    "TextEncoder",
    "TokenTransformer",
    "UNet",
    "VQAutoencoder",
    "build",
]
