"""The description of a model and of its training: what a checkpoint says in words, written, checked and compared.

An SDE, chain or network of this package is described by its arguments, from which it is built again. Anything of the user's
own is described by its name and its :func:`~scoresde.base.identity.digest`, by which a training that resumes tells it from
others; an SDE also by its marginals at a few times, by which :func:`load` tells whether it was given the right one. What a
file says is read by a schema, and by that of the arguments of the class which is to be built, before anything is built.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import operator
import reprlib
import threading
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from scoresde import models
from scoresde import sde as sdes
from scoresde.base.identity import digest
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.sde import chain as chains
from scoresde.sde.chain import Chain, ChainSDE

__all__ = [
    "CheckpointError",
    "build_net",
    "build_process",
    "check",
    "check_marginals",
    "describe",
    "differences",
    "unwrapped",
]

_SHORT = reprlib.Repr()
_SHORT.maxstring = 100
_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    cls.__name__: cls for cls in (models.MLP, models.UNet, models.DiT, models.NCSNv2)
}
_SDES = (sdes.VP, sdes.CosineVP, sdes.SubVP, sdes.VE, sdes.EDM, sdes.RectifiedFlow)
_CHAINS = (chains.DDPM, chains.NCSN, chains.GaussianChain)
_PROCESSES: dict[str, Callable[..., GaussianSDE | Chain]] = {cls.__name__: cls for cls in (*_SDES, *_CHAINS)}
_LARGEST = 2**31  # of any whole number in a description: sizes beyond it are no sizes


class CheckpointError(ValueError):
    """A file that is not the checkpoint it was taken for."""


# Schema --------------------------------------------------------------------------------------------------------------


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    """A network or model: its class, with its arguments or what tells it from others."""

    type: str
    config: dict[str, Any] = {}
    identity: str = ""


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    """All that a description may hold."""

    versions: dict[str, Any]
    process: dict[str, Any]
    net: _Named | None = None
    model: _Named | None = None
    predicts: str = ""
    sigma_data: float = 1.0
    time: typing.Literal["default", "index", "custom"] = "default"
    learned_variance: bool = False
    dropped: dict[str, Any] | None = None
    averages: list[str] = []
    training: dict[str, Any] = {}
    run: str = ""
    step: int = 0
    best: float | None = None
    event: list[int] = []
    classes: list[str] = []


def check(description: Any, path: str | Path) -> dict[str, Any]:
    """Check what a file says against the schema; returned as it is.

    Raises:
        CheckpointError: naming the entry that is wrong.
    """
    try:
        found = msgspec.convert(description, _Description)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged description in its header: {error}") from error
    if not isinstance(found.process.get("type"), str) or found.step < 0 or any(not 0 < n < _LARGEST for n in found.event):
        raise CheckpointError(f"{path} has a damaged description in its header: no process, or impossible numbers")
    checked: dict[str, Any] = description
    return checked


def _schema(make: Callable[..., object]) -> type[msgspec.Struct]:
    """The arguments of a class as a schema: a tensor is a list of numbers in a file."""
    hints = typing.get_type_hints(make.__init__)

    def kind(hint: Any) -> Any:
        parts = tuple(kind(part) for part in typing.get_args(hint) if part is not Tensor)
        if typing.get_origin(hint) is Sequence:
            return types.GenericAlias(list, parts)
        return functools.reduce(operator.or_, parts) if isinstance(hint, types.UnionType) else hint

    fields: list[Any] = []
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.default is parameter.empty:
            fields.append((name, kind(hints[name])))
        else:
            fields.append((name, kind(hints[name]) | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct(getattr(make, "__name__", "Arguments"), fields, forbid_unknown_fields=True, kw_only=True)


def _construct(make: Callable[..., Any], arguments: Mapping[str, Any], path: str | Path) -> Any:
    """What a class of this package makes of arguments in a file, once they were found to be arguments of it."""
    name = getattr(make, "__name__", "?")
    wrong = (msgspec.ValidationError, TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, MemoryError)
    try:
        msgspec.convert(dict(arguments), _schema(make))
        _check_sizes(arguments)
        return make(**arguments)
    except wrong as error:
        raise CheckpointError(f"{path} describes a {name} that cannot be built: {str(error)[:300]}") from error


def _check_sizes(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _check_sizes(part)
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"got {value} for a size; expected less than {_LARGEST}")


# Writing -------------------------------------------------------------------------------------------------------------


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file, so that the two can be compared."""
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def unwrapped(net: Any) -> Any:
    """The network inside what ``torch.compile`` and the data-parallel wrappers put around it."""
    while True:
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            net = net.module
        elif isinstance(net, nn.Module) and "_orig_mod" in net._modules:
            net = net._modules["_orig_mod"]
        else:
            return net


