"""Inverse problems: samples of the data given a measurement of them.

An :class:`Observation` is a measurement, the operator that made it (:mod:`scoresde.inverse.operators`) and its noise.
"""

from scoresde.inverse.observation import Observation, observe
from scoresde.inverse.operators import (
    Blur,
    Channels,
    Downsample,
    Fourier,
    Function,
    Grayscale,
    Mask,
    Matrix,
    Operator,
    Radon,
    Separable,
)

__all__ = [
    "Blur",
    "Channels",
    "Downsample",
    "Fourier",
    "Function",
    "Grayscale",
    "Mask",
    "Matrix",
    "Observation",
    "Operator",
    "Radon",
    "Separable",
    "observe",
]
