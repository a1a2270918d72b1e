"""The form in which solvers use a model: with its conditions bound, its network calls counted, and in evaluation mode."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from scoresde.score import Calls, Conditions, Evaluation, ScoreModel
from scoresde.sde import SDE
from scoresde.solvers.noise.region import is_sharded

__all__ = ["Counted", "evaluation_mode"]


class Counted:
    """The data prediction of a model for a batch and its conditions, which counts the network calls.

    Args:
        model: any score model.
        conditions: the conditions of the batch.
        grads: whether a backward pass may evaluate the model again after sampling has ended. The network is then in its
            original mode, so each evaluation sets the evaluation mode itself.

    Attributes:
        forward, backward: the number of network calls of the data predictions so far, according to ``model.calls_at``
            (``model.calls`` where samples have different times) and ``model.calls_with_variance``.
    """

    def __init__(self, model: ScoreModel, conditions: Conditions, *, grads: bool = False) -> None:
        self.model, self.conditions = model, conditions
        self.grads = grads
        self.forward = self.backward = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        copies = x.shape[0] // self.conditions.batch  # more than one where a driver stacks several states of the batch
        self._count(self.model.calls if t.ndim else self.model.calls_at(float(t.detach())), copies)
        with evaluation_mode(self.model) if self.grads else contextlib.nullcontext(), _beside(x):
            return _checked(self.model.x0(x, t, **self.conditions.repeated(copies)), x, self.model.sde)

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        """Bind the model to ``times``, as :meth:`scoresde.ScoreModel.at` does."""
        bound = self.model.at(times, device=device, dtype=dtype, **self.conditions.values)
        calls = [self.model.calls_at(t) for t in times.tolist()]
        return [
            Evaluation(self._counted(f.output, cost), f.of_x, f.of_output)
            if isinstance(f, Evaluation)
            else self._checking(self._counted(f, cost))
            for f, cost in zip(bound, calls, strict=True)
        ]

    @property
    def jumps(self) -> bool:
        """Whether the model predicts whole jumps; see :attr:`scoresde.ScoreModel.jumps`."""
        return self.model.jumps

    def at_jumps(
        self, times: Tensor, ends: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """Bind the model to jumps from ``times`` to ``ends``, as :meth:`scoresde.ScoreModel.at_jumps` does."""
        bound = self.model.at_jumps(times, ends, device=device, dtype=dtype, **self.conditions.values)
        calls = [self.model.calls_at(t) for t in times.tolist()]
        return [self._checking(self._counted(f, cost)) for f, cost in zip(bound, calls, strict=True)]

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Bind the model to ``times``, with the fraction of a learned variance beside each prediction."""
        bound = self.model.at_with_variance(times, device=device, dtype=dtype, **self.conditions.values)
        return [self._counted(f, self.model.calls_with_variance) for f in bound]

    def _count(self, calls: Calls, copies: int = 1) -> None:
        self.forward += copies * calls.forward
        self.backward += copies * calls.backward

    def _counted(self, function: Callable[[Tensor], Any], calls: Calls) -> Callable[[Tensor], Any]:
        forward, backward = calls

        def evaluate(x: Tensor) -> Any:
            self.forward += forward
            self.backward += backward
            with _beside(x):
                return function(x)

        def evaluate_in_mode(x: Tensor) -> Any:
            with evaluation_mode(self.model):
                return evaluate(x)

        return evaluate_in_mode if self.grads else evaluate

    def _checking(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: _checked(function(x), x, self.model.sde)


def _beside(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Let the plain tensors of a model, which each process has whole, meet a sharded ``x`` in one operation."""
    if not is_sharded(x):
        return contextlib.nullcontext()
    from torch.distributed.tensor.experimental import implicit_replication

    return implicit_replication()


def _checked(m: Tensor, x: Tensor, sde: SDE) -> Tensor:
    """Return the data prediction ``m`` of a subclass of ScoreModel after a check of its shape and dtype."""
    if not isinstance(m, Tensor) or m.shape != sde.data_shape(x.shape) or m.dtype != x.dtype:
        found = f"shape {tuple(m.shape)} and {m.dtype}" if isinstance(m, Tensor) else f"a {type(m).__name__}"
        raise ValueError(
            f"the model returned {found} for x of shape {tuple(x.shape)} and {x.dtype}; expected a data prediction of the "
            "same shape and dtype from x0(x, t, **conditions)"
        )
    return m


# Evaluation mode -----------------------------------------------------------------------------------------------------

_LOCK = threading.Lock()
_USERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""For each module that was in training mode when its first sampler started, the number of samplers that use it now."""


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore its modes when the last of several threads has finished."""
    with _LOCK:
        mine = [m for m in model.modules() if m.training or m in _USERS]
        for module in mine:
            _USERS[module] = _USERS.get(module, 0) + 1
            object.__setattr__(module, "training", False)  # a module's own __setattr__ searches its parameters first
    try:
        yield
    finally:
        with _LOCK:
            for module in mine:
                _USERS[module] -= 1
                if not _USERS[module]:
                    del _USERS[module]
                    object.__setattr__(module, "training", True)
