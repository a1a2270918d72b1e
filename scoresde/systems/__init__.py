"""Systems: what is composed of several models, each a short file that reads from top to bottom."""

from scoresde.systems import scenes
from scoresde.systems.cascade import Cascade, CascadeStage, train_stage
from scoresde.systems.conditioning import conditions_of, guided, nulls_of, with_dropout
from scoresde.systems.filling import fill
from scoresde.systems.latent import LatentDiffusion, train_latent
from scoresde.systems.latents import Latents
from scoresde.systems.rectified_flow import GuidanceTold, LatentFlow, train_latent_flow
from scoresde.systems.resized import Resized
from scoresde.systems.series import forecast, impute
from scoresde.systems.system import System
from scoresde.systems.text_to_image import TextToImage, glide, imagen, inpainting
from scoresde.systems.training import train_text_to_image, train_unclip
from scoresde.systems.unclip import UnCLIP
from scoresde.systems.video import WithImages, extend, from_images, given_frames, interpolate_frames, predict_frames

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
    "WithImages",
    "conditions_of",
    "extend",
    "fill",
    "forecast",
    "from_images",
    "given_frames",
    "glide",
    "guided",
    "imagen",
    "impute",
    "inpainting",
    "interpolate_frames",
    "nulls_of",
    "predict_frames",
    "scenes",
    "train_latent",
    "train_latent_flow",
    "train_stage",
    "train_text_to_image",
    "train_unclip",
    "with_dropout",
]
