"""Fitting an autoencoder by the trainer of score models, and loading it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import Tensor

from scoresde.models import Autoencoder
from scoresde.objectives import Autoencoding
from scoresde.score import ScoreModel
from scoresde.sde import VP
from scoresde.training.batches import Indexed, Samplable
from scoresde.training.files.checkpoint import CheckpointError
from scoresde.training.files.models import load
from scoresde.training.fit import trainer_of
from scoresde.training.method import Method

__all__ = ["AutoencoderFit", "fit_autoencoder", "load_autoencoder"]

_MEASURED = 4096  # samples whose latents are measured, where there are so many


class AutoencoderFit(NamedTuple):
    """The result of the training of an autoencoder.

    Args:
        autoencoder: the autoencoder with averaged weights, in evaluation mode, its latents measured.
        raw: the autoencoder given, with the last weights, in evaluation mode.
        history: pairs ``(step, loss of its batch)``; the first step is 1.
        scale: the learned scale of the residuals, with the average of the weights; ``None`` where it is not learned.

    Example:
        >>> import scoresde, torch
        >>> net = scoresde.models.KLAutoencoder(1, 1, 4, (1, 2), groups=2)
        >>> found = fit_autoencoder(net, torch.rand(16, 1, 4, 4), steps=1, batch_size=8, progress=False)
        >>> [step for step, _ in found.history], found.raw is net
        ([1], True)
    """

    autoencoder: Autoencoder
    raw: Autoencoder
    history: tuple[tuple[int, float], ...]
    scale: float | None


def fit_autoencoder(
    autoencoder: Autoencoder,
    data: Tensor | Samplable | Indexed | Any,
    objective: Autoencoding | None = None,
    *,
    steps: int,
    method: Method | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> AutoencoderFit:
    """Train an autoencoder in place, and measure the mean and the scale of its latents.

    The autoencoder stands in the place of the network of a score model, so everything that the
    :class:`~scoresde.training.Trainer` can do holds here: averages, checkpoints, several processes, exact resumption.

    Args:
        autoencoder: the autoencoder.
        data: samples of shape ``(n, *event)``, a dataset, or a distribution; see :class:`~scoresde.training.Trainer`.
        objective: the loss; by default :class:`~scoresde.objectives.Autoencoding` with the published weights.
        steps: steps of the whole training, including the steps of a checkpoint that it resumes.
        method, out, options: as in :func:`scoresde.fit`.

    Raises:
        TypeError: for another module.
        ValueError: for bad arguments or data.
        CheckpointError: if ``out`` holds a checkpoint of another training.

    Example:
        >>> import scoresde, torch
        >>> net = scoresde.models.KLAutoencoder(1, 1, 4, (1, 2), groups=2)
        >>> images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> found = fit_autoencoder(net, images, steps=5, batch_size=16, progress=False)
        >>> len(found.history), found.autoencoder.standardized(images).std().item() > 0.9
        (5, True)
    """
    if not isinstance(autoencoder, Autoencoder):
        raise TypeError(
            f"got {type(autoencoder).__name__} to train as an autoencoder; expected a models.Autoencoder: "
            "models.KLAutoencoder(3, 4)"
        )
    objective = Autoencoding() if objective is None else objective
    trainer = trainer_of(ScoreModel(autoencoder, VP()), data, objective, method=method, out=out, **options)
    trainer.run(steps)
    averaged: Autoencoder = trainer.sampled.eval().net
    source, size = trainer.batches.data, trainer.batches.batch_size
    n = min(_MEASURED, len(source) if isinstance(source, Tensor | Indexed) else _MEASURED)
    found = [trainer.batches.at(i)[0] for i in range(-(-n // size))]
    for each in {id(averaged): averaged, id(autoencoder): autoencoder}.values():
        each.measure(found)
    if trainer.places is not None and trainer.processes.main:
        trainer.save(trainer.places.path)
    companion = next(iter(trainer.companions.values()), trainer.companion)
    log_scale = getattr(companion, "log_scale", None)
    scale = None if log_scale is None else float(log_scale.detach().exp())
    return AutoencoderFit(averaged, autoencoder.eval(), trainer.history, scale)


def load_autoencoder(
    path: str | os.PathLike[str], autoencoder: Autoencoder | None = None, *, ema: bool | str = True
) -> Autoencoder:
    """Load an autoencoder that :func:`fit_autoencoder` wrote, with the mean and the scale of its latents.

    Args:
        path: the file, or a run folder with one.
        autoencoder: an autoencoder of your own class, into which the weights are copied.
        ema: load the averaged weights, where the file has them; or the name of an average.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds something else.

    Example:
        >>> import scoresde, tempfile, torch
        >>> net = scoresde.models.KLAutoencoder(1, 1, 4, (1, 2), groups=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     how = {"steps": 1, "batch_size": 8, "out": f"{folder}/a.safetensors", "progress": False}
        ...     found = fit_autoencoder(net, torch.rand(16, 1, 4, 4), **how)
        ...     again = load_autoencoder(f"{folder}/a.safetensors")
        >>> torch.equal(again.latent_mean, found.autoencoder.latent_mean)
        True
    """
    net = load(path, autoencoder, ema=ema).net
    if not isinstance(net, Autoencoder):
        raise CheckpointError(f"{path} holds a {type(net).__name__}; expected an autoencoder, which fit_autoencoder writes")
    return net.eval()
