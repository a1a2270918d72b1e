"""Sampling with any score model, solver and path; encoding and editing of data; and the likelihood of data."""

from scoresde.sampling.editing import (
    Bidirectional,
    Coupled,
    Invertible,
    Tempered,
    combine,
    decode,
    encode,
    interpolate,
    latents,
    sdedit,
    slerp,
)
from scoresde.sampling.likelihood import Likelihood, log_likelihood
from scoresde.sampling.samples import NonFiniteError, Samples, sample

__all__ = [
    "Bidirectional",
    "Coupled",
    "Invertible",
    "Likelihood",
    "NonFiniteError",
    "Samples",
    "Tempered",
    "combine",
    "decode",
    "encode",
    "interpolate",
    "latents",
    "log_likelihood",
    "sample",
    "sdedit",
    "slerp",
]
