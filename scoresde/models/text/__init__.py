"""Text as a condition: frozen encoders of the transformers library, and models that contrast images with texts."""

from scoresde.models.text.contrastive import Contrastive, ContrastiveImages
from scoresde.models.text.encoder import Text, TextEncoder

__all__ = ["Contrastive", "ContrastiveImages", "Text", "TextEncoder"]
