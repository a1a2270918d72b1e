"""A method for inverse problems and the solver that runs it, as one entry of a comparison on posterior problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.inverse.observation import Observation
from scoresde.inverse.table import METHODS, SAMPLERS
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers import Description, Path, Solver, State, get
from scoresde.solvers.drivers import Denoiser
from scoresde.solvers.noise.fresh import FreshNoise

__all__ = ["Steered", "steered"]


@dataclass(frozen=True, repr=False)
class Steered(Solver):
    """A solver that is given the model of a posterior's prior, and samples the posterior by a method for inverse problems.

    It needs the measurement, so it runs in a comparison on a posterior problem and not by itself: see :meth:`on`.

    Args:
        description: the name and the claims.
        method: ``(model, observation) -> model``, such as an entry of :data:`METHODS`, with ``solver``; or
            ``(observation) -> solver``, such as an entry of :data:`SAMPLERS`, without.
        solver: the solver that runs a method of the first kind.

    Example:
        >>> from scoresde import VP, problems, sample
        >>> posterior = problems.gaussian().posterior([[1.0, 0.0]], [0.5], 0.1)
        >>> model, solver = steered("tmpd + dpmpp-2m").on(posterior, VP())
        >>> sample(model, (4, 2), solver, progress=False).x.shape
        torch.Size([4, 2])
    """

    method: Callable[..., Any]
    solver: Solver | None = None

    def on(self, posterior: Any, sde: GaussianSDE) -> tuple[ScoreModel, Solver]:
        """Return the model to sample and the solver to sample it with.

        Args:
            posterior: what :meth:`scoresde.problems.Problem.posterior` returned.
            sde: the SDE of the model.

        Raises:
            ValueError: for a problem that is no posterior, and whatever the method cannot carry.
        """
        observation, prior = Observation.of(posterior), posterior.given.prior.model(sde)
        if self.solver is None:
            return prior, self.method(observation)
        return self.method(prior, observation), self.solver

    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        """Refuse to run without a measurement."""
        raise ValueError(
            f"got {self.name!r} without a measurement; expected a posterior problem to compare it on, or the method itself: "
            "sample(method(model, observation), shape, solver)"
        )


def steered(text: str) -> Steered | None:
    """Return the method that ``text`` names, ``"tmpd + dpmpp-2m"`` or ``"ddrm"``, or ``None`` if it names none.

    Raises:
        ValueError: for a method without a solver, or an unknown solver after one.

    Example:
        >>> steered("ddrm").name, steered("mmps+heun").name, steered("heun")
        ('ddrm', 'mmps + heun', None)
    """
    if text in SAMPLERS:
        name = SAMPLERS.name(text)
        return Steered(Description(name, "inverse", "scoresde.inverse", stochastic=True), SAMPLERS[name])
    before, plus, after = text.partition("+")
    if before not in METHODS:
        return None
    method = METHODS.name(before)
    if not plus:
        raise ValueError(f"got the method {method!r} without a solver; expected '{method} + dpmpp-2m' or another solver")
    solver = get(after.strip())
    claims = Description(f"{method} + {after.strip()}", "inverse", "scoresde.inverse", stochastic=solver.stochastic)
    return Steered(claims, METHODS[method], solver)
