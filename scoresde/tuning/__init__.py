"""Tuning: solvers and times fitted to a model, and models fitted to a solver of few steps.

:func:`choose` tries the solvers of the table on a model and keeps the best for each number of evaluations. :func:`tune`
learns the times and coefficients of a solver for a few evaluations. :func:`gits` and :func:`ays` choose the times alone, by
the rules of their papers. :mod:`scoresde.tuning.students` distills a model into one sampled in one to four evaluations.
"""

from scoresde.tuning import students
from scoresde.tuning.ays import ays, ays_costs, denoising_errors
from scoresde.tuning.chains import cheapest_chain
from scoresde.tuning.choose import choose, plot_trials
from scoresde.tuning.gits import gits, gits_costs
from scoresde.tuning.tune import tune

__all__ = [
    "ays",
    "ays_costs",
    "cheapest_chain",
    "choose",
    "denoising_errors",
    "gits",
    "gits_costs",
    "plot_trials",
    "students",
    "tune",
]
