"""``AutoencoderKL`` and ``VQModel`` of diffusers, read from their JSON and tensors with the scale of their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.models import Autoencoder, KLAutoencoder, VQAutoencoder
from scoresde.weights import layouts
from scoresde.weights.convert import assemble
from scoresde.weights.diffusers.folder import Files, check_sizes, refuse
from scoresde.weights.files import WeightsError
from scoresde.weights.keys import Take

__all__ = ["KL", "VQ", "kl", "load", "takes", "vq"]

Coder = TypeVar("Coder", KLAutoencoder, VQAutoencoder)
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}


@dataclass(frozen=True)
class _Coder:
    """The entries that both configurations have, with the default values of diffusers."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True


@dataclass(frozen=True)
class KL(_Coder):
    """The entries of a configuration of ``AutoencoderKL``, with the default values of diffusers."""

    latent_channels: int = 4
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True


@dataclass(frozen=True)
class VQ(_Coder):
    """The entries of a configuration of ``VQModel``, with the default values of diffusers."""

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    norm_type: str = "group"
    lookup_from_codebook: bool = False


def kl(files: Files) -> KLAutoencoder:
    """Load an ``AutoencoderKL``, whose latents are standardised by its scaling and shift.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the autoencoder has no equivalent here.
    """
    config, source = files.config(KL), str(files.config_file)
    arguments = _arguments(config, source)
    refuse(config, {"use_post_quant_conv": (config.use_quant_conv,)}, source)
    net = _filled(lambda: KLAutoencoder(**arguments, quant=config.use_quant_conv), files, config)
    _standardize(net, config, source)
    return net


def vq(files: Files) -> VQAutoencoder:
    """Load a ``VQModel``, whose latents are standardised by its scaling.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the autoencoder has no equivalent here.
    """
    config, source = files.config(VQ), str(files.config_file)
    arguments = _arguments(config, source)
    check_sizes(config, ("num_vq_embeddings", "vq_embed_dim"), source)
    refuse(config, {"norm_type": ("group",), "lookup_from_codebook": (False,)}, source)
    codes, features = config.num_vq_embeddings, config.vq_embed_dim
    net = _filled(lambda: VQAutoencoder(**arguments, codes=codes, features=features), files, config)
    _standardize(net, config, source)
    return net


KINDS: Mapping[str, Callable[[Files], Autoencoder]] = {"AutoencoderKL": kl, "VQModel": vq}
"""The functions that load an autoencoder, by the name of its class in diffusers."""


def load(files: Files) -> Autoencoder:
    """Load an autoencoder of the class that its configuration names, by default ``AutoencoderKL``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the autoencoder has no equivalent here.
    """
    kind = files.kind or "AutoencoderKL"
    if kind not in KINDS:
        raise WeightsError(f"{files.config_file} is of a {kind}; expected one of {', '.join(KINDS)}")
    return KINDS[kind](files)


def _filled(make: Callable[[], Coder], files: Files, config: _Coder) -> Coder:
    tensors = files.tensors()
    files.check_depth(max(config.layers_per_block, len(config.block_out_channels)), tensors)
    return assemble(make, tensors, takes, str(files.place)).eval()


def _arguments(config: KL | VQ, source: str) -> dict[str, Any]:
    """Return the arguments that both autoencoders here take."""
    sizes = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "latent_channels")
    check_sizes(config, sizes, source)
    refuse(config, {"act_fn": ("silu", "swish"), "out_channels": (config.in_channels,)}, source)
    down, up, widths = list(config.down_block_types), list(config.up_block_types), config.block_out_channels
    if unknown := [name for name in down if name not in _DOWN]:
        raise WeightsError(f"{source} has down_block_types with {unknown[0]}; expected types among {', '.join(_DOWN)}")
    mirrored = [name.replace("DownEncoder", "UpDecoder") for name in reversed(down)]
    if up != mirrored or len(widths) != len(down):
        raise WeightsError(
            f"{source} has {len(widths)} block_out_channels, down_block_types {down} and up_block_types {up}; expected one "
            f"number of channels for each, and the mirror of down_block_types, {mirrored}"
        )
    return {
        "channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "width": widths[0],
        "multipliers": [width / widths[0] for width in widths],
        "blocks": config.layers_per_block,
        "attention": [i for i, name in enumerate(down) if _DOWN[name]],
        "middle_attention": config.mid_block_add_attention,
        "groups": config.norm_num_groups,
    }


