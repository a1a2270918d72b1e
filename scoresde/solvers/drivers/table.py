"""The table of drivers, and the conversion of a name or a partial to a driver."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

from scoresde.base.names import Table
from scoresde.solvers.drivers.base import Driver
from scoresde.solvers.drivers.compiled import Compiled
from scoresde.solvers.drivers.cuda_graph import CudaGraph
from scoresde.solvers.drivers.parallel import Parallel
from scoresde.solvers.drivers.plain import Differentiable, Fast, Readable

__all__ = ["DRIVERS", "compiled", "cuda_graph", "differentiable", "driver", "fast", "parallel", "readable"]

readable = Readable()
""":class:`~scoresde.solvers.Readable` with its default options."""

fast = Fast()
""":class:`~scoresde.solvers.Fast` with its default options."""

compiled = Compiled()
""":class:`~scoresde.solvers.Compiled` with the backend "inductor"."""

cuda_graph = CudaGraph()
""":class:`~scoresde.solvers.CudaGraph` with its default options."""

parallel = Parallel()
""":class:`~scoresde.solvers.Parallel` that chooses its window and its tolerance."""

differentiable = Differentiable()
""":class:`~scoresde.solvers.Differentiable` with checkpoints."""

DRIVERS: Table[Driver] = Table(
    "driver",
    "scoresde.solvers.DRIVERS",
    {d.name: d for d in (readable, fast, compiled, cuda_graph, parallel, differentiable)},
    also="'auto', or a driver itself",
    check=lambda value: isinstance(value, Driver),
    expects="a driver: solvers.Custom(function) makes one of a loop of your own",
)
"""Every driver by name, with its default options."""


def driver(chosen: object) -> Driver:
    """Return the driver of that name, or the driver itself; a ``functools.partial`` of a driver sets its options.

    Raises:
        ValueError: for a name that is not in the table.
        TypeError: for anything else. A plain function is refused, since it does not declare what it supports.

    Example:
        >>> driver("parallel").window, driver(functools.partial(parallel, window=8)).window
        (None, 8)
    """
    if isinstance(chosen, Driver):
        return chosen
    if isinstance(chosen, str):
        return DRIVERS[chosen]
    if isinstance(chosen, functools.partial) and not chosen.args and isinstance(chosen.func, Driver):
        inner: Any = chosen.func
        names = {field.name for field in dataclasses.fields(inner)}
        if unknown := sorted(set(chosen.keywords) - names):
            raise TypeError(
                f"got {', '.join(unknown)} for driver {inner.name!r}; expected "
                f"{', '.join(sorted(names)) or 'no options, since it has none'}"
            )
        return cast(Driver, dataclasses.replace(inner, **chosen.keywords))
    raise TypeError(
        f"got {type(chosen).__name__} {chosen!r} for a driver; expected a name ({', '.join(DRIVERS)}) or a driver object, "
        "such as solvers.Parallel(window=8). Of a loop of your own say what it can do: "
        "solvers.Custom(function, differentiates=True, takes_gradients=True)"
    )
