"""Drivers: the loops that run rows. Each is written once and serves every solver that makes rows.

==================  ====================================================================================================
``readable``        a generator of states, allocating as it goes: the definition of what all others compute
``fast``            in place; does nothing on the host between two evaluations but launch the arithmetic of the row
``compiled``        the arithmetic of a row as one kernel, compiled once for all solvers of a length of history
``cuda_graph``      all of sampling as one CUDA graph
``parallel``        many steps at once, by fixed-point iteration over a sliding window
``differentiable``  gradients with respect to the start, the network, coefficients and times, with checkpoints
==================  ====================================================================================================

All but ``fast`` and ``cuda_graph``, which overwrite their state and return the last one, are generators of states: whoever
iterates sees every state, and stops early by not asking for the next. All take ``project(x, t)``, applied at the end of
every step. A solver that chooses its own steps (family "adaptive", torchsde) has a loop of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from scoresde.base.names import Table
from scoresde.solvers.drivers.base import Denoiser, Project, State
from scoresde.solvers.drivers.compiled import compiled
from scoresde.solvers.drivers.cuda_graph import CapturedSampler, cuda_graph
from scoresde.solvers.drivers.parallel import parallel
from scoresde.solvers.drivers.sequential import differentiable, fast, readable

__all__ = [
    "DRIVERS",
    "CapturedSampler",
    "Denoiser",
    "Project",
    "State",
    "compiled",
    "cuda_graph",
    "differentiable",
    "fast",
    "parallel",
    "readable",
]

DRIVERS: Table[Callable[..., Iterator[State]] | Callable[..., Tensor]] = Table(
    "driver",
    "scoresde.solvers.DRIVERS",
    {
        "readable": readable,
        "fast": fast,
        "compiled": compiled,
        "cuda-graph": cuda_graph,
        "parallel": parallel,
        "differentiable": differentiable,
    },
    also="'auto', or a driver itself",
    check=callable,
    expects="a driver: (rows, model, x, noise, *, project=None) -> states, or the last state",
)
"""Every driver by name: ``(rows, model, x, noise, *, project=None) -> states``, or the last state."""
