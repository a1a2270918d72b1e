"""``UNet3DConditionModel`` of diffusers, the network of ModelScope's videos, read from its JSON and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoresde.models import UNet
from scoresde.score import ScoreModel
from scoresde.weights.convert import build
from scoresde.weights.diffusers import unet2d_condition
from scoresde.weights.diffusers.folder import Files, check_sizes, refuse
from scoresde.weights.diffusers.schedulers import process
from scoresde.weights.diffusers.unet2d_condition import UNet2DCondition
from scoresde.weights.keys import Dialect

__all__ = ["UNet3D", "load", "network"]


@dataclass(frozen=True)
class UNet3D:
    """The entries of a configuration of ``UNet3DConditionModel``, with the default values of diffusers."""

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock3D"] * 3, "DownBlock3D")
    up_block_types: tuple[str, ...] = ("UpBlock3D", *["CrossAttnUpBlock3D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64
    time_cond_proj_dim: int | None = None


def network(config: UNet3D, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``UNet3DConditionModel`` to the arguments of :class:`~scoresde.models.UNet`.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> network(UNet3D())["temporal"]
        'transformer'
    """
    check_sizes(config, ("attention_head_dim",), source)
    refuse(config, {"time_cond_proj_dim": (None,)}, source)
    frames = UNet2DCondition(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=tuple(kind.replace("3D", "2D") for kind in config.down_block_types),
        up_block_types=tuple(kind.replace("3D", "2D") for kind in config.up_block_types),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        downsample_padding=config.downsample_padding,
        mid_block_scale_factor=config.mid_block_scale_factor,
        act_fn=config.act_fn,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        cross_attention_dim=config.cross_attention_dim,
    )
    # In these networks the number is that of the channels of a head.
    arguments = unet2d_condition.network(frames, source)
    arguments |= {"dims": 3, "temporal": "transformer"}
    return arguments | {"heads": 1, "head_channels": config.attention_head_dim}


def load(files: Files) -> ScoreModel:
    """Load the score model of a ``UNet3DConditionModel`` with its scheduler, on videos; its condition is ``context``.

    A sample has the shape ``(channels, frames, height, width)``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    config, tensors = files.config(UNet3D), files.tensors()
    sde, predicts, told = process(files.scheduler(), source=str(files.scheduler_file))
    arguments = network(config, str(files.config_file))
    files.check_depth(max(config.layers_per_block, len(config.block_out_channels)), tensors)
    net = build(lambda: UNet(**arguments, **told), tensors, Dialect("diffusers"), str(files.place))
    return ScoreModel(net, sde, predicts).eval()
