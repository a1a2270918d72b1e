"""Published weights, loaded as score models with their noise schedule and prediction.

Files are read with safetensors, or with ``torch.load`` restricted to tensors and plain values, so that no code in a file
runs. Samples of every model lie in [-1, 1], except those of a DiT, which are latent images of Stable Diffusion's autoencoder
times 0.18215.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from scoresde.models import Autoencoder
from scoresde.score import ScoreModel
from scoresde.weights import diffusers, dit, ncsnv2
from scoresde.weights.convert import build, mismatch
from scoresde.weights.families import FAMILIES
from scoresde.weights.files import WeightsError, read_names, read_tensors
from scoresde.weights.published import PUBLISHED, Published

__all__ = ["PUBLISHED", "Published", "WeightsError", "event", "load_published", "load_published_autoencoder", "recognizes"]


def load_published(path: str | os.PathLike[str], config: str | None = None, *, ema: bool = True) -> ScoreModel:
    """Load the score model of a published checkpoint.

    It reads the checkpoints of NCSNv2 (Song and Ermon, 2020) and score_sde_pytorch (Song et al., 2021), the state dicts of
    improved-diffusion and guided-diffusion (Nichol and Dhariwal, 2021), EDM (Karras et al., 2022) and DiT (Peebles and Xie,
    2023), and the folders of diffusers' ``UNet2DModel`` with its scheduler. EDM publishes pickles that contain code; save
    the ``state_dict()`` of the network in them first. A model with a learned variance can be sampled with
    ``solvers.ddpm("learned")``.

    Args:
        path: a file, or a folder of diffusers.
        config: the name of the published configuration, a key of :data:`PUBLISHED`. By default it is found by the name of
            the file, or else by the names and shapes of the tensors. It is needed if several configurations match, since a
            file contains neither the noise schedule nor the number of attention heads.
        ema: load the averaged weights, where the file has both.

    Returns:
        The score model in evaluation mode, in float32 on the CPU.

    Raises:
        WeightsError: if the file is missing, damaged, contains more than tensors, is of an unknown or another architecture
            (names the missing and surplus tensors), or matches several configurations.
        UnknownNameError: for a ``config`` that is not in the table.

    Example:
        >>> sorted(PUBLISHED)[:2]
        ['128x128_diffusion', '256x256_diffusion']
        >>> load_published("edm-cifar10-32x32-uncond-vp.pt")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        scoresde.weights.files.WeightsError: there is no file edm-cifar10-32x32-uncond-vp.pt; check the path
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


def load_published_autoencoder(path: str | os.PathLike[str]) -> Autoencoder:
    """Load the autoencoder of a folder of diffusers, ``AutoencoderKL`` or ``VQModel``, or of a pipeline with one.

    Its latents are standardised by the scaling and the shift in its configuration.

    Args:
        path: the folder with ``config.json`` and the weights, or the folder of a pipeline that contains it as ``vae``.

    Returns:
        The autoencoder in evaluation mode, in float32 on the CPU.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the autoencoder has no equivalent here.

    Example:
        >>> load_published_autoencoder("no-such-folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        scoresde.weights.files.WeightsError: no-such-folder has no config.json, nor has no-such-folder/vae; expected ..
    """
    return diffusers.load_autoencoder(Path(path))


def recognizes(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a folder of diffusers or a file whose tensors have known names.

    Example:
        >>> recognizes("no-such-file.pt")
        False
    """
    path = Path(path)
    if path.is_dir():
        return diffusers.recognizes(path)
    names = read_names(path)
    return bool(_families(names)) or dit.recognizes(names) or ncsnv2.recognizes(names)


def event(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return the shape of a sample, if ``path`` is a folder of diffusers whose configuration has it; else ``None``.

    Raises:
        WeightsError: for a configuration that cannot be read.

    Example:
        >>> event("256x256_diffusion.pt") is None
        True
    """
    return diffusers.event(Path(path)) if Path(path).is_dir() else None


def _named_after(path: Path) -> str | None:
    """Return the only configuration whose name, after its last slash, is the name of the file, or ``None``."""
    found = [name for name in PUBLISHED if name.rpartition("/")[2] == path.stem]
    return found[0] if len(found) == 1 else None


def _families(names: Iterable[str]) -> set[str]:
    """Return the code bases whose signature is among the names of tensors, except diffusers, which uses folders."""
    names = list(names)
    return {
        name
        for name, family in FAMILIES.items()
        if name != "diffusers" and any(key.startswith(family.signature) for key in names)
    }


def _matching(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Return the only configuration whose tensors have these names and shapes."""
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
            f"{path} has the tensors of no published configuration; its first are {', '.join(list(tensors)[:3])}. Pass "
            "config=.. to learn how it differs from the configuration of that name"
        )
    if any(not candidates[name].same(candidates[found[0]]) for name in found):
        raise WeightsError(
            f"{path} has the tensors of {', '.join(found)}; expected only one match: pass config={found[0]!r} or another"
        )
    return found[0]
