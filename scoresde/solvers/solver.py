"""The interface of solvers: a description of what they claim, and the integration from noise to data."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, ParamSpec, TypeVar

from torch import Tensor, nn

from scoresde.sde import GaussianSDE
from scoresde.solvers.drivers import Denoiser, State, fast, readable
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path, make_path
from scoresde.solvers.prediction import Prediction
from scoresde.solvers.rows import stencil_rows
from scoresde.solvers.stencil import Stencil
from scoresde.solvers.updates import Update

__all__ = ["Description", "Dynamics", "RowSolver", "Solver", "compose", "maker"]


@dataclass(frozen=True)
class Description:
    """The claims of a solver; every claim is tested.

    Attributes:
        name: the name in the table of solvers.
        family: the family of the method: "ancestral", "exponential", "runge-kutta", "langevin", "adaptive", ...
        paper: the authors, the year and the link of the source.
        order: the power of the step with which the error of a deterministic solver falls. ``None`` if the solver is
            stochastic, or if a tolerance decides on the steps.
        weak_order: the power of the step with which the error of the moments falls. ``None`` if the solver is deterministic,
            and for Langevin dynamics, whose error does not fall with the step alone.
        evaluations: the number of evaluations of the model in a step; ``None`` where the solver decides.
        stochastic: whether the solver draws noise.
        constants: the error constants of a multistep method whose updates are not the exact interpolation, see
            :mod:`scoresde.analysis.error_constants`. Each update of a step has a pair: the lowest degree that it does not
            integrate exactly, and its constant. ``None`` means exact interpolation. An empty tuple means that the updates
            have no limit for short steps.

    Example:
        >>> from scoresde import solvers
        >>> found = solvers.heun().description
        >>> found.name, found.order, found.evaluations, found.stochastic
        ('heun', 2, 2, False)
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

    ``eta`` is 0 for the probability flow and 1 for the reverse SDE. A Stratonovich integrator adds
    ``ito_to_stratonovich`` to the drift; it is zero where the diffusion does not depend on the state.

    Example:
        >>> import torch
        >>> decay = Dynamics(lambda x, t: -x, lambda x, t: torch.zeros_like(x), lambda x, t: 0.0, eta=0.0)
        >>> decay.drift(torch.ones(2), torch.tensor(0.5))
        tensor([-1., -1.])
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
    """Whether the steps do not depend on the points of a path, at which the solver interpolates its states."""

    brings_path: ClassVar[bool] = False
    """Whether the solver has a path of its own, which a comparison takes in place of the paths that it compares."""

    @property
    def name(self) -> str:
        """The name in the table of solvers."""
        return self.description.name

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return self.description.stochastic

    @property
    def own_end(self) -> str:
        """The end of the path where none is given; see :func:`scoresde.sample`."""
        return "denoise"

    def own_path(
        self,
        sde: GaussianSDE,
        steps: int,
        *,
        t_max: float | None = None,
        t_min: float | None = None,
        end: str | None = None,
    ) -> Path:
        """Return the path of ``steps`` moves on which the solver runs where none is given: even in lam.

        Args:
            sde, steps, t_max, t_min: the same as in :func:`~scoresde.solvers.make_path`.
            end: the end of the path, by default :attr:`own_end`.
        """
        return make_path(sde, "lam", steps, t_max=t_max, t_min=t_min, end=end or self.own_end)

    def chosen(self, path: Path | None) -> Solver:
        """Return the solver that runs on ``path``, or on an SDE without marginals for ``None``: itself, for most."""
        return self

    @property
    def step_counts(self) -> tuple[int, ...] | None:
        """The numbers of steps that the solver can take; ``None`` where it can take any."""
        return None

    def followed(self, path: Path) -> Path:
        """Return the path that the solver follows in place of ``path``: the same, unless its times are fixed."""
        return path

    def check_model(self, model: nn.Module) -> None:  # noqa: B027  # a solver fits every model, unless it says otherwise
        """Refuse a model for which the solver is not made; called before sampling."""

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
        """Run from ``x`` and return the last state; ``on_step`` is called with the number of steps done."""
        done = 0
        for state in self.states(path, model, x, noise):
            x = state.x
            if on_step is not None and state.step > done:  # several states may belong to one step
                done = state.step
                on_step(done)
        return x

    def integrate(self, dynamics: Dynamics, x: Tensor, times: list[float], noise: FreshNoise) -> Iterator[State]:
        """Run a process without closed-form marginals through ``times``; most solvers raise ``ValueError``."""
        raise ValueError(
            f"solver {self.name!r} needs the marginals alpha(t), sigma(t), which a general SDE does not have; take "
            "euler-maruyama, heun, rk45, torchsde-euler, torchsde-milstein or torchsde-srk"
        )

    def __repr__(self) -> str:
        return f"<solver {self.name}>"

    def __reduce__(self) -> Any:
        made = getattr(self, "_made", None)  # set by `maker`
        if made is None:
            return super().__reduce__()
        make, args, options = made
        call = inspect.signature(make).bind(*args, **options)
        call.apply_defaults()  # so that one solver is one call, however it was written
        return _made, (make, call.args, call.kwargs)


@dataclass(frozen=True, repr=False)
class RowSolver(Solver):
    """A solver that turns a path into rows, which every driver can run.

    Args:
        description: the claims of the solver.
        rows: the function from a path to its rows.
        general: the integrator for an SDE without marginals, if the solver has one.

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
    """Compose a solver of a prediction and a stencil, as most named solvers are.

    Example:
        >>> from scoresde.solvers import Data, multistep
        >>> compose(Description("mine", "exponential", "this page", order=3), Data(), multistep(3))
        <solver mine>
    """
    return RowSolver(description, lambda path: stencil_rows(prediction, stencil, path))


Arguments = ParamSpec("Arguments")
Made = TypeVar("Made", bound=Solver)


def _made(make: Callable[..., Made], args: tuple[Any, ...], options: dict[str, Any]) -> Made:
    return make(*args, **options)


def maker(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Decorate ``make``, a function of a module, so that the solvers it returns are pickled as the call that made them.

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
