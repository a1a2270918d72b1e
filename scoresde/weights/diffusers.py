"""Folders of diffusers: ``UNet2DModel`` with its scheduler, from their JSON and their tensors, without diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.models import UNet
from scoresde.score import ScoreModel
from scoresde.sde import VE, GaussianSDE
from scoresde.sde.chain import DDPM, Chain
from scoresde.weights.convert import fill
from scoresde.weights.files import WeightsError, read_json, read_tensors
from scoresde.weights.keys import Dialect

__all__ = ["load", "network", "process", "recognizes"]

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
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _model_folder(folder: Path) -> Path | None:
    return next((place for place in (folder / "unet", folder) if (place / "config.json").is_file()), None)


def recognizes(folder: Path) -> bool:
    """Whether a folder holds a model of diffusers."""
    return _model_folder(folder) is not None


def load(folder: Path) -> ScoreModel:
    """The score model in a folder: ``config.json`` and weights, with ``scheduler_config.json``, flat or as a pipeline."""
    place = _model_folder(folder)
    if place is None:
        raise WeightsError(f"{folder} has no config.json, nor has {folder / 'unet'}; expected a folder of diffusers")
    places = [folder / "scheduler", folder, folder.parent / "scheduler"]
    scheduler = next((p / "scheduler_config.json" for p in places if (p / "scheduler_config.json").is_file()), None)
    if scheduler is None:
        raise WeightsError(
            f"{folder} has no scheduler_config.json, which holds the noise schedule; put it beside config.json"
        )
    file = next((place / name for name in _FILES if (place / name).is_file()), None)
    if file is None:
        raise WeightsError(f"{place} has no weights; expected {' or '.join(_FILES)}")
    config, schedule = read_json(place / "config.json"), read_json(scheduler)
    centered = bool(config.get("center_input_sample", False))
    sde, predicts, told = process(schedule, centered, str(scheduler))
    arguments = network(config, str(place / "config.json"))
    fourier = arguments["time"] == "fourier"
    if fourier != isinstance(sde, VE):
        raise WeightsError(f"{scheduler} is not for a network with {arguments['time']} features of time; expected its own")
    learned_variance = arguments["out_channels"] == 2 * arguments["channels"]
    if learned_variance and (fourier or schedule.get("variance_type") == "learned"):
        raise WeightsError(
            f"{scheduler} is for a network whose second output is no place between the bounds of the variance; expected "
            "variance_type='learned_range'"
        )
    net = UNet(**arguments, **told)
    # A network with Fourier features divides its output by the noise level, which makes it the score.
    dialect = Dialect("diffusers", sine_first=_sine_first(config), negated=fourier)
    fill(net, _renamed(read_tensors(file)), dialect, str(file))
    return ScoreModel(net, sde, predicts, learned_variance=learned_variance).eval()


def _sine_first(config: Mapping[str, Any]) -> bool:
    return config.get("time_embedding_type", "positional") == "fourier" or not config.get("flip_sin_to_cos", True)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of attention since diffusers 0.15, for files from before."""
    renamed = {}
    for name, tensor in tensors.items():
        place, _, parameter = name.rpartition(".")
        before, _, layer = place.rpartition(".")
        renamed[f"{before}.{_OLD_ATTENTION[layer]}.{parameter}" if layer in _OLD_ATTENTION else name] = tensor
    return renamed


def process(
    schedule: Mapping[str, Any], centered: bool = False, source: str = "scheduler"
) -> tuple[GaussianSDE | Chain, str, dict[str, Any]]:
    """The process of a scheduler's configuration, what its network predicts and how that is told the time.

    A network that is ``centered`` scales data in [0, 1] to [-1, 1] by itself; its process is that on [-1, 1].
    """
    if schedule.get("_class_name") == "ScoreSdeVeScheduler":
        factor = 2 if centered else 1
        low, high = factor * schedule.get("sigma_min", 0.01), factor * schedule.get("sigma_max", 1348.0)
        rate = math.log(high / low)
        return VE(low, high), "eps", {"time_scale": 1 / rate, "time_shift": -math.log(low / factor) / rate}
    if centered or not (schedule.get("trained_betas") or "beta_schedule" in schedule):
        raise WeightsError(
            f"{source} is for a {schedule.get('_class_name')}{' of a network that centers its input' if centered else ''}; "
            "expected ScoreSdeVeScheduler, or one with betas and data in [-1, 1]"
        )
    predicts = schedule.get("prediction_type", "epsilon")
    if predicts not in _PREDICTS:
        raise WeightsError(f"{source} has prediction_type={predicts!r}; expected one of {', '.join(_PREDICTS)}")
    return DDPM(_betas(schedule, source)), _PREDICTS[predicts], {}


