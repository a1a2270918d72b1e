"""Drivers: the loops that run rows. Each is written once and serves every solver that makes rows.

==================  ==========================  =======================================================================
name                class                       what it does
==================  ==========================  =======================================================================
``readable``        ``Readable()``              a generator of states, allocating as it goes: what all others compute
``fast``            ``Fast()``                  in place; nothing on the host between two evaluations but launches
``compiled``        ``Compiled(backend)``       the arithmetic of a row as one kernel, compiled once for all solvers of a
                                                length of history
``cuda-graph``      ``CudaGraph()``             all of sampling as one CUDA graph
``parallel``        ``Parallel(window, ..)``    many steps at once, by fixed-point iteration over a sliding window
``differentiable``  ``Differentiable(..)``      gradients with respect to the start, the network, coefficients and times
==================  ==========================  =======================================================================

A driver is an object that says what it can do: see :class:`Driver`. All but ``fast`` and ``cuda-graph``, which overwrite
their state and return the last one, are generators of states: whoever iterates sees every state, and stops early by not
asking for the next. All take ``project(x, t)``, applied at the end of every step. A loop of your own is a :class:`Custom`. A
solver that chooses its own steps (family "adaptive", torchsde) has a loop of its own.
"""

from __future__ import annotations

from scoresde.solvers.drivers.base import Custom, Driver
from scoresde.solvers.drivers.compiled import Compiled
from scoresde.solvers.drivers.cuda_graph import CapturedSampler, CudaGraph
from scoresde.solvers.drivers.model import Denoiser, Project
from scoresde.solvers.drivers.parallel import Parallel
from scoresde.solvers.drivers.plain import Differentiable, Fast, Readable
from scoresde.solvers.drivers.table import (
    DRIVERS,
    compiled,
    cuda_graph,
    differentiable,
    driver,
    fast,
    parallel,
    readable,
)
from scoresde.solvers.updates import State

__all__ = [
    "DRIVERS",
    "CapturedSampler",
    "Compiled",
    "CudaGraph",
    "Custom",
    "Denoiser",
    "Differentiable",
    "Driver",
    "Fast",
    "Parallel",
    "Project",
    "Readable",
    "State",
    "compiled",
    "cuda_graph",
    "differentiable",
    "driver",
    "fast",
    "parallel",
    "readable",
]
