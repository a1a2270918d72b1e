"""Systems: what is composed of several models, each a short file that reads from top to bottom."""

from scoresde.systems import scenes
from scoresde.systems.cascade import Cascade, CascadeStage, train_stage
from scoresde.systems.conditioning import conditions_of, nulls_of, with_dropout
from scoresde.systems.latent import LatentDiffusion, train_latent
from scoresde.systems.latents import Latents
from scoresde.systems.resized import Resized

__all__ = [
    "Cascade",
    "CascadeStage",
    "LatentDiffusion",
    "Latents",
    "Resized",
    "conditions_of",
    "nulls_of",
    "scenes",
    "train_latent",
    "train_stage",
    "with_dropout",
]
