"""Tuning: solvers fitted to a model, and models fitted to a solver of few steps.

:mod:`scoresde.tuning.students` distills a model into one that is sampled in one to four evaluations.
"""

from scoresde.tuning import students

__all__ = ["students"]
