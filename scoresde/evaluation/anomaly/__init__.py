"""Anomaly detection with a score model: by its likelihood, its reconstructions, its scores and its loss."""

from scoresde.evaluation.anomaly.detector import ANOMALY_SCORES, Anomaly, Detector
from scoresde.evaluation.anomaly.likelihood import LikelihoodScore, Typicality
from scoresde.evaluation.anomaly.loss_excess import LossExcess
from scoresde.evaluation.anomaly.reconstruction import Reconstruction
from scoresde.evaluation.anomaly.score_norms import ScoreNorms
from scoresde.evaluation.anomaly.statistics import AnomalyScore, ReferenceStatistics, Statistics

__all__ = [
    "ANOMALY_SCORES",
    "Anomaly",
    "AnomalyScore",
    "Detector",
    "LikelihoodScore",
    "LossExcess",
    "Reconstruction",
    "ReferenceStatistics",
    "ScoreNorms",
    "Statistics",
    "Typicality",
]
