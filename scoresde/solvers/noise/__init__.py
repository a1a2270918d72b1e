"""Sources of noise: fresh draws that a sample owns, or one Brownian path that several solvers share."""

from scoresde.solvers.noise.brownian import BrownianNoise
from scoresde.solvers.noise.fresh import FreshNoise, NoiseSource, sample_seeds

__all__ = ["BrownianNoise", "FreshNoise", "NoiseSource", "sample_seeds"]
