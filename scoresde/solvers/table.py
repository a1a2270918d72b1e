"""The table of solvers: tests, documentation and the command line iterate over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from scoresde.base.names import Table
from scoresde.base.settings import check_types, parse
from scoresde.solvers.adaptive.flow import bogacki_shampine, dormand_prince, dpm_adaptive
from scoresde.solvers.adaptive.reverse_sde import gotta_go_fast
from scoresde.solvers.chooser import auto, auto_sde
from scoresde.solvers.fitted.chosen import KIND, Chosen
from scoresde.solvers.fitted.kept import read_plain
from scoresde.solvers.fitted.midpoints import MIDPOINT_KIND, Midpoints
from scoresde.solvers.fitted.tuned import Tuned
from scoresde.solvers.methods.ancestral import ddpm, euler_maruyama, ncsn, reverse_diffusion, sde_heun
from scoresde.solvers.methods.er import er_sde_solver
from scoresde.solvers.methods.exponential import ddim, dpm_multistep, dpmpp_2m, dpmpp_3m
from scoresde.solvers.methods.exponential_sde import sde_dpm_solver, sde_dpmpp, seeds
from scoresde.solvers.methods.langevin import (
    annealed_langevin,
    langevin,
    predictor_corrector,
    sgld,
    underdamped_corrector,
)
from scoresde.solvers.methods.multistep import deis, gradient_estimation, ipndm, ipndm_v, lms, plms, pndm, velocity
from scoresde.solvers.methods.renoising import (
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    edm_stochastic,
    euler_ancestral,
    restart_heun,
    student,
)
from scoresde.solvers.methods.runge_kutta import euler, explicit_midpoint, heun, rk3, rk4
from scoresde.solvers.methods.sa import sa_solver
from scoresde.solvers.methods.singlestep import dpm_fast, dpm_solver, dpmpp_2s, dpmpp_3s
from scoresde.solvers.methods.third_party import rk45, torchsde_solver
from scoresde.solvers.methods.unipc import adams_moulton, exp_adams_moulton, unipc
from scoresde.solvers.solver import Solver

__all__ = ["SOLVERS", "fitted_solver", "get", "is_file"]

SOLVERS: Table[Callable[..., Solver]] = Table(
    "solver",
    "scoresde.solvers.SOLVERS",
    {
        "auto": auto,
        "auto-sde": auto_sde,
        "euler-maruyama": euler_maruyama,
        "reverse-diffusion": reverse_diffusion,
        "ddpm": ddpm,
        "ncsn": ncsn,
        "annealed-langevin": annealed_langevin,
        "langevin": langevin,
        "sgld": sgld,
        "pc": predictor_corrector,
        "pc-underdamped": underdamped_corrector,
        "euler": euler,
        "heun": heun,
        "midpoint": explicit_midpoint,
        "rk3": rk3,
        "rk4": rk4,
        "rk45": rk45,
        "ddim": ddim,
        "dpm-1": partial(dpm_solver, 1),
        "dpm-2": partial(dpm_solver, 2),
        "dpm-3": partial(dpm_solver, 3),
        "dpm-2m": partial(dpm_multistep, 2),
        "dpm-3m": partial(dpm_multistep, 3),
        "dpm-fast": dpm_fast,
        "dpmpp-2s": dpmpp_2s,
        "dpmpp-3s": dpmpp_3s,
        "dpmpp-2m": dpmpp_2m,
        "dpmpp-3m": dpmpp_3m,
        "deis-2": partial(deis, 2),
        "deis-3": partial(deis, 3),
        "deis-4": partial(deis, 4),
        "tab-2": partial(deis, 2, "t"),
        "tab-3": partial(deis, 3, "t"),
        "tab-4": partial(deis, 4, "t"),
        "rhoab-2": partial(deis, 2, "rho"),
        "rhoab-3": partial(deis, 3, "rho"),
        "rhoab-4": partial(deis, 4, "rho"),
        "unipc-2": partial(unipc, 2),
        "unipc-3": partial(unipc, 3),
        "unipc-4": partial(unipc, 4),
        "expam-2": partial(exp_adams_moulton, 2),
        "expam-3": partial(exp_adams_moulton, 3),
        "expam-4": partial(exp_adams_moulton, 4),
        "lms": lms,
        "plms": plms,
        "pndm": pndm,
        "ipndm": ipndm,
        "ipndm-3": partial(ipndm, 3),
        "ipndm-v": ipndm_v,
        "ipndm-v-3": partial(ipndm_v, 3),
        "gradient-estimation": gradient_estimation,
        "velocity-1": partial(velocity, 1),
        "velocity-2": partial(velocity, 2),
        "velocity-3": partial(velocity, 3),
        "velocity-4": partial(velocity, 4),
        "abm-2": partial(adams_moulton, 2),
        "abm-3": partial(adams_moulton, 3),
        "abm-4": partial(adams_moulton, 4),
        "sde-heun": sde_heun,
        "sde-dpmpp-1": partial(sde_dpmpp, "1"),
        "sde-dpmpp-2s": partial(sde_dpmpp, "2s"),
        "sde-dpmpp-2m": partial(sde_dpmpp, "2m"),
        "sde-dpmpp-3m": partial(sde_dpmpp, "3m"),
        "sde-dpm-1": partial(sde_dpm_solver, 1),
        "sde-dpm-2": partial(sde_dpm_solver, 2),
        "seeds-1": partial(seeds, 1),
        "seeds-2": partial(seeds, 2),
        "seeds-3": partial(seeds, 3),
        "sa": sa_solver,
        "er-sde-1": partial(er_sde_solver, 1),
        "er-sde-2": partial(er_sde_solver, 2),
        "er-sde-3": partial(er_sde_solver, 3),
        "euler-a": euler_ancestral,
        "dpm2-a": dpm2_ancestral,
        "dpmpp-2s-a": dpmpp_2s_ancestral,
        "edm": edm_stochastic,
        "restart": restart_heun,
        "student": student,
        "dpm-12": partial(dpm_adaptive, 12),
        "dpm-23": partial(dpm_adaptive, 23),
        "bs3": bogacki_shampine,
        "dopri5": dormand_prince,
        "gotta-go-fast": gotta_go_fast,
        "torchsde-euler": partial(torchsde_solver, "euler"),
        "torchsde-milstein": partial(torchsde_solver, "milstein"),
        "torchsde-srk": partial(torchsde_solver, "srk"),
    },
    also="a solver object",
    check=lambda make: callable(make) and isinstance(make(), Solver),
    expects="a function that returns a Solver when it is called without arguments",
)
"""Every solver by name, with its default arguments. A new solver is added here; tests, docs and CLI then find it."""


def get(text: str) -> Solver:
    """Return the solver that ``text`` names; settings after the name replace its default arguments.

    The name of a file that ends in ``.json`` is a solver tuned or chosen for a model: ``"mine.json"``, or
    ``"mine.json: any_model=true"``.

    Raises:
        ValueError: for an unknown name, with the nearest known names, and for settings that the solver does not take.

    Example:
        >>> get("ddim: eta=0.5").stochastic
        True
    """
    if isinstance(text, str) and is_file(text):
        name, settings = parse(text)
        check_types(f"the tuned solver {name!r}", settings, Tuned.read)
        if unknown := settings.keys() - {"any_model"}:
            raise ValueError(
                f"got {', '.join(sorted(unknown))} for the tuned solver {name!r}; expected any_model=true, or nothing"
            )
        value = read_plain(name)
        return fitted_solver({**value, **settings} if isinstance(value, dict) else value)
    return SOLVERS.make(text)


def fitted_solver(value: Any) -> Tuned | Chosen | Midpoints:
    """Return the solver tuned or chosen for a model from the plain values that its ``to_json`` made.

    Raises:
        ValueError: for other values.

    Example:
        >>> from scoresde.solvers.fitted import Pilot, Trial
        >>> solver = Chosen.of([Pilot(5, (Trial("ddim"),))], get)
        >>> fitted_solver(solver.to_json()) == solver
        True
    """
    if isinstance(value, Mapping) and value.get("kind") == KIND:
        return Chosen.from_json(value, SOLVERS.make)
    if isinstance(value, Mapping) and value.get("kind") == MIDPOINT_KIND:
        return Midpoints.from_json(value)
    return Tuned.from_json(value)


def is_file(text: str) -> bool:
    """Tell whether the name of a solver is the name of a file, which a tuned solver is read from.

    Example:
        >>> is_file("mine.json"), is_file("ddim: eta=0.5")
        (True, False)
    """
    return text.partition(":")[0].strip().endswith(".json")
