"""Descriptions of a model and its training in a checkpoint: written, checked, compared, and built again.

An SDE, chain or network of this package is described by its arguments, from which it is built again. A user's own class is
described by its name and its :func:`~scoresde.base.identity.digest`, which a resumed training compares. A user's own SDE is
also described by its marginals at a few times, which :func:`load` compares with those of the SDE that it is given. The
description in a file is checked by a schema, and the arguments in it by a schema of the class, before anything is built.
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
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from scoresde import discrete, models
from scoresde import sde as sdes
from scoresde.base.identity import digest
from scoresde.discrete import DenoisingModel, TokenProcess
from scoresde.score import LatentModel, MatrixModel, PointModel, ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.sde import chain as chains
from scoresde.sde.chain import Chain, ChainSDE

__all__ = [
    "CheckpointError",
    "build_net",
    "build_process",
    "build_token_model",
    "check",
    "check_marginals",
    "describe",
    "differences",
    "on_tokens",
    "unwrapped",
]

_SHORT = reprlib.Repr()
_SHORT.maxstring = 100
_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    cls.__name__: cls
    for cls in (
        models.MLP,
        models.UNet,
        models.DiT,
        models.NCSNv2,
        models.MMDiT,
        models.EmbeddingPrior,
        models.KLAutoencoder,
        models.VQAutoencoder,
        models.ContrastiveImages,
        models.SuperResolution,
        models.Inpainting,
        models.ImageEmbedded,
        models.TokenTransformer,
        models.EGNN,
    )
}
_SDES = (sdes.VP, sdes.CosineVP, sdes.SubVP, sdes.VE, sdes.EDM, sdes.RectifiedFlow)
_CHAINS = (chains.DDPM, chains.NCSN, chains.GaussianChain)
_PROCESSES: dict[str, Callable[..., GaussianSDE | Chain]] = {cls.__name__: cls for cls in (*_SDES, *_CHAINS)}
_MATRIX_SDES: dict[str, Callable[..., sdes.MatrixSDE]] = {
    cls.__name__: cls
    for cls in (sdes.CLD, sdes.ThirdOrderLangevin, sdes.LinearSDE, sdes.Anisotropic, sdes.Subspace, sdes.Blurring)
}
_TOKEN_PROCESSES: dict[str, Callable[..., TokenProcess]] = {
    cls.__name__: cls for cls in (discrete.Absorbing, discrete.Uniform, discrete.DiscretizedGaussian, discrete.RateMatrix)
}
_TOKEN_MODELS = (DenoisingModel, discrete.RatioModel)
_LARGEST = 2**31  # bound of whole numbers in a description: no size is larger


class CheckpointError(ValueError):
    """The error for a file that is missing, damaged, or not the checkpoint that is needed."""


# Schema --------------------------------------------------------------------------------------------------------------


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    """The description of a network or model: its class, and its arguments or a digest."""

    type: str
    config: dict[str, Any] = {}
    identity: str = ""


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    """The schema of a description."""

    versions: dict[str, Any]
    process: dict[str, Any]
    net: _Named | None = None
    model: _Named | None = None
    autoencoder: _Named | None = None
    points: int | None = None
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
    tuned: dict[str, Any] | None = None


def check(description: Any, path: str | Path) -> dict[str, Any]:
    """Check the description in a file against the schema, and return it unchanged.

    Raises:
        CheckpointError: for a description that does not follow the schema; names the wrong entry.
    """
    try:
        found = msgspec.convert(description, _Description)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged description in its header: {error}") from error
    if not isinstance(found.process.get("type"), str) or found.step < 0 or any(not 0 < n < _LARGEST for n in found.event):
        raise CheckpointError(
            f"{path} has a damaged description in its header: it has no process, or impossible "
            "numbers; take an older checkpoint, or a copy"
        )
    checked: dict[str, Any] = description
    return checked


def _schema(make: Callable[..., object]) -> type[msgspec.Struct]:
    """Return a schema of the arguments of a class; a tensor is a list of numbers in a file."""
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
    """Check the arguments in a file against the signature of a class of this package, and build the object."""
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
    """Convert a configuration to the form in which it is read from a file, so that the two can be compared."""
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def unwrapped(net: Any) -> Any:
    """Return the network inside the wrappers of ``torch.compile`` and of data parallelism.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
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
    """Return a digest of the code of a module and of its submodules' settings, without sizes and weights.

    Whole numbers are left out, since they are sizes or counters.
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
    if _MATRIX_SDES.get(type(process).__name__) is type(process):
        return _plain({"type": type(process).__name__, **{f.name: _as_plain(process, f.name) for f in fields_of(process)}})
    try:
        fields = _plain(process.config())
    except (ValueError, TypeError, AttributeError):
        fields = {}
    own = {"type": type(process).__qualname__, "identity": digest(process, libraries=False), "marginals": _marginals(sde)}
    return fields | own


def _as_plain(sde: Any, name: str) -> Any:
    """Return a field of an SDE with matrix coefficients as numbers, lists or, for its base, a description."""
    value = getattr(sde, name)
    if isinstance(value, Tensor):
        return value.tolist()
    return _describe_process(value) if isinstance(value, GaussianSDE) else value


def _marginals(sde: Any) -> list[list[float]]:
    """Return rows (t, log alpha, log sigma) at a few times; an empty list for an SDE without Gaussian marginals."""
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


def _describe_nulls(nulls: Mapping[str, Any]) -> dict[str, Any]:
    return {name: null.tolist() if isinstance(null, Tensor) else null for name, null in nulls.items()}


def describe(model: ScoreModel) -> dict[str, Any]:
    """Describe a score model by its network, process, prediction, function of time and, for a subclass, its class.

    A model of latents is described as its inner model, with the autoencoder; one of point sets with its coordinates.

    Example:
        >>> from scoresde import VP
        >>> describe(ScoreModel(models.MLP(2), VP(), "v"))["predicts"]
        'v'
    """
    if isinstance(model, DenoisingModel):
        return _describe_tokens(model)
    if type(model) is LatentModel:
        own = {"dropped": _describe_nulls(model.dropped)} if model.dropped is not None else {}
        return {**describe(model.model), "autoencoder": _describe_net(model.autoencoder), **own}
    if type(model) is PointModel and type(model.model) is ScoreModel:
        own = {"dropped": _describe_nulls(model.dropped)} if model.dropped is not None else {}
        return {**describe(model.model), "points": model.dims, **own}
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
        described["dropped"] = _describe_nulls(dropped)
    if type(model) not in (ScoreModel, MatrixModel):
        described["model"] = {"type": _qualified(model), "identity": _settings(model)}
    return _plain(described)


def _describe_tokens(model: DenoisingModel) -> dict[str, Any]:
    """Describe a model on tokens by its network, its process and its class, as ``predicts`` for the library's own."""
    process = model.process
    described: dict[str, Any] = {"process": process.config(), "net": _describe_net(model.net), "learned_variance": False}
    if _TOKEN_PROCESSES.get(type(process).__name__) is not type(process):
        described["process"] = {"type": _qualified(process), "identity": digest(process, libraries=False), "marginals": []}
    if type(model) in _TOKEN_MODELS:
        described["predicts"] = type(model).__name__
    else:
        described["model"] = {"type": _qualified(model), "identity": _settings(model)}
    if model.dropped is not None:
        described["dropped"] = {n: null.tolist() if isinstance(null, Tensor) else null for n, null in model.dropped.items()}
    return _plain(described)


