"""The trainer: one step, repeated, and what is written on the way.

Nothing in a training depends on what was drawn before: the data of a step, its times, its noise and its dropout are
functions of the seed and the number of the step. What a checkpoint must hold is therefore weights, averages, the state
of the optimizer and the number of steps, and a resumed training is, bit for bit, the one that was never interrupted.
For the same reason each of several processes draws what belongs to the whole batch and takes its share: together they do
what one process would.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.data import Augmentation
from scoresde.objectives import Objective
from scoresde.objectives import objective as named
from scoresde.score import ScoreModel
from scoresde.training.batches import Batches, Indexed, Samplable
from scoresde.training.files import checkpoint
from scoresde.training.files.checkpoint import CheckpointError
from scoresde.training.files.retention import Files, Keep
from scoresde.training.interrupts import interrupts
from scoresde.training.method import Method
from scoresde.training.optimization import averages as moving
from scoresde.training.optimization.averages import Average, PowerAverage
from scoresde.training.optimization.optimizers import MakeOptimizer
from scoresde.training.optimization.schedules import Schedule
from scoresde.training.optimization.schedules import schedule as schedule_of
from scoresde.training.options import Monitor
from scoresde.training.processes import launched
from scoresde.training.records import Records
from scoresde.training.steps import Outcome, Stepper

__all__ = ["Trainer"]

_PATIENCE = 20  # batches in a row without a finite loss: it is then not the batches


class Trainer:
    r"""Trains the network of a score model, in place, with clipped gradients and averaged weights.

    Where ``accelerate launch`` or ``torchrun`` started several processes, each works on its share of every batch and
    they add up their gradients; ``batch_size`` is that of all of them together, and the weights are those that one
    process would reach, up to rounding and the network's own dropout. The first process writes and reports.

    Args:
        model: the score model, whose network is a ``torch.nn.Module``.
        data: samples of shape ``(n, *event)``, a :class:`scoresde.data.Dataset`, or anything with
            ``sample(n, generator)``.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES` or any objective with a ``distribution`` of times and
            ``at(model, x0, t, eps, **conditions)``; where the distribution learns from losses it is told them. Its
            ``companion`` is trained along with the network, and averaged: the averages are in ``companions``, by name.
        batch_size: samples per step.
        optimizer: the name of a class of torch.optim, ``"adam"``, ``"adamw"``, ``"radam"``, .., with its usual settings, or
            a function of the parameters: ``functools.partial(torch.optim.AdamW, betas=(0.9, 0.99))``. Its step size is
            ``lr``; groups of parameters with one of their own keep its ratio to that of the optimizer.
        lr: the step size, reached in a straight line over the first ``warmup`` steps.
        warmup: their number.
        schedule: by what it is multiplied as the steps go on: ``"cosine-100000"``, ``"linear-100000"``,
            ``"inverse-sqrt-70000"``, or any :class:`Schedule`.
        clip: the largest norm of the gradient; a larger one is scaled down to it.
        averages: the moving averages of the weights, each a decay, an :class:`Average` or the name of
            one, ``"power-0.1"``; the first is the one to sample from.
        seed: of everything random.
        conditions: what belongs to each sample of a tensor, given to the network: ``{"label": labels}``.
        augmentation: of images, for a network that takes its description as the condition ``augment``. The report and the
            monitor see images as they are.
        workers: processes that read a :class:`scoresde.data.Dataset` ahead; the result does not depend on them.
        precision: ``"fp32"``, ``"bf16"``, or ``"fp16"`` with a scaled loss, of the network's arithmetic; the weights
            stay as they are.
        accumulate: parts in which a batch is worked through, to save memory.
        compile: compile the network.
        channels_last: lay images out with their channels last.
        nonfinite: ``"stop"`` at a loss that is not finite, or ``"skip"`` such a batch, with a warning that names the
            step and the samples. In both cases the weights never see it.
        out: the file for checkpoints, written every ``save_every`` steps, at the end, and on Ctrl-C. Beside it, under
            its name, grow a log of every step (``.csv``) and of what the monitor returned (``.metrics.csv``).
        resume: continue from ``out`` where it exists.
        save_every: steps between checkpoints.
        keep: which older checkpoints stay.
        snapshot_every: steps between snapshots of the power-function averages, in the folder ``snapshots`` beside
            ``out``, for :func:`reconstruct`.
        log: write the logs.
        tensorboard: write them for TensorBoard as well, to the folder ``tensorboard`` beside ``out``.
        monitor: called every ``monitor_every`` steps with the step and the averaged model, in evaluation mode; returns
            numbers by name, which are logged. It may write pictures.
        monitor_every: their distance.
        device: where to train; by default where the network is.
        progress: show a progress bar with the loss, the samples per second and the remaining time.

    Raises:
        ValueError: for bad arguments or data, before the first step.
        CheckpointError: if ``out`` is not a checkpoint of this very training.
        ImportError: for what an extra would bring.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> model = ScoreModel(MLP(2, hidden=(32,)), VP())
        >>> trainer = Trainer(model, data, averages=[0.99, PowerAverage(0.1)], batch_size=32, progress=False)
        >>> trainer.run(20)
        >>> trainer.steps, list(trainer.averaged)
        (20, ['exponential-0.99', 'power-0.1'])
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor | Samplable | Indexed,
        *,
        objective: str | Objective = "ddpm",
        batch_size: int = 128,
        optimizer: str | MakeOptimizer = "adam",
        lr: float = 1e-3,
        warmup: int = 100,
        schedule: str | Schedule = "constant",
        clip: float = 1.0,
        averages: Sequence[float | str | Average] = (0.999,),
        seed: int = 0,
        conditions: Mapping[str, Tensor] | None = None,
        augmentation: Augmentation | None = None,
        workers: int = 0,
        precision: str = "fp32",
        accumulate: int = 1,
        compile: bool = False,
        channels_last: bool = False,
        nonfinite: str = "stop",
        out: str | os.PathLike[str] | None = None,
        resume: bool = True,
        save_every: int = 1000,
        keep: Keep | None = None,
        snapshot_every: int | None = None,
        log: bool = True,
        tensorboard: bool = False,
        monitor: Monitor | None = None,
        monitor_every: int = 1000,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> None:
        _check(save_every=save_every, monitor_every=monitor_every, snapshot_every=snapshot_every)
        kept = _averages(averages, snapshot_every)
        given = (optimizer, schedule_of(schedule), augmentation, precision, accumulate, compile, channels_last, nonfinite)
        method = Method(lr, warmup, clip, *given)
        files = _files(out, save_every, keep, snapshot_every, log, tensorboard, monitor)
        self.batches = Batches(data, batch_size, seed, dict(conditions or {}), workers)
        self.model, self.objective = model, named(objective)
        self.processes = launched(device, _first_parameter(model).device)
        if batch_size < self.processes.count:
            raise ValueError(f"got batch_size={batch_size} for {self.processes.count} processes; expected a sample for each")
        method.check(self.batches, model.net)
        model.to(self.processes.device)
        self.companion = self.objective.companion.to(self.processes.device)
        if channels_last:
            cast(nn.Module, model.net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.processes.agree([*model.state_dict().values(), *self.companion.state_dict().values()])
        self.averages = {a.name: a for a in kept}
        self.averaged = {a.name: copy.deepcopy(model) for a in kept}
        self.companions = {a.name: copy.deepcopy(self.companion) for a in kept}
        self.losses: list[float] = []
        self.skipped: list[int] = []
        self.best = math.inf
        self._failure: Exception | None = None
        self.stepper = Stepper(model, self.batches, self.objective, self.processes, method)
        self.monitor, self.monitor_every, self.progress = monitor, monitor_every, progress
        self.description = self._describe()
        self.files = files
        if files is not None:
            self._open(files, resume)

    def _describe(self) -> dict[str, Any]:
        """What a resumed training must share with the one that it continues."""
        training = {
            "objective": repr(self.objective),
            "batch_size": self.batches.batch_size,
            "averages": list(self.averages),
            "seed": self.batches.seed,
            "data": self.batches.fingerprint(),
            **self.stepper.description(),
        }
        return {**checkpoint.describe(self.model), "averages": list(self.averages), "training": training}

    def _open(self, files: Files, resume: bool) -> None:
        """Resume where there is something to resume, the same in all processes."""
        files.check_writable()
        if resume and files.path.exists():
            self.restore(files.path)
        steps = torch.tensor(self.steps, device=self.processes.device)
        self.processes.agree([steps])  # and none removes what another still reads
        if steps.item() != self.steps:
            raise CheckpointError(
                f"got {self.steps} steps in {files.path} and {steps.item()} in that of the first process; expected a folder "
                "that all processes share"
            )
        if self.processes.main:
            files.remove_leftovers()

    @property
    def steps(self) -> int:
        """The steps done, those of a checkpoint included."""
        return len(self.losses)

    @property
    def history(self) -> tuple[tuple[int, float], ...]:
        """Pairs of a step, from 1, and the loss of its batch."""
        return tuple(enumerate(self.losses, start=1))

    # Steps -----------------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Train until ``steps`` steps are done, those of a checkpoint included.

        Raises:
            FloatingPointError: if a loss is not finite; names the step and the samples. The last checkpoint stays.
            OSError: if a file cannot be written, on a full disk, say; the last checkpoint stays.
            KeyboardInterrupt: on Ctrl-C, after the step is finished and saved; a second Ctrl-C interrupts at once, but for
                one of several processes, which gets each from the terminal and from its launcher.
            RuntimeError: in the other processes, where the first one could not write.
        """
        _check(steps=steps)
        if self.steps >= steps:
            self.model.eval()
            return
        self.model.train()
        self.companion.train()
        self._failure = None
        main, cuda = self.processes.main, [self.processes.device] if self.processes.device.type == "cuda" else []
        group, shown, size = self.processes.count > 1, self.progress and main, self.batches.batch_size
        records = Records(self.files if main else None, self.steps, steps, size, shown, self.monitor is not None)
        batches = contextlib.closing(self.stepper.read(range(self.steps, steps)))
        try:
            with torch.random.fork_rng(devices=cuda), interrupts(group) as interrupted, records, batches as read:
                for batch in read:
                    self._step(batch, steps, records, interrupted)
        finally:
            self.model.eval()
            self.companion.eval()

    def _step(
        self, batch: tuple[Tensor, dict[str, Tensor]], steps: int, records: Records, interrupted: Callable[[], bool]
    ) -> None:
        outcome = self.stepper(self.steps, batch, interrupted, self._failure is not None)
        if outcome.failed:
            raise self._failure or RuntimeError(f"the first process failed after step {self.steps}, and says why")
        if not outcome.finite:
            self._refuse(outcome)
        if not self.losses:
            self.stepper.state()  # what cannot be saved is refused after the first step, not at the first checkpoint
        self.losses.append(outcome.loss)
        for name, average in self.averages.items():
            moving.update(self.averaged[name], self.model, average.beta(self.steps))
            moving.update(self.companions[name], self.companion, average.beta(self.steps))
        last = self.steps == steps
        if self.processes.main:
            try:
                records.step(self.steps, outcome)
                self._write(last or outcome.stop, last, records)
            except Exception as error:
                if self.processes.count == 1 or last or outcome.stop:
                    raise
                self._failure = error  # the others wait in the next exchange: they are told there, and all stop
        if outcome.stop:
            saved = "nothing was saved"
            if self.files is not None:
                saved = f"saved to {self.files.path}: the same call continues from there"
            raise KeyboardInterrupt(f"stopped after step {self.steps} of {steps}; {saved}")

    def _refuse(self, outcome: Outcome) -> None:
        """Stop at a batch whose loss is not finite, or count it as skipped."""
        step = self.steps + 1
        found = (
            f"step {step}: the loss is {outcome.loss} and the norm of its gradient {outcome.norm}, {outcome.where}; "
            "expected finite numbers"
        )
        self.skipped.append(step)
        hopeless = self.skipped[-_PATIENCE:] == list(range(step - _PATIENCE + 1, step + 1))
        if hopeless or self.stepper.method.nonfinite == "stop":
            raise FloatingPointError(
                f"{found}: take a smaller lr, scale the data to a deviation of about 1, or look for a time at which "
                "the weighting is infinite"
            )
        warnings.warn(f"{found}. The batch is skipped", stacklevel=4)

    def _write(self, ends: bool, last: bool, records: Records) -> None:
        """What is due after a step: the monitor, a snapshot, a checkpoint."""
        step, files = self.steps, self.files
        if self.monitor is not None and (step % self.monitor_every == 0 or last):
            self._observe(self.monitor, step, records)
        if files is None:
            return
        if snapshot := files.snapshot(step):
            self._snapshot(snapshot)
        if ends or step % files.save_every == 0:
            self.save(files.path)
            files.retain(step)

    def _observe(self, monitor: Monitor, step: int, records: Records) -> None:
        model = next(iter(self.averaged.values())).eval()
        with torch.random.fork_rng(devices=[]):
            found = {name: float(value) for name, value in monitor(step, model).items()}
        records.metrics(step, found)
        value = next(iter(found.values()), math.inf)
        if self.files is not None and self.files.keep.best and value < self.best:
            self.best = value
            self.save(self.files.best)

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"net.{name}": value for name, value in checkpoint.weights(self.model.net).items()}
        tensors |= self._averaged_tensors(list(self.averaged))
        for group, companion in self._companions().items():
            tensors |= {f"{group}.{name}": value for name, value in checkpoint.weights(companion).items()}
        tensors |= self.stepper.state()
        tensors["history"] = torch.tensor(self.losses, dtype=torch.float64)
        state = {"step": self.steps} | ({} if math.isinf(self.best) else {"best": self.best})
        checkpoint.write(path, {**self.description, **state}, tensors)

    def _averaged_tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {
            f"{checkpoint.group_of(i)}.{key}": value
            for i, name in enumerate(names)
            for key, value in checkpoint.weights(self.averaged[name].net).items()
        }

    def _companions(self) -> dict[str, nn.Module]:
        """The objective's companion and its averages by the names of their tensors in a file."""
        averages = {checkpoint.companion_of(checkpoint.group_of(i)): c for i, c in enumerate(self.companions.values())}
        return {"companion": self.companion, **averages}

    def _snapshot(self, path: Path) -> None:
        names = [name for name, a in self.averages.items() if isinstance(a, PowerAverage)]
        described = {**checkpoint.describe(self.model), "averages": names, "step": self.steps}
        checkpoint.write(path, described, self._averaged_tensors(names))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Take the state from a checkpoint of this very training."""
        stored = checkpoint.read(path)
        if "training" not in stored.description or "history" not in stored.tensors:
            raise CheckpointError(f"{path} holds a model but no training to resume; pass resume=False to overwrite it")
        own = {name: value for name, value in stored.description.items() if name not in ("versions", "step", "best")}
        if differ := checkpoint.differences(own, self.description):
            raise CheckpointError(
                f"{path} belongs to another training: {', '.join(differ)}; pass resume=False to start afresh and "
                "overwrite it, or choose another file"
            )
        checkpoint.fill(cast(nn.Module, self.model.net), stored.group("net"), path)
        for i, model in enumerate(self.averaged.values()):
            checkpoint.fill(cast(nn.Module, model.net), stored.group(checkpoint.group_of(i)), path)
        for group, companion in self._companions().items():
            checkpoint.fill(companion, stored.group(group), path)
        self.stepper.restore(stored)
        self.losses = stored.tensors["history"].tolist()
        self.skipped = [step for step, loss in self.history if not math.isfinite(loss)]
        self.best = stored.description.get("best", math.inf)


# The door ------------------------------------------------------------------------------------------------------------


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"got {name}={value!r}; expected a whole number of at least 1")


def _first_parameter(model: ScoreModel) -> nn.Parameter:
    found = next((p for p in model.parameters() if p.requires_grad), None)
    if not isinstance(model.net, nn.Module) or found is None:
        raise ValueError("got a score model whose network has no parameters to train; expected a torch.nn.Module")
    return found


def _averages(given: Sequence[float | str | Average], snapshot_every: int | None) -> list[Average]:
    averages = [moving.average(a) for a in given]
    if not averages or len({a.name for a in averages}) < len(averages):
        raise ValueError(f"got averages={averages}; expected at least one, and each once")
    if snapshot_every and not any(isinstance(a, PowerAverage) for a in averages):
        raise ValueError(
            "got snapshot_every without a power-function average; expected averages=[PowerAverage(0.05), PowerAverage(0.1)]"
        )
    return averages


def _files(
    out: str | os.PathLike[str] | None,
    save_every: int,
    keep: Keep | None,
    snapshot_every: int | None,
    log: bool,
    tensorboard: bool,
    monitor: Monitor | None,
) -> Files | None:
    if keep is not None and keep.best and monitor is None:
        raise ValueError("got best=True without a monitor, whose first number tells what is best; pass monitor=..")
    if out is not None:
        return Files(Path(out), save_every, keep or Keep(), snapshot_every, log, tensorboard)
    if snapshot_every or tensorboard or keep is not None:
        raise ValueError("got no file for checkpoints, beside which the rest is written; pass out='run/model.safetensors'")
    return None
