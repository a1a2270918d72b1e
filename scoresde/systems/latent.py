"""Latent diffusion: an autoencoder, and a score model of its latents, conditioned on classes or on texts.

Three stages, each a file in one folder, and each resumed by the same call:

1. the autoencoder, ``autoencoder.safetensors``, with the mean and the scale of its latents;
2. the latents of all data, ``latents.safetensors``;
3. the score model of the latents, ``model.safetensors``, which holds the autoencoder as well: all that sampling needs,
   beside ``system.json``, which names the text encoder.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.models import Autoencoder, TextEncoder
from scoresde.objectives import Autoencoding, Objective
from scoresde.sampling import Samples, sample
from scoresde.score import LatentModel, ScoreModel
from scoresde.sde import CosineVP, GaussianSDE
from scoresde.systems.conditioning import conditions_of, guided, with_dropout
from scoresde.systems.latents import Latents
from scoresde.systems.system import System
from scoresde.training import Files, Method, fit, fit_autoencoder, load
from scoresde.training.batches import Indexed
from scoresde.training.files.runs import CHECKPOINT

__all__ = ["LatentDiffusion", "train_latent"]


@dataclass(frozen=True, eq=False)
class LatentDiffusion(System):
    """A trained system: the model of the latents, the shape of its samples, and the text encoder where it takes texts.

    Args:
        model: the model of the latents, with the autoencoder.
        event: the shape of a latent.
        encoder: the text encoder.

    Example:
        >>> from scoresde.models import KLAutoencoder, UNet
        >>> net, autoencoder = UNet(2, 8, (1, 2), num_classes=3), KLAutoencoder(1, 2, 4, (1, 2), groups=2)
        >>> model = LatentModel(ScoreModel(net, CosineVP(), "v"), autoencoder)
        >>> system = LatentDiffusion(model, (2, 4, 4))
        >>> system.draw(labels=[0, 2], guidance=2.0, steps=2, progress=False).x.shape
        torch.Size([2, 1, 8, 8])
    """

    model: LatentModel
    event: Sequence[int]
    encoder: TextEncoder | None = None

    def draw(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] | Tensor | None = None,
        n: int | None = None,
        guidance: float = 1.0,
        event: Sequence[int] | None = None,
        conditions: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Samples:
        """Draw a sample for each prompt or label, or ``n`` without either.

        Args:
            prompts: texts; an empty one stands for no text.
            labels: class labels.
            n: the number of samples, where there are neither.
            guidance: the scale of classifier-free guidance; 1 is the conditional model.
            event: the shape of a latent, by default that of the training.
            conditions: further conditions.
            options: further arguments of :func:`scoresde.sample`.
        """
        told: dict[str, Any] = self.conditions(prompts) if prompts else {}
        if labels is not None:
            told["label"] = torch.as_tensor(labels)
        size = len(next(iter(told.values()))) if told else n or 1
        told |= conditions or {}
        return sample(guided(self.model, guidance, told), (size, *(event or self.event)), conditions=told, **options)

    def conditions(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of texts, which the network takes; an empty one has those of no text.

        Raises:
            ValueError: for a system without a text encoder.
        """
        if self.encoder is None:
            raise ValueError("got prompts for a system without a text encoder; expected one that was trained on texts")
        return conditions_of(self.model.network, self.encoder, list(prompts))


def train_latent(
    data: Tensor | Indexed,
    out: str | os.PathLike[str],
    autoencoder: Autoencoder,
    net: nn.Module,
    *,
    steps: tuple[int, int],
    texts: Sequence[str] | None = None,
    encoder: TextEncoder | None = None,
    sde: GaussianSDE | None = None,
    predicts: str = "v",
    objective: str | Objective = "v",
    dropout: float | Mapping[str, float] = 0.1,
    autoencoding: Autoencoding | None = None,
    methods: tuple[Method, Method] = (Method(), Method()),
    files: Files | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> LatentDiffusion:
    """Train a latent diffusion model in a folder, or continue its training.

    Args:
        data: samples of shape ``(n, *event)``, or a dataset, whose labels are conditions where the network has classes.
        out: the folder.
        autoencoder: the autoencoder.
        net: the network of the latents.
        steps: the steps of the autoencoder, 0 for one that is trained, and of the score model.
        texts: a text for each sample.
        encoder: the text encoder, where there are texts.
        sde: the SDE of the latents; by default :class:`~scoresde.CosineVP`.
        predicts: what the network predicts.
        objective: the objective of the score model.
        dropout: the probability of dropping each kind of condition; see :func:`with_dropout`.
        autoencoding: the objective of the autoencoder.
        methods: the settings of the two trainings.
        files: the settings of what they write, but for its places; by default there is no log.
        device, progress: see :func:`scoresde.fit`.

    Raises:
        ValueError: for texts without an encoder, and another number of them than samples.
        CheckpointError: if the folder holds another training.

    Example:
        >>> import tempfile
        >>> from scoresde.models import KLAutoencoder, UNet
        >>> parts = KLAutoencoder(1, 2, 4, (1, 2), blocks=1, groups=2), UNet(2, 8, (1, 2), lean=True, blocks=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     system = train_latent(torch.rand(8, 1, 8, 8), folder, *parts, steps=(1, 1), progress=False)
        >>> system.event
        (2, 4, 4)
    """
    out, files = Path(out), files or Files(log=False)
    if (texts is None) != (encoder is None):
        raise ValueError("got texts without a text encoder, or the reverse; expected both: encoder=TextEncoder(folder)")
    shared: dict[str, Any] = {"device": device, "progress": progress}
    first = replace(files, path=out / "autoencoder.safetensors")
    if steps[0]:
        fitted = fit_autoencoder(autoencoder, data, autoencoding, steps=steps[0], method=methods[0], files=first, **shared)
        autoencoder = fitted.autoencoder
    conditions = {} if texts is None or encoder is None else conditions_of(net, encoder, texts)
    latents = Latents(autoencoder, data, conditions).cached(out / "latents.safetensors")
    model = LatentModel(ScoreModel(net, sde or CosineVP(), predicts), autoencoder)
    last = replace(files, path=out / CHECKPOINT)
    fit(model, latents, with_dropout(objective, net, dropout), steps=steps[1], method=methods[1], files=last, **shared)
    trained = load(out / CHECKPOINT, model=model)
    assert isinstance(trained, LatentModel)
    system = LatentDiffusion(trained, latents.event, encoder)
    system.save(out, written={"model": CHECKPOINT})
    return system
