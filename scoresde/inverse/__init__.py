"""Inverse problems: samples of the data given a measurement of them.

An :class:`Observation` is a measurement, the operator that made it (:mod:`scoresde.inverse.operators`) and its noise. A
method that changes the data prediction is a score model around the model of the data, for every solver (:data:`METHODS`).
One that also draws noise in a way of its own is a solver (:data:`SAMPLERS`). :func:`smc` weighs and resamples particles.
"""

from scoresde.inverse.conditioned import Conditioned
from scoresde.inverse.methods.daps import daps
from scoresde.inverse.methods.ddnm import DDNM, ddnm_plus
from scoresde.inverse.methods.ddrm import ddrm
from scoresde.inverse.methods.diffpir import DiffPIR, renoised
from scoresde.inverse.methods.dps import DPS
from scoresde.inverse.methods.mmps import MMPS
from scoresde.inverse.methods.pigdm import PiGDM
from scoresde.inverse.methods.repaint import repaint, resampled
from scoresde.inverse.methods.replacement import replacement
from scoresde.inverse.methods.smc import smc
from scoresde.inverse.methods.tmpd import TMPD
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
from scoresde.inverse.steered import Steered, steered
from scoresde.inverse.table import METHODS, SAMPLERS

__all__ = [
    "DDNM",
    "DPS",
    "METHODS",
    "MMPS",
    "SAMPLERS",
    "TMPD",
    "Blur",
    "Channels",
    "Conditioned",
    "DiffPIR",
    "Downsample",
    "Fourier",
    "Function",
    "Grayscale",
    "Mask",
    "Matrix",
    "Observation",
    "Operator",
    "PiGDM",
    "Radon",
    "Separable",
    "Steered",
    "daps",
    "ddnm_plus",
    "ddrm",
    "observe",
    "renoised",
    "repaint",
    "replacement",
    "resampled",
    "smc",
    "steered",
]
