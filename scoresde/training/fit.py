"""Fitting a score model to data by one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.objectives import Objective
from scoresde.score import ScoreModel
from scoresde.training.batches import Indexed, Samplable
from scoresde.training.files.retention import Files
from scoresde.training.method import Method
from scoresde.training.optimization.averages import Average
from scoresde.training.report import Report, report
from scoresde.training.trainer import Monitor, Trainer

__all__ = ["FitResult", "fit", "result_of"]

_UNSAID: Any = object()  # since None is an answer


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
    data: Tensor | Samplable | Indexed | Any,
    objective: str | Objective = "ddpm",
    *,
    steps: int,
    batch_size: int | None = None,
    lr: float | None = None,
    ema: float | str | Average | None = _UNSAID,
    seed: int | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    truth: ScoreModel | None = None,
    out: str | os.PathLike[str] | None = None,
    method: Method | None = None,
    files: Files | None = None,
    monitor: Monitor | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> FitResult:
    r"""Train the network of a score model, in place, and measure it: :class:`Trainer` in one call.

    Args:
        model: the score model, whose network is a ``torch.nn.Module``.
        data, objective, conditions, monitor, device, progress: as of :class:`Trainer`.
        steps: of the whole training, those of a checkpoint included.
        batch_size, lr, ema, seed: what most trainings set of ``method``, of which they win: samples per step, learning rate,
            decay of the moving average of the weights that is returned (``None`` for the last weights), and the seed of
            everything random.
        truth: the exact score model of the distribution of the data, where known: the report then has the excess loss.
        out: the file for checkpoints, from which the same call resumes, ``"model.safetensors"``; the path of ``files``.
        method: the rest of how it is done: ``Method(optimizer="adamw", warmup=500, schedule="cosine-5000")``.
        files: the rest of what is written: ``Files(save_every=500, keep_last=3)``. By default there is no log.

    Raises:
        ValueError: for bad arguments or data, before the first step.
        CheckpointError: if ``out`` is not a checkpoint of this very training.
        FloatingPointError: if a loss is not finite; names the step. The last checkpoint stays as it is.
        KeyboardInterrupt: on Ctrl-C, after the step is finished and saved; a second Ctrl-C interrupts at once.

    Example:
        >>> import torch
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> result = fit(ScoreModel(MLP(2, hidden=(32,)), VP()), data, steps=20, batch_size=32, progress=False)
        >>> len(result.history), result.report.loss.shape
        (20, torch.Size([10]))
    """
    flat = {"batch_size": batch_size, "lr": lr, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in flat.items() if value is not None}
    given |= {} if ema is _UNSAID else {"ema": ema}
    files = files or Files(log=False)
    if out is not None:
        if files.path is not None and Path(files.path) != Path(out):
            raise ValueError(f"got out={str(out)!r} and files for {str(files.path)!r}; expected one of them")
        files = replace(files, path=out)
    made = replace(method or Method(), **given)
    trainer = Trainer(
        model,
        data,
        objective,
        method=made,
        files=files,
        conditions=conditions,
        monitor=monitor,
        device=device,
        progress=progress,
    )
    trainer.run(steps)
    return result_of(trainer, truth)


def result_of(trainer: Trainer, truth: ScoreModel | None = None) -> FitResult:
    """What a trainer has reached, and its loss per time bin."""
    averaged = trainer.sampled.eval()
    data, conditions = trainer.batches.data, trainer.batches.conditions
    measured = report(averaged, data, truth, objective=trainer.objective, conditions=conditions, seed=trainer.batches.seed)
    return FitResult(averaged, trainer.model, trainer.history, measured)