# Comparing -----------------------------------------------------------------------------------------------------------


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the differences between two descriptions: for the name of each entry, a text with both values.

    Example:
        >>> differences({"training": {"lr": 0.1}}, {"training": {"lr": 0.2}})
        {'training.lr': 'training.lr=0.1 (here 0.2)'}
    """
    found: dict[str, str] = {}
    for name in sorted(stored.keys() | given.keys()):
        a, b, where = stored.get(name), given.get(name), f"{prefix}{name}"
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{where}.")
        elif name == "identity" and a != b:
            found[where] = f"the code or the settings of {prefix.rstrip('.')}"
        elif a != b and name != "marginals":
            found[where] = f"{where}={_SHORT.repr(a)} (here {_SHORT.repr(b)})"
    return found


def check_marginals(rows: Sequence[Sequence[float]], sde: GaussianSDE | Chain, path: str | Path) -> None:
    """Check that an SDE has the marginals in a file; its code may differ.

    Raises:
        CheckpointError: if a marginal differs; names the first such time.
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
                    f"{path} holds a model under another SDE than the one given: at t={t:.4g} log {name} is {a:.6g} in the "
                    f"file, and {b:.6g} for {sde!r:.100}; pass the SDE that it was trained under"
                )


# Building ------------------------------------------------------------------------------------------------------------


