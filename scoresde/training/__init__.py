"""Training of score models: fitting, moving averages, logs, checkpoints, reports."""

from scoresde.base.lock import InUseError
from scoresde.training.autoencoders import AutoencoderFit, fit_autoencoder, load_autoencoder
from scoresde.training.files.checkpoint import CheckpointError
from scoresde.training.files.logs import Log, read_log
from scoresde.training.files.models import load, load_companion, save, save_tuned
from scoresde.training.files.retention import Files
from scoresde.training.fit import FitResult, fit, result_of
from scoresde.training.method import Method
from scoresde.training.optimization.averages import Average, ExponentialAverage, PowerAverage, combination, reconstruct
from scoresde.training.optimization.schedules import Constant, Cosine, InverseSqrt, Linear, Schedule, StepDecay
from scoresde.training.report import Report, report
from scoresde.training.trainer import Trainer

__all__ = [
    "AutoencoderFit",
    "Average",
    "CheckpointError",
    "Constant",
    "Cosine",
    "ExponentialAverage",
    "Files",
    "FitResult",
    "InUseError",
    "InverseSqrt",
    "Linear",
    "Log",
    "Method",
    "PowerAverage",
    "Report",
    "Schedule",
    "StepDecay",
    "Trainer",
    "combination",
    "fit",
    "fit_autoencoder",
    "load",
    "load_autoencoder",
    "load_companion",
    "read_log",
    "reconstruct",
    "report",
    "result_of",
    "save",
    "save_tuned",
]
