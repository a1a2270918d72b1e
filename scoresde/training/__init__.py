"""Training of score models: fitting, reporting, checkpoints."""

from scoresde.training.checkpoint import CheckpointError, load, save
from scoresde.training.fit import FitResult, fit
from scoresde.training.report import Report, report

__all__ = ["CheckpointError", "FitResult", "Report", "fit", "load", "report", "save"]
