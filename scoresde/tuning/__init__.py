"""Tuning: solvers and times fitted to a model, and models fitted to a solver of few steps.

:func:`choose` tries the solvers of the table on a model and keeps the best for each number of evaluations. :func:`tune`
learns the times and coefficients of a solver for a few evaluations. The others are tools of their papers: :func:`gits` and
:func:`ays` choose the times alone, :func:`midpoints` learns the inner time of each step, :func:`dpm_solver_v3` takes the
linear part of a solver from statistics of the model, and :func:`optimal_variance` the noise of the ancestral sampler.
:mod:`scoresde.tuning.students` distills a model into one sampled in one to four evaluations.
"""

from scoresde.tuning import students
from scoresde.tuning.ays import ays, ays_costs, denoising_errors
from scoresde.tuning.chains import cheapest_chain
from scoresde.tuning.choose import choose
from scoresde.tuning.dpm_solver_v3 import dpm_solver_v3, linear_statistics
from scoresde.tuning.gits import gits, gits_costs
from scoresde.tuning.midpoints import midpoints
from scoresde.tuning.optimal_variance import SquaredScore, optimal_variance, squared_score
from scoresde.tuning.plot_trials import plot_trials
from scoresde.tuning.tune import tune

__all__ = [
    "SquaredScore",
    "ays",
    "ays_costs",
    "cheapest_chain",
    "choose",
    "denoising_errors",
    "dpm_solver_v3",
    "gits",
    "gits_costs",
    "linear_statistics",
    "midpoints",
    "optimal_variance",
    "plot_trials",
    "squared_score",
    "students",
    "tune",
]
