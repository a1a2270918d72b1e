"""Guidance: score models around score models that steer samples towards a condition, a classifier or any function.

Each method is a :class:`~scoresde.score.Wrapper`, so it runs on every solver, SDE, path and driver, counts its network
calls, and can be nested: ``DynamicThreshold(ClassifierFree(model, 4.0, {"label": 10}))``. Guided samples do not follow the
tilted density that they are named after; :func:`feynman_kac` samples it.
"""

from scoresde.guidance.auto import Auto
from scoresde.guidance.cfg_plus_plus import CFGPlusPlus
from scoresde.guidance.classifier import Classifier, ClassLogProb
from scoresde.guidance.classifier_free import ClassifierFree
from scoresde.guidance.composition import Compose, Given, Mixture
from scoresde.guidance.contrast import Contrast, Nulled
from scoresde.guidance.energy import Energy
from scoresde.guidance.particles import Particles, feynman_kac, systematic
from scoresde.guidance.projected import Projected
from scoresde.guidance.thresholds import DynamicThreshold, StaticThreshold
from scoresde.guidance.tilted import Tilted

__all__ = [
    "Auto",
    "CFGPlusPlus",
    "ClassLogProb",
    "Classifier",
    "ClassifierFree",
    "Compose",
    "Contrast",
    "DynamicThreshold",
    "Energy",
    "Given",
    "Mixture",
    "Nulled",
    "Particles",
    "Projected",
    "StaticThreshold",
    "Tilted",
    "feynman_kac",
    "systematic",
]
