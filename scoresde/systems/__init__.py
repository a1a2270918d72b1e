"""Systems: what is composed of several models, each a short file that reads from top to bottom."""

from scoresde.systems.conditioning import conditions_of, nulls_of, with_dropout
from scoresde.systems.latent import LatentDiffusion, train_latent
from scoresde.systems.latents import Latents

__all__ = ["LatentDiffusion", "Latents", "conditions_of", "nulls_of", "train_latent", "with_dropout"]
