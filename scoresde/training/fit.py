"""Fitting a score model to data by one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.discrete import DenoisingModel
from scoresde.objectives import Objective
from scoresde.score import ScoreModel
from scoresde.training.batches import Indexed, Samplable
from scoresde.training.files.retention import Files
from scoresde.training.method import Method
from scoresde.training.optimization.averages import Average
from scoresde.training.report import Report, report
from scoresde.training.trainer import Monitor, Trainer

__all__ = ["FitResult", "fit", "result_of", "trainer_of"]

_UNSAID: Any = object()  # the default of ``ema``, for which None has a meaning


class FitResult(NamedTuple):
    """The result of a training.

    Args:
        model: the score model with averaged weights, in evaluation mode. Sample from this one.
        raw: the score model given to :func:`fit`, with the last weights, in evaluation mode.
        history: pairs ``(step, loss of its batch)``; the first step is 1.
        report: the loss of ``model`` per time bin and, where the true score is known, the excess loss.

    Example:
        >>> import scoresde
        >>> model = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), scoresde.VP())
        >>> found = fit(model, scoresde.problems.ring(), steps=2, batch_size=8, progress=False)
        >>> [step for step, _ in found.history], found.raw is model
        ([1, 2], True)
    """

    model: ScoreModel
    raw: ScoreModel
    history: tuple[tuple[int, float], ...]
    report: Report


def fit(
    model: ScoreModel | DenoisingModel,
    data: Tensor | Samplable | Indexed | Any,
    objective: str | Objective | None = None,
    *,
    steps: int,
    batch_size: int | None = None,
    lr: float | None = None,
    ema: float | str | Average | None = _UNSAID,
    seed: int | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    truth: ScoreModel | DenoisingModel | None = None,
    out: str | os.PathLike[str] | None = None,
    method: Method | None = None,
    files: Files | None = None,
    monitor: Monitor | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Train the network of a score model in place, and measure its loss per time bin.

    This is :class:`Trainer` and :func:`report` in one call.

    Args:
        model: the score model, or the model on tokens; its network is a ``torch.nn.Module``.
        data: samples of shape ``(n, *event)``, a dataset, or a distribution with ``sample(n, generator)``; see
            :class:`Trainer`.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES`, by default "ddpm", or an objective; for a model on
            tokens a name in ``scoresde.discrete.TOKEN_OBJECTIVES``, by default "sedd".
        steps: steps of the whole training, including the steps of a checkpoint that it resumes.
        batch_size: samples per step. It replaces the value in ``method``, as ``lr``, ``ema`` and ``seed`` do.
        lr: learning rate.
        ema: decay of the moving average of the weights that is returned; ``None`` returns the last weights.
        seed: seed of the batches, times, noise and dropout.
        conditions: an entry for each sample of a tensor, ``{"label": labels}``, given to the network.
        truth: the exact score model of the data distribution, where it is known. The report then has the excess loss.
        out: the checkpoint file, ``"model.safetensors"``. The same call resumes from it. It is the path of ``files``.
        method: all other settings of the training: ``Method(optimizer="adamw", warmup=500, schedule="cosine-5000")``.
        files: all other settings of what is written: ``Files(save_every=500, keep_last=3)``. By default there is no log.
        monitor: a function of the step and the averaged model; see :class:`Trainer`.
        device: the device to train on; by default the device of the network.
        progress: show a progress bar.

    Raises:
        ValueError: for bad arguments or data, before the first step.
        CheckpointError: if ``out`` holds a checkpoint of another training.
        FloatingPointError: if a loss is not finite; names the step. The last checkpoint stays as it is.
        KeyboardInterrupt: on Ctrl-C, after the current step is finished and saved. A second Ctrl-C interrupts at once.

    Example:
        >>> import torch
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> result = fit(ScoreModel(MLP(2, hidden=(32,)), VP()), data, steps=20, batch_size=32, progress=False)
        >>> len(result.history), result.report.loss.shape
        (20, torch.Size([10]))
    """
    trainer = trainer_of(
        model,
        data,
        objective,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        seed=seed,
        conditions=conditions,
        out=out,
        method=method,
        files=files,
        monitor=monitor,
        device=device,
        progress=progress,
    )
    trainer.run(steps)
    return result_of(trainer, cast(ScoreModel | None, truth))


def trainer_of(
    model: ScoreModel | DenoisingModel,
    data: Tensor | Samplable | Indexed | Any,
    objective: str | Objective | None,
    *,
    batch_size: int | None = None,
    lr: float | None = None,
    ema: float | str | Average | None = _UNSAID,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    method: Method | None = None,
    files: Files | None = None,
    **others: Any,
) -> Trainer:
    """Make the trainer of :func:`fit`, whose arguments replace settings of ``method`` and ``files``.

    Raises:
        ValueError: for bad arguments or data.
    """
    flat = {"batch_size": batch_size, "lr": lr, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in flat.items() if value is not None}
    given |= {} if ema is _UNSAID else {"ema": ema}
    files = files or Files(log=False)
    if out is not None:
        if files.path is not None and Path(files.path) != Path(out):
            raise ValueError(
                f"got out={str(out)!r} and files for {str(files.path)!r}; expected one path: leave out= or Files(path) away"
            )
        files = replace(files, path=out)
    return Trainer(model, data, objective, method=replace(method or Method(), **given), files=files, **others)


def result_of(trainer: Trainer, truth: ScoreModel | None = None) -> FitResult:
    """Return the averaged model of a trainer, its last weights, its losses and a report of its loss per time bin.

    Args:
        trainer: the trainer, after :meth:`Trainer.run`.
        truth: the exact score model of the data distribution, where it is known. The report then has the excess loss.

    Example:
        >>> import scoresde
        >>> model = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), scoresde.VP())
        >>> trainer = trainer_of(model, scoresde.problems.ring(), "ddpm", batch_size=8, progress=False)
        >>> trainer.run(2)
        >>> len(result_of(trainer).history)
        2
    """
    averaged = trainer.sampled.eval()
    data, conditions = trainer.batches.data, trainer.batches.conditions
    measured = report(averaged, data, truth, objective=trainer.objective, conditions=conditions, seed=trainer.batches.seed)
    return FitResult(averaged, trainer.model, trainer.history, measured)
