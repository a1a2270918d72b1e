"""Latent diffusion: an autoencoder, and a score model of its latents, conditioned on classes or on texts.

Three stages, each a file in one folder, and each resumed by the same call:

1. the autoencoder, ``autoencoder.safetensors``, with the mean and the scale of its latents;
2. the latents of all data, ``latents.safetensors``;
3. the score model of the latents, ``model.safetensors``, which holds the autoencoder as well: all that sampling needs.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
https://arxiv.org/abs/2112.10752.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import guidance as steering
from scoresde.models import Autoencoder, TextEncoder
from scoresde.objectives import Autoencoding, Objective
from scoresde.sampling import Samples, sample
from scoresde.score import LatentModel, ScoreModel
from scoresde.sde import CosineVP, GaussianSDE
from scoresde.systems.conditioning import conditions_of, nulls_of, with_dropout
from scoresde.systems.latents import Latents
from scoresde.training import CheckpointError, Files, Method, fit, fit_autoencoder, load
from scoresde.training.batches import Indexed
from scoresde.training.files.runs import CHECKPOINT, open_run

__all__ = ["LatentDiffusion", "encoder_of", "train_latent"]

TEXT = "text.json"
"""The file in a run folder that says which text encoder the system uses, and how."""


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A trained system: the model of the latents, the shape of its samples, and the text encoder where it takes texts.

    Args:
        model: the model of the latents, with the autoencoder.
        event: the shape of a latent.
        encoder: the text encoder.
    """

    model: LatentModel
    event: tuple[int, ...]
    encoder: TextEncoder | None = None

    def draw(
        self,
        prompts: Sequence[str] = (),
        *,
        labels: Sequence[int] | Tensor | None = None,
        n: int | None = None,
        guidance: float = 1.0,
        **options: Any,
    ) -> Samples:
        """Draw a sample for each prompt or label, or ``n`` without either.

        Args:
            prompts: texts; an empty one stands for no text.
            labels: class labels.
            n: the number of samples, where there are neither.
            guidance: the scale of classifier-free guidance; 1 is the conditional model.
            options: further arguments of :func:`scoresde.sample`.
        """
        net = self.model.network
        conditions = self.conditions(prompts) if prompts else {}
        if labels is not None:
            conditions["label"] = torch.as_tensor(labels)
        size = len(next(iter(conditions.values()))) if conditions else n or 1
        model: ScoreModel = self.model
        if guidance != 1.0:
            null = {name: value for name, value in nulls_of(net).items() if name in conditions}
            model = steering.ClassifierFree(model, guidance, null)
        return sample(model, (size, *self.event), conditions=conditions, **options)

    def conditions(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of texts, which the network takes; an empty one has those of no text.

        Raises:
            ValueError: for a system without a text encoder.
        """
        if self.encoder is None:
            raise ValueError("got prompts for a system without a text encoder; expected one that was trained on texts")
        net = self.model.network
        found, empty = conditions_of(net, self.encoder, list(prompts)), torch.tensor([not text for text in prompts])
        for name, null in nulls_of(net).items():
            if name in found:
                found[name][empty] = torch.as_tensor(null, dtype=found[name].dtype)
        return found

    @classmethod
    def open(cls, folder: str | os.PathLike[str], encoder: TextEncoder | None = None) -> LatentDiffusion:
        """Open the system in a run folder; ``encoder`` replaces the one that the folder names.

        Raises:
            CheckpointError: if the folder holds no model of latents.
        """
        model, event = open_run(folder)
        if not isinstance(model, LatentModel):
            raise CheckpointError(f"{folder} holds a {type(model).__name__}; expected a model of latents")
        return cls(model, event, encoder_of(folder) if encoder is None else encoder)


def encoder_of(folder: str | os.PathLike[str]) -> TextEncoder | None:
    """Return the text encoder that a run folder names, or ``None`` where it names none.

    Raises:
        ValueError: if the folder of the encoder is gone, or the entry is damaged.
    """
    told = Path(folder) / TEXT
    if not told.is_file():
        return None
    try:
        return TextEncoder(**json.loads(told.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{told} does not describe a text encoder ({error}); expected a file of train_latent") from error


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
    objective: str | Objective = "v",
    dropout: float | Mapping[str, float] = 0.1,
    autoencoding: Autoencoding | None = None,
    methods: tuple[Method, Method] = (Method(), Method()),
    device: torch.device | str | None = None,
    progress: bool = True,
) -> LatentDiffusion:
    """Train a latent diffusion model in a folder, or continue its training.

    Args:
        data: samples of shape ``(n, *event)``, or a dataset, whose labels are conditions where the network has classes.
        out: the folder.
        autoencoder: the autoencoder, untrained.
        net: the network of the latents.
        steps: the steps of the autoencoder and of the score model.
        texts: a text for each sample.
        encoder: the text encoder, where there are texts.
        sde: the SDE of the latents; by default :class:`~scoresde.CosineVP`. The network predicts v.
        objective: the objective of the score model.
        dropout: the probability of dropping each kind of condition; see :func:`with_dropout`.
        autoencoding: the objective of the autoencoder.
        methods: the settings of the two trainings.
        device, progress: see :func:`scoresde.fit`.

    Raises:
        ValueError: for texts without an encoder, and another number of them than samples.
        CheckpointError: if the folder holds another training.
    """
    out, files = Path(out), Files(log=False)
    if (texts is None) != (encoder is None):
        raise ValueError("got texts without a text encoder, or the reverse; expected both: encoder=TextEncoder(folder)")
    shared: dict[str, Any] = {"device": device, "progress": progress}
    first = replace(files, path=out / "autoencoder.safetensors")
    coder = fit_autoencoder(autoencoder, data, autoencoding, steps=steps[0], method=methods[0], files=first, **shared)
    conditions = {} if texts is None or encoder is None else conditions_of(net, encoder, texts)
    latents = Latents(coder.autoencoder, data, conditions).cached(out / "latents.safetensors")
    model = LatentModel(ScoreModel(net, sde or CosineVP(), "v"), coder.autoencoder)
    if encoder is not None:
        told = {"folder": str(encoder.folder.resolve()), "pooling": encoder.pooling, "length": encoder.length}
        (out / TEXT).write_text(json.dumps(told), encoding="utf-8")
    last = replace(files, path=out / CHECKPOINT)
    fit(model, latents, with_dropout(objective, net, dropout), steps=steps[1], method=methods[1], files=last, **shared)
    trained = load(out / CHECKPOINT, model=model)
    assert isinstance(trained, LatentModel)
    return LatentDiffusion(trained, latents.event, encoder)
