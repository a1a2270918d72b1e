"""What a solver is: a description that tests, tables and the command line read, and a way from noise to data."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, ParamSpec, TypeVar

from torch import Tensor

from scoresde.solvers.drivers import Denoiser, State, fast, readable
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.rows import stencil_rows
from scoresde.solvers.stencil import Stencil
from scoresde.solvers.updates import Update

__all__ = ["Description", "Dynamics", "RowSolver", "Solver", "compose", "maker"]


@dataclass(frozen=True)
class Description:
    """What a solver claims; every claim is tested.

    Attributes:
        name: as in the table of solvers.
        family: "ancestral", "exponential", "runge-kutta", "langevin", "adaptive", ...
        order: of a deterministic solver: the power of the step at which the end point's error falls. ``None`` if the
            tolerance, not the step, decides, or if the solver is stochastic.
        weak_order: of a stochastic solver: the power at which the error of the moments falls; ``None`` for a
            deterministic one and for Langevin dynamics, whose error does not fall with the step alone.
        evaluations: per step, of the model; ``None`` where the solver decides.
        stochastic: whether it draws noise.
        constants: of a multistep method whose updates are not the interpolation through their nodes: for each update of a
            step, the lowest degree that it does not integrate exactly and its error constant, see
            :mod:`scoresde.analysis.error_constants`. ``None`` where they are the interpolation, empty where they have no
            limit for short steps.
        paper: authors, year and link.
    """

    name: str
    family: str
    paper: str
    order: int | None = None
    weak_order: float | None = None
    evaluations: int | None = 1
    stochastic: bool = False
    constants: tuple[tuple[int, float], ...] | None = None


@dataclass(frozen=True)
class Dynamics:
    """The reverse process as plain functions of ``(x, t)``, for integrators that know nothing of marginals.

    ``eta`` is 0 for the probability flow and 1 for the reverse SDE; ``ito_to_stratonovich`` is what a Stratonovich
    integrator adds to the drift (zero where the diffusion does not depend on the state).
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor, Tensor], Tensor]
    ito_to_stratonovich: Callable[[Tensor, Tensor], Tensor | float]
    eta: float


@dataclass(frozen=True)
class Solver(ABC):
    """Interface of all solvers."""

    description: Description

    dense: ClassVar[bool] = False
    """Whether it has a state at any point of a path, on whose points its steps do not depend."""

    @property
    def name(self) -> str:
        """The name in the table of solvers."""
        return self.description.name

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.description.stochastic

    @abstractmethod
    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        """Run from ``x`` at the start of ``path`` and yield the state at the end of every step."""

    def final(
        self,
        path: Path,
        model: Denoiser,
        x: Tensor,
        noise: FreshNoise,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Run from ``x`` and return the last state; ``on_step`` is told the number of steps done."""
        done = 0
        for state in self.states(path, model, x, noise):
            x = state.x
            if on_step is not None and state.step > done:  # several states may belong to one step
                done = state.step
                on_step(done)
        return x

    def integrate(self, dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
        """Run a process without closed-form marginals through ``times``; most solvers refuse."""
        raise ValueError(
            f"solver {self.name!r} needs the marginals alpha(t), sigma(t), which a general SDE does not have; take "
            "euler-maruyama, heun, rk45, torchsde-euler, torchsde-milstein or torchsde-srk"
        )

    def __repr__(self) -> str:
        return f"<solver {self.name}>"

    def __reduce__(self) -> Any:
        made = getattr(self, "_made", None)  # by a function in `maker`
        if made is None:
            return super().__reduce__()
        make, args, options = made
        call = inspect.signature(make).bind(*args, **options)
        call.apply_defaults()  # so that one solver is one call, however it was written
        return _made, (make, call.args, call.kwargs)


@dataclass(frozen=True, repr=False)
class RowSolver(Solver):
    """A solver that turns a path into rows: runs on every driver.

    Args:
        description: what it claims.
        rows: the rows of a path.
        general: its step for an SDE without marginals, if it has one.

    Example:
        >>> from scoresde.solvers import Data, multistep, stencil_rows
        >>> mine = RowSolver(
        ...     Description("mine", "exponential", "this page", order=3),
        ...     lambda path: stencil_rows(Data(), multistep(3), path),
        ... )
        >>> mine
        <solver mine>
    """

    rows: Callable[[Path], Sequence[Update]]
    general: Callable[..., Iterator[State]] | None = field(default=None)

    def states(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise) -> Iterator[State]:
        return readable(self.rows(path), model, x, noise)

    def final(self, path: Path, model: Denoiser, x: Tensor, noise: FreshNoise, on_step: Any = None) -> Tensor:
        return fast(self.rows(path), model, x, noise, on_step)

    def integrate(self, dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
        if self.general is None:
            return super().integrate(dynamics, x, times, noise)
        if dynamics.eta > 0 and not self.stochastic and self.name != "heun":
            raise ValueError(
                f"solver {self.name!r} is deterministic; for an SDE without marginals pass its probability flow "
                "(sde.probability_flow(score)), or take euler-maruyama"
            )
        return self.general(dynamics, x, times, noise)


def compose(description: Description, prediction: Prediction, stencil: Stencil) -> RowSolver:
    """The solver that is a prediction and a stencil: what most named solvers are."""
    return RowSolver(description, lambda path: stencil_rows(prediction, stencil, path))


Arguments = ParamSpec("Arguments")
Made = TypeVar("Made", bound=Solver)


def _made(make: Callable[..., Made], args: tuple[Any, ...], options: dict[str, Any]) -> Made:
    return make(*args, **options)


def maker(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Let the solvers that ``make`` returns be pickled, as the call that made them; a decorator of a module's function.

    The rows of a solver are a function inside the function that made it, which the pickle module cannot write.

    Example:
        >>> import pickle
        >>> from scoresde.solvers import ddim
        >>> pickle.loads(pickle.dumps(ddim(eta=0.5))).stochastic
        True
    """

    @functools.wraps(make)
    def remembering(*args: Arguments.args, **options: Arguments.kwargs) -> Made:
        solver = make(*args, **options)
        object.__setattr__(solver, "_made", (remembering, args, options))
        return solver

    return remembering
