"""The function that makes a scheduler of diffusers from a solver."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from scoresde.base.identity import digest
from scoresde.base.names import check_names
from scoresde.solvers import SOLVERS, Solver

__all__ = ["diffusers_scheduler"]


def diffusers_scheduler(solver: str | Solver = "dpmpp-2m", config: Any = None, **settings: Any) -> Any:
    """Return a scheduler of diffusers that samples by a solver, to replace the scheduler of a pipeline.

    .. code-block:: python

        pipeline.scheduler = interop.diffusers_scheduler("dpmpp-3m", pipeline.scheduler)

    The pipeline then equals :func:`scoresde.sample` on its network. The training chain and the prediction are those of the
    scheduler that is replaced. Its own spacing, order and clipping are not: ``path``, ``end`` and ``clip`` set them. The
    scheduler is saved with its pipeline. A later session imports ``scoresde.interop.scheduler`` before it loads the
    pipeline.

    Args:
        solver: a name of ``scoresde.solvers.SOLVERS``, with settings after it, ``"ddim: eta=0.5"``. Any solver that makes
            rows may be registered there under a name, a tuned one too.
        config: the scheduler that is replaced, or its configuration. The default is the linear chain of DDPM.
        settings: further arguments of :class:`scoresde.interop.scheduler.SolverScheduler`, which precede those of
            ``config``.

    Returns:
        A ``SolverScheduler``, which is a ``SchedulerMixin`` and a ``ConfigMixin`` of diffusers.

    Raises:
        ModuleNotFoundError: without diffusers.
        ValueError: for an unknown name, a solver that chooses its own steps, or a training process without an equivalent.

    Example:
        >>> scheduler = diffusers_scheduler("heun", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        >>> scheduler.set_timesteps(10)
        >>> len(scheduler.timesteps), scheduler.order  # two evaluations a step, but one for the last
        (19, 2)
    """
    from scoresde.interop.scheduler import SolverScheduler

    check_names("diffusers_scheduler", settings, SolverScheduler)
    known = inspect.signature(SolverScheduler).parameters
    given = _config(config)
    taken = {name: value for name, value in given.items() if name in known and name not in ("solver", "path", "end", "clip")}
    if given.get("thresholding"):
        raise ValueError(
            "got a scheduler with thresholding=True, which a solver does not do by itself; expected one without it, and "
            "clip=1.0 to bound the data predictions"
        )
    if str(given.get("_class_name", "")).startswith("FlowMatch") or given.get("use_flow_sigmas"):
        taken["prediction_type"] = "flow_prediction"
        if "flow_shift" in given:
            taken["shift"] = given["flow_shift"]
    return SolverScheduler(solver=_name(solver), **{**taken, **settings})


def _config(config: Any) -> Mapping[str, Any]:
    """Return the configuration of a scheduler, or the configuration that is given, as a mapping."""
    found = getattr(config, "config", config)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(
            f"got {type(config).__name__} for the scheduler to replace; expected a scheduler of diffusers or its config: "
            "pipeline.scheduler"
        )
    class_name = type(config).__name__ if found is not config else found.get("_class_name")
    return {**found, "_class_name": class_name}


def _name(solver: str | Solver) -> str:
    """Return the name under which a configuration can hold a solver."""
    if isinstance(solver, str):
        return solver
    if not isinstance(solver, Solver):
        raise TypeError(f"got solver {solver!r}; expected a name or a solver object")
    if solver.name in SOLVERS and digest(SOLVERS.make(solver.name)) == digest(solver):
        return solver.name
    raise ValueError(
        f"got the solver object {solver!r}, which a configuration cannot hold; expected a name with its settings, such as "
        "'ddim: eta=0.5': solvers.SOLVERS.register('mine', lambda: solver) gives any solver a name"
    )
