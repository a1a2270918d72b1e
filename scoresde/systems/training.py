"""The trainings of systems of several models: each model by :func:`scoresde.fit`, in a file of one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.models import Contrastive, EmbeddingPrior, ImageEmbedded, Inpainting, TextEncoder
from scoresde.objectives import DSM, Inpainted, LabelDropout, Objective
from scoresde.score import ScoreModel
from scoresde.sde import CosineVP, GaussianSDE
from scoresde.systems.cascade import Cascade, CascadeStage, train_stage
from scoresde.systems.conditioning import nulls_of, with_dropout
from scoresde.systems.text_to_image import TextToImage, text_conditions
from scoresde.systems.unclip import UnCLIP
from scoresde.training import Method, fit

__all__ = ["train_text_to_image", "train_unclip"]


def train_text_to_image(
    system: TextToImage,
    x: Tensor,
    out: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    steps: Sequence[int],
    objective: str | Objective = "v",
    dropout: float = 0.1,
    method: Method | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> TextToImage:
    """Train the stages of a system in a folder, or continue their training, and return the system of averaged weights.

    Args:
        system: the system; its networks are trained in place.
        x: images of the shape of the last stage.
        out: the folder.
        texts: a text for each image.
        steps: the steps of each stage; 0 leaves a stage as it is.
        objective: the objective of each stage.
        dropout: the probability of dropping each kind of condition.
        method: the settings of the trainings.
        device, progress: see :func:`scoresde.fit`.

    Example:
        >>> from scoresde.systems import glide
        >>> system = glide(TextEncoder("text-encoder-minilm"), ((1, 8, 8), (1, 16, 16)))  # doctest: +SKIP
        >>> trained = train_text_to_image(system, images, "run", texts, steps=(10_000, 10_000))  # doctest: +SKIP
    """
    stages: list[CascadeStage] = []
    place, written = Path(out), {}
    shared: dict[str, Any] = {"device": device, "progress": progress}
    for k, (stage, n) in enumerate(zip(system.cascade.stages, steps, strict=True)):
        net, file = stage.model.network, f"cascade.stages.{k}.model.safetensors"
        factor, smaller = x.shape[-1] // stage.event[-1], stage.event[-1] // stages[-1].event[-1] if stages else None
        loss = with_dropout(objective, net, dropout)
        if isinstance(net, Inpainting):
            loss = Inpainted(loss)
        told, how = text_conditions(stage, system.encoder, texts), {"method": method, **shared}
        if n:
            augmentation = stage.augmentation
            fitted = train_stage(
                stage.model, x, factor, smaller, augmentation, loss, conditions=told, out=place / file, steps=n, **how
            )
            written[f"cascade.stages.{k}.model"] = file
            stage = replace(stage, model=fitted.model)
        stages.append(stage)
    trained = replace(system, cascade=Cascade(stages))
    trained.save(place, written=written)
    return trained


@torch.no_grad()
def _embeddings_of(contrast: Contrastive, x: Tensor, batch_size: int = 256) -> Tensor:
    return torch.cat([contrast.images(part) for part in torch.split(x, batch_size)])


def train_unclip(
    x: Tensor,
    out: str | os.PathLike[str],
    prior: EmbeddingPrior,
    decoder: ImageEmbedded,
    contrast: Contrastive,
    *,
    steps: tuple[int, int],
    texts: Sequence[str],
    encoder: TextEncoder,
    sde: GaussianSDE | None = None,
    objectives: tuple[str | Objective, str | Objective] = (DSM("x0", "uniform"), "v"),
    dropout: tuple[float, Mapping[str, float]] = (0.1, {"embedding": 0.1, "context": 0.5}),
    methods: tuple[Method, Method] = (Method(), Method()),
    device: torch.device | str | None = None,
    progress: bool = True,
) -> UnCLIP:
    """Train a prior and a decoder in a folder, or continue their training.

    Args:
        x: images, shape ``(n, channels, height, width)``.
        out: the folder.
        prior: the network of embeddings, :class:`~scoresde.models.EmbeddingPrior`; it predicts the embedding itself.
        decoder: the network of images, :class:`~scoresde.models.ImageEmbedded`; it predicts v.
        contrast: a contrastive model of images and texts, trained before.
        steps: the steps of the prior and of the decoder.
        texts: a text for each image.
        encoder: the encoder of texts.
        sde: the SDE of both; by default :class:`~scoresde.CosineVP`.
        objectives: those of the prior and of the decoder.
        dropout: the probability that the prior loses the text, and those of the conditions of the decoder, as published.
        methods: the settings of the two trainings.
        device, progress: see :func:`scoresde.fit`.

    Raises:
        CheckpointError: if the folder holds another training.

    Example:
        >>> encoder = TextEncoder("text-encoder-minilm")  # doctest: +SKIP
        >>> prior = EmbeddingPrior(128, encoder.features, encoder.length, pooled=encoder.features)  # doctest: +SKIP
        >>> decoder = ImageEmbedded(3, {"width": 32}, 128)  # doctest: +SKIP
        >>> how = {"steps": (10_000, 10_000), "texts": texts, "encoder": encoder}  # doctest: +SKIP
        >>> system = train_unclip(images, "run", prior, decoder, contrast, **how)  # doctest: +SKIP
    """
    place, sde = Path(out), sde or CosineVP()
    frozen = contrast.requires_grad_(False).eval()
    z = _embeddings_of(frozen, x)
    prior.mean, prior.std = z.mean(0), z.std(0).clamp(min=1e-6)
    models = (ScoreModel(prior, sde, "x0"), ScoreModel(decoder, sde, "v"))
    untrained = UnCLIP(*models, z.shape[1], tuple(x.shape[1:]), frozen, encoder)
    of_prior, of_decoder = untrained.conditions(texts)
    kinds = {kind: p for kind, p in dropout[1].items() if kind in nulls_of(decoder)}
    losses = (LabelDropout(objectives[0], nulls_of(prior), dropout[0]), with_dropout(objectives[1], decoder, kinds))
    shared = {"device": device, "progress": progress}
    data = ((z - prior.mean) / prior.std, x)
    told = (of_prior, {"embedding": z, **of_decoder})
    for model, name, *rest in zip(models, ("prior", "decoder"), data, losses, steps, methods, told, strict=True):
        batch, loss, n, method, conditions = rest
        how: dict[str, Any] = {"steps": n, "method": method, "conditions": conditions, **shared}
        found = fit(model, batch, loss, out=place / f"{name}.safetensors", **how)
        model.load_state_dict(found.model.state_dict())  # the averaged weights
    trained = UnCLIP(models[0].eval(), models[1].eval(), z.shape[1], tuple(x.shape[1:]), frozen, encoder)
    trained.save(place, written={"prior": "prior.safetensors", "decoder": "decoder.safetensors"})
    return trained
