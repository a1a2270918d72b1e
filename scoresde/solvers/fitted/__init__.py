"""Solvers fitted to one model: of learned numbers, of measured statistics, or chosen among others by a pilot."""

from scoresde.solvers.fitted.affine import Affine
from scoresde.solvers.fitted.chosen import Chosen, Pilot, Trial
from scoresde.solvers.fitted.general_linear import GeneralLinear, Statistics
from scoresde.solvers.fitted.kept import model_identity
from scoresde.solvers.fitted.midpoints import Midpoints, MidpointSteps, midpoint_rows
from scoresde.solvers.fitted.tuned import Tuned, TunedSteps, mixed_rows

__all__ = [
    "Affine",
    "Chosen",
    "GeneralLinear",
    "MidpointSteps",
    "Midpoints",
    "Pilot",
    "Statistics",
    "Trial",
    "Tuned",
    "TunedSteps",
    "midpoint_rows",
    "mixed_rows",
    "model_identity",
]
