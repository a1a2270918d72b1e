"""Published diffusion transformers, whose settings except the number of heads follow from the shapes of their tensors."""

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
_POSITIONS = "pos_embed"  # a constant, which the network here computes itself
_SHAPES = (
    _SIGNATURE,
    _POSITIONS,
    "final_layer.linear.weight",
    "blocks.0.mlp.fc1.weight",
    "y_embedder.embedding_table.weight",
)
"""The tensors whose shapes determine the sizes of the network."""
_LARGEST = 1152  # the width of DiT-XL, whose heads have 72 features; the heads of smaller networks have 64


def recognizes(tensors: Iterable[str]) -> bool:
    """Return whether the names of tensors are those of a DiT.

    Example:
        >>> recognizes(["x_embedder.proj.weight"]), recognizes(["conv_in.weight"])
        (True, False)
    """
    return _SIGNATURE in tensors


def names(net: DiT) -> dict[str, str]:
    """Return the published name of each tensor of ``net``, by its name here.

    Example:
        >>> names(DiT(1, 4, 2, width=8, depth=1, heads=1))["stem.weight"]
        'x_embedder.proj.weight'
    """
    found = {}
    for key in net.state_dict():
        layer, _, parameter = key.rpartition(".")
        parts = layer.split(".")
        theirs = f"blocks.{parts[1]}.{_OF_BLOCKS[parts[2]]}" if parts[0] == "blocks" else _LAYERS[layer]
        found[key] = f"{theirs}.{parameter}"
    return found


def load(tensors: Mapping[str, Tensor], source: str) -> ScoreModel:
    """Build the score model of a DiT, which predicts the noise on DDPM's linear schedule of 1000 steps.

    The variance is learned if the network has twice as many outputs as channels.

    Args:
        tensors: the published tensors by name.
        source: the name of the file, for messages.

    Raises:
        WeightsError: if a tensor is missing, surplus or of another shape.
    """
    problem = _lacks(set(_SHAPES), tensors)
    if problem or tensors[_SIGNATURE].ndim != 4 or tensors[_POSITIONS].ndim != 3:
        problem = problem or f"has {_SIGNATURE} or {_POSITIONS} of another number of axes"
        raise WeightsError(f"{source} is of another architecture than a DiT: it {problem}")
    try:
        with torch.device("meta"):  # wrong sizes are never allocated
            outline = _like(tensors)
    except (ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{source} has tensors that do not make a DiT: {error}") from error
    if problem := _mismatch(outline, tensors):
        raise WeightsError(f"{source} is of another architecture than a DiT of these sizes: it {problem}")
    net = _like(tensors)
    if not _same_positions(net, tensors):
        raise WeightsError(f"{source} has a {_POSITIONS} that is not a DiT's; expected sines and cosines of the positions")
    net.load_state_dict({ours: tensors[theirs].float() for ours, theirs in names(net).items()}, assign=True)
    learned = net.config["out_channels"] == 2 * net.config["channels"]
    return ScoreModel(net, DDPM.linear(), learned_variance=learned).eval()


def _lacks(wanted: set[str], tensors: Mapping[str, Tensor]) -> str:
    missing = sorted(wanted - tensors.keys())
    return f"lacks {', '.join(missing[:4])}" if missing else ""


def _mismatch(net: DiT, tensors: Mapping[str, Tensor]) -> str:
    """Describe how ``tensors`` differ from the published weights of ``net``; return an empty text if they match."""
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
    """Build the network whose tensors have these shapes."""
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
        num_classes=labels - 1,  # the last row is the embedding of no label
    )
