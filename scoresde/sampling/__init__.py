"""Sampling with any score model, solver and path, and the likelihood of data."""

from scoresde.sampling.likelihood import Likelihood, log_likelihood
from scoresde.sampling.samples import NonFiniteError, Samples, sample

__all__ = ["Likelihood", "NonFiniteError", "Samples", "log_likelihood", "sample"]
