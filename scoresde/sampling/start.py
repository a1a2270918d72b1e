"""What sampling does at its door: every model becomes one signature, every request a start and its noise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.shape import check_batch
from scoresde.score import ScoreModel
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds

__all__ = ["Door", "Transform", "evaluation_mode", "start"]

Transform = Callable[[Tensor, Any], Tensor]
"""A function of a data prediction and its time, applied after each evaluation."""


class Door:
    """The one signature to which every model is reduced: data prediction at a time, conditions bound, calls counted."""

    def __init__(
        self, model: ScoreModel, batch: int, conditions: dict[str, Any], transform: Transform | None, grads: bool = False
    ) -> None:
        self.model, self.batch, self.conditions, self.transform = model, batch, conditions, transform
        # A backward pass evaluates again, long after sampling left the network in the mode it was in.
        self.mode = evaluation_mode if grads else contextlib.nullcontext
        self.evaluations = 0

    def _finish(self, m: Tensor, t: float | Tensor, copies: int = 1) -> Tensor:
        self.evaluations += copies
        return m if self.transform is None else self.transform(m, t)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        copies = x.shape[0] // self.batch  # more than one where a driver stacks several states of the batch
        conditions = {name: _repeated(c, self.batch, copies) for name, c in self.conditions.items()}
        with self.mode(self.model):
            m = self.model.x0(x, t, **conditions)
        return self._finish(m, float(t.detach()) if t.ndim == 0 else t, copies)

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Bind the model to ``times``, with the fraction of a learned variance beside each prediction."""
        bound = self.model.at_with_variance(times, device=device, dtype=dtype, **self.conditions)

        def counted(function: Callable[[Tensor], tuple[Tensor, Tensor]], t: float) -> Callable[[Tensor], Any]:
            def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
                with self.mode(self.model):
                    m, fraction = function(x)
                return self._finish(m, t), fraction

            return evaluate

        return [counted(f, t) for f, t in zip(bound, times.tolist(), strict=True)]

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        """Bind the model to ``times``."""
        bound = self.model.at(times, device=device, dtype=dtype, **self.conditions)

        def counted(function: Callable[[Tensor], Tensor], t: float) -> Callable[[Tensor], Tensor]:
            def evaluate(x: Tensor) -> Tensor:
                with self.mode(self.model):
                    m = function(x)
                return self._finish(m, t)

            return evaluate

        return [counted(f, t) for f, t in zip(bound, times.tolist(), strict=True)]


def _repeated(condition: Any, batch: int, copies: int) -> Any:
    """A condition with an entry per sample, for ``copies`` of the batch after one another."""
    if copies == 1 or not isinstance(condition, Tensor) or condition.ndim == 0 or condition.shape[0] != batch:
        return condition
    return condition.repeat(copies, *[1] * (condition.ndim - 1))


@contextlib.contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Networks are sampled in evaluation mode, and left in the mode they were in."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _home(model: object, device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[Any, torch.dtype]:
    """Where and in which precision to start: as asked, else as the model's first parameter, else CPU and the default."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if device is None:
        device = first.device if first is not None else "cpu"
    return torch.device(device), dtype or torch.get_default_dtype()


def start(
    shape_or_start: Tensor | Sequence[int],
    model: object,
    seed: int | Sequence[int] | None,
    prior_std: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    grads: bool = False,
) -> tuple[Tensor, FreshNoise]:
    """The start, given or drawn with deviation ``prior_std``, and the noise of the same seeds, which goes on from there."""
    if isinstance(shape_or_start, Tensor):
        x = check_batch(shape_or_start if grads else shape_or_start.detach())
        x = x.to(device=x.device if device is None else device, dtype=dtype or x.dtype)
        return x, FreshNoise(sample_seeds(seed, x.shape[0]), x.device)
    shape = tuple(shape_or_start)
    if len(shape) < 2 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            f"got shape {shape}; expected (batch, *event) of positive whole numbers with at least one event dimension: "
            "write scalars as (batch, 1)"
        )
    home, precision = _home(model, device, dtype)
    noise = FreshNoise(sample_seeds(seed, shape[0]), home)
    return noise.normal(torch.empty(shape, device=home, dtype=precision)).mul_(prior_std), noise