def _qualified(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _settings(module: object) -> str:
    """A digest of the code of a module and of the settings of its parts, their sizes and weights apart.

    Whole numbers are left out, since those that are no sizes count something.
    """
    parts = list(module.modules()) if isinstance(module, nn.Module) else [module]
    kept: list[Any] = []
    for part in parts:
        held = getattr(part, "__dict__", {})
        settings = {k: v for k, v in sorted(held.items()) if isinstance(v, str | float) or inspect.isfunction(v)}
        kept.append([type(part), settings])
    return digest(kept, libraries=False)


def _describe_net(net: Any) -> dict[str, Any]:
    net = unwrapped(net)
    if _NETWORKS.get(type(net).__name__) is type(net):
        return {"type": type(net).__name__, "config": net.config}
    return {"type": _qualified(net), "identity": _settings(net)}


def _describe_process(sde: Any) -> dict[str, Any]:
    process = sde.chain if isinstance(sde, ChainSDE) else sde
    if _PROCESSES.get(type(process).__name__) is type(process):
        return _plain(sde.config())
    try:
        fields = _plain(process.config())
    except (ValueError, TypeError, AttributeError):
        fields = {}
    own = {"type": type(process).__qualname__, "identity": digest(process, libraries=False), "marginals": _marginals(sde)}
    return fields | own


def _marginals(sde: Any) -> list[list[float]]:
    """Rows of t, log alpha and log sigma at a few times inside the span; none for an SDE without marginals."""
    if not isinstance(sde, GaussianSDE):
        return []
    low, high = sde.span
    t = low + (high - low) * torch.arange(1, 6, dtype=torch.float64) / 6
    rows = torch.stack([t, *(f(t).detach().double().expand_as(t) for f in (sde.log_alpha, sde.log_sigma))], dim=1)
    return rows.tolist() if bool(torch.isfinite(rows).all()) else []


def _describe_time(model: ScoreModel) -> str:
    owner = getattr(model._time, "__self__", None)
    if owner is model:
        return "default"
    return "index" if isinstance(owner, Chain) else "custom"


def describe(model: ScoreModel) -> dict[str, Any]:
    """Describe a score model: its network, process, prediction and how it is told the time; of one of a subclass, that."""
    described: dict[str, Any] = {"process": _describe_process(model.sde)}
    if hasattr(model, "net"):
        described |= {
            "net": _describe_net(model.net),
            "predicts": model.predicts,
            "sigma_data": float(model.sigma_data),
            "time": _describe_time(model),
            "learned_variance": bool(model.learned_variance),
        }
    if (dropped := getattr(model, "dropped", None)) is not None:
        described["dropped"] = {n: null.tolist() if isinstance(null, Tensor) else null for n, null in dropped.items()}
    if type(model) is not ScoreModel:
        described["model"] = {"type": _qualified(model), "identity": _settings(model)}
    return _plain(described)


# Comparing -----------------------------------------------------------------------------------------------------------


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """What differs between two descriptions: by the name of the entry, a text with both values."""
    found: dict[str, str] = {}
    for name in sorted(stored.keys() | given.keys()):
        a, b, where = stored.get(name), given.get(name), f"{prefix}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{where}.")
        elif name == "identity" and a != b:
            found[where] = f"the code of {prefix.rstrip('.')}, or what it holds"
        elif a != b and name != "marginals":
            found[where] = f"{where}={_SHORT.repr(a)} (here {_SHORT.repr(b)})"
    return found


