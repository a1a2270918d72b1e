"""Measures of sample quality, and anomaly detection with a score model.

Fréchet distance, sFID, KID, precision and recall, and the Inception score are measured in any features. The sliced
Wasserstein distance needs none.

Datasets are read once, part by part, so that 50,000 samples never sit in memory. Statistics of real data are stored by
content. Several processes draw samples into files and continue where they stopped.
"""

from scoresde.evaluation.anomaly import (
    ANOMALY_SCORES,
    Anomaly,
    AnomalyScore,
    Detector,
    LikelihoodScore,
    LossExcess,
    Reconstruction,
    ReferenceStatistics,
    ScoreNorms,
    Statistics,
    Typicality,
)
from scoresde.evaluation.evaluate import Scores, compare_statistics, evaluate
from scoresde.evaluation.features import EXTRACTORS, Features, find_features, inception
from scoresde.evaluation.generation import Generated, generate
from scoresde.evaluation.moments import FeatureMoments, frechet
from scoresde.evaluation.scores import kernel_inception_distance, precision_recall
from scoresde.evaluation.summary import Summary, eight_bits, summarize

__all__ = [
    "ANOMALY_SCORES",
    "EXTRACTORS",
    "Anomaly",
    "AnomalyScore",
    "Detector",
    "FeatureMoments",
    "Features",
    "Generated",
    "LikelihoodScore",
    "LossExcess",
    "Reconstruction",
    "ReferenceStatistics",
    "ScoreNorms",
    "Scores",
    "Statistics",
    "Summary",
    "Typicality",
    "compare_statistics",
    "eight_bits",
    "evaluate",
    "find_features",
    "frechet",
    "generate",
    "inception",
    "kernel_inception_distance",
    "precision_recall",
    "summarize",
]
