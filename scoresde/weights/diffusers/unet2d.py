"""``UNet2DModel`` of diffusers, read from its JSON and tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scoresde.models import UNet
from scoresde.score import ScoreModel
from scoresde.sde import VE
from scoresde.weights.convert import build
from scoresde.weights.diffusers.folder import Files, check_sizes, refuse
from scoresde.weights.diffusers.schedulers import process
from scoresde.weights.files import WeightsError
from scoresde.weights.keys import Dialect

__all__ = ["UNet2D", "load", "network"]

_DOWN = {
    "DownBlock2D": ("plain", False),
    "AttnDownBlock2D": ("plain", True),
    "ResnetDownsampleBlock2D": ("resnet", False),
    "SkipDownBlock2D": ("skip", False),
    "AttnSkipDownBlock2D": ("skip", True),
}
_UP = {"ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}


@dataclass(frozen=True)
class UNet2D:
    """The entries of a configuration of ``UNet2DModel``, with the default values of diffusers.

    Example:
        >>> UNet2D(sample_size=32, num_class_embeds=10).block_out_channels
        (224, 448, 672, 896)
    """

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


def load(files: Files) -> ScoreModel:
    """Load the score model of a ``UNet2DModel`` with its scheduler.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    config, schedule, tensors = files.config(UNet2D), files.scheduler(), files.tensors()
    sde, predicts, told = process(schedule, config.center_input_sample, str(files.scheduler_file))
    arguments = network(config, str(files.config_file))
    files.check_depth(max(config.layers_per_block, len(config.block_out_channels)), tensors)
    fourier = arguments["time"] == "fourier"
    if fourier != isinstance(sde, VE):
        raise WeightsError(
            f"{files.scheduler_file} is not for a network with {arguments['time']} time features; expected the network's "
            "own scheduler"
        )
    learned_variance = arguments["out_channels"] == 2 * arguments["channels"]
    if learned_variance and (fourier or schedule.variance_type == "learned"):
        raise WeightsError(
            f"{files.scheduler_file} is for a network whose second output does not interpolate the bounds of the variance; "
            "expected variance_type='learned_range'"
        )
    # A network with Fourier features divides its output by the noise level, which makes it the score.
    dialect = Dialect("diffusers", sine_first=_sine_first(config), negated=fourier)
    net = build(lambda: UNet(**arguments, **told), tensors, dialect, str(files.place))
    return ScoreModel(net, sde, predicts, learned_variance=learned_variance).eval()


def _sine_first(config: UNet2D) -> bool:
    return config.time_embedding_type == "fourier" or not config.flip_sin_to_cos


def network(config: UNet2D, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``UNet2DModel`` to the arguments of :class:`~scoresde.models.UNet`.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> network(UNet2D())["multipliers"]
        [1.0, 2.0, 3.0, 4.0]
    """
    sizes = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
    check_sizes(config, (*sizes, "attention_head_dim", "num_class_embeds"), source)
    kind, attention = _blocks(config, source)
    skip = kind == "skip"
    _refuse(config, kind, source)
    if len(config.block_out_channels) != len(config.down_block_types):
        raise WeightsError(
            f"{source} has {len(config.block_out_channels)} block_out_channels for {len(config.down_block_types)} "
            "down_block_types; expected one for each"
        )
    widths, groups = config.block_out_channels, config.norm_num_groups
    if groups is None and not skip:  # only NCSN++ derives the number of groups from the channels
        raise WeightsError(f"{source} has no norm_num_groups; expected a whole number, 32 by default")
    fourier = config.time_embedding_type == "fourier"
    return {
        "channels": config.in_channels,
        "out_channels": config.out_channels,
        "width": widths[0],
        "multipliers": [width / widths[0] for width in widths],
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
    refuse(config, expected, source)
    factor = math.sqrt(2) if skip else 1.0
    if not math.isclose(config.mid_block_scale_factor, factor, rel_tol=1e-6):
        raise WeightsError(f"{source} has mid_block_scale_factor={config.mid_block_scale_factor}; expected {factor}")
