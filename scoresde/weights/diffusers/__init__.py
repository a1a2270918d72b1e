"""Folders of diffusers, read from their JSON and tensors without diffusers: networks with their schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scoresde.models import Autoencoder
from scoresde.score import ScoreModel
from scoresde.weights.diffusers import autoencoders, mmdit, pipeline, prior, unet2d, unet2d_condition, unet3d
from scoresde.weights.diffusers.folder import Files, find
from scoresde.weights.diffusers.schedulers import Scheduler, process
from scoresde.weights.diffusers.unet2d import UNet2D, network
from scoresde.weights.files import WeightsError

__all__ = ["Scheduler", "UNet2D", "event", "load", "load_autoencoder", "network", "process", "recognizes"]

LOADERS: Mapping[str, Callable[[Files], ScoreModel]] = {
    "UNet2DModel": unet2d.load,
    "UNet2DConditionModel": unet2d_condition.load,
    "FluxTransformer2DModel": mmdit.load_flux,
    "SD3Transformer2DModel": mmdit.load_sd3,
    "PriorTransformer": prior.load,
    "UNet3DConditionModel": unet3d.load,
}
"""The functions that load a score model, by the name of the network's class in diffusers."""


@dataclass(frozen=True)
class _Sample:
    """The entries of a configuration from which the shape of a sample follows."""

    _class_name: str | None = None
    sample_size: int | tuple[int, int] | None = None
    in_channels: int | None = None
    embedding_dim: int | None = None


def recognizes(folder: Path) -> bool:
    """Return whether a folder contains a model of diffusers: a ``config.json`` in it or in its folder ``unet``.

    The folders ``transformer`` and ``prior`` are looked at as well.

    Example:
        >>> recognizes(Path("no-such-folder"))
        False
    """
    return find(folder) is not None


def load(folder: Path) -> ScoreModel:
    """Load the score model in a folder with ``config.json``, weights and ``scheduler_config.json``, flat or as a pipeline.

    A pipeline with an autoencoder is a :class:`~scoresde.score.LatentModel`; one with text encoders takes ``prompt``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.

    Example:
        >>> model = load(Path("ddpm-cifar10-32"))  # doctest: +SKIP
        >>> model.predicts  # doctest: +SKIP
        'eps'
    """
    files = find(folder)
    if files is None:
        raise WeightsError(f"{folder} has no config.json, nor has {folder / 'unet'}; expected a folder of diffusers")
    kind = files.kind or "UNet2DModel"
    if kind in autoencoders.KINDS:
        raise WeightsError(
            f"{files.config_file} is of an autoencoder, {kind}, which is no score model; load it with "
            "scoresde.weights.load_published_autoencoder(..)"
        )
    if kind not in LOADERS:
        raise WeightsError(f"{files.config_file} is of a {kind}; expected one of {', '.join(LOADERS)}")
    try:
        return pipeline.compose(LOADERS[kind](files), files)
    except WeightsError:
        raise
    except ValueError as error:  # raised by the network or the process, whose messages do not name the files
        raise WeightsError(f"{folder} holds a model that cannot be built: {error}") from error


def load_autoencoder(folder: Path) -> Autoencoder:
    """Load the autoencoder in a folder with ``config.json`` and weights, or in the folder ``vae`` of a pipeline.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the autoencoder has no equivalent here.

    Example:
        >>> autoencoder = load_autoencoder(Path("stable-diffusion-v1-5"))  # doctest: +SKIP
        >>> autoencoder.encode(torch.zeros(1, 3, 64, 64)).shape  # doctest: +SKIP
        torch.Size([1, 4, 8, 8])
    """
    files = find(folder, ("vae", "vqvae", ""))
    if files is None:
        raise WeightsError(f"{folder} has no config.json, nor has {folder / 'vae'}; expected a folder of diffusers")
    try:
        return autoencoders.load(files)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{folder} holds an autoencoder that cannot be built: {error}") from error


def event(folder: Path) -> tuple[int, ...] | None:
    """Return the shape of a sample from the configuration in a folder, or ``None`` if it is not there.

    Raises:
        WeightsError: for a configuration that cannot be read.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "config.json").write_text(json.dumps({"sample_size": 32, "in_channels": 3}))
        ...     event(Path(folder)), event(Path(folder, "nothing"))
        ((3, 32, 32), None)
    """
    files = find(folder)
    if files is None:
        return None
    config = files.config(_Sample)
    size = config.sample_size
    if config._class_name == "PriorTransformer":
        return (config.embedding_dim or prior.Prior().embedding_dim,)
    if size is None or config.in_channels is None:
        return None
    return (config.in_channels, *((size, size) if isinstance(size, int) else size))
