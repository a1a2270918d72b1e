"""The names that each code base gives to the parts of its networks and to their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.models import UNet
from scoresde.weights import layouts
from scoresde.weights.parts import Part

__all__ = ["FAMILIES", "Family", "Names"]

Names = Callable[[Part], Mapping[str, str]]
"""A function that maps a part to the published names of its layers."""


@dataclass(frozen=True)
class Family:
    """A code base that publishes checkpoints.

    Args:
        signature: the start of a tensor's name by which a file of the code base is recognised.
        namer: a function of a network and the tensors of a file. It returns a function that maps a part to the published
            names of "block", "attention" and single layers in it. That function is called with the parts in their order.
        block: the published names of the layers in a residual block.
        attention: the published names of the layers in an attention block; several are stacked.
        qkv: the layout of the first attention layer, a function of the number of heads.
        frequencies: the published name of the frequencies of Fourier features within their module.
        constants: the ends of the names of tensors that are not parameters.
    """

    signature: str
    namer: Callable[[UNet, Mapping[str, Tensor]], Names]
    block: Mapping[str, str]
    attention: Mapping[str, tuple[str, ...]]
    qkv: Callable[[int], Callable[..., Tensor]] = layouts.joined
    frequencies: str = ""
    constants: tuple[str, ...] = ()


def _openai(net: UNet, tensors: Mapping[str, Tensor]) -> Callable[[Part], Mapping[str, str]]:
    inputs, outputs = 0, -1

    def name(part: Part) -> Mapping[str, str]:
        nonlocal inputs, outputs
        if part.kind == "embedding":
            return {"layer1": "time_embed.0", "layer2": "time_embed.2", "label": "label_emb"}
        if part.kind == "stem":
            return {"": "input_blocks.0.0"}
        if part.kind == "down":
            inputs += 1
            return {"block": f"input_blocks.{inputs}.0", "attention": f"input_blocks.{inputs}.1"}
        if part.kind == "shrink":
            inputs += 1
            return {"block": f"input_blocks.{inputs}.0", "conv": f"input_blocks.{inputs}.0.op"}
        if part.kind == "middle":
            return {"block": f"middle_block.{2 * part.index}", "attention": "middle_block.1"}
        if part.kind == "up":
            outputs += 1
            return {"block": f"output_blocks.{outputs}.0", "attention": f"output_blocks.{outputs}.1"}
        if part.kind == "enlarge":  # the last member of the last stage of its level
            place = f"output_blocks.{outputs}.{2 if part.level in net.config['attention'] else 1}"
            return {"block": place, "conv": f"{place}.conv"}
        return {"norm": "out.0", "output": "out.2"}

    return name


def _edm(net: UNet, tensors: Mapping[str, Tensor]) -> Callable[[Part], Mapping[str, str]]:
    stems = [key.split(".")[1] for key in tensors if key.startswith("enc.") and key.endswith("_conv.weight")]
    size = int(stems[0].split("x")[0]) if stems else 0

    def name(part: Part) -> Mapping[str, str]:
        sizes = (size >> part.level, size >> (part.level + 1), size >> max(part.level - 1, 0))
        here, below, above = (f"{n}x{n}" for n in sizes)
        if part.kind == "embedding":
            layers = {"layer1": "map_layer0", "layer2": "map_layer1", "label": "map_label", "augment": "map_augment"}
            return layers | {"features": "map_noise"}
        if part.kind == "stem":
            return {"": f"enc.{here}_conv"}
        if part.kind == "down":
            return dict.fromkeys(("block", "attention"), f"enc.{here}_block{part.index}")
        if part.kind == "shrink":
            return {"block": f"enc.{below}_down"}
        if part.kind == "input":
            return {"conv": f"enc.{below}_aux_{net.config['input_pyramid']}"}
        if part.kind == "middle":
            return dict.fromkeys(("block", "attention"), f"dec.{here}_in{part.index}")
        if part.kind == "up":
            return dict.fromkeys(("block", "attention"), f"dec.{here}_block{part.index}")
        if part.kind == "enlarge":
            return {"block": f"dec.{above}_up"}
        if part.kind == "end" and net.config["adaptive"]:
            return {"norm": "out_norm", "output": "out_conv"}
        return {"norm": f"dec.{here}_aux_norm", "conv": f"dec.{here}_aux_conv", "output": f"dec.{here}_aux_conv"}

    return name


def _song(net: UNet, tensors: Mapping[str, Tensor]) -> Callable[[Part], Mapping[str, str]]:
    count = 3 if net.config["time"] == "fourier" else 2  # number of modules before the current one in the list
    filtered = "Conv2d_0" if net.config["fir"] else "Conv_0"

    def take() -> str:
        nonlocal count
        count += 1
        return f"all_modules.{count - 1}"

    def name(part: Part) -> Mapping[str, str]:
        if part.kind == "embedding":
            layers = {"layer1": f"all_modules.{count - 2}", "layer2": f"all_modules.{count - 1}"}
            return layers | {"features": "all_modules.0"}
        if part.kind == "stem":
            return {"": take()}
        if part.kind in ("down", "middle", "up"):
            block = take()
            attends = net.get_submodule(part.name).attention is not None
            return {"block": block, "attention": take() if attends else ""}
        if part.kind in ("shrink", "enlarge"):
            place = take()
            return {"block": place, "conv": f"{place}.{filtered}"}
        if part.kind == "input":
            first = take()  # the change of resolution, which has parameters only if it is a convolution
            return {"conv": f"{take()}.Conv" if net.config["input_pyramid"] == "skip" else f"{first}.{filtered}"}
        if part.kind == "output":
            lowest, skip = part.level == len(net.down) - 1, net.config["output_pyramid"] == "skip"
            enlarge = "" if lowest else take()
            if lowest or skip:
                return {"norm": take(), "conv": take()}
            return {"enlarge.conv": f"{enlarge}.{filtered}"}
        return {"norm": take(), "output": take()}

    return name


def _stage(level: str, block: int, attention: int) -> Mapping[str, str]:
    """Return diffusers' names of the parts of a stage of ``level``, by the numbers of its block and its attention."""
    attends = f"{level}.attentions.{attention}"
    along = {"along": f"{level}.temp_convs.{block}", "frames": f"{level}.temp_attentions.{attention}"}
    return {"block": f"{level}.resnets.{block}", "attention": attends, "transformer": attends} | along


