"""Folders of diffusers, ``UNet2DModel`` with its scheduler, read from their JSON and tensors without diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.models import UNet
from scoresde.score import ScoreModel
from scoresde.sde import VE, GaussianSDE
from scoresde.sde.chain import DDPM, Chain
from scoresde.weights.convert import build
from scoresde.weights.files import WeightsError, read_json, read_tensors
from scoresde.weights.keys import Dialect

__all__ = ["Scheduler", "UNet2D", "event", "load", "network", "process", "recognizes"]

_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_DOWN = {
    "DownBlock2D": ("plain", False),
    "AttnDownBlock2D": ("plain", True),
    "ResnetDownsampleBlock2D": ("resnet", False),
    "SkipDownBlock2D": ("skip", False),
    "AttnSkipDownBlock2D": ("skip", True),
}
_UP = {"ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}
_MOST_STEPS = 1_000_000
_LARGEST = 2**20
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class UNet2D:
    """The entries of a configuration of ``UNet2DModel``, with the default values of diffusers."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None


@dataclass(frozen=True)
class Scheduler:
    """The entries of a configuration of a scheduler, with the default values of diffusers."""

    _class_name: str | None = None
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str | None = None
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    variance_type: str | None = None
    sigma_min: float = 0.01
    sigma_max: float = 1348.0


def _model_folder(folder: Path) -> Path | None:
    return next((place for place in (folder / "unet", folder) if (place / "config.json").is_file()), None)


def recognizes(folder: Path) -> bool:
    """Return whether a folder contains a model of diffusers, that is, a ``config.json`` in it or in its folder ``unet``.

    Example:
        >>> recognizes(Path("no-such-folder"))
        False
    """
    return _model_folder(folder) is not None


def load(folder: Path) -> ScoreModel:
    """Load the score model in a folder with ``config.json``, weights and ``scheduler_config.json``, flat or as a pipeline.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    place = _model_folder(folder)
    if place is None:
        raise WeightsError(f"{folder} has no config.json, nor has {folder / 'unet'}; expected a folder of diffusers")
    places = [folder / "scheduler", folder, folder.parent / "scheduler"]
    scheduler = next((p / "scheduler_config.json" for p in places if (p / "scheduler_config.json").is_file()), None)
    if scheduler is None:
        raise WeightsError(
            f"{folder} has no scheduler_config.json, which contains the noise schedule; copy it beside config.json"
        )
    file = next((place / name for name in _FILES if (place / name).is_file()), None)
    if file is None:
        raise WeightsError(f"{place} has no weights; expected {' or '.join(_FILES)}: copy one of them there")
    config, schedule = read_json(place / "config.json", UNet2D), read_json(scheduler, Scheduler)
    tensors = _renamed(read_tensors(file))
    try:
        return _build(config, schedule, tensors, place, scheduler, file)
    except WeightsError:
        raise
    except ValueError as error:  # raised by the network or the process, whose messages do not name the files
        raise WeightsError(f"{folder} holds a model that cannot be built: {error}") from error


def event(folder: Path) -> tuple[int, ...] | None:
    """Return the shape of a sample from the configuration in a folder, or ``None`` if it is not there.

    Raises:
        WeightsError: for a configuration that cannot be read.
    """
    place = _model_folder(folder)
    if place is None:
        return None
    config = read_json(place / "config.json", UNet2D)
    size = config.sample_size
    if size is None:
        return None
    return (config.in_channels, *((size, size) if isinstance(size, int) else size))


def _build(
    config: UNet2D, schedule: Scheduler, tensors: Mapping[str, Tensor], place: Path, scheduler: Path, file: Path
) -> ScoreModel:
    sde, predicts, told = process(schedule, config.center_input_sample, str(scheduler))
    arguments = network(config, str(place / "config.json"))
    if config.layers_per_block > len(tensors) or len(config.block_out_channels) > len(tensors):
        raise WeightsError(
            f"{place / 'config.json'} has more layers than {file} has tensors, {len(tensors)}; "
            "expected the configuration of these weights"
        )
    fourier = arguments["time"] == "fourier"
    if fourier != isinstance(sde, VE):
        raise WeightsError(
            f"{scheduler} is not for a network with {arguments['time']} time features; expected the network's own scheduler"
        )
    learned_variance = arguments["out_channels"] == 2 * arguments["channels"]
    if learned_variance and (fourier or schedule.variance_type == "learned"):
        raise WeightsError(
            f"{scheduler} is for a network whose second output does not interpolate the bounds of the variance; expected "
            "variance_type='learned_range'"
        )
    # A network with Fourier features divides its output by the noise level, which makes it the score.
    dialect = Dialect("diffusers", sine_first=_sine_first(config), negated=fourier)
    net = build(lambda: UNet(**arguments, **told), tensors, dialect, str(file))
    return ScoreModel(net, sde, predicts, learned_variance=learned_variance).eval()


def _sine_first(config: UNet2D) -> bool:
    return config.time_embedding_type == "fourier" or not config.flip_sin_to_cos


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention layers of files from before diffusers 0.15 to the names used since."""
    renamed = {}
    for name, tensor in tensors.items():
        place, _, parameter = name.rpartition(".")
        before, _, layer = place.rpartition(".")
        renamed[f"{before}.{_OLD_ATTENTION[layer]}.{parameter}" if layer in _OLD_ATTENTION else name] = tensor
    return renamed


