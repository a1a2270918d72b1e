"""Training of score models: fitting, moving averages, logs, checkpoints, reports."""

from scoresde.training.averages import Average, ExponentialAverage, PowerAverage, combination, reconstruct
from scoresde.training.checkpoint import CheckpointError, load, load_companion, save
from scoresde.training.fit import FitResult, fit, result_of
from scoresde.training.logs import Log, read_log
from scoresde.training.report import Report, report
from scoresde.training.trainer import Keep, Trainer

__all__ = [
    "Average",
    "CheckpointError",
    "ExponentialAverage",
    "FitResult",
    "Keep",
    "Log",
    "PowerAverage",
    "Report",
    "Trainer",
    "combination",
    "fit",
    "load",
    "load_companion",
    "read_log",
    "reconstruct",
    "report",
    "result_of",
    "save",
]
