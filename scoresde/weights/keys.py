"""The conversion of each tensor of a network from published tensors: their names and their layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.models import UNet
from scoresde.weights import layouts
from scoresde.weights.families import FAMILIES, Family
from scoresde.weights.parts import Part, parts
from scoresde.weights.tokens import of_transformer

__all__ = ["Dialect", "Take", "takes"]


@dataclass(frozen=True)
class Take:
    """A conversion: the tensor ``ours`` of a network is the function ``layout`` of the published tensors ``theirs``."""

    ours: str
    theirs: tuple[str, ...]
    layout: Callable[..., Tensor] = layouts.same


@dataclass(frozen=True)
class Dialect:
    """The layout of the tensors in a published file.

    Args:
        family: the code base, a key of :data:`FAMILIES`.
        sine_first: the time features are sines and then cosines; here they are cosines and then sines.
        negated: the published network returns the negative of the output here.
        joined: the rows of the first attention layer have the order used here, unlike in other files of the family.
    """

    family: str
    sine_first: bool = False
    negated: bool = False
    joined: bool = False


def takes(net: UNet, tensors: Mapping[str, Tensor], dialect: Dialect) -> Iterator[Take]:
    """Yield the conversion of each tensor of ``net`` from the published ``tensors``.

    Args:
        net: the network.
        tensors: the published tensors by name; only names and shapes are used.
        dialect: the layout of the file.
    """
    family = FAMILIES[dialect.family]
    names = family.namer(net, tensors)
    for part in parts(net):
        places = names(part)
        for key in _keys(net, part):
            if part.kind == "embedding":
                take = _of_embedding(net, key, places, family, dialect)
            else:
                take = _of_layer(net, part, key, places, family, dialect)
            writes = part.kind == "end" and key.startswith("output.")
            writes |= part.kind == "output" and key.startswith("conv.") and net.config["output_pyramid"] == "skip"
            if writes and dialect.negated:
                take = _then(take, torch.neg)
            yield take


def _keys(net: UNet, part: Part) -> list[str]:
    """Return the names of a part's tensors within the part."""
    if part.kind == "end":
        return [f"{layer}.{parameter}" for layer in ("norm", "output") for parameter in ("weight", "bias")]
    return list(net.get_submodule(part.name).state_dict())


def _then(take: Take, layout: Callable[[Tensor], Tensor]) -> Take:
    before = take.layout
    return Take(take.ours, take.theirs, lambda *t: layout(before(*t)))


def _of_embedding(net: UNet, key: str, places: Mapping[str, str], family: Family, dialect: Dialect) -> Take:
    layer, _, parameter = key.rpartition(".")
    ours, theirs = f"embedding.{key}", (f"{places[layer]}.{parameter}",)
    if layer == "features":
        return Take(ours, (f"{places[layer]}.{family.frequencies}",))
    take = Take(ours, theirs)
    if layer == "label" and dialect.family == "edm":
        early = net.config["early_label"]
        take = (
            Take(ours, (*theirs, f"{places[layer]}.bias"), layouts.early_label)
            if early
            else Take(ours, theirs, layouts.transposed)
        )
    # The time features are the input of the first layer. The outputs of the other layers here are added to them.
    in_features = {"layer1.weight": 1, "augment.weight": 0} | ({"label.weight": 1} if net.config["early_label"] else {})
    if dialect.sine_first and key in in_features:
        return _then(take, lambda w: layouts.swapped(w, in_features[key]))
    return take


def _of_layer(net: UNet, part: Part, key: str, places: Mapping[str, str], family: Family, dialect: Dialect) -> Take:
    path, _, parameter = key.rpartition(".")
    head, _, layer = path.partition(".")
    layout: Callable[..., Tensor] = layouts.same
    if head == "attention":
        theirs = tuple(f"{places[head]}.{name}" for name in family.attention[layer])
        if layer == "qkv":
            qkv = layouts.joined if dialect.joined else family.qkv
            layout = qkv(net.get_submodule(f"{part.name}.attention").heads)  # type: ignore[arg-type]
        elif layer == "output":
            layout = layouts.flat
    elif head in ("transformer", "frames") or part.kind == "frames":
        place, inner = (places["frames"], path) if part.kind == "frames" else (places[head], layer)
        theirs = tuple(f"{place}.{name}" for name in of_transformer(inner))
        layout = layouts.flat
    elif head == "along":
        kind, _, number = layer.partition(".")
        last = 0 if kind == "norms" else 2 if number == "0" else 3  # of norm, silu, dropout except in the first, and conv
        theirs = (f"{places[head]}.conv{int(number) + 1}.{last}",)
    elif head == "block" or path in family.block:
        theirs = (f"{places['block']}.{family.block[layer or path]}",)
    else:
        theirs = (places[path] if path in places else places[layer],)
    if theirs[0].rpartition(".")[2].startswith("NIN"):
        parameter = {"weight": "W", "bias": "b"}[parameter]
        layout = layouts.transposed if head == "attention" else layouts.transposed_conv
    ours = f"{part.name}.{key}" if part.name else key
    return Take(ours, tuple(f"{name}.{parameter}" for name in theirs), layout)
