"""One step of a training: its batch, its noise, its gradient, and the optimizer."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.data import Augmentation
from scoresde.objectives import Objective, quantiles
from scoresde.score import ScoreModel
from scoresde.training.batches import Batches, seeded
from scoresde.training.files.checkpoint import Checkpoint
from scoresde.training.method import PRECISIONS, Method
from scoresde.training.optimization import optimizers
from scoresde.training.processes import Processes

__all__ = ["Outcome", "Stepper"]


@dataclass(frozen=True)
class Outcome:
    """The result of a training step.

    Args:
        loss: the mean loss of the whole batch.
        norm: the norm of the gradient before clipping.
        lr: the learning rate.
        finite: the loss and the gradient were finite. With a scaled loss (fp16), the gradient may have overflowed; then the
            scale was lowered and the weights were left.
        stop: a process asked to stop after this step.
        failed: a process failed and all have to stop.
        where: the samples whose loss is not finite, in words.
    """

    loss: float
    norm: float
    lr: float
    finite: bool
    stop: bool
    failed: bool
    where: str = ""


@dataclass(frozen=True)
class _Drawn:
    """The random draws of a batch: times, their importance weights, noise, quantiles and the objective's own draws.

    Each tensor has a row for each sample.
    """

    t: Tensor
    importance: Tensor
    eps: Tensor
    u: Tensor | None
    extra: dict[str, Tensor]

    def part(self, of: slice) -> dict[str, Tensor]:
        return {"t": self.t[of], "eps": self.eps[of], **{name: value[of] for name, value in self.extra.items()}}


class Stepper:
    """One training step: forward and backward pass, sum over processes, clipping, and the update of the weights."""

    def __init__(
        self,
        model: ScoreModel,
        batches: Batches,
        objective: Objective,
        processes: Processes,
        method: Method,
    ) -> None:
        self.model, self.batches, self.objective, self.processes = model, batches, objective, processes
        self.method, self.share = method, processes.share(batches.batch_size)
        self.parameters = [p for m in (model, objective.companion) for p in m.parameters() if p.requires_grad]
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self.optimizer = optimizers.build(method.optimizer, self.parameters, method.lr)
        self.ratios = optimizers.ratios(self.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=method.precision == "fp16")
        self.driven = model
        if method.compile:  # a view of the model: the weights keep their names
            self.driven = copy.copy(model)
            self.driven._modules = dict(model._modules)
            self.driven.net = cast(nn.Module, torch.compile(model.net))

    def description(self) -> dict[str, Any]:
        """Return the settings that a resumed training must share with the one that it continues."""
        return self.method.description(optimizers.describe(self.optimizer)) | {"dtype": str(self.dtype)}

    def read(self, numbers: range) -> Generator[tuple[Tensor, dict[str, Tensor]], None, None]:
        """Yield this process's share of each batch whose number is in ``numbers``."""
        return self.batches.ahead(numbers, self.device, self.dtype, self.share)

    def __call__(
        self, index: int, batch: tuple[Tensor, dict[str, Tensor]], interrupted: Callable[[], bool], failed: bool = False
    ) -> Outcome:
        """Make step number ``index``; leave the weights as they are if the loss or its gradient is not finite.

        Args:
            index: the number of the step, from 0.
            batch: this process's share of the batch.
            interrupted: tells whether this process wants to stop after the step.
            failed: this process has failed. All processes stop where one does, and nothing is saved.
        """
        size, share = self.batches.batch_size, self.share
        x0, conditions = self._prepared(index, *batch)
        drawn = self._draw(index, x0)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(index, x0, drawn, conditions)
        weighted = losses * drawn.importance[share].to(losses)
        flags = torch.tensor([interrupted(), failed], dtype=torch.float64, device=self.device)
        sums = torch.cat([(weighted.sum() / size).double()[None], flags])
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.processes.add([sums, *gradients])
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.method.clip)
        loss, asked, lost, size_of_gradient = torch.cat([sums, norm.double()[None]]).tolist()  # the one wait for the device
        lr = self.method.lr_of(index)
        finite = not lost and self._update(lr, math.isfinite(loss), math.isfinite(size_of_gradient))
        if finite and drawn.u is not None:
            self.objective.distribution.observe(drawn.u, self.processes.whole(losses, size))
        where = "" if finite else self._where(index, share, weighted)
        return Outcome(loss, size_of_gradient, lr, finite, asked > 0, lost > 0, where)

    def _prepared(self, index: int, x0: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Augment the images, add the condition ``augment``, and apply the memory layout."""
        if isinstance(self.method.augmentation, Augmentation):
            generator = seeded(self.batches.seed, "augment", index)
            a = self.method.augmentation.draw(self.batches.batch_size, generator)[self.share]
            x0 = self.method.augmentation.apply(x0, a)
            conditions = {**conditions, "augment": self.method.augmentation.describe(a).to(x0)}
        if self.method.channels_last and x0.ndim == 4:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        return x0, conditions

    def _draw(self, index: int, x0: Tensor) -> _Drawn:
        """Draw times and noise for the whole batch, in the order in which the objective itself draws them."""
        generator, size = seeded(self.batches.seed, "noise", index, self.device), self.batches.batch_size
        times = self.objective.distribution
        u = quantiles(size, generator, self.objective.spread)
        t, importance = times.at(u, self.model.sde)
        event = (size, *x0.shape[1:])
        like = x0.new_empty((1, *x0.shape[1:])).expand(event)  # of the whole batch, of which x0 is a share
        eps = self.objective.draw_noise(self.model, like, generator)
        learns = bool(_state(times))
        # The objective's other draws depend on the data by their shape alone.
        return _Drawn(t, importance, eps, u if learns else None, self.objective.draws(x0.new_empty(event), generator))

    def _backward(self, index: int, x0: Tensor, drawn: _Drawn, conditions: dict[str, Tensor]) -> Tensor:
        """Accumulate the gradient of this process's share, part by part; return the losses without importance weights."""
        dtype, parts = PRECISIONS[self.method.precision], []
        at = -(-len(x0) // self.method.accumulate)
        for number, start in enumerate(range(0, len(x0), at)):
            here = slice(start, min(start + at, len(x0)))
            there = slice(self.share.start + here.start, self.share.start + here.stop)
            rank = self.processes.rank
            stream = "dropout" if rank == number == 0 else f"dropout/{rank}/{number}"
            _seed_dropout(seeded(self.batches.seed, stream, index).initial_seed(), self.device)
            autocast = contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
            with autocast:
                given = {name: value[here] for name, value in conditions.items()}
                loss = self.objective.at(self.driven, x0[here], **drawn.part(there), **given)
            total = (drawn.importance[there].to(loss) * loss).sum() / self.batches.batch_size
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            parts.append(loss.detach())
        return torch.cat(parts)

    def _update(self, lr: float, loss_is_finite: bool, gradient_is_finite: bool) -> bool:
        """Update the weights if the gradient is finite; return whether loss and gradient are finite."""
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = ratio * lr
        if self.scaler.is_enabled():  # it skips an update with a gradient that is not finite, and lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return loss_is_finite
        if loss_is_finite and gradient_is_finite:
            self.optimizer.step()
            return True
        return False

    def _where(self, index: int, share: slice, losses: Tensor) -> str:
        """Name the samples of this process whose loss is not finite, or all of its samples if every loss is finite."""
        bad = (~losses.isfinite()).nonzero().flatten().cpu()
        indices = self.batches.indices(index, share)
        if indices is None:
            return f"at samples {_listed(bad)} of the batch" if len(bad) else "though the loss of each sample is finite"
        of_data = indices[bad] if len(bad) else indices
        return f"{'at' if len(bad) else 'in the batch of'} samples {_listed(of_data)} of the data"

    def state(self) -> dict[str, Tensor]:
        """Return the tensors other than weights that the next step depends on."""
        tensors = optimizers.state(self.optimizer)
        tensors |= {f"times.{name}": value for name, value in _state(self.objective.distribution).items()}
        if self.scaler.is_enabled():
            growth = self.scaler.state_dict()
            numbers = [growth["scale"], float(growth["_growth_tracker"])]
            tensors["scaler.numbers"] = torch.tensor(numbers, dtype=torch.float64)
        return tensors

    def restore(self, stored: Checkpoint) -> None:
        """Load the state of the optimizer, the distribution of times and the loss scale from a checkpoint."""
        optimizers.fill(self.optimizer, stored)
        for name, value in _state(self.objective.distribution).items():
            value.copy_(stored.group("times")[name])
        if self.scaler.is_enabled():
            scale, tracker = stored.group("scaler")["numbers"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the CPU and one CUDA device, which is faster than ``torch.manual_seed``, which seeds all."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _state(times: object) -> dict[str, Tensor]:
    """Return the tensors of a distribution of times, which change as it learns."""
    return {name: value for name, value in vars(times).items() if isinstance(value, Tensor)}


def _listed(indices: Tensor) -> str:
    shown = ", ".join(map(str, indices[:8].tolist()))
    return shown + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
