"""The plain loops: ``readable`` and ``differentiable`` yield every state, ``fast`` works in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from scoresde.solvers.drivers.base import Driver
from scoresde.solvers.drivers.model import Denoiser, Evaluation, Project, bind
from scoresde.solvers.drivers.states import Allocating, InPlace
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.updates import State, Update, run

__all__ = ["Differentiable", "Fast", "Readable", "run_in_place"]


@dataclass(frozen=True)
class Readable(Driver):
    """A driver that yields a new state for every step; it defines what all other drivers compute.

    Example:
        >>> from scoresde import VP, solvers
        >>> class Zero:  # the data are one point, the origin
        ...     def at(self, times, *, device, dtype):
        ...         return [torch.zeros_like] * len(times)
        >>> import torch
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 4))
        >>> [round(state.x.item(), 3) for state in Readable()(rows, Zero(), torch.ones(1, 1), None)]
        [0.994, 0.825, 0.01, 0.0]
    """

    name: ClassVar[str] = "readable"
    takes_gradients: ClassVar[bool] = True

    def __call__(
        self, rows: Sequence[Update], model: Denoiser, x: Tensor, noise: NoiseSource, *, project: Project | None = None
    ) -> Iterator[State]:
        self.check(rows)
        rows, evaluations = bind(rows, model, x)
        return run(rows, Allocating(rows, iter(evaluations), x, noise, project))


@dataclass(frozen=True)
class Differentiable(Driver):
    r"""A driver like ``readable`` through which gradients flow to the start, the model, the coefficients and the times.

    It backpropagates through every step as computed (discretize, then optimize). Coefficients are variables where the rows
    hold 0-dim float64 tensors. You may put these there yourself (``dataclasses.replace(row, w=...)``), or the solver makes
    them from a path whose times require gradients, ``Path.from_times(sde, times)``. The time at which the last move to
    sigma = 0 starts gets a gradient through the model alone.

    Args:
        checkpoint: whether to keep the input of an evaluation alone, and repeat the evaluation in the backward pass. The
            memory then holds one evaluation of the network, whatever the number of steps, and one state per evaluation.
            Gradients with respect to coefficients keep the history of each row as well. A network that draws random
            numbers repeats them.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174, for the
    checkpoints.

    Example:
        >>> import scoresde, torch
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> times = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
        >>> samples = scoresde.sample(model, (4, 2), "ddim", path=times, driver="differentiable", progress=False)
        >>> samples.x.square().sum().backward()
        >>> times.grad.shape
        torch.Size([3])
    """

    checkpoint: bool = True
    name: ClassVar[str] = "differentiable"
    differentiates: ClassVar[bool] = True
    takes_gradients: ClassVar[bool] = True

    def __call__(
        self, rows: Sequence[Update], model: Denoiser, x: Tensor, noise: NoiseSource, *, project: Project | None = None
    ) -> Iterator[State]:
        self.check(rows)
        rows, evaluations = bind(rows, model, x)
        evaluate = map(_checkpointed, evaluations) if self.checkpoint else iter(evaluations)
        return run(rows, Allocating(rows, evaluate, x, noise, project))


def _checkpointed(evaluation: Evaluation) -> Evaluation:
    from torch.utils.checkpoint import checkpoint

    return partial(checkpoint, evaluation, use_reentrant=False)


@dataclass(frozen=True)
class Fast(Driver):
    """A driver that works in place; between two evaluations the host only launches the arithmetic of the row.

    It does not change the start, and returns the last state. Beside the model it holds the state, one stage if the solver
    has stages, the history, and the draws of one step. The result equals :class:`Readable` bit for bit. ``on_step`` is
    called on the host, without waiting for the device.

    Example:
        >>> from scoresde import VP, problems, sample
        >>> sample(problems.ring().model(VP()), (2, 2), "ddim", steps=4, driver=Fast(), progress=False).evaluations
        4
    """

    name: ClassVar[str] = "fast"
    shows_states: ClassVar[bool] = False
    copies_start: ClassVar[bool] = True

    def __call__(
        self,
        rows: Sequence[Update],
        model: Denoiser,
        x: Tensor,
        noise: NoiseSource,
        on_step: Callable[[int], None] | None = None,
        *,
        project: Project | None = None,
    ) -> Tensor:
        self.check(rows)
        rows, evaluations = bind(rows, model, x)
        states = InPlace if all(row.in_place for row in rows) else Allocating
        return run_in_place(rows, states(rows, iter(evaluations), x, noise, project), on_step)


def run_in_place(rows: Sequence[Update], on: Allocating, on_step: Callable[[int], None] | None) -> Tensor:
    """Make all updates on states that are not shown, and return the last, without copies between host and device."""
    done = 0
    for state in run(rows, on):
        if on_step is not None and state.step > done:
            done = state.step
            on_step(done)
    end: Tensor = on.x
    return end
