"""``FluxTransformer2DModel`` and ``SD3Transformer2DModel`` of diffusers, read from their JSON and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.models import MMDiT
from scoresde.models.transformers.positions import grid, sines
from scoresde.score import ScoreModel
from scoresde.weights import layouts
from scoresde.weights.convert import assemble
from scoresde.weights.diffusers.folder import Files, check_sizes, refuse
from scoresde.weights.diffusers.schedulers import process
from scoresde.weights.files import WeightsError
from scoresde.weights.keys import Take

__all__ = ["SD3", "Flux", "flux", "load_flux", "load_sd3", "sd3", "takes"]

_POSITIONS = "pos_embed.pos_embed"  # a constant, which the network here computes itself
_PATCH = 2  # of Flux, whose pipeline cuts the patches


@dataclass(frozen=True)
class Flux:
    """The entries of a configuration of ``FluxTransformer2DModel``, with the default values of diffusers."""

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)


@dataclass(frozen=True)
class SD3:
    """The entries of a configuration of ``SD3Transformer2DModel``, with the default values of diffusers."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None


def flux(config: Flux, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``FluxTransformer2DModel`` to the arguments of :class:`~scoresde.models.MMDiT`.

    The network here takes images and cuts the patches of 2 by 2 itself, so that it has a quarter of the channels.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> flux(Flux())["channels"], flux(Flux())["width"]
        (16, 3072)
    """
    sizes = ("in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads")
    check_sizes(config, (*sizes, "joint_attention_dim", "pooled_projection_dim"), source)
    refuse(config, {"patch_size": (1,), "out_channels": (None, config.in_channels)}, source)
    if config.in_channels % _PATCH**2:
        raise WeightsError(f"{source} has in_channels={config.in_channels}; expected a multiple of {_PATCH**2}")
    return _shared(config) | {
        "channels": config.in_channels // _PATCH**2,
        "patch": _PATCH,
        "single": config.num_single_layers,
        "guidance": config.guidance_embeds,
        "rotary": config.axes_dims_rope,
        "qk_norm": True,
    }


def sd3(config: SD3, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``SD3Transformer2DModel`` to the arguments of :class:`~scoresde.models.MMDiT`.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> sd3(SD3())["width"]
        1152
    """
    sizes = ("sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads")
    check_sizes(config, (*sizes, "joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size"), source)
    width = config.num_attention_heads * config.attention_head_dim
    allowed = {"qk_norm": (None, "rms_norm"), "caption_projection_dim": (width,), "out_channels": (None, config.in_channels)}
    refuse(config, allowed, source)
    return _shared(config) | {
        "channels": config.in_channels,
        "patch": config.patch_size,
        "largest": config.pos_embed_max_size,
        "base": config.sample_size // config.patch_size,
        "qk_norm": config.qk_norm is not None,
        "dual": config.dual_attention_layers,
    }


def _shared(config: Flux | SD3) -> dict[str, Any]:
    return {
        "context": config.joint_attention_dim,
        "width": config.num_attention_heads * config.attention_head_dim,
        "depth": config.num_layers,
        "heads": config.num_attention_heads,
        "pooled": config.pooled_projection_dim,
        "time": "positional",
    }


def load_flux(files: Files) -> ScoreModel:
    """Load the score model of a ``FluxTransformer2DModel``; its conditions are ``context``, ``pooled`` and ``guidance``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    config = files.config(Flux)
    return _load(files, flux(config, str(files.config_file)), config.num_layers + config.num_single_layers)


def load_sd3(files: Files) -> ScoreModel:
    """Load the score model of a ``SD3Transformer2DModel``; its conditions are ``context`` and ``pooled``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    config = files.config(SD3)
    return _load(files, sd3(config, str(files.config_file)), config.num_layers)


def _load(files: Files, arguments: Mapping[str, Any], layers: int) -> ScoreModel:
    tensors = files.tensors()
    sde, predicts, told = process(files.scheduler(), source=str(files.scheduler_file))
    files.check_depth(layers, tensors)

    def make() -> MMDiT:
        return MMDiT(**{**arguments, **told})

    def check(net: MMDiT) -> str:
        return _positions(net, tensors)

    net = assemble(make, tensors, takes, str(files.place), constants=(_POSITIONS,), check=check)
    return ScoreModel(net, sde, predicts).eval()


def _positions(net: MMDiT, tensors: Mapping[str, Tensor]) -> str:
    """Describe how the stored positions differ from those computed here; return an empty text if they match."""
    if _POSITIONS not in tensors:
        return ""
    found, n, width = tensors[_POSITIONS], net.config["largest"], net.config["width"]
    if found.shape != (1, n * n, width):
        return f"it has {_POSITIONS} of shape {tuple(found.shape)}; expected {(1, n * n, width)}"
    device = torch.device("cpu")
    expected = sines(grid(n, n, device=device) * (net.config["base"] / n), width) if not found.is_meta else None
    if expected is not None and not torch.allclose(found[0].float(), expected, atol=1e-4):
        return f"it has a {_POSITIONS} that is not a grid's; expected sines and cosines of the positions"
    return ""


# Names of layers -----------------------------------------------------------------------------------------------------

_ENDS = {
    "embedding.layer1": "time_text_embed.timestep_embedder.linear_1",
    "embedding.layer2": "time_text_embed.timestep_embedder.linear_2",
    "embedding.guidance.layer1": "time_text_embed.guidance_embedder.linear_1",
    "embedding.guidance.layer2": "time_text_embed.guidance_embedder.linear_2",
    "embedding.pooled.layer1": "time_text_embed.text_embedder.linear_1",
    "embedding.pooled.layer2": "time_text_embed.text_embedder.linear_2",
    "text": "context_embedder",
    "modulation": "norm_out.linear",
    "output": "proj_out",
}
_QKV = {"qkv": ("to_q", "to_k", "to_v"), "q_norm": ("norm_q",), "k_norm": ("norm_k",)}
_ADDED = {"qkv": ("add_q_proj", "add_k_proj", "add_v_proj"), "q_norm": ("norm_added_q",), "k_norm": ("norm_added_k",)}
_IMAGE = {
    "modulation": "norm1.linear",
    "output": "attn.to_out.0",
    "own_output": "attn2.to_out.0",
    "hidden": "ff.net.0.proj",
    "back": "ff.net.2",
}
_TEXT = {
    "modulation": "norm1_context.linear",
    "output": "attn.to_add_out",
    "hidden": "ff_context.net.0.proj",
    "back": "ff_context.net.2",
}
_SINGLE = {"modulation": "norm.linear", "hidden": "proj_mlp", "output": "proj_out"}


def _of_double(stream: str, layer: str) -> tuple[str, ...]:
    place, _, part = layer.partition(".")
    if place == "own":
        return tuple(f"attn2.{name}" for name in _QKV[part])
    if place == "joint":
        return tuple(f"attn.{name}" for name in (_QKV if stream == "image" else _ADDED)[part])
    return ((_IMAGE if stream == "image" else _TEXT)[layer],)


def _of_layer(layer: str, packed: bool) -> tuple[str, ...]:
    """Return the published names of a layer of an MM-DiT; several are stacked."""
    if layer == "stem":
        return ("x_embedder" if packed else "pos_embed.proj",)
    if layer in _ENDS:
        return (_ENDS[layer],)
    kind, index, rest = layer.split(".", 2)
    if kind == "doubles":
        stream, _, inner = rest.partition(".")
        return tuple(f"transformer_blocks.{index}.{name}" for name in _of_double(stream, inner))
    place, _, part = rest.partition(".")
    names = tuple(f"attn.{name}" for name in _QKV[part]) if place == "joint" else (_SINGLE[rest],)
    return tuple(f"single_transformer_blocks.{index}.{name}" for name in names)


def takes(net: MMDiT) -> Iterator[Take]:
    """Yield the conversion of each tensor of ``net`` from the tensors of ``FluxTransformer2DModel`` or Stable Diffusion 3's.

    A network with rotary positions is Flux's, whose tensors are for patches cut already.

    Example:
        >>> net = MMDiT(4, 2, 5, width=8, depth=1, heads=2, qk_norm=True)
        >>> [take.theirs for take in takes(net) if take.ours == "doubles.0.image.joint.q_norm.weight"]
        [('transformer_blocks.0.attn.norm_q.weight',)]
    """
    packed, patch = net.config["rotary"] is not None, net.patch
    last = f"doubles.{len(net.doubles) - 1}.text.modulation"
    for ours in net.state_dict():
        layer, _, parameter = ours.rpartition(".")
        theirs = tuple(f"{name}.{parameter}" for name in _of_layer(layer, packed))
        layout: Callable[..., Tensor] = layouts.flat
        if layer == "modulation" or (layer == last and not packed):
            layout = _scale_first
        elif layer == "output" and not packed:
            layout = _by_channel(patch)
        yield Take(ours, theirs, layout)


def _scale_first(w: Tensor) -> Tensor:
    """Convert (scale, shift) to (shift, scale)."""
    return layouts.swapped(w, 0)


def _by_channel(patch: int) -> Callable[..., Tensor]:
    """Return the layout that reorders rows from (row, column, channel) of a patch to (channel, row, column)."""
    return lambda w: w.unflatten(0, (patch**2, -1)).transpose(0, 1).flatten(0, 1)
