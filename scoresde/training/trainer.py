"""The trainer: one step, repeated, and what is written on the way.

Nothing in a training depends on what was drawn before: the data of a step, its times, its noise and its dropout are
functions of the seed and the number of the step. What a checkpoint must hold is therefore weights, averages, the state
of the optimizer and the number of steps, and a resumed training is, bit for bit, the one that was never interrupted.
For the same reason each of several processes draws what belongs to the whole batch and takes its share: together they do
what one process would.
"""

from __future__ import annotations

import copy
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde._files import replacing
from scoresde.objectives import Objective
from scoresde.objectives import objective as named
from scoresde.score import ScoreModel
from scoresde.training import averages as moving
from scoresde.training import checkpoint
from scoresde.training.averages import Average, PowerAverage
from scoresde.training.batches import Batches, Indexed, Samplable
from scoresde.training.checkpoint import CheckpointError
from scoresde.training.interrupts import interrupts
from scoresde.training.logs import Log
from scoresde.training.processes import launched
from scoresde.training.steps import Dropping, Outcome, Stepper

__all__ = ["Keep", "Monitor", "Trainer"]

Monitor = Callable[[int, ScoreModel], Mapping[str, float]]
"""What looks at a training: a function of the step and the averaged model, which returns numbers by name."""

_PATIENCE = 20  # batches in a row without a finite loss: it is then not the batches


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay, in the folder ``checkpoints`` beside the newest.

    Args:
        last: so many of the last ones.
        every: all whose step is a multiple of this.
        best: the one with the least value of the first number that the monitor returned, as ``best.safetensors``.
    """

    last: int = 0
    every: int | None = None
    best: bool = False

    def __post_init__(self) -> None:
        if self.last < 0 or (self.every is not None and self.every < 1):
            raise ValueError(f"got last={self.last} and every={self.every}; expected at least 0 and at least 1")

    def stays(self, step: int, steps: Sequence[int]) -> bool:
        """Whether the checkpoint of ``step`` stays among those of ``steps``."""
        newer = sum(other > step for other in steps)
        return newer < self.last or (self.every is not None and step % self.every == 0)


class Trainer:
    r"""Trains the network of a score model, in place, by Adam with clipped gradients and averaged weights.

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
        lr: step size of Adam, reached in a straight line over the first ``warmup`` steps.
        warmup: their number.
        clip: the largest norm of the gradient; a larger one is scaled down to it.
        averages: the moving averages of the weights, each a decay, an :class:`Average` or the name of
            one, ``"power-0.1"``; the first is the one to sample from.
        seed: of everything random.
        conditions: what belongs to each sample of a tensor, given to the network: ``{"label": labels}``.
        drop: for classifier-free guidance, what replaces each condition where it is hidden: ``{"label": num_classes}``.
        drop_probability: that the conditions of a sample are hidden, all together.
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
        lr: float = 1e-3,
        warmup: int = 100,
        clip: float = 1.0,
        averages: Sequence[float | str | Average] = (0.999,),
        seed: int = 0,
        conditions: Mapping[str, Tensor] | None = None,
        drop: Mapping[str, Any] | None = None,
        drop_probability: float = 0.1,
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
        dsm = named(objective)
        kept = [moving.average(a) for a in averages]
        _check(save_every=save_every, accumulate=accumulate, monitor_every=monitor_every, snapshot_every=snapshot_every)
        _check_numbers(lr, clip, warmup)
        _check_choices(kept, nonfinite, snapshot_every, out, keep, monitor, tensorboard)
        batches = Batches(data, batch_size, seed, dict(conditions or {}))
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not isinstance(model.net, nn.Module) or not parameters:
            raise ValueError("got a score model whose network has no parameters to train; expected a torch.nn.Module")
        self.processes = launched(device, parameters[0].device)
        if batch_size < self.processes.count:
            raise ValueError(f"got batch_size={batch_size} for {self.processes.count} processes; expected a sample for each")
        dropping = None if not drop else Dropping(dict(drop), drop_probability)
        model.to(self.processes.device)
        self.companion = dsm.companion.to(self.processes.device)
        if channels_last:
            model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.processes.agree([*model.state_dict().values(), *self.companion.state_dict().values()])
        self.model, self.objective, self.batches = model, dsm, batches
        self.averages = {a.name: a for a in kept}
        self.averaged = {a.name: copy.deepcopy(model) for a in kept}
        self.companions = {a.name: copy.deepcopy(self.companion) for a in kept}
        self.losses: list[float] = []
        self.skipped: list[int] = []
        self.best = math.inf
        self.stepper = Stepper(
            model, batches, dsm, self.processes, lr, warmup, clip, dropping, precision, accumulate, compile, channels_last
        )
        self.nonfinite, self.save_every, self.snapshot_every = nonfinite, save_every, snapshot_every
        self.keep = keep or Keep()
        self.log, self.tensorboard, self.progress = log, tensorboard, progress
        self.monitor, self.monitor_every = monitor, monitor_every
        self.description = self._describe()
        self.path = None if out is None else Path(out)
        if self.path is not None:
            _check_writable(self.path)
            if resume and self.path.exists():
                self.restore(self.path)
            self.processes.agree([torch.zeros((), device=self.processes.device)])  # none reads what another removes
            if self.processes.main:
                _remove_leftovers(self.path)

    def _describe(self) -> dict[str, Any]:
        """What a resumed training must share with the one that it continues."""
        step = self.stepper
        changed = {"precision": (step.precision, "fp32"), "drop": (repr(step.dropping), "None")}
        return {
            **checkpoint.describe(self.model),
            "averages": list(self.averages),
            "training": {
                "objective": repr(self.objective),
                "batch_size": self.batches.batch_size,
                "lr": step.lr,
                "warmup": step.warmup,
                "clip": step.clip,
                "averages": list(self.averages),
                "seed": self.batches.seed,
                "data": self.batches.fingerprint(),
                "dtype": str(step.dtype),
                **{name: value for name, (value, usual) in changed.items() if value != usual},
            },
        }

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
            KeyboardInterrupt: on Ctrl-C, after the step is finished and saved; a second Ctrl-C interrupts at once.
        """
        _check(steps=steps)
        if self.steps >= steps:
            self.model.eval()
            return
        self.model.train()
        self.companion.train()
        cuda = [self.processes.device] if self.processes.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda), interrupts() as interrupted, _Records(self, steps) as records:
                while self.steps < steps:
                    self._step(steps, records, interrupted)
        finally:
            self.model.eval()
            self.companion.eval()

    def _step(self, steps: int, records: _Records, interrupted: Callable[[], bool]) -> None:
        outcome = self.stepper(self.steps, interrupted)
        if not outcome.finite:
            self._refuse(outcome)
        self.losses.append(outcome.loss)
        for name, average in self.averages.items():
            moving.update(self.averaged[name], self.model, average.beta(self.steps))
            moving.update(self.companions[name], self.companion, average.beta(self.steps))
        step, stop = self.steps, outcome.stop
        if self.processes.main:
            records.step(step, outcome)
            if self.monitor is not None and (step % self.monitor_every == 0 or step == steps):
                self._observe(step, records)
            if self.path is not None and self.snapshot_every and step % self.snapshot_every == 0:
                self._snapshot(self.path.parent / "snapshots" / f"{step:09d}.safetensors")
            if self.path is not None and (stop or step == steps or step % self.save_every == 0):
                self.save(self.path)
                self._retain(self.path)
        if stop:
            kept = "nothing was saved" if self.path is None else f"saved to {self.path}: the same call continues from there"
            raise KeyboardInterrupt(f"stopped after step {step} of {steps}; {kept}")

    def _refuse(self, outcome: Outcome) -> None:
        """Stop at a batch whose loss is not finite, or count it as skipped."""
        step = self.steps + 1
        found = (
            f"step {step}: the loss is {outcome.loss} and the norm of its gradient {outcome.norm}, {outcome.where}; "
            "expected finite numbers"
        )
        self.skipped.append(step)
        if self.nonfinite == "stop" or self.skipped[-_PATIENCE:] == list(range(step - _PATIENCE + 1, step + 1)):
            raise FloatingPointError(
                f"{found}: take a smaller lr, scale the data to a deviation of about 1, or look for a time at which "
                "the weighting is infinite"
            )
        warnings.warn(f"{found}. The batch is skipped", stacklevel=4)

    def _observe(self, step: int, records: _Records) -> None:
        model = next(iter(self.averaged.values())).eval()
        with torch.random.fork_rng(devices=[]):
            found = {name: float(value) for name, value in cast(Monitor, self.monitor)(step, model).items()}
        records.metrics(step, found)
        value = next(iter(found.values()), math.inf)
        if self.path is not None and self.keep.best and value < self.best:
            self.best = value
            self.save(self.path.parent / "checkpoints" / f"best{self.path.suffix}")

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

    def _retain(self, path: Path) -> None:
        """Keep what was written now under the number of its step, and remove what need not be kept any more."""
        if not self.keep.last and not self.keep.every:
            return
        folder = path.parent / "checkpoints"
        with replacing(folder / f"{self.steps:09d}{path.suffix}") as temporary:
            os.link(path, temporary)  # one file under two names, until the newest is replaced
        files = {int(file.stem): file for file in folder.glob(f"*{path.suffix}") if file.stem.isdigit()}
        for step, file in files.items():
            if not self.keep.stays(step, list(files)):
                file.unlink()

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


class _Records:
    """The progress bar and the logs of a run, open while it lasts."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self.trainer, self.total = trainer, steps
        self.size = trainer.batches.batch_size
        self.smooth = math.nan
        self.log: Log | None = None
        self.numbers: Log | None = None
        self.board: Any = None

    def __enter__(self) -> _Records:
        from tqdm import tqdm

        trainer, path, done = self.trainer, self.trainer.path, self.trainer.steps
        if path is not None and trainer.processes.main and trainer.log:
            self.log = Log(path.with_suffix(".csv"), ["step", "loss", "grad_norm", "lr", "samples_per_s"], done)
            if trainer.monitor is not None:
                self.numbers = Log(path.with_suffix(".metrics.csv"), ["step", "name", "value"], done)
        if path is not None and trainer.processes.main and trainer.tensorboard:
            self.board = _board(path.parent / "tensorboard", done)
        hidden = not (trainer.progress and trainer.processes.main)
        size = self.size
        self.bar = tqdm(
            total=self.total * size, initial=done * size, unit=" samples", unit_scale=True, disable=hidden, desc="fit"
        )
        self.clock = time.perf_counter()
        return self

    def step(self, step: int, outcome: Outcome) -> None:
        now = time.perf_counter()
        rate, self.clock = self.size / (now - self.clock), now
        row: dict[str, Any] = {"step": step, "loss": outcome.loss, "grad_norm": outcome.norm, "lr": outcome.lr}
        if self.log is not None:
            self.log.write({**row, "samples_per_s": f"{rate:.5g}"})
        if self.board is not None:
            for name in ("loss", "grad_norm", "lr"):
                self.board.add_scalar(name, row[name], step)
        if math.isfinite(outcome.loss):
            self.smooth = outcome.loss if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * outcome.loss
        self.bar.set_postfix_str(f"step {step}/{self.total}, loss {self.smooth:.4f}", refresh=False)
        self.bar.update(self.size)

    def metrics(self, step: int, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            if self.numbers is not None:
                self.numbers.write({"step": step, "name": name, "value": value})
            if self.board is not None:
                self.board.add_scalar(name, value, step)

    def __exit__(self, *error: object) -> None:
        for open_ in (self.bar, self.log, self.numbers, self.board):
            if open_ is not None:
                open_.close()


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True takes tensorboard; install it: pip install 'scoresde[train]'") from error
    return SummaryWriter(str(folder), purge_step=done + 1)


# The door ------------------------------------------------------------------------------------------------------------


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"got {name}={value!r}; expected a whole number of at least 1")


