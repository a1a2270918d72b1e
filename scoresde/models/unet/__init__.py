"""The U-Net: its arguments, its stages and the network."""

from scoresde.models.unet.network import UNet

__all__ = ["UNet"]
