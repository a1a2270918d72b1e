"""Published RefineNets of NCSNv2, whose noise levels are among their tensors and whose sizes follow from the shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from scoresde.models import NETWORKS, NCSNv2
from scoresde.score import ScoreModel
from scoresde.sde.chain import NCSN
from scoresde.weights.files import WeightsError

__all__ = ["load", "names", "recognizes"]

_SIGNATURE, _LEVELS = "begin_conv.weight", "sigmas"
_PRESETS = {4: "ncsnv2-cifar10", 5: "ncsnv2-128", 6: "ncsnv2-256"}
_STAGES = {4: (1, 2, 3, 4), 5: (1, 2, 3, 4, 5), 6: (1, 2, 3, 31, 4, 5)}
_REFINES = {4: (1, 2, 3, 4), 5: (1, 2, 3, 4, 5), 6: (1, 2, 31, 3, 4, 5)}
"""The numbers in the published names of stages and, from the coarsest on, of refinements, by the number of stages."""
_LAYERS = {"stem": "begin_conv", "norm": "normalizer", "output": "end_conv", "skip": "shortcut"}
_LAYERS |= {"norm1": "normalize1", "norm2": "normalize2", "conv1": "conv1", "conv2": "conv2"}
_OF_REFINES = {"adapt": "adapt_convs", "fuse": "msf.convs", "pooled": "crp.convs", "output": "output_convs"}


def recognizes(tensors: Iterable[str]) -> bool:
    """Return whether the names of tensors are those of an NCSNv2.

    Example:
        >>> recognizes(["begin_conv.weight"]), recognizes(["conv_in.weight"])
        (True, False)
    """
    return _SIGNATURE in tensors


def names(net: NCSNv2) -> dict[str, str]:
    """Return the published name of each tensor of ``net``, by its name here."""
    found = {}
    for key in net.state_dict():
        layer, _, parameter = key.rpartition(".")
        found[key] = f"{_name(net, layer)}.{parameter}"
    return found


def _name(net: NCSNv2, layer: str) -> str:
    n, parts = len(net.stages), layer.split(".")
    if parts[0] == "stages":
        halves = net.get_submodule(".".join(parts[:3])).halves and parts[3] in ("conv2", "skip")
        return f"res{_STAGES[n][int(parts[1])]}.{parts[2]}.{_LAYERS[parts[3]]}{'.conv' if halves else ''}"
    if parts[0] == "refines":
        place = f"refine{_REFINES[n][int(parts[1])]}.{'.'.join([_OF_REFINES[parts[2]], *parts[3:]])}"
        return re.sub(r"\.convs\.(\d+)$", _of_units, place) if parts[2] in ("adapt", "output") else place
    return _LAYERS[layer]


def _of_units(match: re.Match[str]) -> str:
    unit, position = divmod(int(match[1]), 2)
    return f".{unit + 1}_{position + 1}_conv"


def load(tensors: Mapping[str, Tensor], source: str) -> ScoreModel:
    """Build the score model of an NCSNv2 for data in [-1, 1].

    The published noise levels are for data in [0, 1]; on [-1, 1] they are twice as large.

    Args:
        tensors: the published tensors by name.
        source: the name of the file, for messages.

    Raises:
        WeightsError: if a tensor is missing, surplus or of another shape.
    """
    n = len({name.split(".")[0] for name in tensors if re.match(r"res\d+\.", name)})
    first = tensors[_SIGNATURE]
    if n not in _PRESETS or first.ndim != 4 or _LEVELS not in tensors:
        levels = "with" if _LEVELS in tensors else "without"
        raise WeightsError(
            f"{source} is of another architecture than NCSNv2: it has {n} stages, {levels} sigmas; expected 4, 5 or 6 "
            "stages, with sigmas"
        )

    def make() -> NCSNv2:
        return cast(NCSNv2, NETWORKS[_PRESETS[n]].build(channels=first.shape[1], width=first.shape[0]))

    try:
        with torch.device("meta"):  # wrong sizes are never allocated
            net = make()
    except ValueError as error:
        raise WeightsError(f"{source} has tensors that do not make an NCSNv2: {error}") from error
    own = {theirs: net.state_dict()[ours].shape for ours, theirs in names(net).items()}
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys() - {_LEVELS})
    wrong = [name for name, shape in own.items() if name in tensors and tensors[name].shape != shape]
    if missing or surplus or wrong:
        what = {"lacks": missing, "also holds": surplus, "has in another shape": wrong}
        found = "; it ".join(f"{verb} {', '.join(some[:4])}" for verb, some in what.items() if some)
        raise WeightsError(f"{source} is of another architecture than an NCSNv2 of these sizes: it {found}")
    net = make()
    net.load_state_dict({ours: tensors[theirs].float() for ours, theirs in names(net).items()}, assign=True)
    with torch.no_grad():  # the published output is sigma times the score, the negative of the noise
        for parameter in net.output.parameters():
            parameter.neg_()
    try:
        return ScoreModel(net, NCSN(2 * tensors[_LEVELS].double().sort().values)).eval()
    except ValueError as error:
        raise WeightsError(f"{source} has noise levels that do not make a chain: {error}") from error
