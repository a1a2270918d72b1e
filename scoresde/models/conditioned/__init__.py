"""U-Nets that are given other images: smaller ones, known parts, or embeddings."""

from scoresde.models.conditioned.image_embedded import ImageEmbedded
from scoresde.models.conditioned.inpainting import Inpainting
from scoresde.models.conditioned.super_resolution import SuperResolution

__all__ = ["ImageEmbedded", "Inpainting", "SuperResolution"]
