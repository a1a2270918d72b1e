"""Scenes by distillation: the parameters of any differentiable renderer, fitted to a score model of what it renders.

:func:`distill` fits them, with the gradient of a method: :class:`ScoreDistillation`, :class:`VariationalDistillation` or
:class:`DeltaDenoising`. Two renderers come along: :class:`Pixels`, images that are their own parameters, and
:class:`Volume`, a radiance field on a grid that :class:`Cameras` look at.
"""

from scoresde.systems.scenes.cameras import Cameras
from scoresde.systems.scenes.distill import Distilled, Render, distill
from scoresde.systems.scenes.distillation import (
    DeltaDenoising,
    Distillation,
    NoiseLevels,
    ScoreDistillation,
    VariationalDistillation,
    noise_share,
)
from scoresde.systems.scenes.pixels import Pixels
from scoresde.systems.scenes.splats import Splats
from scoresde.systems.scenes.volume import Volume, composite, line_integrals, samples_along

__all__ = [
    "Cameras",
    "DeltaDenoising",
    "Distillation",
    "Distilled",
    "NoiseLevels",
    "Pixels",
    "Render",
    "ScoreDistillation",
    "Splats",
    "VariationalDistillation",
    "Volume",
    "composite",
    "distill",
    "line_integrals",
    "noise_share",
    "samples_along",
]
