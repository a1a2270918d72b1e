"""Suites: comparisons with fixed problems, budgets, solvers and metrics, which a paper can quote by name and version."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scoresde import problems, solvers
from scoresde.base.names import Table
from scoresde.comparison.cases import Case
from scoresde.sde import EDM, VE, VP, GaussianSDE, RectifiedFlow
from scoresde.solvers import Solver

__all__ = ["SUITES", "Entry", "Suite", "suite"]


@dataclass(frozen=True)
class Entry:
    """A problem of a suite: the function that makes it, the SDE, and the number of samples.

    Example:
        >>> from scoresde import problems
        >>> entry = Entry(problems.ring, n=64)
        >>> entry.problem().event, entry.sde()
        (torch.Size([2]), VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0))
    """

    problem: Callable[[], Any]
    sde: Callable[[], GaussianSDE] = VP
    n: int = 256


@dataclass(frozen=True)
class Suite:
    """A comparison whose arguments are all fixed; its results change only with its version.

    Example:
        >>> SUITES["quick"].arguments()["evaluations"]
        (5, 10, 20, 50)
    """

    name: str
    version: int
    problems: Mapping[str, Entry]
    solvers: Mapping[str, Callable[[], Solver]]
    evaluations: tuple[int, ...]
    paths: tuple[str, ...]
    metrics: tuple[str, ...]
    seed: int = 0
    end: str = "flow"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :func:`scoresde.compare`."""
        return {
            "problem": {name: Case.of(e.problem(), e.sde(), e.n) for name, e in self.problems.items()},
            "solvers": {name: make() for name, make in self.solvers.items()},
            "evaluations": self.evaluations,
            "paths": self.paths,
            "metrics": self.metrics,
            "seed": self.seed,
            "end": self.end,
        }


def suite(name: str) -> Suite:
    """Return the suite called ``name``; raise a ValueError that lists the nearest names where there is none.

    Example:
        >>> suite("quick") is SUITES["quick"]
        True
    """
    return SUITES[name]


def _named(*names: str) -> dict[str, Callable[[], Solver]]:
    return {name: functools.partial(solvers.get, name) for name in names}


# The peers offer the variants in this table under names of their own.
_DETERMINISTIC = {
    **_named("auto"),
    **_named("ddim", "heun", "midpoint", "rk4", "dpm-2", "dpm-3", "dpm-2m", "dpm-3m", "dpm-fast"),
    **_named("dpmpp-2s", "dpmpp-3s", "dpmpp-2m", "dpmpp-3m", "deis-2", "deis-3", "deis-4", "tab-3", "rhoab-3", "lms"),
    **_named("unipc-2", "unipc-3", "expam-2", "expam-3", "ipndm", "ipndm-v", "plms", "pndm", "gradient-estimation"),
    **_named("velocity-2", "velocity-3", "abm-3", "abm-4", "dpm-12", "dpm-23", "dopri5"),
    "heun-rho": lambda: solvers.heun("rho"),
    "unipc-2-bh2": lambda: solvers.unipc(2, b="bh2"),
    "unipc-3-bh2": lambda: solvers.unipc(3, b="bh2"),
    "dpm-12-batch": lambda: solvers.dpm_adaptive(12, controller="k-diffusion", norm="batch"),
    "dpm-23-batch": lambda: solvers.dpm_adaptive(23, controller="k-diffusion", norm="batch"),
    "dpm-fast-even": lambda: solvers.dpm_fast(spacing="even"),
    "dpmpp-fast": lambda: solvers.dpm_fast(prediction=solvers.Data()),
    "dpmpp-3m-exact": lambda: solvers.dpmpp_3m(variant="exact"),
}
_STOCHASTIC = _named("auto-sde", "ddpm", "sde-dpmpp-2m", "sde-dpmpp-3m", "er-sde-3", "sa")

_PLANE = (
    *("ring", "grid", "spiral", "moons", "gaussian", "student_t", "laplace", "funnel"),
    *("checkerboard", "swiss_roll", "spirals", "pinwheel", "rings"),
)


def _problem(name: str) -> Any:
    return problems.PROBLEMS[name]()


SUITES: Table[Suite] = Table(
    "suite",
    "scoresde.comparison.SUITES",
    {
        "quick": Suite(
            "quick",
            3,
            {"ring": Entry(problems.ring, n=128), "gaussian": Entry(problems.gaussian, n=128)},
            _named(
                "auto",
                "ddim",
                "heun",
                "dpm-2",
                "dpm-3m",
                "dpmpp-2m",
                "dpmpp-3m",
                "deis-3",
                "unipc-3",
                "ipndm",
                "dopri5",
                "sde-dpmpp-2m",
            ),
            (5, 10, 20, 50),
            ("lam", "karras"),
            ("rms", "energy"),
        ),
        "standard": Suite(
            "standard",
            3,
            {
                **{name: Entry(functools.partial(_problem, name), n=128) for name in _PLANE},
                "textures": Entry(problems.textures, n=32),
                "random-64": Entry(problems.random_mixture, n=64),
                "random-1024": Entry(functools.partial(problems.random_mixture, 1024), n=32),
                "digits": Entry(problems.digits, n=16),
                "ppca_digits": Entry(problems.ppca_digits, n=64),
                "ring-ve": Entry(problems.ring, VE, n=128),
                "spiral-edm": Entry(problems.spiral, EDM, n=128),
                "ppca_digits-edm": Entry(problems.ppca_digits, EDM, n=64),
                "grid-flow": Entry(problems.grid, RectifiedFlow, n=128),
            },
            {**_DETERMINISTIC, **_STOCHASTIC},
            (5, 6, 8, 10, 15, 20, 30, 50, 100),
            ("lam", "karras"),
            ("rms", "energy"),
        ),
    },
    check=lambda value: isinstance(value, Suite),
    expects="a scoresde.comparison.Suite",
)
"""The suites by name."""
