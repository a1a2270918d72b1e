"""The trainer: the training loop, and the files that it writes.

The data, times, noise and dropout of a step are functions of the seed and the number of the step alone. A checkpoint
therefore holds the weights, the averages, the state of the optimizer, the sums over the data and the number of steps, and a
resumed training equals an uninterrupted one bit for bit. For the same reason each of several processes draws the random
numbers of the whole batch and takes its share. Together they compute what one process would.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.base.identity import tell
from scoresde.base.lock import InUseError
from scoresde.base.numbers import whole
from scoresde.discrete import DenoisingModel
from scoresde.objectives import Objective
from scoresde.sampling import measure_departure
from scoresde.score import MomentSums, ScoreModel, Wrapper
from scoresde.sde import GaussianSDE
from scoresde.training.aims import objective_of
from scoresde.training.batches import Batches, Indexed, Samplable
from scoresde.training.files import checkpoint
from scoresde.training.files.checkpoint import CheckpointError
from scoresde.training.files.description import describe, differences
from scoresde.training.files.models import about_samples, moments_of
from scoresde.training.files.retention import Files, Places
from scoresde.training.interrupts import interrupts
from scoresde.training.method import Method
from scoresde.training.optimization import averages as moving
from scoresde.training.optimization.averages import PowerAverage
from scoresde.training.processes import launched
from scoresde.training.records import Records
from scoresde.training.sources import check_apart, check_range, samples_of
from scoresde.training.steps import Outcome, Stepper

__all__ = ["Monitor", "Trainer"]

Monitor = Callable[[int, ScoreModel], Mapping[str, float] | None]
"""A function of the step and the averaged model, called during a training, that returns numbers by name or ``None``."""

_SEEN = 1 << 16  # so many samples are enough for the moments of the data
_ENTRIES = 1 << 14  # the entries of the samples together on which the departure from the moments is measured
_PATIENCE = 20  # so many batches in a row without a finite loss end a training: the cause is not in single batches


class Trainer:
    r"""A trainer, which fits the network of a score model in place, with clipped gradients and averaged weights.

    ``accelerate launch`` and ``torchrun`` start several processes. Each works on its share of every batch, and their
    gradients are added. ``batch_size`` counts the samples of all processes together. The weights equal those of one process
    up to rounding and the network's own dropout. The first process writes files and shows progress.

    Args:
        model: the score model, or the model on tokens; its network is a ``torch.nn.Module``.
        data: samples of shape ``(n, *event)``, a tensor or a NumPy array; a :class:`scoresde.data.Dataset`; a dataset or
            loader of ``torch.utils.data``, whose own batching is not used; or a distribution, with ``sample(n, generator)``.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES`, by default "ddpm"; for a model on tokens one in
            ``scoresde.discrete.TOKEN_OBJECTIVES``, by default "sedd"; or any objective with a ``distribution`` of times and
            ``at(model, x0, t, eps, **conditions)``. A distribution that learns from losses is given the losses of each step.
            The ``companion`` of an objective is trained and averaged along with the network; the attribute ``companions``
            has the averages by name.
        method: optimizer, learning rate, averages and the other settings of a step.
        files: the files to write, where and when.
        conditions: an entry for each sample of a tensor, ``{"label": labels}``, given to the network.
        monitor: a function called every ``files.monitor_every`` steps with the step and the averaged model, in evaluation
            mode. It returns numbers by name, which are logged, and may write pictures. An error in it becomes a warning.
        device: the device to train on; by default the device of the network.
        progress: show a progress bar with the loss, the samples per second and the remaining time.

    Raises:
        ValueError: for bad arguments or data.
        CheckpointError: if ``files.path`` holds a checkpoint of another training; ``files.accept`` lists settings that may
            differ.
        InUseError: if another training is writing there. Its files stay as they are.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> model = ScoreModel(MLP(2, hidden=(32,)), VP(), "v")
        >>> trainer = Trainer(model, data, "v", method=Method(batch_size=32, lr=2e-3), progress=False)
        >>> trainer.run(10)
        >>> trainer.steps
        10
    """

    def __init__(
        self,
        model: ScoreModel | DenoisingModel,
        data: Tensor | Samplable | Indexed | Any,
        objective: str | Objective | None = None,
        *,
        method: Method | None = None,
        files: Files | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        monitor: Monitor | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> None:
        model = cast(ScoreModel, model)  # a model on tokens has all that follows
        self.method, self.files = method or Method(), files or Files()
        kept = self.method.kept_averages()
        _check_files(self.files, monitor, any(isinstance(a, PowerAverage) for a in kept))
        source = samples_of(data, model)
        if self.files.path is not None:
            check_apart(source, Path(self.files.path))
        self.batches = Batches(
            source,
            self.method.batch_size,
            self.method.seed,
            samples_of(dict(conditions or {}), model),
            self.method.workers,
            model.check_data,
        )
        check_range(self.batches)
        self.model, self.objective = model, objective_of(model, objective)
        model.dropped = {**self.objective.dropped}
        self.processes = launched(device, _first_parameter(model).device)
        if self.batches.batch_size < self.processes.count:
            raise ValueError(
                f"got batch_size={self.batches.batch_size} for {self.processes.count} processes; expected at least one "
                f"sample for each process: pass batch_size={self.processes.count} or more"
            )
        model.check_convertible()
        self.method.check(self.batches, model.network)
        model.to(self.processes.device)
        self.companion = self.objective.companion.to(self.processes.device)
        if self.method.channels_last:
            cast(nn.Module, model.net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.processes.agree([*model.state_dict().values(), *self.companion.state_dict().values()])
        self.averages = {a.name: a for a in kept}
        self.averaged = {a.name: cast(ScoreModel, moving.start(model)) for a in kept}
        self.companions = {a.name: moving.start(self.companion) for a in kept}
        self.losses: list[float] = []
        self.skipped: list[int] = []
        self.best = math.inf
        self._failure: Exception | None = None
        self.stepper = Stepper(model, self.batches, self.objective, self.processes, self.method)
        self.sums = MomentSums(self.batches.event()) if _has_states_like_data(model) else None
        self.monitor, self.progress = monitor, progress
        self.description = self._describe()
        self.places: Places | None = None
        self._seen: object = None
        if self.files.path is not None:
            self.places = Places.of(self.files.path, self.description)
            self._open(self.places)

    def _describe(self) -> dict[str, Any]:
        """Return the settings that a resumed training must share with the one that it continues."""
        training = {
            "objective": tell(self.objective),
            "batch_size": self.batches.batch_size,
            "averages": list(self.averages),
            "seed": self.batches.seed,
            "data": self.batches.fingerprint(),
            **self.stepper.description(),
        }
        return {
            **describe(self.model),
            **about_samples(self.batches.event(), getattr(self.batches.data, "classes", None) or ()),
            "averages": list(self.averages),
            "training": training,
        }

    def _open(self, places: Places) -> None:
        """Resume from the checkpoint, if there is one; no file is changed before all processes have read the same steps."""
        places.check_writable()
        with self._alone(places):
            if self.files.resume and places.path.exists():
                self.restore(places.path)
                places = cast(Places, self.places)
            steps = torch.tensor(self.steps, device=self.processes.device)
            self.processes.agree([steps])  # waits for all processes, so that none removes a file that another still reads
            if steps.item() != self.steps:
                raise CheckpointError(
                    f"got a checkpoint {places.path} of {self.steps} steps, and one of {steps.item()} steps in the first "
                    "process; expected the same file: choose a folder that all processes share"
                )
            if self.processes.main:
                places.remove_later(self.steps)
            self._seen = places.state()

    @contextlib.contextmanager
    def _alone(self, places: Places) -> Iterator[None]:
        """Hold the lock on the files in the first process; raise in all processes if it is taken."""
        lock, failure = places.lock, None
        if self.processes.main:
            try:
                lock.acquire()
            except InUseError as error:
                failure = error
        refused = torch.tensor(int(failure is not None), device=self.processes.device)
        self.processes.agree([refused])
        if refused.item():
            raise failure or InUseError(
                f"the first process reports that {places.path} is being written by another training; wait until it ends, or "
                "choose another file for this one"
            )
        try:
            yield
        finally:
            lock.release()

    @property
    def steps(self) -> int:
        """The number of steps done, including the steps of a checkpoint."""
        return len(self.losses)

    @property
    def history(self) -> tuple[tuple[int, float], ...]:
        """Pairs ``(step, loss of its batch)``; the first step is 1."""
        return tuple(enumerate(self.losses, start=1))

    @property
    def sampled(self) -> ScoreModel:
        """The model to sample from, with the first average of the weights, or the last weights if there is no average."""
        return next(iter(self.averaged.values()), self.model)

    # Steps -----------------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Train until ``steps`` steps are done, including the steps of a checkpoint.

        Raises:
            FloatingPointError: if a loss is not finite; names the step and the samples. The last checkpoint stays.
            OSError: if a file cannot be written, for example on a full disk. The last checkpoint stays.
            InUseError: if another training is writing there.
            CheckpointError: if another training has written there since this trainer was made.
            KeyboardInterrupt: on Ctrl-C or SIGTERM, after the current step is finished and saved. A second signal ends the
                training at once, unless there are several processes: these receive every signal twice, from the terminal
                and from their launcher.
            RuntimeError: in the other processes, if the first process could not write.
        """
        _check(steps=steps)
        if self.steps >= steps:
            self.model.eval()
            return
        self.model.train()
        self.companion.train()
        self._failure = None
        with self._alone(self.places) if self.places is not None else contextlib.nullcontext():
            self._check_unchanged()
            self._run(steps)

    def _check_unchanged(self) -> None:
        if self.places is not None and self.processes.main and self.places.state() != self._seen:
            raise CheckpointError(
                f"{self.places.path} has changed since this trainer read or wrote it: another training has written it; make "
                "a new Trainer, which continues from it, or choose another file"
            )

    def _run(self, steps: int) -> None:
        main, cuda = self.processes.main, [self.processes.device] if self.processes.device.type == "cuda" else []
        group, shown, size = self.processes.count > 1, self.progress and main, self.batches.batch_size
        watched = self.monitor is not None
        records = Records(self.places if main else None, self.files, self.steps, steps, size, shown, watched)
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
            raise self._failure or RuntimeError(f"the first process failed after step {self.steps}; read its error")
        if not outcome.finite:
            self._refuse(outcome)
        if not self.losses:
            self.stepper.state()  # refuse a state that cannot be saved after the first step, not at the first checkpoint
        self.losses.append(outcome.loss)
        for name, average in self.averages.items():
            moving.update(self.averaged[name], self.model, average.beta(self.steps))
            moving.update(self.companions[name], self.companion, average.beta(self.steps))
        last = self.steps == steps
        self._see(batch[0])
        if last or outcome.stop:
            self._tell_moments()
        if self.processes.main:
            try:
                records.step(self.steps, outcome)
                self._write(last or outcome.stop, last, records)
            except Exception as error:
                if self.processes.count == 1 or last or outcome.stop:
                    raise
                self._failure = error  # the other processes wait in the next exchange, learn of it there, and all stop
        if outcome.stop:
            saved = "nothing was saved"
            if self.places is not None:
                saved = f"saved to {self.places.path}: the same call continues from there"
            raise KeyboardInterrupt(f"stopped after step {self.steps} of {steps}; {saved}")

    def _see(self, x0: Tensor) -> None:
        """Add this process's share of a batch to the sums over the data, unless enough samples are in them."""
        enough = min(len(self.batches.data), _SEEN) if isinstance(self.batches.data, Tensor | Indexed) else _SEEN
        if self.sums is not None and self.sums.count < enough and x0.is_floating_point():  # tokens are no states
            self.sums.add(x0, self.processes.add)

    def _tell_moments(self) -> None:
        """Set the moments of the data on the models, and its departure from them on the model to sample from."""
        if self.sums is not None and self.sums.count > 1:
            moments = self.sums.moments()
            for model in (self.model, *self.averaged.values()):
                model.moments = moments
        model = self.sampled
        if getattr(model, "moments", None) is None or not isinstance(model.sde, GaussianSDE):
            return
        n = min(max(4, min(32, _ENTRIES // math.prod(self.batches.event()))), self.batches.batch_size)
        with contextlib.suppress(Exception):  # an objective may give the network conditions that the data have not
            conditions: dict[str, Tensor] = {}
            if self.batches.conditions or isinstance(self.batches.data, Indexed):
                conditions = self.batches.at(0, self.processes.device, model.dtype, slice(0, n))[1]
            model.departure = measure_departure(model, n=n, levels=12, conditions=conditions)

    def _refuse(self, outcome: Outcome) -> None:
        """Raise for a batch whose loss is not finite, or count it as skipped and warn."""
        step = self.steps + 1
        found = (
            f"step {step}: the loss is {outcome.loss} and the norm of its gradient {outcome.norm}, {outcome.where}; "
            "expected finite numbers"
        )
        self.skipped.append(step)
        hopeless = self.skipped[-_PATIENCE:] == list(range(step - _PATIENCE + 1, step + 1))
        if hopeless or self.stepper.method.nonfinite == "stop":
            raise FloatingPointError(
                f"{found}: take a smaller lr, scale the data to a standard deviation of about 1, or look for a time at "
                "which the weighting is infinite"
            )
        warnings.warn(f"{found}. The batch is skipped", stacklevel=4)

    def _write(self, ends: bool, last: bool, records: Records) -> None:
        """Call the monitor, write a snapshot and write a checkpoint, each if it is due after this step."""
        step, files, places = self.steps, self.files, self.places
        if self.monitor is not None and files.monitor_every and (step % files.monitor_every == 0 or last):
            self._observe(self.monitor, step, records)
        if places is None:
            return
        if files.snapshot_every and step % files.snapshot_every == 0:
            self._snapshot(places.snapshot(step))
        if ends or step % files.save_every == 0:
            self.save(places.path)
            self._seen = places.state()
            places.retain(step, files)

    def _observe(self, monitor: Monitor, step: int, records: Records) -> None:
        model, training = self.sampled.eval(), self.model.training
        try:
            with torch.random.fork_rng(devices=[]):
                found = {name: float(value) for name, value in (monitor(step, model) or {}).items()}
        except Exception as error:  # no error of a monitor is a reason to lose a training
            warnings.warn(
                f"the monitor failed at step {step}: {type(error).__name__}: {error}. The training goes on; expected a "
                "function of the step and the model that returns numbers by name, or None",
                stacklevel=5,
            )
            return
        finally:
            self.model.train(training)
        records.metrics(step, found)
        value = next(iter(found.values()), math.inf)
        if self.places is not None and self.files.keep_best and value < self.best:
            self.best = value
            self.save(self.places.best)

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: all tensors that the next step depends on, and the description of the training."""
        tensors = {f"model.{name}": value for name, value in checkpoint.weights(self.model).items()}
        tensors |= moments_of(self.model) | moments_of(self.sampled)
        tensors |= {f"sums.{name}": value for name, value in (self.sums.to_tensors() if self.sums else {}).items()}
        tensors |= self._averaged_tensors(list(self.averaged))
        for group, companion in self._companions().items():
            tensors |= {f"{group}.{name}": value for name, value in checkpoint.weights(companion).items()}
        tensors |= self.stepper.state()
        tensors["history"] = torch.tensor(self.losses, dtype=torch.float64)
        state: dict[str, Any] = {"step": self.steps, "run": "" if self.places is None else self.places.run}
        state |= {} if math.isinf(self.best) else {"best": self.best}
        checkpoint.write(path, {**self.description, **state}, tensors)

    def _averaged_tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {
            f"{checkpoint.group_of(i)}.{key}": value
            for i, name in enumerate(names)
            for key, value in checkpoint.weights(self.averaged[name]).items()
        }

    def _companions(self) -> dict[str, nn.Module]:
        """Return the objective's companion and its averages by the names of their groups of tensors in a file."""
        averages = {checkpoint.companion_of(checkpoint.group_of(i)): c for i, c in enumerate(self.companions.values())}
        return {"companion": self.companion, **averages}

    def _snapshot(self, path: Path) -> None:
        names = [name for name, a in self.averages.items() if isinstance(a, PowerAverage)]
        run = cast(Places, self.places).run
        described = {**describe(self.model), "averages": names, "step": self.steps, "run": run}
        checkpoint.write(path, described, self._averaged_tensors(names))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Load the state of this training from its checkpoint.

        Raises:
            CheckpointError: if the file holds another training, or a model without one.
        """
        stored = checkpoint.read(path)
        if "training" not in stored.description or "history" not in stored.tensors:
            raise CheckpointError(f"{path} holds a model but no training to resume; pass resume=False to overwrite it")
        own = {k: v for k, v in stored.description.items() if k not in ("versions", "step", "best", "run")}
        differ = differences(own, self.description)
        if refused := {entry: text for entry, text in differ.items() if not self.files.accepts(entry)}:
            names = "".join(f" accept={entry.rpartition('.')[2]}" for entry in refused if entry.startswith("training."))
            raise CheckpointError(
                f"{path} belongs to another training: {', '.join(refused.values())}; "
                + (f"to go on with the new settings pass{names}; " if names else "")
                + "to start afresh and overwrite it pass resume=False; or choose another file"
            )
        checkpoint.fill(self.model, stored.group("model"), path)
        for i, model in enumerate(self.averaged.values()):
            checkpoint.fill(model, stored.group(checkpoint.group_of(i)), path)
        for group, companion in self._companions().items():
            checkpoint.fill(companion, stored.group(group), path)
        self.stepper.restore(stored)
        if self.sums is not None:
            self.sums.fill(stored.group("sums"))
        self.losses = stored.tensors["history"].tolist()
        self.skipped = [step for step, loss in self.history if not math.isfinite(loss)]
        self.best = stored.description.get("best", math.inf)
        if self.places is not None and stored.description.get("run"):
            self.places = replace(self.places, run=stored.description["run"])


# Checks --------------------------------------------------------------------------------------------------------------


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        whole(name, value, 1)


def _first_parameter(model: ScoreModel) -> nn.Parameter:
    found = next((p for p in model.parameters() if p.requires_grad), None)
    if not isinstance(model.net, nn.Module) or found is None:
        raise ValueError("got a score model whose network has no parameters to train; expected a torch.nn.Module")
    return found


def _has_states_like_data(model: ScoreModel | DenoisingModel) -> bool:
    """Tell whether the states of a model are noised data, so that it has their moments, which nobody has set."""
    if not isinstance(model, ScoreModel) or isinstance(model, Wrapper) or not isinstance(model.sde, GaussianSDE):
        return False
    return type(model).to_data is ScoreModel.to_data and model.moments is None


def _check_files(files: Files, monitor: Monitor | None, powers: bool) -> None:
    if files.snapshot_every and not powers:
        raise ValueError(
            "got snapshot_every without a power-function average; expected averages=[PowerAverage(0.05), PowerAverage(0.1)]"
        )
    if files.keep_best and monitor is None:
        raise ValueError(
            "got keep_best=True without a monitor; expected one, whose smallest first number is the best: pass monitor=.."
        )
    if files.path is None and (files.snapshot_every or files.tensorboard or files.keep_last or files.keep_every):
        raise ValueError(
            "got no file for checkpoints; snapshots, kept checkpoints and TensorBoard's files are written beside it: pass "
            "files=Files('run/model.safetensors')"
        )
