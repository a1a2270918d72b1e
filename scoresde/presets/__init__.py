"""Presets of training: the published ones of CIFAR-10, each a TOML file of options, with what to expect of it.

A file holds options of ``scoresde train`` and three tables: ``[sample]``, the sampler of the paper, in options of ``scoresde
evaluate``; ``[published]``, what the paper reports; and ``[cost]``, what a training costs by :func:`gpu_hours`.
"""

from scoresde.presets.cost import PEAK, gpu_hours, operations
from scoresde.presets.files import PRESETS, TABLES, Preset, get, read

__all__ = ["PEAK", "PRESETS", "TABLES", "Preset", "get", "gpu_hours", "operations", "read"]
