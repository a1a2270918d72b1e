"""The metadata of a comparison: versions, the kind of machine, the command, and descriptions of the names in it."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scoresde.base.version import __version__
from scoresde.comparison.arguments import Arguments
from scoresde.comparison.peers.modules import missing
from scoresde.solvers import Solver
from scoresde.solvers.methods.third_party import SciPy, TorchSDE

__all__ = ["about", "package", "versions"]


def package(solver: Solver) -> str:
    """Return the name of the package that the solver is from."""
    if isinstance(solver, SciPy | TorchSDE):
        return type(solver).__name__.lower()
    return str(getattr(solver, "package", "scoresde"))


def versions() -> dict[str, str]:
    """Return the versions of this package and of the packages on which its results depend."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"scoresde": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "scipy", "torchsde", "k-diffusion", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _condition(value: Any, classes: Sequence[str]) -> str:
    """Describe a condition: its whole numbers with their counts, by the names of the classes where these are known.

    Example:
        >>> _condition([0, 1, 0], ["cat", "dog"]), _condition(torch.ones(3, 8), ())
        ('cat (2), dog (1)', 'float32 of shape (3, 8)')
    """
    found = np.atleast_1d(value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value))
    if found.ndim > 1 or found.dtype.kind not in "iub":
        return f"{found.dtype} of shape {found.shape}" if found.dtype != object else type(value).__name__
    called = {k: classes[k] if 0 <= k < len(classes) else str(k) for k in map(int, found)}
    counts = Counter(map(int, found))
    return ", ".join(f"{called[k]} ({counts[k]})" if len(found) > 1 else called[k] for k in sorted(called))


def about(arguments: Arguments, peers: bool) -> dict[str, Any]:
    """Return the description of a comparison, the ``about`` of :class:`~scoresde.comparison.Comparison`."""
    problems: dict[str, dict[str, Any]] = {}
    for (name, sde), case in arguments.cases.items():
        told = {"problem": repr(case.problem), "event": list(case.event), "n": case.n or arguments.n, "sdes": {}}
        problems.setdefault(name, told)["sdes"][sde] = repr(case.sde)
        if case.conditions:
            told["conditions"] = {name: _condition(v, case.classes) for name, v in sorted(case.conditions.items())}
    return {
        "versions": versions(),
        "seed": arguments.seed,
        "n": arguments.n,
        "end": arguments.end,
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": sorted({str(case.device) for case in arguments.cases.values()}),
        },
        "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "evaluations": list(arguments.budgets),
        "paths": list(arguments.paths),
        "asked": list(arguments.asked),
        "problems": problems,
        "solvers": {label: _solver(solver) for label, solver in arguments.solvers.items()},
        "metrics": {name: {"unit": m.unit, "better": m.better, "doc": m.doc} for name, m in arguments.metrics.items()},
        "notes": sorted(missing().values()) if peers else [],
    }


def _solver(solver: Solver) -> dict[str, Any]:
    d = solver.description
    return {
        "name": d.name,
        "family": d.family,
        "paper": d.paper,
        "order": d.order,
        "weak_order": d.weak_order,
        "evaluations": d.evaluations,
        "stochastic": d.stochastic,
        "package": package(solver),
    }