def _diffusers(net: UNet, tensors: Mapping[str, Tensor]) -> Callable[[Part], Mapping[str, str]]:
    levels = len(net.down)
    pyramids = net.config["input_pyramid"] != "none"

    def name(part: Part) -> Mapping[str, str]:
        down, up = f"down_blocks.{part.level}", f"up_blocks.{levels - 1 - part.level}"
        if part.kind == "embedding":
            layers = {"layer1": "time_embedding.linear_1", "layer2": "time_embedding.linear_2"}
            vector = "add_embedding" if "add_embedding.linear_1.weight" in tensors else "class_embedding"
            layers |= {f"pooled.layer{i}": f"{vector}.linear_{i}" for i in (1, 2)}
            return layers | {"features": "time_proj", "label": "class_embedding"}
        if part.kind == "stem":
            return {"": "conv_in"}
        if part.kind == "down":
            return _stage(down, part.index, part.index)
        if part.kind == "shrink":
            return {
                "block": f"{down}.{'resnet_down' if pyramids else 'downsamplers.0'}",
                "conv": f"{down}.downsamplers.0.conv",
            }
        if part.kind == "frames":
            return {"frames": "transformer_in"}
        if part.kind == "input":
            return {"conv": f"{down}.skip_conv"}
        if part.kind == "middle":
            return _stage("mid_block", part.index, 0)
        if part.kind == "up":
            index = 0 if net.config["last_attention"] else part.index
            return _stage(up, part.index, index)
        if part.kind == "enlarge":
            return {"block": f"{up}.{'resnet_up' if pyramids else 'upsamplers.0'}", "conv": f"{up}.upsamplers.0.conv"}
        if part.kind == "output" and part.level:
            return {"norm": f"{up}.skip_norm", "conv": f"{up}.skip_conv"}
        return {"norm": "conv_norm_out", "conv": "conv_out", "output": "conv_out"}

    return name


_SONG_BLOCK = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "modulation": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "skip": "Conv_2",
}
_SONG: dict[str, Any] = {
    "attention": {"norm": ("GroupNorm_0",), "qkv": ("NIN_0", "NIN_1", "NIN_2"), "output": ("NIN_3",)},
    "qkv": layouts.transposed_joined,
    "frequencies": "W",
    "constants": ("sigmas",),
}

FAMILIES: Mapping[str, Family] = {
    "openai": Family(
        "input_blocks.0.0.",
        _openai,
        block={
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "modulation": "emb_layers.1",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
            "skip": "skip_connection",
        },
        attention={"norm": ("norm",), "qkv": ("qkv",), "output": ("proj_out",)},
        qkv=layouts.by_head,
    ),
    "edm": Family(
        "map_layer0.",
        _edm,
        block={
            "norm1": "norm0",
            "conv1": "conv0",
            "modulation": "affine",
            "norm2": "norm1",
            "conv2": "conv1",
            "skip": "skip",
        },
        attention={"norm": ("norm2",), "qkv": ("qkv",), "output": ("proj",)},
        qkv=layouts.by_channel,
        frequencies="freqs",
        constants=(".resample_filter",),
    ),
    "song": Family("all_modules.0.", _song, block=_SONG_BLOCK, **_SONG),
    "song-ddpm": Family("all_modules.0.", _song, block=_SONG_BLOCK | {"skip": "NIN_0"}, **_SONG),
    "diffusers": Family(
        "conv_in.",
        _diffusers,
        block={
            "norm1": "norm1",
            "conv1": "conv1",
            "modulation": "time_emb_proj",
            "norm2": "norm2",
            "conv2": "conv2",
            "skip": "conv_shortcut",
        },
        attention={"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "output": ("to_out.0",)},
        frequencies="weight",
    ),
}
"""The code bases by name."""
