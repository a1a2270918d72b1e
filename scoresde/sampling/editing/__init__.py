"""Encoding of data along the probability flow, and editing of what it gives: latents, partial noising, temperature."""

from scoresde.sampling.editing.encoding import decode, encode
from scoresde.sampling.editing.interpolation import interpolate
from scoresde.sampling.editing.invertible import Bidirectional, Coupled, Invertible, Pair
from scoresde.sampling.editing.latents import combine, latents, slerp
from scoresde.sampling.editing.partial_noise import sdedit
from scoresde.sampling.editing.temperature import Tempered

__all__ = [
    "Bidirectional",
    "Coupled",
    "Invertible",
    "Pair",
    "Tempered",
    "combine",
    "decode",
    "encode",
    "interpolate",
    "latents",
    "sdedit",
    "slerp",
]
