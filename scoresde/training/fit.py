"""Fitting a score model to data.

Nothing in a training depends on what was drawn before: the data of a step, its times, its noise and its dropout are
functions of the seed and the number of the step. What a checkpoint must hold is therefore weights, averages, the state
of the optimizer and the number of steps, and a resumed training is, bit for bit, the one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scoresde.objectives import DSM
from scoresde.objectives import objective as named
from scoresde.score import ScoreModel
from scoresde.training import checkpoint
from scoresde.training.batches import Batches, Samplable, seeded
from scoresde.training.checkpoint import CheckpointError
from scoresde.training.report import Report, report

__all__ = ["FitResult", "fit"]


class FitResult(NamedTuple):
    """What a training gives.

    Args:
        model: the score model with averaged weights, in evaluation mode: the one to sample from.
        raw: the model that was given, with the last weights, in evaluation mode.
        history: pairs of a step, from 1, and the loss of its batch.
        report: the loss per time bin of ``model`` and, where the truth is known, what of it could be avoided.
    """

    model: ScoreModel
    raw: ScoreModel
    history: tuple[tuple[int, float], ...]
    report: Report


def fit(
    model: ScoreModel,
    data: Tensor | Samplable,
    *,
    objective: str | DSM = "ddpm",
    steps: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int = 100,
    clip: float = 1.0,
    ema: float = 0.999,
    seed: int = 0,
    conditions: Mapping[str, Tensor] | None = None,
    truth: ScoreModel | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    save_every: int = 1000,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Train the network of a score model, in place, by Adam with clipped gradients and averaged weights.

    Args:
        model: the score model, whose network is a ``torch.nn.Module``.
        data: samples of shape ``(n, *event)``, or anything with ``sample(n, generator)``.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES` or any :class:`~scoresde.objectives.DSM`.
        steps: of the whole training, those of a checkpoint included.
        batch_size: samples per step.
        lr: step size of Adam, reached in a straight line over the first ``warmup`` steps.
        warmup: their number.
        clip: the largest norm of the gradient; a larger one is scaled down to it.
        ema: decay of the moving average of the weights per step, which is less, (1 + n) / (10 + n), in the first n.
        seed: of everything random.
        conditions: what belongs to each sample of a tensor, given to the network: ``{"label": labels}``.
        truth: the exact score model of the distribution of the data, where known: the report then has the excess loss.
        out: the file for checkpoints, written every ``save_every`` steps, at the end, and on Ctrl-C.
        resume: continue from ``out`` where it exists; a finished training is loaded and returned.
        save_every: steps between checkpoints.
        device: where to train; by default where the network is.
        progress: show a progress bar with the loss and the samples per second.

    Raises:
        ValueError: for bad arguments or data, before the first step.
        CheckpointError: if ``out`` is not a checkpoint of this very training.
        FloatingPointError: if a loss is not finite; names the step. The last checkpoint stays as it is.
        KeyboardInterrupt: on Ctrl-C, after the step is finished and saved; a second Ctrl-C interrupts at once.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> result = fit(ScoreModel(MLP(2, hidden=(32,)), VP()), data, steps=20, batch_size=32, progress=False)
        >>> len(result.history), result.report.loss.shape
        (20, torch.Size([10]))
    """
    dsm = named(objective)
    _check_arguments(steps=steps, save_every=save_every, lr=lr, clip=clip, warmup=warmup, ema=ema)
    batches = Batches(data, batch_size, seed, dict(conditions or {}))
    if not isinstance(model.net, nn.Module) or not any(p.requires_grad for p in model.parameters()):
        raise ValueError("got a score model whose network has no parameters to train; expected a torch.nn.Module")
    model.to(device)
    training = _Training(model, batches, dsm, lr=lr, warmup=warmup, clip=clip, ema=ema)
    path = None if out is None else Path(out)
    if path is not None:
        _check_writable(path)
        if resume and path.exists():
            training.restore(path)
    try:
        _run(training, steps, path, save_every, progress)
    finally:
        model.eval()
    averaged = cast(ScoreModel, training.averaged.module).eval()
    measured = report(averaged, data, truth, objective=dsm, conditions=conditions, seed=seed)
    return FitResult(averaged, model, tuple(enumerate(training.losses, start=1)), measured)


def _check_arguments(**numbers: float) -> None:
    for name in ("steps", "save_every"):
        if not isinstance(numbers[name], int) or numbers[name] < 1:
            raise ValueError(f"got {name}={numbers[name]!r}; expected a whole number of at least 1")
    for name in ("lr", "clip"):
        if not numbers[name] > 0:
            raise ValueError(f"got {name}={numbers[name]}; expected a positive number")
    if numbers["warmup"] < 0 or not 0 <= numbers["ema"] < 1:
        raise ValueError(f"got warmup={numbers['warmup']} and ema={numbers['ema']}; expected warmup >= 0 and 0 <= ema < 1")


