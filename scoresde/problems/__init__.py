"""Analytic distributions: density and score are known exactly under every SDE with Gaussian marginals.

They are the ground truth that solvers and networks are measured against. :data:`PROBLEMS` has them by name; a distribution
of your own is a subclass of :class:`Problem`.
"""

from scoresde.problems.base import Posterior, Problem
from scoresde.problems.empirical import Empirical
from scoresde.problems.fitted import ppca_mixture
from scoresde.problems.heavy import Funnel, ScaleMixture, funnel, laplace, student_t
from scoresde.problems.kernel import checkerboard, pinwheel, rings, spirals, swiss_roll
from scoresde.problems.low_rank import LowRankMixture
from scoresde.problems.mixture import Gaussian, GaussianMixture
from scoresde.problems.named import (
    PROBLEMS,
    digits,
    gaussian,
    grid,
    moons,
    ppca_digits,
    random_mixture,
    ring,
    spiral,
    textures,
)

__all__ = [
    "PROBLEMS",
    "Empirical",
    "Funnel",
    "Gaussian",
    "GaussianMixture",
    "LowRankMixture",
    "Posterior",
    "Problem",
    "ScaleMixture",
    "checkerboard",
    "digits",
    "funnel",
    "gaussian",
    "grid",
    "laplace",
    "moons",
    "pinwheel",
    "ppca_digits",
    "ppca_mixture",
    "random_mixture",
    "ring",
    "rings",
    "spiral",
    "spirals",
    "student_t",
    "swiss_roll",
    "textures",
]