def process(
    schedule: Scheduler, centered: bool = False, source: str = "scheduler"
) -> tuple[GaussianSDE | Chain, str, dict[str, Any]]:
    """Convert the configuration of a scheduler to an SDE or chain.

    Args:
        schedule: the configuration.
        centered: the network itself scales data in [0, 1] to [-1, 1]. The process returned is on [-1, 1].
        source: the name of the file, for messages.

    Returns:
        The SDE or chain, the prediction of the network, and the network's arguments ``time_scale`` and ``time_shift``.

    Raises:
        WeightsError: for schedulers, predictions and betas without an equivalent here.

    Example:
        >>> process(Scheduler(beta_schedule="linear"))[1:]
        ('eps', {})
    """
    if schedule._class_name == "ScoreSdeVeScheduler":
        factor = 2 if centered else 1
        low, high = factor * schedule.sigma_min, factor * schedule.sigma_max
        if not 0 < low < high:
            raise WeightsError(f"{source} has sigma_min={low} and sigma_max={high}; expected 0 < sigma_min < sigma_max")
        rate = math.log(high / low)
        return VE(low, high), "eps", {"time_scale": 1 / rate, "time_shift": -math.log(low / factor) / rate}
    if centered or not (schedule.trained_betas or schedule.beta_schedule):
        raise WeightsError(
            f"{source} is for a {schedule._class_name}{' of a network that centers its input' if centered else ''}; "
            "expected ScoreSdeVeScheduler, or a scheduler with betas for data in [-1, 1]"
        )
    if schedule.prediction_type not in _PREDICTS:
        raise WeightsError(
            f"{source} has prediction_type={schedule.prediction_type!r}; expected one of {', '.join(_PREDICTS)}"
        )
    return DDPM(_betas(schedule, source)), _PREDICTS[schedule.prediction_type], {}


def _betas(schedule: Scheduler, source: str) -> Tensor:
    n, low, high, kind = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end, schedule.beta_schedule
    if not 1 <= n <= _MOST_STEPS or not 0 < low <= high < 1:
        raise WeightsError(
            f"{source} has num_train_timesteps={n}, beta_start={low} and beta_end={high}; expected 1 to {_MOST_STEPS} steps "
            "and 0 < beta_start <= beta_end < 1"
        )
    kinds: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: torch.linspace(low, high, n, dtype=torch.float64),
        "scaled_linear": lambda: torch.linspace(low**0.5, high**0.5, n, dtype=torch.float64) ** 2,
        "squaredcos_cap_v2": lambda: DDPM.cosine(n).betas,
    }
    if schedule.trained_betas:
        return torch.tensor(schedule.trained_betas, dtype=torch.float64)
    if kind not in kinds or schedule.rescale_betas_zero_snr:
        zero = ", rescaled to zero terminal signal" if kind in kinds else ""
        raise WeightsError(f"{source} has beta_schedule={kind!r}{zero}; expected one of {', '.join(kinds)}")
    return kinds[kind]()


