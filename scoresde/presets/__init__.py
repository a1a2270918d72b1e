"""Presets of training: the published ones of CIFAR-10, each a TOML file of options, with what to expect of it.

A file holds options of ``scoresde train`` and three tables: ``[sample]``, the sampler of the paper, in options of ``scoresde
evaluate``; ``[published]``, what the paper reports; and ``[cost]``, what a training costs by :func:`gpu_hours`.
"""

from scoresde.presets.cost import PEAK, gpu_hours, operations
from scoresde.presets.files import NAMES, TABLES, Preset, get

__all__ = ["NAMES", "PEAK", "TABLES", "Preset", "get", "gpu_hours", "operations"]
