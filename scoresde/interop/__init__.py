"""Interoperation: solvers and score models in the pipelines of other packages.

:func:`diffusers_scheduler` makes a scheduler for any ``DiffusionPipeline`` of diffusers, :func:`k_diffusion_sampler` a
function with the signature of k-diffusion's samplers, and :class:`AskTell` runs a solver inside any other loop.
:func:`fit_posterior` estimates the posteriors of parameters by a score model conditioned on observations, and
:func:`calibration` tests them.
"""

from scoresde.interop.ask_tell import AskTell, Question
from scoresde.interop.calibration import Calibration, calibration
from scoresde.interop.diffusers import diffusers_scheduler
from scoresde.interop.k_diffusion import KSampler, k_diffusion_sampler
from scoresde.interop.posterior import EstimatedPosterior, fit_posterior

__all__ = [
    "AskTell",
    "Calibration",
    "EstimatedPosterior",
    "KSampler",
    "Question",
    "calibration",
    "diffusers_scheduler",
    "fit_posterior",
    "k_diffusion_sampler",
]