def _standardize(net: Autoencoder, config: KL | VQ, source: str) -> None:
    """Store the mean and the standard deviation that diffusers' pipelines take the latents to have."""
    n, scale = net.latent_channels, config.scaling_factor
    if not scale > 0:
        raise WeightsError(f"{source} has scaling_factor={scale}; expected a positive number")
    mean, std = torch.zeros(n), torch.full((n,), 1 / scale)
    if isinstance(config, KL):
        mean += config.shift_factor or 0.0
        for name, values in (("latents_mean", config.latents_mean), ("latents_std", config.latents_std)):
            if values is not None and len(values) != n:
                raise WeightsError(f"{source} has {len(values)} {name} for {n} latent_channels; expected one for each")
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std) / scale
    net.latent_mean.copy_(mean)
    net.latent_std.copy_(std)


# Names of layers -----------------------------------------------------------------------------------------------------

_ENDS = {"stem": "conv_in", "norm": "conv_norm_out", "output": "conv_out"}
_BLOCK = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"skip": "conv_shortcut"}
_ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "output": ("to_out.0",)}
_OUTSIDE = {"quant": "quant_conv", "post_quant": "post_quant_conv", "codebook": "quantize.embedding"}


def _of_stage(level: str, stage: int, rest: str) -> tuple[str, ...]:
    kind, layer = rest.split(".")
    if kind == "block":
        return (f"{level}.resnets.{stage}.{_BLOCK[layer]}",)
    return tuple(f"{level}.attentions.{stage}.{name}" for name in _ATTENTION[layer])


def _of_layer(layer: str) -> tuple[str, ...]:
    """Return the published names of a layer; several are stacked."""
    if layer in _OUTSIDE:
        return (_OUTSIDE[layer],)
    coder, rest = layer.split(".", 1)
    if rest in _ENDS:
        return (f"{coder}.{_ENDS[rest]}",)
    if rest.startswith("middle."):
        _, stage, inner = rest.split(".", 2)
        return tuple(f"{coder}.{name}" for name in _of_stage("mid_block", int(stage), inner))
    way, index, inner = rest.split(".", 2)
    level = f"{coder}.{way}_blocks.{index}"
    if inner.startswith("resample."):
        return (f"{level}.{way}samplers.0.conv",)
    _, stage, inner = inner.split(".", 2)
    return _of_stage(level, int(stage), inner)


def takes(net: KLAutoencoder | VQAutoencoder) -> Iterator[Take]:
    """Yield the conversion of each tensor of ``net`` from those of diffusers; what it counts in training stays its own.

    Example:
        >>> net = KLAutoencoder(3, 4, 8, (1, 2), groups=4)
        >>> [take.theirs for take in takes(net) if take.ours == "encoder.down.0.resample.conv.bias"]
        [('encoder.down_blocks.0.downsamplers.0.conv.bias',)]
    """
    for ours, tensor in net.state_dict().items():
        layer, _, parameter = ours.rpartition(".")
        if not layer or (layer == "codebook" and parameter != "weight"):
            yield Take(ours, (), _constant(tensor))
        else:
            layout = layouts.flat if ".attention." in ours else layouts.same
            yield Take(ours, tuple(f"{name}.{parameter}" for name in _of_layer(layer)), layout)


def _constant(tensor: Tensor) -> Callable[..., Tensor]:
    return lambda: tensor
