"""``UNet2DConditionModel`` of diffusers, the network of Stable Diffusion, read from its JSON and tensors.

A pooled vector (``pooled``) takes the place of ``added_cond_kwargs``: for Stable Diffusion XL it is the pooled embedding of
the text, followed by the time features of the six sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoresde.models import UNet
from scoresde.score import ScoreModel
from scoresde.weights.convert import build
from scoresde.weights.diffusers.folder import Files, check_sizes, refuse
from scoresde.weights.diffusers.schedulers import process
from scoresde.weights.files import WeightsError
from scoresde.weights.keys import Dialect

__all__ = ["UNet2DCondition", "load", "network"]

_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}


@dataclass(frozen=True)
class UNet2DCondition:
    """The entries of a configuration of ``UNet2DConditionModel``, with the default values of diffusers."""

    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    reverse_transformer_layers_per_block: tuple[int, ...] | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    dual_cross_attention: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    num_class_embeds: int | None = None
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    cross_attention_norm: str | None = None


def load(files: Files) -> ScoreModel:
    """Load the score model of a ``UNet2DConditionModel`` with its scheduler; its condition is ``context``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    config, tensors = files.config(UNet2DCondition), files.tensors()
    sde, predicts, told = process(files.scheduler(), config.center_input_sample, str(files.scheduler_file))
    arguments = network(config, str(files.config_file))
    files.check_depth(
        max(*_each(arguments["blocks"]), *_each(arguments["transformer"]), len(config.block_out_channels)), tensors
    )
    net = build(
        lambda: UNet(**arguments, **told),
        tensors,
        Dialect("diffusers", sine_first=not config.flip_sin_to_cos),
        str(files.place),
    )
    learned_variance = arguments["out_channels"] == 2 * arguments["channels"]
    return ScoreModel(net, sde, predicts, learned_variance=learned_variance).eval()


def _each(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def network(config: UNet2DCondition, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``UNet2DConditionModel`` to the arguments of :class:`~scoresde.models.UNet`.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> network(UNet2DCondition())["attention"]
        [0, 1, 2]
    """
    named = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "num_class_embeds")
    more = (
        "cross_attention_dim",
        "transformer_layers_per_block",
        "attention_head_dim",
        "projection_class_embeddings_input_dim",
    )
    check_sizes(config, (*named, *more), source)
    levels = len(config.block_out_channels)
    for name in ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim"):
        value = getattr(config, name)
        if isinstance(value, tuple) and len(value) != levels:
            raise WeightsError(f"{source} has {name}={list(value)} for {levels} block_out_channels; expected one for each")
    attention = _blocks(config, source)
    _refuse(config, source)
    context = config.cross_attention_dim
    if isinstance(context, tuple):
        if len(set(context)) > 1:
            raise WeightsError(f"{source} has cross_attention_dim={list(context)}; expected one number of features")
        context = context[0]
    widths = config.block_out_channels
    return {
        "channels": config.in_channels,
        "out_channels": config.out_channels,
        "width": widths[0],
        "multipliers": [width / widths[0] for width in widths],
        "blocks": _plain(config.layers_per_block),
        "attention": attention,
        "heads": _plain(config.attention_head_dim),  # diffusers' name for the number of heads
        "context": context,
        "transformer": _plain(config.transformer_layers_per_block),
        "resample": "conv",
        "asymmetric": config.downsample_padding == 0,
        "adaptive": config.resnet_time_scale_shift == "scale_shift",
        "time": "positional",
        "endpoint": bool(config.freq_shift),
        "num_classes": config.num_class_embeds,
        "unconditional": False,
        "pooled": config.projection_class_embeddings_input_dim or 0,
        "groups": config.norm_num_groups,
        "group_size": 1,
        "eps": config.norm_eps,
        "dropout": config.dropout,
    }


def _plain(value: int | tuple[int, ...]) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value


def _blocks(config: UNet2DCondition, source: str) -> list[int]:
    """Return the levels with attention."""
    down, up = list(config.down_block_types), list(config.up_block_types)
    if unknown := [name for name in down if name not in _DOWN]:
        raise WeightsError(f"{source} has down_block_types with {unknown[0]}; expected types among {', '.join(_DOWN)}")
    mirrored = [name.replace("Down", "Up") for name in reversed(down)]
    if up != mirrored:
        raise WeightsError(f"{source} has up_block_types {up}; expected the mirror of down_block_types, {mirrored}")
    if len(config.block_out_channels) != len(down):
        raise WeightsError(
            f"{source} has {len(config.block_out_channels)} block_out_channels for {len(down)} down_block_types; expected "
            "one for each"
        )
    return [i for i, name in enumerate(down) if _DOWN[name]]


def _refuse(config: UNet2DCondition, source: str) -> None:
    """Raise for settings of a configuration without an equivalent here."""
    pooled = config.class_embed_type == "projection" or config.addition_embed_type == "text_time"
    expected: dict[str, tuple[Any, ...]] = {
        "center_input_sample": (False,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "mid_block_scale_factor": (1,),
        "only_cross_attention": (False, (False,) * len(config.block_out_channels)),
        "act_fn": ("silu", "swish"),
        "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim_type": (None,),
        "encoder_hid_dim": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None,) if config.addition_embed_type else (None, "projection"),
        "addition_embed_type": (None, "text_time"),
        "freq_shift": (0, 1),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None, 4 * config.block_out_channels[0]),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "cross_attention_norm": (None,),
    }
    refuse(config, expected, source)
    if config.norm_num_groups is None:
        raise WeightsError(f"{source} has no norm_num_groups; expected a whole number, 32 by default")
    if pooled != (config.projection_class_embeddings_input_dim is not None):
        raise WeightsError(
            f"{source} has projection_class_embeddings_input_dim={config.projection_class_embeddings_input_dim} with "
            f"class_embed_type={config.class_embed_type!r} and addition_embed_type={config.addition_embed_type!r}; expected "
            "the number of features of the vector that one of them embeds"
        )
