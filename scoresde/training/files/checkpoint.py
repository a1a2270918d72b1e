"""Checkpoints: one safetensors file, which is either whole or not there.

The header holds one JSON text that describes the network, the SDE or chain and the training; the body holds tensors:
``net.*`` and ``ema.*`` the weights, ``companion.*`` and ``ema_companion.*`` those of what the objective trains beside them,
``optimizer.*`` and ``history`` what a resumed training needs. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import models
from scoresde import sde as sdes
from scoresde import weights as weights_of_others
from scoresde.base.files import replacing
from scoresde.base.version import __version__
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.sde import chain as chains
from scoresde.sde.chain import Chain

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "companion_of",
    "describe",
    "differences",
    "fill",
    "load",
    "load_companion",
    "read",
    "save",
    "weights",
    "write",
]

FILE = "model.safetensors"
"""The name of the checkpoint in a run folder."""
FORMAT = 3  # files of 1 and 2 hold networks that no longer exist
_KEY = "scoresde"
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100
_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    cls.__name__: cls for cls in (models.MLP, models.UNet, models.DiT, models.NCSNv2)
}
_SDES = (sdes.VP, sdes.CosineVP, sdes.SubVP, sdes.VE, sdes.EDM, sdes.RectifiedFlow)
_CHAINS = (chains.DDPM, chains.NCSN, chains.GaussianChain)
_PROCESSES: dict[str, Callable[..., GaussianSDE | Chain]] = {cls.__name__: cls for cls in (*_SDES, *_CHAINS)}


class CheckpointError(ValueError):
    """A file that is not the checkpoint it was taken for."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds: its description and its tensors by name."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors called ``name.*``, without that prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


# Files ---------------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint so that ``path`` holds, at every instant, a whole file: the one before or this one.

    It goes to a temporary file beside ``path``, from there to the disk, and takes its name last of all.
    """
    from safetensors.torch import save as serialize

    versions = {"format": FORMAT, "scoresde": __version__, "torch": torch.__version__}
    # A copy of each tensor: shared memory (tied weights) cannot be written, and a device's memory only by way of ours.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = serialize(copies, metadata={_KEY: json.dumps({"versions": versions, **description})})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def _check_is_safetensors(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise CheckpointError(f"{path} holds {len(start)} bytes: the checkpoint is truncated")
    if start[8:9] != b"{":
        pickled = start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"
        what = " (it looks like a pickle, which can run any code and is never opened)" if pickled else ""
        raise CheckpointError(f"{path} is not a safetensors file{what}; expected a checkpoint written by scoresde")


def read(path: str | os.PathLike[str], groups: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint, or those of its tensors whose names start with one of ``groups``.

    Raises:
        CheckpointError: if the file is missing, truncated, no safetensors file, or not written by scoresde.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _check_is_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            wanted = [key for key in file.keys() if groups is None or key.split(".")[0] in groups]  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in wanted}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of scoresde's: its header has no {_KEY!r} entry. To use its "
            "weights, read them with safetensors.torch.load_file into a network of your own"
        )
    try:
        description = json.loads(metadata[_KEY])
        version = description["versions"]["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a damaged description in its header: {error!r}") from error
    if version != FORMAT:
        other = "an earlier" if version in range(1, FORMAT) else "another"
        raise CheckpointError(
            f"{path} has format {version}, written by {other} version of scoresde; this one reads format {FORMAT}: use that "
            "version, or train again"
        )
    return Checkpoint(description, tensors)


# Descriptions --------------------------------------------------------------------------------------------------------


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file, so that the two can be compared."""
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _describe_net(net: Any) -> dict[str, Any]:
    if _NETWORKS.get(type(net).__name__) is type(net):
        return {"type": type(net).__name__, "config": net.config}
    return {"type": f"{type(net).__module__}.{type(net).__qualname__}"}


def _describe_process(sde: GaussianSDE) -> dict[str, Any]:
    # An SDE made of functions has no plain description; its name stands for it, and load() asks for the rest.
    try:
        return _plain(sde.config())
    except (ValueError, TypeError):
        return {"type": type(sde).__name__}


def _describe_time(model: ScoreModel) -> str:
    owner = getattr(model._time, "__self__", None)
    if owner is model:
        return "default"
    return "index" if isinstance(owner, Chain) else "custom"


def describe(model: ScoreModel) -> dict[str, Any]:
    """The description of a score model: its network, process, prediction and how it is told the time."""
    return _plain(
        {
            "net": _describe_net(model.net),
            "process": _describe_process(model.sde),
            "predicts": model.predicts,
            "sigma_data": model.sigma_data,
            "time": _describe_time(model),
            **({"learned_variance": True} if model.learned_variance else {}),  # older files do not know the word
        }
    )


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two descriptions, as ``name=stored (given)``."""
    found = []
    for name in sorted(stored.keys() | given.keys()):
        a, b = stored.get(name), given.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}={_SHORT.repr(a)} (here {_SHORT.repr(b)})")
    return found


def group_of(index: int) -> str:
    """The name of the tensors of an average: ``ema`` for the first, the one to sample from, then ``ema1``, .."""
    return f"ema{index}" if index else "ema"


def average_group(description: Mapping[str, Any], ema: bool | str, path: str | os.PathLike[str]) -> str:
    """The name of the tensors that ``ema``, as of :func:`load`, asks for."""
    if isinstance(ema, bool):
        return "ema"
    names = description.get("averages", [])
    if ema not in names:
        raise CheckpointError(f"{path} holds no average called {ema!r}; it holds {', '.join(names) or 'none'}")
    return group_of(names.index(ema))


def companion_of(group: str) -> str:
    """The name of the tensors of the objective's companion that belong to those of ``group``."""
    return f"{group}_companion"


