"""Published diffusion transformers: everything about one but its number of heads is in the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from scoresde.models import DiT
from scoresde.score import ScoreModel
from scoresde.sde.chain import DDPM
from scoresde.weights.files import WeightsError

__all__ = ["load", "names", "recognizes"]

_SIGNATURE = "x_embedder.proj.weight"
_LAYERS = {
    "stem": "x_embedder.proj",
    "embedding.layer1": "t_embedder.mlp.0",
    "embedding.layer2": "t_embedder.mlp.2",
    "embedding.label": "y_embedder.embedding_table",
    "modulation": "final_layer.adaLN_modulation.1",
    "output": "final_layer.linear",
}
_OF_BLOCKS = {
    "qkv": "attn.qkv",
    "output": "attn.proj",
    "hidden": "mlp.fc1",
    "back": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
}
_POSITIONS = "pos_embed"  # no parameter, and the same here
_SHAPES = (
    _SIGNATURE,
    _POSITIONS,
    "final_layer.linear.weight",
    "blocks.0.mlp.fc1.weight",
    "y_embedder.embedding_table.weight",
)
"""The tensors whose shapes tell the sizes."""
_LARGEST = 1152  # the width of DiT-XL, whose heads have 72 features; those of the others have 64


def recognizes(tensors: Iterable[str]) -> bool:
    """Whether tensors of these names are those of a DiT."""
    return _SIGNATURE in tensors


def names(net: DiT) -> dict[str, str]:
    """The published name of each tensor of ``net``."""
    found = {}
    for key in net.state_dict():
        layer, _, parameter = key.rpartition(".")
        parts = layer.split(".")
        theirs = f"blocks.{parts[1]}.{_OF_BLOCKS[parts[2]]}" if parts[0] == "blocks" else _LAYERS[layer]
        found[key] = f"{theirs}.{parameter}"
    return found


def load(tensors: Mapping[str, Tensor], source: str) -> ScoreModel:
    """The score model of a DiT: 1000 steps of DDPM's linear schedule, noise predicted, the variance learned where it is.

    Raises:
        WeightsError: if a tensor is missing, surplus or of another shape.
    """
    problem = _lacks(set(_SHAPES), tensors)
    if problem or tensors[_SIGNATURE].ndim != 4 or tensors[_POSITIONS].ndim != 3:
        problem = problem or f"has {_SIGNATURE} or {_POSITIONS} of another number of axes"
        raise WeightsError(f"{source} is of another architecture than a DiT: it {problem}")
    try:
        with torch.device("meta"):  # sizes that the tensors do not have are never allocated
            outline = _like(tensors)
    except (ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{source} has tensors of which no DiT can be made: {error}") from error
    if problem := _mismatch(outline, tensors):
        raise WeightsError(f"{source} is of another architecture than a DiT of these sizes: it {problem}")
    net = _like(tensors)
    if not _same_positions(net, tensors):
        raise WeightsError(f"{source} has another {_POSITIONS} than a DiT, for which it is sines and cosines of the place")
    net.load_state_dict({ours: tensors[theirs].float() for ours, theirs in names(net).items()}, assign=True)
    learned = net.config["out_channels"] == 2 * net.config["channels"]
    return ScoreModel(net, DDPM.linear(), learned_variance=learned).eval()


def _lacks(wanted: set[str], tensors: Mapping[str, Tensor]) -> str:
    missing = sorted(wanted - tensors.keys())
    return f"lacks {', '.join(missing[:4])}" if missing else ""


def _mismatch(net: DiT, tensors: Mapping[str, Tensor]) -> str:
    """What keeps ``tensors`` from being the weights of ``net``; empty if nothing does."""
    own = {theirs: net.state_dict()[ours].shape for ours, theirs in names(net).items()}
    if problem := _lacks(set(own), tensors):
        return problem
    if surplus := sorted(tensors.keys() - own.keys() - {_POSITIONS}):
        return f"also holds {', '.join(surplus[:4])}"
    if wrong := [name for name, shape in own.items() if tensors[name].shape != shape]:
        return f"has {wrong[0]} of shape {tuple(tensors[wrong[0]].shape)}; expected {tuple(own[wrong[0]])}"
    if tensors[_POSITIONS].shape != (1, *net.positions.shape):
        return f"has {_POSITIONS} of shape {tuple(tensors[_POSITIONS].shape)}; expected {(1, *net.positions.shape)}"
    return ""


def _same_positions(net: DiT, tensors: Mapping[str, Tensor]) -> bool:
    return torch.allclose(net.positions, tensors[_POSITIONS][0].float(), atol=1e-4)


def _like(tensors: Mapping[str, Tensor]) -> DiT:
    """The network of these tensors, by their shapes."""
    width, channels, patch, _ = tensors[_SIGNATURE].shape
    outputs, hidden, labels = (tensors[name].shape[0] for name in _SHAPES[2:])
    heads = 16 if width == _LARGEST else max(width // 64, 1)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    return DiT(
        channels,
        patch * math.isqrt(tensors[_POSITIONS].shape[1]),
        patch,
        width=width,
        depth=depth,
        heads=heads,
        ratio=hidden / width,
        out_channels=outputs // patch**2,
        time="positional",
        num_classes=labels - 1,  # the last row stands for no label
    )
