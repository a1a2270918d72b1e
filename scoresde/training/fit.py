"""Fitting a score model to data by one call."""

from __future__ import annotations

from typing import NamedTuple, Unpack

from torch import Tensor

from scoresde.score import ScoreModel
from scoresde.training.batches import Indexed, Samplable
from scoresde.training.optimization.averages import Average
from scoresde.training.options import Options
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
    steps: int,
    ema: float | str | Average = 0.999,
    truth: ScoreModel | None = None,
    **options: Unpack[Options],
) -> FitResult:
    r"""Train the network of a score model, in place, and measure it: :class:`Trainer` in one call.

    Args:
        model: the score model, whose network is a ``torch.nn.Module``.
        data: samples of shape ``(n, *event)``, a :class:`scoresde.data.Dataset`, or anything with
            ``sample(n, generator)``.
        steps: of the whole training, those of a checkpoint included.
        ema: the moving average of the weights that is returned: its decay per step, which is less, (1 + n) / (10 + n), in
            the first n, or any :class:`Average`.
        truth: the exact score model of the distribution of the data, where known: the report then has the excess loss.
        options: the arguments of :class:`Trainer`, of which most trainings need few: ``objective="ddpm"``,
            ``batch_size=128``, ``lr=1e-3``, ``optimizer="adam"``, ``schedule="constant"``, ``seed=0``,
            ``conditions={"label": labels}``, ``out="model.safetensors"``, the file for checkpoints from which the same call
            resumes, ``device="cuda"``, ``progress=False``. ``averages`` are further ones, and ``log`` is off.

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
    options = {"log": False, **options, "averages": [ema, *options.get("averages", ())]}
    trainer = Trainer(model, data, **options)
    trainer.run(steps)
    return result_of(trainer, truth)


def result_of(trainer: Trainer, truth: ScoreModel | None = None) -> FitResult:
    """What a trainer has reached, and its loss per time bin."""
    averaged = next(iter(trainer.averaged.values())).eval()
    data, conditions = trainer.batches.data, trainer.batches.conditions
    measured = report(averaged, data, truth, objective=trainer.objective, conditions=conditions, seed=trainer.batches.seed)
    return FitResult(averaged, trainer.model, trainer.history, measured)
