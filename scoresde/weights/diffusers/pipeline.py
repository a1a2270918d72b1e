"""Pipelines of diffusers: a denoiser with its scheduler, its autoencoder and its text encoders, as one score model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoresde.score import LatentModel, ScoreModel
from scoresde.weights.diffusers import autoencoders
from scoresde.weights.diffusers.folder import Files, find
from scoresde.weights.diffusers.prompts import Prompted, Prompts, Reader
from scoresde.weights.files import read_json

__all__ = ["compose"]

Entry = list[Any] | None


@dataclass(frozen=True)
class _Index:
    """The entries of ``model_index.json`` that name text encoders by their library and class."""

    text_encoder: Entry = None
    text_encoder_2: Entry = None
    text_encoder_3: Entry = None
    force_zeros_for_empty_prompt: bool = False


def compose(model: ScoreModel, files: Files) -> ScoreModel:
    """Return the score model of a pipeline, told prompts and decoding its samples, where the folder has the parts for it.

    Args:
        model: the score model of the denoiser.
        files: its files; a folder without ``model_index.json`` is not a pipeline, and its model is returned unchanged.

    Raises:
        WeightsError: for a part that is missing, cannot be read or has no equivalent here.
        ImportError: for text encoders without transformers.
    """
    folder = files.root
    if not (folder / "model_index.json").is_file():
        return model
    index = read_json(folder / "model_index.json", _Index)
    coder = find(folder, ("vae", "vqvae"))
    autoencoder = None if coder is None else autoencoders.load(coder)
    named = {name: getattr(index, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    classes = {name: entry[1] for name, entry in named.items() if entry and len(entry) == 2 and entry[1]}
    if classes:
        readers = {name: Reader.of(folder, name, kind) for name, kind in classes.items()}
        factor = 1 if autoencoder is None else autoencoder.factor or 1
        silent = index.force_zeros_for_empty_prompt
        model = Prompted(model, Prompts(readers, files.kind or "", model.net, factor, silent))
    return model if autoencoder is None else LatentModel(model, autoencoder)
