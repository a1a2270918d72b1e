"""``PriorTransformer`` of diffusers, the prior of unCLIP, read from its JSON and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.models.transformers.prior import EmbeddingPrior
from scoresde.score import ScoreModel
from scoresde.weights import layouts
from scoresde.weights.convert import assemble
from scoresde.weights.diffusers.folder import Files, check_sizes, refuse
from scoresde.weights.diffusers.schedulers import process
from scoresde.weights.keys import Take
from scoresde.weights.tokens import of_block

__all__ = ["Prior", "load", "network", "takes"]

_LAYERS = {
    "time.layer1": "time_embedding.linear_1",
    "time.layer2": "time_embedding.linear_2",
    "noised": "proj_in",
    "context": "encoder_hidden_states_proj",
    "pooled": "embedding_proj",
    "norm": "norm_out",
    "output": "proj_to_clip_embeddings",
}
_TENSORS = {"last": "prd_embedding", "positions": "positional_embedding", "mean": "clip_mean", "std": "clip_std"}


@dataclass(frozen=True)
class Prior:
    """The entries of a configuration of ``PriorTransformer``, with the default values of diffusers."""

    num_attention_heads: int = 32
    attention_head_dim: int = 64
    num_layers: int = 20
    embedding_dim: int = 768
    num_embeddings: int = 77
    additional_embeddings: int = 4
    time_embed_act_fn: str = "silu"
    norm_in_type: str | None = None
    embedding_proj_norm_type: str | None = None
    encoder_hid_proj_type: str | None = "linear"
    added_emb_type: str | None = "prd"
    time_embed_dim: int | None = None
    embedding_proj_dim: int | None = None
    clip_embed_dim: int | None = None


def network(config: Prior, source: str = "config") -> dict[str, Any]:
    """Convert a configuration of ``PriorTransformer`` to the arguments of the prior here.

    Raises:
        WeightsError: for settings without an equivalent here.

    Example:
        >>> network(Prior())["width"]
        2048
    """
    sizes = ("num_attention_heads", "attention_head_dim", "num_layers", "embedding_dim", "num_embeddings")
    check_sizes(config, (*sizes, "embedding_proj_dim"), source)
    width = config.num_attention_heads * config.attention_head_dim
    expected: dict[str, tuple[Any, ...]] = {
        "additional_embeddings": (4,),
        "time_embed_act_fn": ("silu",),
        "norm_in_type": (None,),
        "embedding_proj_norm_type": (None,),
        "encoder_hid_proj_type": ("linear",),
        "added_emb_type": ("prd",),
        "time_embed_dim": (None, width),
        "clip_embed_dim": (None, config.embedding_dim),
    }
    refuse(config, expected, source)
    return {
        "features": config.embedding_dim,
        "context": config.embedding_dim,
        "tokens": config.num_embeddings,
        "pooled": config.embedding_proj_dim or config.embedding_dim,
        "width": width,
        "depth": config.num_layers,
        "heads": config.num_attention_heads,
        "time": "positional",
    }


def takes(net: EmbeddingPrior) -> Iterator[Take]:
    """Yield the conversion of each tensor of ``net`` from the tensors of ``PriorTransformer``.

    Example:
        >>> net = EmbeddingPrior(4, 4, 3, pooled=4, width=8, depth=1, heads=1)
        >>> [take.theirs for take in takes(net) if take.ours == "blocks.0.perceptron.back.bias"]
        [('transformer_blocks.0.ff.net.2.bias',)]
    """
    for ours in net.state_dict():
        layer, _, parameter = ours.rpartition(".")
        if ours in _TENSORS:
            yield Take(ours, (_TENSORS[ours],), _without_batch if ours != "last" else _flat)
        elif layer in _LAYERS:
            yield Take(ours, (f"{_LAYERS[layer]}.{parameter}",))
        else:
            _, index, rest = layer.split(".", 2)
            names = tuple(f"transformer_blocks.{index}.{name}.{parameter}" for name in of_block(rest))
            yield Take(ours, names, layouts.flat)


def _without_batch(w: Tensor) -> Tensor:
    return w[0]


def _flat(w: Tensor) -> Tensor:
    return w.flatten()


def load(files: Files) -> ScoreModel:
    """Load the score model of a ``PriorTransformer``; its conditions are ``context`` and ``pooled``.

    Raises:
        WeightsError: if a file is missing or cannot be read, or the model has no equivalent here.
    """
    config, tensors = files.config(Prior), files.tensors()
    sde, predicts, told = process(files.scheduler(), source=str(files.scheduler_file))
    arguments = network(config, str(files.config_file))
    files.check_depth(config.num_layers, tensors)
    net = assemble(lambda: EmbeddingPrior(**arguments, **told), tensors, takes, str(files.place))
    return ScoreModel(net, sde, predicts).eval()
