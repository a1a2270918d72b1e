"""Metrics: distances between samples, errors against a known truth, time and memory, and a small classifier of images.

Distances between the classifier's features of two images mean more than distances between their pixels.

A distance takes two tensors, ``(n, *event)`` and ``(m, *event)``, computes in float64 on the device of its inputs and
returns a tensor without dimensions. The function of the same name with ``_estimate`` returns an :class:`Estimate`, the value
with its confidence interval. Compare the distance of generated data from real data with the distance of two independent
samples of real data, the floor that no generator can be expected to beat.
"""

from scoresde.metrics.auroc import auroc, auroc_estimate
from scoresde.metrics.classifier import ImageClassifier, train_classifier
from scoresde.metrics.cost import PeakMemory, peak_memory, seconds_per_evaluation
from scoresde.metrics.crps import crps, gaussian_crps
from scoresde.metrics.diversity import density_coverage, vendi_score
from scoresde.metrics.errors import (
    covariance_error,
    error_quantile,
    mean_error,
    mode_weight_error,
    negative_log_likelihood,
    rms_error,
)
from scoresde.metrics.frechet import frechet_distance, frechet_estimate, gaussian_frechet_distance
from scoresde.metrics.intervals import Estimate, jackknife, mean_estimate, quantile_estimate
from scoresde.metrics.kernels import (
    energy_distance,
    energy_estimate,
    kernel_distance_estimate,
    median_distance,
    mmd,
    mmd_estimate,
)
from scoresde.metrics.sliced import sliced_wasserstein, sliced_wasserstein_estimate
from scoresde.metrics.wasserstein import wasserstein, wasserstein_estimate

__all__ = [
    "Estimate",
    "ImageClassifier",
    "PeakMemory",
    "auroc",
    "auroc_estimate",
    "covariance_error",
    "crps",
    "density_coverage",
    "energy_distance",
    "energy_estimate",
    "error_quantile",
    "frechet_distance",
    "frechet_estimate",
    "gaussian_crps",
    "gaussian_frechet_distance",
    "jackknife",
    "kernel_distance_estimate",
    "mean_error",
    "mean_estimate",
    "median_distance",
    "mmd",
    "mmd_estimate",
    "mode_weight_error",
    "negative_log_likelihood",
    "peak_memory",
    "quantile_estimate",
    "rms_error",
    "seconds_per_evaluation",
    "sliced_wasserstein",
    "sliced_wasserstein_estimate",
    "train_classifier",
    "vendi_score",
    "wasserstein",
    "wasserstein_estimate",
]
