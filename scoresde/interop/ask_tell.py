"""Sampling by a loop that belongs to someone else: the run asks for evaluations of the model, and is told their outputs.

The drivers of this package call the model. A pipeline of another package calls the model itself, and its scheduler gets the
outputs one by one. :class:`AskTell` is the loop of the drivers turned inside out. It makes the same updates on the same
states, and pauses before each update that evaluates the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.score import PREDICTIONS, Evaluation
from scoresde.score.output import halves
from scoresde.solvers import Path, Point, RowSolver, Solver
from scoresde.solvers.drivers.model import Project, bind
from scoresde.solvers.drivers.states import Allocating
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.updates import Update

__all__ = ["AskTell", "Question", "rows_of"]

Transform = Callable[[Tensor, Any], Tensor]


class Question(NamedTuple):
    """A wanted evaluation of the model: at the state ``x``, at ``point``, after ``step`` steps of the solver.

    Example:
        >>> import scoresde, torch
        >>> from scoresde import solvers
        >>> path = solvers.make_path(scoresde.VP(), "lam", 4)
        >>> question = AskTell(solvers.heun(), path, torch.ones(2, 2)).ask()
        >>> question.point.t, question.x.shape, question.step
        (1.0, torch.Size([2, 2]), 0)
    """

    point: Point
    x: Tensor
    step: int


class AskTell:
    """A run of a solver that never calls a model: it asks for an evaluation and goes on when it is told the output.

    Args:
        solver: a solver that makes rows.
        path: the path.
        x: the start, shape ``(batch, *event)``, which is not changed.
        noise: the source of all draws; ``None`` suffices for a deterministic solver.
        predicts: the quantity that the outputs predict, a name in :data:`~scoresde.score.PREDICTIONS`.
        sigma_data: the standard deviation of the data, for ``"edm"``.
        transform: a function ``transform(m, t)`` applied to each data prediction, for clipping or thresholding.
        project: a function ``project(x, t)`` applied to the state at the end of each step.

    Raises:
        ValueError: for a solver that chooses its own steps.

    Example:
        >>> import scoresde, torch
        >>> from scoresde import solvers
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> path, start = solvers.make_path(model.sde, "lam", 10), torch.ones(4, 2)
        >>> run = AskTell(solvers.heun(), path, start)
        >>> while (question := run.ask()) is not None:
        ...     run.tell(model.x0(question.x, question.point.t))
        >>> sampled = scoresde.sample(model, start, "heun", path=path, progress=False)
        >>> bool(torch.allclose(run.x, sampled.x))
        True
    """

    def __init__(
        self,
        solver: Solver,
        path: Path,
        x: Tensor,
        noise: NoiseSource | None = None,
        *,
        predicts: str = "x0",
        sigma_data: float = 0.5,
        transform: Transform | None = None,
        project: Project | None = None,
    ) -> None:
        self._told = _Told(path, PREDICTIONS.name(predicts), sigma_data, transform)
        rows, evaluations = bind(rows_of(solver, path), self._told, x)
        self._left = list(reversed(rows))
        self._states = Allocating(rows, iter(evaluations), x, noise, project)
        self._advance()

    @property
    def x(self) -> Tensor:
        """The current state, shape ``(batch, *event)``: the samples once :meth:`ask` returns ``None``."""
        state: Tensor = self._states.y
        return state

    def ask(self) -> Question | None:
        """Return the next evaluation that is needed, or ``None`` at the end of the run; asking twice gives the same."""
        if not self._left:
            return None
        at = self._left[-1].at
        assert at is not None
        return Question(at, self.x, self._states.step)

    def tell(self, output: Tensor, x: Tensor | None = None) -> None:
        """Give the output of the network for the evaluation that was asked for, and go on to the next evaluation.

        Args:
            output: the output, of the shape of the state, or of twice the channels with a learned variance.
            x: the state, where it has been changed since, such as by a pipeline that keeps a part of an image.

        Raises:
            RuntimeError: at the end of the run.
            ValueError: for an output of another shape, and for one without a learned variance that the solver needs.
        """
        if not self._left:
            raise RuntimeError("got an output after the end of the run; expected none: make a new AskTell for another run")
        on = self._states
        if x is not None:
            if on.y is on.x:
                on.x = x
            on.y = x
        self._told.take(output, self.x)
        self._left.pop().apply(on)
        self._advance()

    def _advance(self) -> None:
        """Make the updates that evaluate nothing, up to the next one that does."""
        while self._left and self._left[-1].at is None:
            self._left.pop().apply(self._states)


def rows_of(solver: Solver, path: Path) -> Sequence[Update]:
    """Return the rows that a solver makes of a path.

    Raises:
        ValueError: for a solver that makes no rows.
    """
    if not isinstance(solver, RowSolver):
        raise ValueError(
            f"got solver {solver.name!r}, which chooses its own steps and evaluations, so that they cannot be listed before "
            "the run; expected a solver with fixed steps, such as 'dpmpp-3m'"
        )
    return solver.rows(path)


class _Told:
    """A model in place of the one that is elsewhere: each of its evaluations is the output that was told last."""

    def __init__(self, path: Path, predicts: str, sigma_data: float, transform: Transform | None) -> None:
        self.sde, self.predicts, self.sigma_data, self.transform = path.sde, predicts, sigma_data, transform
        self.output: Tensor | None = None

    def take(self, output: Tensor, x: Tensor) -> None:
        shapes = [tuple(x.shape), (x.shape[0], 2 * x.shape[1], *x.shape[2:])]
        if tuple(output.shape) not in shapes:
            raise ValueError(
                f"got an output of shape {tuple(output.shape)} for a state of shape {shapes[0]}; expected the same shape, "
                f"or {shapes[1]} with a learned variance"
            )
        self.output = output.to(x.dtype)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError("a run by ask and tell evaluates the model at the times of its rows alone")

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        return [self._transformed(e, t) for e, t in zip(self._evaluations(times), times.tolist(), strict=True)]

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        def bound(x0: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            return lambda x: (x0(x), self._fraction(x))

        return [bound(x0) for x0 in self.at(times, device=device, dtype=dtype)]

    def _evaluations(self, times: Tensor) -> list[Evaluation]:
        c = PREDICTIONS[self.predicts].coefficients(self.sde.alpha(times), self.sde.sigma(times), self.sigma_data)
        return [Evaluation(self._prediction, *pair) for pair in zip(*(f.tolist() for f in c.x0), strict=True)]

    def _transformed(self, evaluation: Evaluation, t: float) -> Callable[[Tensor], Tensor]:
        change = self.transform
        return evaluation if change is None else lambda x: change(evaluation(x), t)

    def _prediction(self, x: Tensor) -> Tensor:
        assert self.output is not None
        return self.output if self.output.shape == x.shape else halves(self.output)[0]

    def _fraction(self, x: Tensor) -> Tensor:
        assert self.output is not None
        if self.output.shape == x.shape:
            raise ValueError(
                "got an output without a learned variance, which the solver needs; expected twice the channels, or the "
                "solver with variance='lower' or 'upper'"
            )
        return halves(self.output)[1]