# Models --------------------------------------------------------------------------------------------------------------


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def fill(net: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str], *, assign: bool = False) -> None:
    """Put ``tensors`` into ``net``, each in its place, or say which do not fit.

    Raises:
        CheckpointError: if a tensor is missing, surplus or of another shape; ``net`` is then as it was.
    """
    own = net.state_dict()
    missing, surplus = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (("lacks", missing), ("also holds", surplus), ("has in another shape", reshaped))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} is of another architecture than this {type(net).__name__}: it {'; it '.join(problems)}"
        )
    net.load_state_dict(dict(tensors), assign=assign)


def weights(net: Callable[..., Tensor]) -> dict[str, Tensor]:
    """The tensors of ``net`` by name.

    Raises:
        CheckpointError: if it has none, or its state holds anything else.
    """
    if not isinstance(net, nn.Module):
        raise CheckpointError(f"got a network of type {type(net).__name__}; only a torch.nn.Module has weights to save")
    state = net.state_dict()
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(f"the network's state holds {_some(foreign)}, not tensors; only tensors can be saved")
    return state


def save(path: str | os.PathLike[str], model: ScoreModel) -> None:
    """Write a score model to one file, from which :func:`load` builds it again.

    Example:
        >>> import tempfile
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> model = ScoreModel(MLP(2), VP(), predicts="v")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.safetensors", model)
        ...     load(f"{folder}/model.safetensors")  # doctest: +ELLIPSIS
        ScoreModel(
          sde=VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0), predicts='v'
          (net): MLP(...
    """
    write(path, describe(model), {f"net.{name}": value for name, value in weights(model.net).items()})


def load_companion(path: str | os.PathLike[str], companion: nn.Module, *, ema: bool | str = True) -> nn.Module:
    """Fill a module that was trained along with the network, such as the noise of a learned dequantization; returned.

    Args:
        path: a checkpoint of a training whose objective had it as its ``companion``.
        companion: one like it.
        ema: as of :func:`load`.

    Raises:
        CheckpointError: if the file holds no companion, or that of another architecture.
    """
    group = "companion"
    if ema:
        group = companion_of(average_group(read(path, ()).description, ema, path))
    fill(companion, read(path, (group,)).group(group), path)
    return companion.eval()


def _build_net(description: Mapping[str, Any], path: str | os.PathLike[str]) -> nn.Module:
    if description["type"] not in _NETWORKS:
        raise CheckpointError(
            f"{path} holds the weights of a {description['type']}, which scoresde cannot build; pass one as net=.."
        )
    return _NETWORKS[description["type"]](**description["config"])


def _build_process(description: Mapping[str, Any], time: str, path: str | os.PathLike[str]) -> GaussianSDE | Chain:
    arguments = {name: value for name, value in description.items() if name != "type"}
    if description["type"] not in _PROCESSES:
        raise CheckpointError(
            f"{path} holds a model under a {description['type']}, which cannot be written to a file; pass it as sde=.."
        )
    process = _PROCESSES[description["type"]](**arguments)
    return process.sde() if isinstance(process, Chain) and time != "index" else process


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    *,
    ema: bool | str = True,
    sde: GaussianSDE | Chain | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
) -> ScoreModel:
    """Build the score model that a checkpoint holds.

    Args:
        path: a file written by :func:`save` or :func:`~scoresde.training.fit`, a run folder with one, or weights that
            :func:`scoresde.weights.load` reads.
        net: a network for the weights, which are copied into it; needed for one that scoresde did not make.
        ema: take the averaged weights, where there are any, instead of the last ones; or the name of one of several
            averages, such as ``"power-0.1"``.
        sde: the SDE or chain; needed for one made of functions.
        time: what the network gets for ``t``; needed where the model was given such a function.

    Returns:
        The model in evaluation mode, on the CPU where the network is built here.

    Raises:
        CheckpointError: if the file is missing, truncated, foreign or of another architecture or SDE, or one of the
            above is needed.
    """
    path = Path(path)
    if path.is_dir() and (path / FILE).is_file():  # a run folder
        path /= FILE
    if net is None and sde is None and time is None and weights_of_others.recognizes(path):
        return weights_of_others.load(path, ema=bool(ema))
    group = average_group(read(path, ()).description, ema, path)
    stored = read(path, ("net", group))
    description = stored.description
    tensors = (stored.group(group) if ema else {}) or stored.group("net")
    try:
        own = {name: description[name] for name in ("net", "process", "predicts", "sigma_data", "time")}
        own |= {"learned_variance": True} if description.get("learned_variance") else {}
    except KeyError as error:
        raise CheckpointError(f"{path} does not describe a score model: it has no {error}") from error
    if own["time"] == "custom" and time is None:
        raise CheckpointError(f"{path} holds a model with a function of its own for the time; pass it as time=..")
    built = _build_net(own["net"], path) if net is None else net
    process = _build_process(own["process"], own["time"], path) if sde is None else sde
    model = ScoreModel(
        built,
        process,
        own["predicts"],
        sigma_data=own["sigma_data"],
        learned_variance="learned_variance" in own,
        time=time,
    )
    if differ := differences(own, describe(model)):
        raise CheckpointError(f"{path} holds another model than the one asked for: {', '.join(differ)}")
    fill(built, tensors, path, assign=net is None)
    return model.eval()
