"""Transformers: over patches of an image, over images and texts together, and inside a U-Net."""

from scoresde.models.transformers.dit import DiT
from scoresde.models.transformers.mmdit import MMDiT
from scoresde.models.transformers.prior import EmbeddingPrior
from scoresde.models.transformers.spatial import SpatialTransformer

__all__ = ["DiT", "EmbeddingPrior", "MMDiT", "SpatialTransformer"]