def _check_writable(path: Path) -> None:
    """Fail before the training, not after it."""
    if path.is_dir():
        raise ValueError(f"got the folder {path} for a checkpoint; expected the name of a file, such as {path / 'model'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written to; no checkpoint could be saved there")


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """The average of torch, with a shorter memory at first, so that it forgets the untrained network."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)  # type: ignore[no-untyped-call]

    return update


class _Training:
    """The state of a training, and its step."""

    def __init__(
        self, model: ScoreModel, batches: Batches, dsm: DSM, *, lr: float, warmup: int, clip: float, ema: float
    ) -> None:
        self.model, self.batches, self.dsm = model, batches, dsm
        self.lr, self.warmup, self.clip = lr, warmup, clip
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self.averaged = AveragedModel(model, multi_avg_fn=_moving_average(ema))
        self.losses: list[float] = []
        first = self.parameters[0]
        self.device, self.dtype = first.device, first.dtype
        self.description = {
            **checkpoint.describe(model),
            "training": {
                "objective": repr(dsm),
                "batch_size": batches.batch_size,
                "lr": lr,
                "warmup": warmup,
                "clip": clip,
                "ema": ema,
                "seed": batches.seed,
                "data": batches.fingerprint(),
                "dtype": str(self.dtype),
            },
        }

    def step(self) -> float:
        """One step of the optimizer and of the average; returns the loss."""
        index = len(self.losses)
        x0, conditions = self.batches.at(index, self.device, self.dtype)
        torch.manual_seed(seeded(self.batches.seed, "dropout", index).initial_seed())
        losses, _ = self.dsm(self.model, x0, seeded(self.batches.seed, "noise", index, self.device), **conditions)
        loss = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        value, gradient = loss.item(), norm.item()
        if not (math.isfinite(value) and math.isfinite(gradient)):
            raise FloatingPointError(
                f"step {index + 1}: the loss is {value} and the norm of its gradient {gradient}; expected finite "
                "numbers: take a smaller lr, scale the data to a deviation of about 1, or look for a time at which "
                "the weighting is infinite"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (index + 1) / (self.warmup + 1))
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        self.losses.append(value)
        return value

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"net.{name}": value for name, value in checkpoint.weights(self.model.net).items()}
        tensors |= {f"ema.{name}": value for name, value in checkpoint.weights(self._averaged_net).items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        tensors["history"] = torch.tensor(self.losses, dtype=torch.float64)
        checkpoint.write(path, {**self.description, "step": len(self.losses)}, tensors)

    def restore(self, path: Path) -> None:
        """Take the state from a checkpoint of this very training."""
        stored = checkpoint.read(path)
        if "training" not in stored.description or "history" not in stored.tensors:
            raise CheckpointError(f"{path} holds a model but no training to resume; pass resume=False to overwrite it")
        own = {name: value for name, value in stored.description.items() if name not in ("versions", "step")}
        if differ := checkpoint.differences(own, self.description):
            raise CheckpointError(
                f"{path} belongs to another training: {', '.join(differ)}; pass resume=False to start afresh and "
                "overwrite it, or choose another file"
            )
        checkpoint.fill(cast(nn.Module, self.model.net), stored.group("net"), path)
        checkpoint.fill(self._averaged_net, stored.group("ema"), path)
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in stored.group("optimizer").items():
            index, name = key.split(".")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.losses = stored.tensors["history"].tolist()
        self.averaged.n_averaged.fill_(len(self.losses))

    @property
    def _averaged_net(self) -> nn.Module:
        return cast(nn.Module, self.averaged.module.net)


def _run(training: _Training, steps: int, path: Path | None, save_every: int, progress: bool) -> None:
    """Step until done, saving on the way, at the end and when interrupted."""
    from tqdm import tqdm

    size, start = training.batches.batch_size, len(training.losses)
    if start >= steps:
        return
    devices = [training.device] if training.device.type == "cuda" else []
    bar = tqdm(total=steps * size, initial=start * size, unit=" samples", unit_scale=True, disable=not progress, desc="fit")
    training.model.train()
    with bar, torch.random.fork_rng(devices=devices), _interrupts() as interrupted:
        smooth = math.nan
        for step in range(start + 1, steps + 1):
            loss = training.step()
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            bar.set_postfix_str(f"step {step}/{steps}, loss {smooth:.4f}", refresh=False)
            bar.update(size)
            stop = interrupted()
            if path is not None and (stop or step == steps or step % save_every == 0):
                training.save(path)
            if stop:
                kept = "nothing was saved" if path is None else f"saved to {path}: the same call continues from there"
                raise KeyboardInterrupt(f"stopped after step {step} of {steps}; {kept}")


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag; the second does what it did before.

    Signals reach the main thread alone, and where they are ignored or handled outside Python they stay so.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
