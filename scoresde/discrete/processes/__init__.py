"""Processes that turn tokens into noise, their schedules, and draws of tokens from their laws."""

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

__all__ = [
    "NOISE_SCHEDULES",
    "Absorbing",
    "ConstantNoise",
    "CosineNoise",
    "DiscretizedGaussian",
    "GeometricNoise",
    "LinearNoise",
    "Mixing",
    "NoiseSchedule",
    "RateMatrix",
    "TokenProcess",
    "Uniform",
    "draw_tokens",
]
