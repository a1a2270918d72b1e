"""Drivers: the loops that run rows. Each driver serves every solver that makes rows.

==================  ==========================  =======================================================================
name                class                       what it does
==================  ==========================  =======================================================================
``readable``        ``Readable()``              yields new states; the reference for all other drivers
``fast``            ``Fast()``                  works in place; the host only launches kernels between two evaluations
``compiled``        ``Compiled(backend)``       compiles the arithmetic of a row into one kernel, once for all solvers
                                                with the same length of history
``cuda-graph``      ``CudaGraph()``             captures the whole of sampling as one CUDA graph
``parallel``        ``Parallel(window, ..)``    runs many steps at once, by fixed-point iteration over a sliding window
``differentiable``  ``Differentiable(..)``      carries gradients to the start, the network, coefficients and times
==================  ==========================  =======================================================================

A driver is an object whose attributes say what it supports: see :class:`Driver`. ``fast`` and ``cuda-graph`` overwrite their
state and return the last one. All others are generators of states: iterate to see every state, and break to stop early. All
take ``project(x, t)``, applied at the end of every step. :class:`Custom` makes a driver of your own loop. A solver that
chooses its own steps (family "adaptive", torchsde) runs its own loop.
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
