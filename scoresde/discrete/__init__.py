"""Models of tokens: text, categories and levels, noised by Markov chains and sampled like everything else.

A **process** turns tokens into noise, a **denoising model** estimates the tokens from noised ones, and a **solver** turns
noise into tokens with it, as an SDE, a score model and a solver do with real numbers. :func:`scoresde.sample`,
:func:`scoresde.fit` and :func:`scoresde.compare` take these models.
"""

from scoresde.discrete.drawing import TokenState, token_times
from scoresde.discrete.embedded import EmbeddedChain, EmbeddedModel, TokenCrossEntropy, TokenEmbedding
from scoresde.discrete.guidance import GuidedRates, GuidedTokens
from scoresde.discrete.infilling import Infilled
from scoresde.discrete.laws import all_sequences, noised_law, solver_law, total_variation
from scoresde.discrete.markov import ExactDenoiser, MarkovChain
from scoresde.discrete.model import DenoisingModel, RatioModel, TokenWrapper
from scoresde.discrete.objectives import (
    TOKEN_OBJECTIVES,
    ChainBound,
    ChainTimes,
    MaskedBound,
    ScoreEntropy,
    TokenObjective,
)
from scoresde.discrete.prediction import TokenPrediction
from scoresde.discrete.processes.draws import draw_tokens
from scoresde.discrete.processes.process import Absorbing, Mixing, TokenProcess, Uniform
from scoresde.discrete.processes.rates import DiscretizedGaussian, RateMatrix
from scoresde.discrete.processes.schedules import (
    NOISE_SCHEDULES,
    ConstantNoise,
    CosineNoise,
    GeometricNoise,
    LinearNoise,
    NoiseSchedule,
)
from scoresde.discrete.solvers import (
    TOKEN_SOLVERS,
    Analytic,
    Ancestral,
    EulerTokens,
    FirstHitting,
    TauLeaping,
    ThetaTrapezoidal,
    TokenSolver,
)

__all__ = [
    "NOISE_SCHEDULES",
    "TOKEN_OBJECTIVES",
    "TOKEN_SOLVERS",
    "Absorbing",
    "Analytic",
    "Ancestral",
    "ChainBound",
    "ChainTimes",
    "ConstantNoise",
    "CosineNoise",
    "DenoisingModel",
    "DiscretizedGaussian",
    "EmbeddedChain",
    "EmbeddedModel",
    "EulerTokens",
    "ExactDenoiser",
    "FirstHitting",
    "GeometricNoise",
    "GuidedRates",
    "GuidedTokens",
    "Infilled",
    "LinearNoise",
    "MarkovChain",
    "MaskedBound",
    "Mixing",
    "NoiseSchedule",
    "RateMatrix",
    "RatioModel",
    "ScoreEntropy",
    "TauLeaping",
    "ThetaTrapezoidal",
    "TokenCrossEntropy",
    "TokenEmbedding",
    "TokenObjective",
    "TokenPrediction",
    "TokenProcess",
    "TokenSolver",
    "TokenState",
    "TokenWrapper",
    "Uniform",
    "all_sequences",
    "draw_tokens",
    "noised_law",
    "solver_law",
    "token_times",
    "total_variation",
]
