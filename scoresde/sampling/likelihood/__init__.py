"""The likelihood of data under a score model: the change of variables along the probability flow, and bounds of it."""

from scoresde.sampling.likelihood.bound import Bound, importance_weighted, variational_bound
from scoresde.sampling.likelihood.change_of_variables import log_likelihood
from scoresde.sampling.likelihood.divergence import TRACES, TraceEstimate
from scoresde.sampling.likelihood.result import Likelihood

__all__ = ["TRACES", "Bound", "Likelihood", "TraceEstimate", "importance_weighted", "log_likelihood", "variational_bound"]
