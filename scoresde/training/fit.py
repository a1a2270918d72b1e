"""Fitting a score model to data by one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.objectives import Objective
from scoresde.score import ScoreModel
from scoresde.training.batches import Indexed, Samplable
from scoresde.training.report import Report, report
from scoresde.training.trainer import Trainer

__all__ = ["FitResult", "fit", "result_of"]


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
    data: Tensor | Samplable | Indexed,
    *,
    objective: str | Objective = "ddpm",
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

    The short form of :class:`Trainer`, which can do more and writes logs.

    Args:
        model: the score model, whose network is a ``torch.nn.Module``.
        data: samples of shape ``(n, *event)``, or anything with ``sample(n, generator)``.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES` or any :class:`~scoresde.objectives.Objective`.
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
    trainer = Trainer(
        model,
        data,
        objective=objective,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        clip=clip,
        averages=[ema],
        seed=seed,
        conditions=conditions,
        out=out,
        resume=resume,
        save_every=save_every,
        log=False,
        device=device,
        progress=progress,
    )
    trainer.run(steps)
    return result_of(trainer, truth)


def result_of(trainer: Trainer, truth: ScoreModel | None = None) -> FitResult:
    """What a trainer has reached, and its loss per time bin."""
    averaged = next(iter(trainer.averaged.values())).eval()
    data, conditions = trainer.batches.data, trainer.batches.conditions
    measured = report(averaged, data, truth, objective=trainer.objective, conditions=conditions, seed=trainer.batches.seed)
    return FitResult(averaged, trainer.model, trainer.history, measured)
