"""The names that diffusers gives to the layers of transformers on sequences of tokens."""

from __future__ import annotations

__all__ = ["of_block", "of_transformer"]

_ATTENTION = {"q": ("to_q",), "kv": ("to_k", "to_v"), "output": ("to_out.0",)}
_PERCEPTRON = {"norm": "norm3", "hidden": "ff.net.0.proj", "back": "ff.net.2"}
_ENDS = {"norm": "norm", "inward": "proj_in", "outward": "proj_out"}


def of_block(layer: str) -> tuple[str, ...]:
    """Return the published names of a layer of a :class:`~scoresde.models.transformers.TokenBlock`; several are stacked.

    Example:
        >>> of_block("attentions.1.kv"), of_block("perceptron.hidden")
        (('attn2.to_k', 'attn2.to_v'), ('ff.net.0.proj',))
    """
    place, *rest = layer.split(".")
    if place == "perceptron":
        return (_PERCEPTRON[rest[0]],)
    number, part = int(rest[0]) + 1, rest[1]
    return (f"norm{number}",) if part == "norm" else tuple(f"attn{number}.{name}" for name in _ATTENTION[part])


def of_transformer(layer: str) -> tuple[str, ...]:
    """Return the published names of a layer of a transformer in a U-Net; several are stacked.

    Example:
        >>> of_transformer("inward"), of_transformer("blocks.0.attentions.0.q")
        (('proj_in',), ('transformer_blocks.0.attn1.to_q',))
    """
    if layer in _ENDS:
        return (_ENDS[layer],)
    _, index, rest = layer.split(".", 2)
    return tuple(f"transformer_blocks.{index}.{name}" for name in of_block(rest))
