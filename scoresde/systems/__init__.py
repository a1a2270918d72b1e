"""Systems: what is composed of several models, each a short file that reads from top to bottom."""

from scoresde.systems import scenes
from scoresde.systems.cascade import Cascade, CascadeStage, train_stage
from scoresde.systems.conditioning import conditions_of, guided, nulls_of, with_dropout
from scoresde.systems.latent import LatentDiffusion, train_latent
from scoresde.systems.latents import Latents
from scoresde.systems.rectified_flow import GuidanceTold, LatentFlow, train_latent_flow
from scoresde.systems.resized import Resized
from scoresde.systems.system import System
from scoresde.systems.text_to_image import TextToImage, glide, imagen, inpainting
from scoresde.systems.training import train_text_to_image, train_unclip
from scoresde.systems.unclip import UnCLIP

__all__ = [
    "Cascade",
    "CascadeStage",
    "GuidanceTold",
    "LatentDiffusion",
    "LatentFlow",
    "Latents",
    "Resized",
    "System",
    "TextToImage",
    "UnCLIP",
    "conditions_of",
    "glide",
    "guided",
    "imagen",
    "inpainting",
    "nulls_of",
    "scenes",
    "train_latent",
    "train_latent_flow",
    "train_stage",
    "train_text_to_image",
    "train_unclip",
    "with_dropout",
]
