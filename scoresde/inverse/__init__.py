"""Inverse problems: samples of the data given a measurement of them.

An :class:`Observation` is a measurement, the operator that made it (:mod:`scoresde.inverse.operators`) and its noise. A
method that changes the data prediction is a score model around the model of the data, for every solver (:data:`METHODS`).
One that also draws noise in a way of its own is a solver (:data:`SAMPLERS`). :func:`smc` weighs and resamples particles.

=======================  ===============  =====================  ===========================  =============================
method                   operator         noise                  calls for a prediction        samples of the posterior
=======================  ===============  =====================  ===========================  =============================
:class:`DPS`             any              any                    one backward                  biased
:class:`PiGDM`           linear           any                    one backward                  exact for white Gaussian data
:class:`TMPD`            linear           any                    backward, one a measurement   exact for Gaussian data
:class:`MMPS`            linear           any                    backward, one an iteration    exact for Gaussian data
:class:`DDNM`            linear           left out               no backward                   biased
:class:`DiffPIR`         linear           any                    no backward                   biased
``reconstruction``       linear           left out               one backward                  biased
:func:`ddrm`             with an SVD      Gaussian               no backward                   biased
:func:`ddnm_plus`        with an SVD      Gaussian               no backward                   biased
:func:`daps`             any              any with a likelihood  no backward                   exact for white Gaussian data
:func:`replacement`      linear           Gaussian               no backward                   biased
:func:`repaint`          linear           Gaussian               no backward                   less biased, the longer
:func:`smc`              any              any with a likelihood  one backward                  exact for many particles
=======================  ===============  =====================  ===========================  =============================
"""

from scoresde.inverse.conditioned import Conditioned
from scoresde.inverse.methods.daps import daps
from scoresde.inverse.methods.ddnm import DDNM, ddnm_plus
from scoresde.inverse.methods.ddrm import ddrm
from scoresde.inverse.methods.diffpir import DiffPIR, renoised
from scoresde.inverse.methods.dps import DPS
from scoresde.inverse.methods.mmps import MMPS
from scoresde.inverse.methods.pigdm import PiGDM
from scoresde.inverse.methods.reconstruction import ReconstructionGuidance
from scoresde.inverse.methods.repaint import repaint, resampled
from scoresde.inverse.methods.replacement import replacement
from scoresde.inverse.methods.smc import smc
from scoresde.inverse.methods.tmpd import TMPD
from scoresde.inverse.observation import Observation, observe
from scoresde.inverse.operators import (
    Blur,
    Channels,
    Composed,
    Downsample,
    Fourier,
    Function,
    Grayscale,
    Mask,
    Matrix,
    Operator,
    Radon,
    Separable,
    Singular,
    gaussian_kernel,
    high_dynamic_range,
    jpeg,
    motion_kernel,
    phase_retrieval,
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
    "Composed",
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
    "ReconstructionGuidance",
    "Separable",
    "Singular",
    "Steered",
    "daps",
    "ddnm_plus",
    "ddrm",
    "gaussian_kernel",
    "high_dynamic_range",
    "jpeg",
    "motion_kernel",
    "observe",
    "phase_retrieval",
    "renoised",
    "repaint",
    "replacement",
    "resampled",
    "smc",
    "steered",
]