def check_marginals(rows: Sequence[Sequence[float]], sde: GaussianSDE | Chain, path: str | Path) -> None:
    """Check that an SDE has the marginals that a file says, whatever its code.

    Raises:
        CheckpointError: with the first time at which it has others.
    """
    given = sde.sde() if isinstance(sde, Chain) else sde
    for t, *expected in rows:
        try:
            found = [float(given.log_alpha(t)), float(given.log_sigma(t))]
        except (ValueError, TypeError, AttributeError):
            found = [math.nan, math.nan]
        for name, a, b in zip(("alpha", "sigma"), expected, found, strict=True):
            if not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6):
                raise CheckpointError(
                    f"{path} holds a model under another SDE than the one given: at t={t:.4g} log {name} is {a:.6g} there, "
                    f"and {b:.6g} of {sde!r:.100}; pass the SDE that it was trained under"
                )


# Building ------------------------------------------------------------------------------------------------------------


_ALLOWED = threading.local()
"""What the network that a thread builds may have: ``count`` more parameters, none of more than ``largest`` numbers."""


@contextlib.contextmanager
def _at_most(tensors: Collection[Tensor]) -> Iterator[None]:
    """Stop the construction of a network that has more parameters than a file has tensors, or larger ones."""
    _watch()
    _ALLOWED.count, _ALLOWED.largest = 2 * len(tensors) + 16, max((t.numel() for t in tensors), default=0)
    try:
        yield
    finally:
        del _ALLOWED.count


@functools.cache
def _watch() -> None:
    """Look at every parameter that is registered, from now on.

    The hook stays: one that is removed while another thread registers a parameter breaks the construction there.
    """
    nn.modules.module.register_module_parameter_registration_hook(_check_parameter)


def _check_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is None or not hasattr(_ALLOWED, "count"):
        return
    _ALLOWED.count -= 1
    if _ALLOWED.count < 0 or parameter.numel() > _ALLOWED.largest:
        raise ValueError("it takes more tensors than there are in the file, or larger ones")


def build_net(described: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Build the network that a file describes, once its sizes were found to be those of the ``tensors`` in it.

    Raises:
        CheckpointError: for a network that is not of this package, or whose description is wrong.
    """
    if described["type"] not in _NETWORKS:
        raise CheckpointError(
            f"{path} holds the weights of a {described['type']}, which scoresde cannot build; pass one as net=.."
        )
    make, config = _NETWORKS[described["type"]], described.get("config", {})
    with _at_most(tensors.values()):
        with torch.device("meta"):  # takes no memory
            outline = _construct(make, config, path)
        own = {name: value.shape for name, value in outline.state_dict().items()}
        if own != {name: value.shape for name, value in tensors.items()}:
            return typing.cast(nn.Module, outline)  # whoever fills it says what does not fit
        return typing.cast(nn.Module, _construct(make, config, path))


def build_process(described: Mapping[str, Any], time: str, path: str | Path) -> GaussianSDE | Chain:
    """Build the SDE or chain that a file describes.

    Raises:
        CheckpointError: for one of the user's own, or whose description is wrong.
    """
    fields = {name: value for name, value in described.items() if name not in ("type", "identity", "marginals")}
    if described["type"] not in _PROCESSES or "identity" in described:
        given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        raise CheckpointError(
            f"{path} holds a model under {described['type']}, an SDE of your own, whose code is in no file; pass it when "
            f"loading: load(.., sde={described['type']}({given or '..'}))"
        )
    process: GaussianSDE | Chain = _construct(_PROCESSES[described["type"]], fields, path)
    return process.sde() if isinstance(process, Chain) and time != "index" else process
