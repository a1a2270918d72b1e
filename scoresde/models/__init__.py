"""Networks ``net(x, t, **conditions)``; nothing here knows an SDE or a solver."""

from scoresde.models.mlp import MLP
from scoresde.models.unet import UNet

__all__ = ["MLP", "UNet"]
