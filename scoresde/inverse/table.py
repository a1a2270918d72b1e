"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable

from scoresde.base.names import Table
from scoresde.inverse.conditioned import Conditioned
from scoresde.inverse.methods.daps import daps
from scoresde.inverse.methods.ddnm import DDNM, ddnm_plus
from scoresde.inverse.methods.ddrm import ddrm
from scoresde.inverse.methods.diffpir import DiffPIR
from scoresde.inverse.methods.dps import DPS
from scoresde.inverse.methods.mmps import MMPS
from scoresde.inverse.methods.pigdm import PiGDM
from scoresde.inverse.methods.reconstruction import ReconstructionGuidance
from scoresde.inverse.methods.repaint import repaint
from scoresde.inverse.methods.replacement import replacement
from scoresde.inverse.methods.tmpd import TMPD
from scoresde.solvers import RowSolver

__all__ = ["METHODS", "SAMPLERS"]

METHODS: Table[Callable[..., Conditioned]] = Table(
    "method",
    "scoresde.inverse.METHODS",
    {
        "dps": DPS,
        "pigdm": PiGDM,
        "tmpd": TMPD,
        "mmps": MMPS,
        "ddnm": DDNM,
        "diffpir": DiffPIR,
        "reconstruction": ReconstructionGuidance,
    },
    check=callable,
    expects="a function of a model and an observation that returns a score model",
)
"""Score models conditioned on an observation, ``(model, observation) -> model``, for every solver."""

SAMPLERS: Table[Callable[..., RowSolver]] = Table(
    "sampler",
    "scoresde.inverse.SAMPLERS",
    {"ddrm": ddrm, "ddnm+": ddnm_plus, "daps": daps, "replacement": replacement, "repaint": repaint},
    check=callable,
    expects="a function of an observation that returns a solver",
)
"""Solvers conditioned on an observation, ``(observation) -> solver``, for the model of the data."""
