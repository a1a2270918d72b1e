"""Score-based generative models seen as stochastic differential equations."""

from scoresde import analysis, models, objectives, problems, solvers, weights
from scoresde.chain import DDPM, NCSN, GaussianChain
from scoresde.compare import compare
from scoresde.likelihood import Likelihood, log_likelihood
from scoresde.sampling import NonFiniteError, Samples, sample
from scoresde.score import ScoreModel
from scoresde.sde import EDM, SDE, VE, VP, CosineVP, GaussianSDE, RectifiedFlow, SubVP
from scoresde.training import FitResult, fit, load, save

__version__ = "0.1.0"
__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "FitResult",
    "GaussianChain",
    "GaussianSDE",
    "Likelihood",
    "NonFiniteError",
    "RectifiedFlow",
    "Samples",
    "ScoreModel",
    "SubVP",
    "analysis",
    "compare",
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
