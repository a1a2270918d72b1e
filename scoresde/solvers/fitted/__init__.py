"""Solvers fitted to one model: those of learned numbers, and those chosen among others by a pilot."""

from scoresde.solvers.fitted.chosen import Chosen, Pilot, Trial
from scoresde.solvers.fitted.kept import model_identity
from scoresde.solvers.fitted.tuned import Tuned, TunedSteps, mixed_rows

__all__ = ["Chosen", "Pilot", "Trial", "Tuned", "TunedSteps", "mixed_rows", "model_identity"]
