"""Weights that others published, as score models with their noise schedule and prediction.

Nothing is ever unpickled: files are read with safetensors, or with ``torch.load`` restricted to tensors and plain values.
Samples of every model lie in [-1, 1], but for those of a DiT, which are the latent images of Stable Diffusion's
autoencoder times 0.18215.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from scoresde.score import ScoreModel
from scoresde.weights import diffusers, dit, ncsnv2
from scoresde.weights.convert import build, mismatch
from scoresde.weights.families import FAMILIES
from scoresde.weights.files import WeightsError, read_names, read_tensors
from scoresde.weights.published import PUBLISHED, Published

__all__ = ["PUBLISHED", "Published", "WeightsError", "event", "load", "recognizes"]


def load(path: str | os.PathLike[str], config: str | None = None, *, ema: bool = True) -> ScoreModel:
    """Build the score model that a published checkpoint holds.

    Reads the checkpoints of NCSNv2 (Song and Ermon, 2020) and of score_sde_pytorch (Song et al., 2021), the state dicts of
    improved-diffusion and guided-diffusion (Nichol and Dhariwal, 2021), of EDM (Karras et al., 2022) and of DiT (Peebles and
    Xie, 2023), and the folders of diffusers' ``UNet2DModel`` with their scheduler. EDM publishes pickles that hold code:
    save the ``state_dict()`` of their network first. A learned variance is that of the model: ``solvers.ddpm("learned")``
    samples with it.

    Args:
        path: a file, or a folder of diffusers.
        config: the name of the published configuration, a key of :data:`PUBLISHED`. By default the one that the file is
            named after, or else the one whose tensors have the same names and shapes. Where several have, ``config`` is
            needed, since the noise schedule and the heads of the attention are not in the file.
        ema: take the averaged weights, where the file has both.

    Returns:
        The model in evaluation mode, in float32 on the CPU.

    Raises:
        WeightsError: if the file is missing, damaged, holds more than tensors, is of no known or of another
            architecture - every missing or surplus tensor is named - or could be several.
        UnknownNameError: for a ``config`` that is not in the table.

    Example:
        >>> sorted(PUBLISHED)[:2]
        ['128x128_diffusion', '256x256_diffusion']
        >>> load("edm-cifar10-32x32-uncond-vp.pt")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        scoresde.weights.files.WeightsError: there is no file edm-cifar10-32x32-uncond-vp.pt
    """
    path = Path(path)
    if path.is_dir():
        return diffusers.load(path)
    if config is not None:
        config = PUBLISHED.name(config)
    tensors = read_tensors(path, ema=ema)
    if config is None and dit.recognizes(tensors):
        return dit.load(tensors, str(path))
    if config is None and ncsnv2.recognizes(tensors):
        return ncsnv2.load(tensors, str(path))
    name = config or _named_after(path) or _matching(tensors, path)
    published = PUBLISHED[name]
    net = build(published.net, tensors, published.dialect, f"{path}, read as {name},")
    process, learned = published.process(), published.learned_variance
    return ScoreModel(net, process, published.predicts, learned_variance=learned).eval()


def recognizes(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`load` is for this: a folder of diffusers, or a file with tensors of known names."""
    path = Path(path)
    if path.is_dir():
        return diffusers.recognizes(path)
    names = read_names(path)
    return bool(_families(names)) or dit.recognizes(names) or ncsnv2.recognizes(names)


def event(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return the shape of a sample of a folder of diffusers, where its configuration states it; else ``None``.

    Raises:
        WeightsError: for a configuration that cannot be read.
    """
    return diffusers.event(Path(path)) if Path(path).is_dir() else None


def _named_after(path: Path) -> str | None:
    """The configuration that has the file's name, or whose last parts have it."""
    found = [name for name in PUBLISHED if name.rpartition("/")[2] == path.stem]
    return found[0] if len(found) == 1 else None


def _families(names: Iterable[str]) -> set[str]:
    """The code bases, of those that publish files, that name tensors like these."""
    names = list(names)
    return {
        name
        for name, family in FAMILIES.items()
        if name != "diffusers" and any(key.startswith(family.signature) for key in names)
    }


def _matching(tensors: Mapping[str, Tensor], path: Path) -> str:
    """The one configuration whose tensors have the names and shapes of these."""
    families = _families(tensors)
    candidates = {name: published for name, published in PUBLISHED.items() if published.dialect.family in families}
    nets = {}
    with torch.device("meta"):
        for published in candidates.values():
            if published.preset not in nets:
                nets[published.preset] = published.net()
    found = [n for n, published in candidates.items() if not mismatch(nets[published.preset], tensors, published.dialect)]
    if not found:
        raise WeightsError(
            f"{path} has the tensors of no published configuration; its first are {', '.join(list(tensors)[:3])}. To see "
            "what keeps it from being one, pass its name as config=.."
        )
    if any(not candidates[name].same(candidates[found[0]]) for name in found):
        raise WeightsError(f"{path} has the tensors of {', '.join(found)}; pass the one it is as config=..")
    return found[0]
