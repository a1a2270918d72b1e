"""Presets: published trainings on CIFAR-10 as TOML files of options, with their published results and their cost.

A file contains options of ``scoresde train`` and three tables: ``[sample]``, the paper's sampler as options of ``scoresde
evaluate``; ``[published]``, the results in the paper; and ``[cost]``, the cost of the training by :func:`gpu_hours`.
"""

from scoresde.presets.cost import PEAK, gpu_hours, operations
from scoresde.presets.files import PRESETS, TABLES, Preset, find_preset, read

__all__ = ["PEAK", "PRESETS", "TABLES", "Preset", "find_preset", "gpu_hours", "operations", "read"]
