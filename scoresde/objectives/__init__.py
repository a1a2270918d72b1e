"""Objectives: what a score model is trained on.

An objective is a loss at given data, time and noise, averaged over a distribution of times. Denoising score matching is a
weighting and a distribution of times, and nothing else. The other objectives are the variational bound of a chain with its
learned variance, implicit and sliced score matching, the likelihood of data on a grid by uniform or learned
dequantization, and the classification of noised data.
"""

from scoresde.objectives.autoencoding import Autoencoding
from scoresde.objectives.bound import Hybrid, VariationalBound
from scoresde.objectives.classification import Classification
from scoresde.objectives.contrastive import ContrastiveLearning
from scoresde.objectives.dequantization import LearnedDequantization, LogisticNoise, bits_per_dim, dequantize
from scoresde.objectives.implicit import ImplicitScoreMatching
from scoresde.objectives.inpainting import Inpainted
from scoresde.objectives.label_dropout import LabelDropout
from scoresde.objectives.matching import DSM, HSM, NOISES, OBJECTIVES, Objective, noised, objective
from scoresde.objectives.super_resolution import (
    BlurredLow,
    LowAugmentation,
    NoisedLow,
    SuperResolved,
    downsampled,
)
from scoresde.objectives.times import (
    TIMES,
    AdaptiveTimes,
    AutoTimes,
    LikelihoodTimes,
    LogNormalTimes,
    ShiftedTimes,
    StepTimes,
    Times,
    UniformTimes,
    quantiles,
)
from scoresde.objectives.weightings import WEIGHTINGS, Weighting, min_snr, p2, sigmoid

__all__ = [
    "DSM",
    "HSM",
    "NOISES",
    "OBJECTIVES",
    "TIMES",
    "WEIGHTINGS",
    "AdaptiveTimes",
    "AutoTimes",
    "Autoencoding",
    "BlurredLow",
    "Classification",
    "ContrastiveLearning",
    "Hybrid",
    "ImplicitScoreMatching",
    "Inpainted",
    "LabelDropout",
    "LearnedDequantization",
    "LikelihoodTimes",
    "LogNormalTimes",
    "LogisticNoise",
    "LowAugmentation",
    "NoisedLow",
    "Objective",
    "ShiftedTimes",
    "StepTimes",
    "SuperResolved",
    "Times",
    "UniformTimes",
    "VariationalBound",
    "Weighting",
    "bits_per_dim",
    "dequantize",
    "downsampled",
    "min_snr",
    "noised",
    "objective",
    "p2",
    "quantiles",
    "sigmoid",
]