def _check_numbers(lr: float, clip: float, warmup: int) -> None:
    for name, value in (("lr", lr), ("clip", clip)):
        if not value > 0:
            raise ValueError(f"got {name}={value}; expected a positive number")
    if warmup < 0:
        raise ValueError(f"got warmup={warmup}; expected warmup >= 0 and 0 <= ema < 1")


def _check_choices(
    averages: Sequence[Average],
    nonfinite: str,
    snapshot_every: int | None,
    out: object,
    keep: Keep | None,
    monitor: Monitor | None,
    tensorboard: bool,
) -> None:
    if not averages or len({a.name for a in averages}) < len(averages):
        raise ValueError(f"got averages={list(averages)}; expected at least one, and each once")
    if nonfinite not in ("stop", "skip"):
        raise ValueError(f"got nonfinite={nonfinite!r}; expected 'stop' or 'skip'")
    if snapshot_every and not any(isinstance(a, PowerAverage) for a in averages):
        raise ValueError(
            "got snapshot_every without a power-function average; expected averages=[PowerAverage(0.05), PowerAverage(0.1)]"
        )
    if keep is not None and keep.best and monitor is None:
        raise ValueError("got best=True without a monitor, whose first number tells what is best; pass monitor=..")
    if out is None and (snapshot_every or tensorboard or keep is not None):
        raise ValueError("got no file for checkpoints, beside which the rest is written; pass out='run/model.safetensors'")


def _check_writable(path: Path) -> None:
    """Fail before the training, not after it."""
    if path.is_dir():
        raise ValueError(f"got the folder {path} for a checkpoint; expected the name of a file, such as {path / 'model'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written to; no checkpoint could be saved there")


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of a training that was killed while it wrote."""
    for folder in (path.parent, path.parent / "checkpoints", path.parent / "snapshots"):
        stem = path.stem if folder == path.parent else ""
        for file in folder.glob(f".{stem}*"):
            if re.fullmatch(r"\..*\.\d+\.(safetensors|csv)|\..*\.\d+" + re.escape(path.suffix), file.name):
                file.unlink(missing_ok=True)
