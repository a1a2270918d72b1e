"""Conversion of published tensors to the tensors of a network; none may be missing, surplus or of another shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from scoresde.models import UNet
from scoresde.weights.families import FAMILIES
from scoresde.weights.files import WeightsError
from scoresde.weights.keys import Dialect, Take, takes

__all__ = ["assemble", "build", "differences", "mismatch"]

Net = TypeVar("Net", bound=nn.Module)


def _some(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def differences(
    net: nn.Module, tensors: Mapping[str, Tensor], conversions: Iterable[Take], constants: tuple[str, ...] = ()
) -> str:
    """Describe how ``tensors`` differ from what ``conversions`` need for ``net``; return an empty text if they match.

    Args:
        net: the network, which may be on the meta device.
        tensors: the published tensors by name.
        conversions: the conversion of each tensor of ``net``.
        constants: the ends of the names of tensors that may be there as well.
    """
    conversions = list(conversions)
    wanted = {name for take in conversions for name in take.theirs}
    missing = wanted - tensors.keys()
    surplus = {name for name in tensors.keys() - wanted if not (constants and name.endswith(constants))}
    found = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("also holds", surplus)) if names]
    if found:
        return "it " + "; it ".join(found)
    own = net.state_dict()
    for take in conversions:
        shapes = [tuple(tensors[name].shape) for name in take.theirs]
        if _shape(take, tensors) != own[take.ours].shape:
            return (
                f"it has {' and '.join(take.theirs)} of shape {' and '.join(map(str, shapes))}, which do not make a tensor "
                f"of shape {tuple(own[take.ours].shape)}"
            )
    return ""


def mismatch(net: UNet, tensors: Mapping[str, Tensor], dialect: Dialect) -> str:
    """Describe how ``tensors`` differ from the published weights of ``net``; return an empty text if they match."""
    constants = FAMILIES[dialect.family].constants
    return differences(net, tensors, takes(net, tensors, dialect), constants) or _filters(net, tensors)


def _shape(take: Take, tensors: Mapping[str, Tensor]) -> torch.Size | None:
    """Return the shape of the converted tensor without computing it; ``None`` if the tensors cannot be converted."""
    try:
        return take.layout(*(tensors[name].to("meta") for name in take.theirs)).shape
    except (RuntimeError, IndexError):
        return None


def _filters(net: UNet, tensors: Mapping[str, Tensor]) -> str:
    """Describe how the filters that EDM stores as weights differ from the network's; return an empty text if they match."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0] if net.config["fir"] else [1.0, 1.0])
    expected = torch.outer(line, line)[None, None] / line.sum() ** 2
    for name, tensor in tensors.items():
        if not name.endswith(".resample_filter"):
            continue
        if tensor.shape != expected.shape or (not tensor.is_meta and not torch.allclose(tensor.float(), expected)):
            return f"it has {name} of shape {tuple(tensor.shape)}, which differs from the network's filter"
    return ""


def build(make: Callable[[], UNet], tensors: Mapping[str, Tensor], dialect: Dialect, source: str) -> UNet:
    """Build a U-Net and load published ``tensors`` into it, in float32.

    Args:
        make: a function without arguments that builds the network.
        tensors: the published tensors by name.
        dialect: the layout of the tensors.
        source: the name of the file, for messages.

    Raises:
        WeightsError: if a tensor is missing, surplus or of another shape.
    """
    return assemble(
        make,
        tensors,
        lambda net: takes(net, tensors, dialect),
        source,
        constants=FAMILIES[dialect.family].constants,
        check=lambda net: _filters(net, tensors),
    )


def assemble(
    make: Callable[[], Net],
    tensors: Mapping[str, Tensor],
    conversions: Callable[[Net], Iterable[Take]],
    source: str,
    *,
    constants: tuple[str, ...] = (),
    check: Callable[[Net], str] = lambda net: "",
) -> Net:
    """Build a network and load published ``tensors`` into it, in float32.

    The network is first built without memory, on the meta device, so that wrong sizes are never allocated.

    Args:
        make: a function without arguments that builds the network.
        tensors: the published tensors by name.
        conversions: a function of the network that returns the conversion of each of its tensors.
        source: the name of the file, for messages.
        constants: the ends of the names of tensors that are not parameters.
        check: a function of the network that describes another difference, or returns an empty text.

    Raises:
        WeightsError: if a tensor is missing, surplus or of another shape.
    """
    with torch.device("meta"):
        outline = make()
    if problem := differences(outline, tensors, conversions(outline), constants) or check(outline):
        raise WeightsError(f"{source} is of another architecture: {problem}")
    net = make()
    state = {take.ours: take.layout(*(tensors[name].float() for name in take.theirs)) for take in conversions(net)}
    net.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    return net
