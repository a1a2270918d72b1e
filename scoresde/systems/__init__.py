"""Systems: what is composed of several models, each a short file that reads from top to bottom."""

from scoresde.systems.cascade import Cascade, CascadeStage, train_stage
from scoresde.systems.conditioning import conditions_of, nulls_of, with_dropout
from scoresde.systems.filling import fill
from scoresde.systems.latent import LatentDiffusion, train_latent
from scoresde.systems.latents import Latents
from scoresde.systems.resized import Resized
from scoresde.systems.series import forecast, impute
from scoresde.systems.video import WithImages, extend, from_images, given_frames, interpolate_frames, predict_frames

__all__ = [
    "Cascade",
    "CascadeStage",
    "LatentDiffusion",
    "Latents",
    "Resized",
    "WithImages",
    "conditions_of",
    "extend",
    "fill",
    "forecast",
    "from_images",
    "given_frames",
    "impute",
    "interpolate_frames",
    "nulls_of",
    "predict_frames",
    "train_latent",
    "train_stage",
    "with_dropout",
]
