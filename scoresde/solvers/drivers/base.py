"""The interface of drivers: a loop with its options, which declares what it supports."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoresde.solvers.drivers.model import Denoiser, Project
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.updates import State, Update

__all__ = ["Custom", "Driver"]


class Driver(ABC):
    """Interface of the loops that run rows. A driver is a frozen dataclass whose fields are its options.

    A driver is called as ``driver(rows, model, x, noise, project=None)`` with a start ``x`` of shape ``(batch, *event)``.
    It yields a :class:`~scoresde.solvers.State` at the end of every step. A driver that does not show its states returns
    the last one, a tensor, and takes ``on_step``, which it calls with the number of steps done.

    Attributes:
        name: the name in the table of drivers.
        shows_states: whether the driver yields its states, or overwrites them and returns the last.
        differentiates: whether gradients flow through the loop, to the start and to the parameters of the model.
        takes_gradients: whether the coefficients of rows may be tensors that carry gradients.
        needs_linear_rows: whether the driver refuses updates that are not linear: Langevin corrections, learned noise.
        copies_start: whether the model never sees the memory of ``x`` itself, into which a network may write.
        takes_matrices: whether the coefficients of rows may be linear maps, as on SDEs with matrix coefficients.
    """

    name: ClassVar[str]
    shows_states: ClassVar[bool] = True
    differentiates: ClassVar[bool] = False
    takes_gradients: ClassVar[bool] = False
    needs_linear_rows: ClassVar[bool] = False
    takes_matrices: ClassVar[bool] = True
    copies_start: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, rows: Sequence[Update], model: Denoiser, x: Tensor, noise: NoiseSource, *, project: Project | None = None
    ) -> Iterator[State] | Tensor:
        """Run ``rows`` from ``x``."""

    def check(self, rows: Sequence[Update]) -> None:
        """Refuse rows that this driver cannot run.

        Raises:
            ValueError: for an update that is not linear, for coefficients that carry gradients, or for linear maps in place
                of numbers, if the driver does not support these.
        """
        if not self.takes_matrices and not all(row.in_place for row in rows):
            raise ValueError(
                f"got rows whose coefficients are matrices, which driver {self.name!r} cannot run; take driver='fast', "
                "'readable' or 'differentiable'"
            )
        if self.needs_linear_rows and not all(row.linear for row in rows):
            raise ValueError(
                "got rows with Langevin corrections, whose step depends on the state, with learned noise or with a "
                f"measurement, so that driver {self.name!r} cannot run all steps at once; take driver='fast', or a solver "
                "whose rows are linear"
            )
        kinds = set() if self.takes_gradients else set(itertools.chain(*(map(type, row.coefficients) for row in rows)))
        if any(issubclass(kind, Tensor) for kind in kinds):
            raise ValueError(
                f"got rows whose coefficients are tensors, which driver {self.name!r} does not differentiate through; take "
                "driver='differentiable', or a path made of times.detach()"
            )


@dataclass(frozen=True)
class Custom(Driver):
    """A driver made of a user's loop and the declaration of what it supports.

    Args:
        function: the loop, called as every driver: see :class:`Driver`.
        shows_states, differentiates, takes_gradients, needs_linear_rows: the abilities of the loop (:class:`Driver`).

    Example:
        >>> import scoresde
        >>> from scoresde.solvers import readable
        >>> seen = []
        >>> def recorded(rows, model, x, noise, *, project=None):
        ...     for state in readable(rows, model, x, noise, project=project):
        ...         seen.append(state.step)
        ...         yield state
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> end = scoresde.sample(model, (4, 2), "ddim", 3, driver=Custom(recorded), progress=False)
        >>> seen
        [1, 2, 3]
    """

    function: Callable[..., Any]
    shows_states: bool = True  # type: ignore[misc]  # fields here, since the author of the loop declares them
    differentiates: bool = False  # type: ignore[misc]
    takes_gradients: bool = False  # type: ignore[misc]
    needs_linear_rows: bool = False  # type: ignore[misc]
    name: ClassVar[str] = "custom"

    def __call__(
        self,
        rows: Sequence[Update],
        model: Denoiser,
        x: Tensor,
        noise: NoiseSource,
        on_step: Callable[[int], None] | None = None,
        *,
        project: Project | None = None,
    ) -> Any:
        self.check(rows)
        if self.shows_states:
            return self.function(rows, model, x, noise, project=project)
        return self.function(rows, model, x, noise, on_step, project=project)