def _betas(schedule: Mapping[str, Any], source: str) -> Tensor:
    n, low, high = (
        schedule.get("num_train_timesteps", 1000),
        schedule.get("beta_start", 1e-4),
        schedule.get("beta_end", 0.02),
    )
    kinds: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: torch.linspace(low, high, n, dtype=torch.float64),
        "scaled_linear": lambda: torch.linspace(low**0.5, high**0.5, n, dtype=torch.float64) ** 2,
        "squaredcos_cap_v2": lambda: DDPM.cosine(n).betas,
    }
    if trained := schedule.get("trained_betas"):
        return torch.tensor(trained, dtype=torch.float64)
    kind = schedule.get("beta_schedule", "linear")
    if kind not in kinds or schedule.get("rescale_betas_zero_snr", False):
        zero = ", rescaled to zero terminal signal" if kind in kinds else ""
        raise WeightsError(f"{source} has beta_schedule={kind!r}{zero}; expected one of {', '.join(kinds)}")
    return kinds[kind]()


def network(config: Mapping[str, Any], source: str = "config") -> dict[str, Any]:
    """The arguments of :class:`~scoresde.models.UNet` for a configuration of ``UNet2DModel``.

    Raises:
        WeightsError: for what that class has and this library has not.
    """
    get = _Defaults(config)
    kind, attention = _blocks(get, source)
    skip = kind == "skip"
    _refuse(get, kind, source)
    sizes = get["block_out_channels"]
    fourier = get["time_embedding_type"] == "fourier"
    return {
        "channels": get["in_channels"],
        "out_channels": get["out_channels"],
        "width": sizes[0],
        "multipliers": [size / sizes[0] for size in sizes],
        "blocks": get["layers_per_block"],
        "attention": attention,
        "last_attention": skip,
        "heads": 1,
        "head_channels": get["attention_head_dim"],
        "resample": "conv" if kind == "plain" else "block",
        "fir": skip,
        "project_skips": skip,
        "asymmetric": kind == "plain" and get["downsample_padding"] == 0,
        "input_pyramid": "skip" if skip else "none",
        "output_pyramid": "skip" if skip else "none",
        "adaptive": get["resnet_time_scale_shift"] == "scale_shift",
        "rescale": skip,
        "time": "fourier" if fourier else "positional",
        "endpoint": bool(get["freq_shift"]),
        "num_classes": get["num_class_embeds"],
        "unconditional": False,
        "groups": 32 if skip else get["norm_num_groups"],
        "group_size": 4 if skip else 1,
        "eps": get["norm_eps"],
        "dropout": get["dropout"],
    }


_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}


class _Defaults:
    """A configuration in which what is not stated has the value that diffusers gives it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def __getitem__(self, name: str) -> Any:
        return self.config.get(name, _DEFAULTS[name])


def _blocks(get: _Defaults, source: str) -> tuple[str, list[int]]:
    """The kind of all blocks, and the levels with attention."""
    down, up = list(get["down_block_types"]), list(get["up_block_types"])
    if unknown := [name for name in down if name not in _DOWN]:
        raise WeightsError(f"{source} has down_block_types with {unknown[0]}; expected some of {', '.join(_DOWN)}")
    mirrored = [_UP.get(name, name.replace("Down", "Up")) for name in reversed(down)]
    if up != mirrored:
        raise WeightsError(f"{source} has up_block_types {up}; expected the mirror of the way down, {mirrored}")
    # The last level is not followed by a change of resolution, so that its kind does not matter to that.
    plain = {"conv": "plain", "resnet": "resnet"}[get["downsample_type"]]
    kinds = {plain if name == "AttnDownBlock2D" else _DOWN[name][0] for name in down[:-1]} or {_DOWN[down[0]][0]}
    if len(kinds) > 1:
        raise WeightsError(f"{source} mixes ways to change the resolution in {down}; expected one")
    return kinds.pop(), [i for i, name in enumerate(down) if _DOWN[name][1]]


def _refuse(get: _Defaults, kind: str, source: str) -> None:
    """Raise for what has no counterpart here."""
    skip, adaptive = kind == "skip", get["resnet_time_scale_shift"] == "scale_shift"
    expected: dict[str, tuple[Any, ...]] = {
        "mid_block_type": ("UNetMidBlock2D",),
        "act_fn": ("silu", "swish"),
        "add_attention": (True,),
        "class_embed_type": (None,),
        "freq_shift": (0, 1),
        "time_embedding_type": ("positional", "fourier"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "upsample_type": (get["downsample_type"],),
        "time_embedding_dim": (None, 4 * get["block_out_channels"][0]),
        "attn_norm_num_groups": (get["norm_num_groups"],) if adaptive else (None, get["norm_num_groups"]),
    }
    for name, allowed in expected.items():
        if get[name] not in allowed:
            raise WeightsError(f"{source} has {name}={get[name]!r}; expected {' or '.join(map(repr, allowed))}")
    factor = math.sqrt(2) if skip else 1.0
    if not math.isclose(get["mid_block_scale_factor"], factor, rel_tol=1e-6):
        raise WeightsError(f"{source} has mid_block_scale_factor={get['mid_block_scale_factor']}; expected {factor}")
