"""One step of a training: its batch, its noise, its gradient, and the optimizer."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde._shape import expand
from scoresde.objectives import Objective, quantiles
from scoresde.score import ScoreModel
from scoresde.training.batches import Batches, seeded
from scoresde.training.checkpoint import Checkpoint
from scoresde.training.processes import Processes

__all__ = ["Dropping", "Outcome", "Stepper"]

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Dropping:
    """What replaces each condition where it is hidden, and the probability that it is."""

    null: Mapping[str, Any]
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"got drop_probability={self.probability}; expected a number between 0 and 1")

    def __call__(self, conditions: dict[str, Tensor], hidden: Tensor) -> dict[str, Tensor]:
        """The conditions, those of the ``hidden`` samples replaced."""
        if missing := sorted(self.null.keys() - conditions.keys()):
            raise ValueError(
                f"got no condition {', '.join(missing)} to drop; expected one of those of the data: "
                f"{', '.join(conditions) or 'none'}"
            )
        for name, absent in self.null.items():
            given = conditions[name]
            conditions = conditions | {name: torch.where(expand(hidden, given), torch.as_tensor(absent).to(given), given)}
        return conditions


@dataclass(frozen=True)
class Outcome:
    """What a step gave: the mean loss of the whole batch, the norm of its gradient before clipping, and the step size.

    ``finite``: whether the weights were moved or, with a scaled loss, only its scale was; ``where``: the samples at fault.
    """

    loss: float
    norm: float
    lr: float
    finite: bool
    stop: bool
    where: str = ""


@dataclass(frozen=True)
class _Drawn:
    """What a batch is trained at, of which each sample has its row."""

    t: Tensor
    importance: Tensor
    eps: Tensor
    u: Tensor | None
    extra: dict[str, Tensor]

    def part(self, of: slice) -> dict[str, Tensor]:
        return {"t": self.t[of], "eps": self.eps[of], **{name: value[of] for name, value in self.extra.items()}}


class Stepper:
    """The model, its optimizer and the way from one step to the next."""

    def __init__(
        self,
        model: ScoreModel,
        batches: Batches,
        objective: Objective,
        processes: Processes,
        lr: float,
        warmup: int,
        clip: float,
        dropping: Dropping | None,
        precision: str,
        accumulate: int,
        compile: bool,
        channels_last: bool,
    ) -> None:
        if precision not in _PRECISIONS:
            raise ValueError(f"got precision={precision!r}; expected one of {', '.join(_PRECISIONS)}")
        self.model, self.batches, self.objective, self.processes = model, batches, objective, processes
        self.lr, self.warmup, self.clip, self.dropping = lr, warmup, clip, dropping
        self.precision, self.accumulate, self.channels_last = precision, accumulate, channels_last
        self.parameters = [p for m in (model, objective.companion) for p in m.parameters() if p.requires_grad]
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.driven = model
        if compile:  # a view of the model: the weights keep their names
            self.driven = copy.copy(model)
            self.driven._modules = dict(model._modules)
            self.driven.net = cast(nn.Module, torch.compile(model.net))

    def __call__(self, index: int, interrupted: Callable[[], bool]) -> Outcome:
        """Step number ``index``, from 0, of which the weights see nothing where it is not finite.

        ``interrupted``: whether this process wants to stop after it; all stop where one does.
        """
        size, share = self.batches.batch_size, self.processes.share(self.batches.batch_size)
        x0, conditions = self.batches.at(index, self.device, self.dtype, share)
        if self.channels_last and x0.ndim == 4:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        drawn = self._draw(index, x0)
        if self.dropping is not None:
            hidden = torch.rand(size, generator=seeded(self.batches.seed, "drop", index)) < self.dropping.probability
            conditions = self.dropping(conditions, hidden[share].to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(index, x0, drawn, share, conditions)
        weighted = losses * drawn.importance[share].to(losses)
        sums = torch.stack([weighted.sum() / size, weighted.new_tensor(float(interrupted()))]).double()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.processes.add([sums, *gradients])
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss, asked, size_of_gradient = torch.cat([sums, norm.double()[None]]).tolist()  # the one wait for the device
        lr = self.lr * min(1.0, (index + 1) / (self.warmup + 1))
        finite = self._update(lr, math.isfinite(loss), math.isfinite(size_of_gradient))
        if finite and drawn.u is not None:
            self.objective.distribution.observe(drawn.u, self.processes.whole(losses, size))
        where = "" if finite else self._where(index, share, weighted)
        return Outcome(loss, size_of_gradient, lr, finite, asked > 0, where)

    def _draw(self, index: int, x0: Tensor) -> _Drawn:
        """Times and noise for the whole batch, in the order in which the objective itself draws them."""
        generator, size = seeded(self.batches.seed, "noise", index, self.device), self.batches.batch_size
        times = self.objective.distribution
        u = quantiles(size, generator, self.objective.spread)
        t, importance = times.at(u, self.model.sde)
        eps = torch.randn((size, *x0.shape[1:]), generator=generator, device=self.device, dtype=x0.dtype)
        learns = bool(_state(times))
        # What else it draws depends on the data by their shape alone, which is that of the noise.
        return _Drawn(t, importance, eps, u if learns else None, self.objective.draws(eps, generator))

    def _backward(self, index: int, x0: Tensor, drawn: _Drawn, share: slice, conditions: dict[str, Tensor]) -> Tensor:
        """Add the gradient of this process's share, part by part; the losses of its samples before their importance."""
        dtype, parts = _PRECISIONS[self.precision], []
        at = -(-len(x0) // self.accumulate)
        for number, start in enumerate(range(0, len(x0), at)):
            here = slice(start, min(start + at, len(x0)))
            there = slice(share.start + here.start, share.start + here.stop)
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
        """Move the weights, or leave them; whether all is well."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.scaler.is_enabled():  # it leaves the weights where a gradient is not finite, and takes a smaller scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return loss_is_finite
        if loss_is_finite and gradient_is_finite:
            self.optimizer.step()
            return True
        return False

    def _where(self, index: int, share: slice, losses: Tensor) -> str:
        """The samples of this process whose loss is not finite, or all where none is."""
        bad = (~losses.isfinite()).nonzero().flatten().cpu()
        indices = self.batches.indices(index, share)
        if indices is None:
            return f"at samples {_listed(bad)} of the batch" if len(bad) else "though that of each sample is finite"
        of_data = indices[bad] if len(bad) else indices
        return f"{'at' if len(bad) else 'in the batch of'} samples {_listed(of_data)} of the data"

    def state(self) -> dict[str, Tensor]:
        """The tensors that the next step depends on, beside the weights."""
        states = self.optimizer.state_dict()["state"].items()
        tensors = {f"optimizer.{i}.{name}": value for i, state in states for name, value in state.items()}
        tensors |= {f"times.{name}": value for name, value in _state(self.objective.distribution).items()}
        if self.scaler.is_enabled():
            growth = self.scaler.state_dict()
            numbers = [growth["scale"], float(growth["_growth_tracker"])]
            tensors["scaler.numbers"] = torch.tensor(numbers, dtype=torch.float64)
        return tensors

    def restore(self, stored: Checkpoint) -> None:
        """Take that from a checkpoint."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.group("optimizer").items():
            index, name = key.split(".")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        for name, value in _state(self.objective.distribution).items():
            value.copy_(stored.group("times")[name])
        if self.scaler.is_enabled():
            scale, tracker = stored.group("scaler")["numbers"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})


def _seed_dropout(seed: int, device: torch.device) -> None:
    """What ``torch.manual_seed`` does to the one device that matters, without the half millisecond it takes."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _state(times: object) -> dict[str, Tensor]:
    """The tensors that a distribution of times changes as it learns."""
    return {name: value for name, value in vars(times).items() if isinstance(value, Tensor)}


def _listed(indices: Tensor) -> str:
    shown = ", ".join(map(str, indices[:8].tolist()))
    return shown + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