def build_token_model(described: Mapping[str, Any], net: nn.Module, path: str | Path) -> DenoisingModel:
    """Build the model on tokens that a description tells of, around its network.

    Raises:
        CheckpointError: for a process or a model of a class of one's own, or arguments that make none.
    """
    process = dict(described["process"])
    make = _TOKEN_PROCESSES.get(process.pop("type"))
    kind = next((cls for cls in _TOKEN_MODELS if cls.__name__ == described.get("predicts")), None)
    if make is None or kind is None:
        raise CheckpointError(
            f"{path} holds a model on tokens with a class of your own; a checkpoint contains no code: make the model as "
            "before its training and pass it: load(.., model=..)"
        )
    try:
        return kind(net, make(**process))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} describes a process on tokens that cannot be built: {str(error)[:300]}") from error


def on_tokens(described: Mapping[str, Any]) -> bool:
    """Tell whether a description is that of a model on tokens of a process of this package."""
    return described["process"]["type"] in _TOKEN_PROCESSES


_ALLOWED = threading.local()
"""The bounds of the network that a thread builds: ``count`` more parameters, each of at most ``largest`` numbers."""


@contextlib.contextmanager
def _at_most(tensors: Collection[Tensor]) -> Iterator[None]:
    """Stop the construction of a network with more parameters than a file has tensors, or with larger ones."""
    _watch()
    _ALLOWED.count, _ALLOWED.largest = 2 * len(tensors) + 16, max((t.numel() for t in tensors), default=0)
    try:
        yield
    finally:
        del _ALLOWED.count


@functools.cache
def _watch() -> None:
    """Check every parameter that is registered from now on.

    The hook is never removed. Its removal while another thread registers a parameter would break the construction there.
    """
    nn.modules.module.register_module_parameter_registration_hook(_check_parameter)


def _check_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is None or not hasattr(_ALLOWED, "count"):
        return
    _ALLOWED.count -= 1
    if _ALLOWED.count < 0 or parameter.numel() > _ALLOWED.largest:
        raise ValueError("it takes more tensors than there are in the file, or larger ones")


def build_net(described: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Build the network that a file describes, after its sizes are compared with the ``tensors`` in the file.

    Raises:
        CheckpointError: for a network that is not of this package, or a wrong description.
    """
    if described["type"] not in _NETWORKS:
        raise CheckpointError(
            f"{path} holds the weights of a {described['type']}, which scoresde cannot build; pass one as net=.., or the "
            "whole score model as model=.."
        )
    make, config = _NETWORKS[described["type"]], described.get("config", {})
    with _at_most(tensors.values()):
        with torch.device("meta"):  # takes no memory
            outline = _construct(make, config, path)
        own = {name: value.shape for name, value in outline.state_dict().items()}
        if own != {name: value.shape for name, value in tensors.items()}:
            return typing.cast(nn.Module, outline)  # fill() names the tensors that do not fit
        return typing.cast(nn.Module, _construct(make, config, path))


def build_process(described: Mapping[str, Any], time: str, path: str | Path) -> GaussianSDE | Chain | sdes.MatrixSDE:
    """Build the SDE or chain that a file describes.

    Args:
        described: the entry ``process`` of the description.
        time: the entry ``time``. A chain becomes an SDE unless the network gets the index of the step, ``"index"``.
        path: the file, for messages.

    Raises:
        CheckpointError: for a user's own SDE or chain, or a wrong description.

    Example:
        >>> build_process({"type": "VE", "sigma_max": 100.0}, "default", "model.safetensors").sigma_max
        100.0
    """
    fields = {name: value for name, value in described.items() if name not in ("type", "identity", "marginals")}
    if described["type"] in _MATRIX_SDES and "identity" not in described:
        if "base" in fields:
            fields["base"] = build_process(fields["base"], "default", path)
        return _made_of_matrices(_MATRIX_SDES[described["type"]], fields, path)
    if described["type"] not in _PROCESSES or "identity" in described:
        given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        raise CheckpointError(
            f"{path} holds a model under {described['type']}, an SDE of your own; a checkpoint contains no code: pass the "
            f"SDE: load(.., sde={described['type']}({given or '..'}))"
        )
    process: GaussianSDE | Chain = _construct(_PROCESSES[described["type"]], fields, path)
    return process.sde() if isinstance(process, Chain) and time != "index" else process


def _made_of_matrices(make: Callable[..., sdes.MatrixSDE], fields: Mapping[str, Any], path: str | Path) -> sdes.MatrixSDE:
    """Build an SDE with matrix coefficients, whose own checks refuse what is no matrix."""
    try:
        _check_sizes({name: value for name, value in fields.items() if name != "base"})
        made = {
            k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) and k != "size" else v for k, v in fields.items()
        }
        return make(**made)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, MemoryError) as error:
        raise CheckpointError(
            f"{path} describes a {getattr(make, '__name__', '?')} that cannot be built: {str(error)[:300]}"
        ) from error