def network(config: UNet2D, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``UNet2DModel`` to the arguments of :class:`~scoresde.models.UNet`.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> network(UNet2D())["multipliers"]
        [1.0, 2.0, 3.0, 4.0]
    """
    _check_sizes(config, source)
    kind, attention = _blocks(config, source)
    skip = kind == "skip"
    _refuse(config, kind, source)
    if len(config.block_out_channels) != len(config.down_block_types):
        raise WeightsError(
            f"{source} has {len(config.block_out_channels)} block_out_channels for {len(config.down_block_types)} "
            "down_block_types; expected one for each"
        )
    sizes, groups = config.block_out_channels, config.norm_num_groups
    if groups is None and not skip:  # only NCSN++ derives the number of groups from the channels
        raise WeightsError(f"{source} has no norm_num_groups; expected a whole number, 32 by default")
    fourier = config.time_embedding_type == "fourier"
    return {
        "channels": config.in_channels,
        "out_channels": config.out_channels,
        "width": sizes[0],
        "multipliers": [size / sizes[0] for size in sizes],
        "blocks": config.layers_per_block,
        "attention": attention,
        "last_attention": skip,
        "heads": 1,
        "head_channels": config.attention_head_dim,
        "resample": "conv" if kind == "plain" else "block",
        "fir": skip,
        "project_skips": skip,
        "asymmetric": kind == "plain" and config.downsample_padding == 0,
        "input_pyramid": "skip" if skip else "none",
        "output_pyramid": "skip" if skip else "none",
        "adaptive": config.resnet_time_scale_shift == "scale_shift",
        "rescale": skip,
        "time": "fourier" if fourier else "positional",
        "endpoint": bool(config.freq_shift),
        "num_classes": config.num_class_embeds,
        "unconditional": False,
        "groups": 32 if skip or groups is None else groups,
        "group_size": 4 if skip else 1,
        "eps": config.norm_eps,
        "dropout": config.dropout,
    }


def _check_sizes(config: UNet2D, source: str) -> None:
    sizes = {
        "in_channels": [config.in_channels],
        "out_channels": [config.out_channels],
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": [config.layers_per_block],
        "norm_num_groups": [1 if config.norm_num_groups is None else config.norm_num_groups],
        "attention_head_dim": [config.attention_head_dim or 1],
        "num_class_embeds": [config.num_class_embeds or 1],
    }
    for name, values in sizes.items():
        if not values or not 1 <= min(values) <= max(values) <= _LARGEST:
            raise WeightsError(f"{source} has {name}={getattr(config, name)}; expected whole numbers from 1 to {_LARGEST}")


def _blocks(config: UNet2D, source: str) -> tuple[str, list[int]]:
    """Return the kind of all blocks, and the levels with attention."""
    down, up = list(config.down_block_types), list(config.up_block_types)
    if unknown := [name for name in down if name not in _DOWN]:
        raise WeightsError(f"{source} has down_block_types with {unknown[0]}; expected types among {', '.join(_DOWN)}")
    mirrored = [_UP.get(name, name.replace("Down", "Up")) for name in reversed(down)]
    if up != mirrored:
        raise WeightsError(f"{source} has up_block_types {up}; expected the mirror of down_block_types, {mirrored}")
    # The kind of the last level is left out, since no change of resolution follows it.
    plain = {"conv": "plain", "resnet": "resnet"}.get(config.downsample_type, "")
    if not plain:
        raise WeightsError(f"{source} has downsample_type={config.downsample_type!r}; expected 'conv' or 'resnet'")
    kinds = {plain if name == "AttnDownBlock2D" else _DOWN[name][0] for name in down[:-1]} or {_DOWN[down[0]][0]}
    if len(kinds) > 1:
        raise WeightsError(f"{source} mixes kinds of down-sampling in {down}; expected one kind")
    return kinds.pop(), [i for i, name in enumerate(down) if _DOWN[name][1]]


def _refuse(config: UNet2D, kind: str, source: str) -> None:
    """Raise for settings of a configuration without an equivalent here."""
    skip, adaptive = kind == "skip", config.resnet_time_scale_shift == "scale_shift"
    expected: dict[str, tuple[Any, ...]] = {
        "mid_block_type": ("UNetMidBlock2D",),
        "act_fn": ("silu", "swish"),
        "add_attention": (True,),
        "class_embed_type": (None,),
        "freq_shift": (0, 1),
        "time_embedding_type": ("positional", "fourier"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "upsample_type": (config.downsample_type,),
        "time_embedding_dim": (None, 4 * config.block_out_channels[0]),
        "attn_norm_num_groups": (config.norm_num_groups,) if adaptive else (None, config.norm_num_groups),
    }
    for name, allowed in expected.items():
        if getattr(config, name) not in allowed:
            raise WeightsError(f"{source} has {name}={getattr(config, name)!r}; expected {' or '.join(map(repr, allowed))}")
    factor = math.sqrt(2) if skip else 1.0
    if not math.isclose(config.mid_block_scale_factor, factor, rel_tol=1e-6):
        raise WeightsError(f"{source} has mid_block_scale_factor={config.mid_block_scale_factor}; expected {factor}")
