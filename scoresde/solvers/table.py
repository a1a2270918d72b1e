"""The table of solvers: tests, documentation and the command line iterate over it."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from scoresde.solvers.exponential import ddim, dpm_solver, dpmpp_2m
from scoresde.solvers.langevin import annealed_langevin, predictor_corrector
from scoresde.solvers.outside import rk45, torchsde_solver
from scoresde.solvers.runge_kutta import euler, heun, rk4
from scoresde.solvers.solver import Solver
from scoresde.solvers.stochastic import ddpm, euler_maruyama, ncsn, reverse_diffusion

__all__ = ["SOLVERS", "get"]

SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler-maruyama": euler_maruyama,
    "reverse-diffusion": reverse_diffusion,
    "ddpm": ddpm,
    "ncsn": ncsn,
    "annealed-langevin": annealed_langevin,
    "pc": predictor_corrector,
    "euler": euler,
    "heun": heun,
    "rk4": rk4,
    "rk45": rk45,
    "ddim": ddim,
    "dpm-1": lambda: dpm_solver(1),
    "dpm-2": lambda: dpm_solver(2),
    "dpm-3": lambda: dpm_solver(3),
    "dpmpp-2m": dpmpp_2m,
    "torchsde-euler": lambda: torchsde_solver("euler"),
    "torchsde-milstein": lambda: torchsde_solver("milstein"),
    "torchsde-srk": lambda: torchsde_solver("srk"),
}
"""Every solver by name, with its default arguments. A new one is added here, and tests, docs and CLI find it."""


def get(name: str) -> Solver:
    """The solver called ``name`` with its default arguments.

    Raises:
        ValueError: if there is none, with the nearest names.
    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(name.lower().replace("_", "-").replace("++", "pp"), SOLVERS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the names are {', '.join(SOLVERS)}"
        raise ValueError(f"got solver {name!r}, which is not in the table; {hint}")
    return SOLVERS[name]()
