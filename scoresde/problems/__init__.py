"""Analytic distributions, whose density and score are known exactly under every SDE with Gaussian marginals.

They are the ground truth for measuring solvers and networks. :data:`PROBLEMS` lists them by name. For a distribution of your
own, subclass :class:`Problem`.
"""

from scoresde.problems.base import Posterior, Problem
from scoresde.problems.empirical import Empirical
from scoresde.problems.fitted import ppca_mixture
from scoresde.problems.gaussian_process import gaussian_process
from scoresde.problems.heavy import Funnel, ScaleMixture, funnel, laplace, student_t
from scoresde.problems.kernel import checkerboard, pinwheel, rings, spirals, swiss_roll
from scoresde.problems.low_rank import LowRankMixture
from scoresde.problems.mixture import Gaussian, GaussianMixture
from scoresde.problems.named import (
    PROBLEMS,
    digits,
    gaussian,
    grid,
    measured,
    moons,
    ppca_digits,
    random_mixture,
    ring,
    spiral,
    textures,
)
from scoresde.problems.particles import double_well, harmonic_cluster, lennard_jones, metropolis

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
    "double_well",
    "funnel",
    "gaussian",
    "gaussian_process",
    "grid",
    "harmonic_cluster",
    "laplace",
    "lennard_jones",
    "measured",
    "metropolis",
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
