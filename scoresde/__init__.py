"""Score-based generative models seen as stochastic differential equations."""

from scoresde import analysis, models, objectives, problems, solvers, weights
from scoresde.base.version import __version__
from scoresde.comparison import compare
from scoresde.sampling import Likelihood, NonFiniteError, Samples, log_likelihood, sample
from scoresde.score import ScoreModel, Shared
from scoresde.sde import (
    DDPM,
    EDM,
    NCSN,
    SDE,
    VE,
    VP,
    CosineVP,
    FunctionSDE,
    GaussianChain,
    GaussianSDE,
    GeneralSDE,
    RectifiedFlow,
    SubVP,
    discretize,
)
from scoresde.training import FitResult, fit, load, save

__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "FitResult",
    "FunctionSDE",
    "GaussianChain",
    "GaussianSDE",
    "GeneralSDE",
    "Likelihood",
    "NonFiniteError",
    "RectifiedFlow",
    "Samples",
    "ScoreModel",
    "Shared",
    "SubVP",
    "__version__",
    "analysis",
    "compare",
    "discretize",
    "fit",
    "load",
    "log_likelihood",
    "models",
    "objectives",
    "problems",
    "sample",
    "save",
    "solvers",
    "weights",
]
