"""Reading tensors from files without running anything that a file says."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.base.reading import check_regular, decode_json, open_regular

__all__ = ["WeightsError", "read_json", "read_names", "read_tensors"]

T = TypeVar("T")
_OF_TORCH = (b"PK", b"\x80")  # the starts of its files, of which the second is older
_WRAPPERS = ("module.", "model.", "_orig_mod.")  # of DataParallel, of EDM's preconditioning, and of torch.compile


class WeightsError(ValueError):
    """A file whose weights cannot be used, and why."""


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a value of ``kind``, a dataclass that says what each entry is.

    Raises:
        WeightsError: if it is missing, no JSON, or has an entry of another type.
    """
    try:
        with open_regular(path) as file:
            return decode_json(file.read(), kind)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON of {kind.__name__}: {error}") from error


def read_tensors(path: str | os.PathLike[str], *, ema: bool = True) -> dict[str, Tensor]:
    """The tensors in a file by name: safetensors, or a file of ``torch.save`` that holds tensors and plain values alone.

    The checkpoints of NCSNv2 and score_sde_pytorch hold a network and its moving average, the latter's without names, which
    here gets them.

    Raises:
        WeightsError: if the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"there is no file {path}")
    content = _open(path)
    if "model" in content and isinstance(content["model"], Mapping):
        content = _averaged(content, path) if ema and "ema" in content else content["model"]
    foreign = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign or not content:
        what = f"{foreign[0]!r} is a {type(content[foreign[0]]).__name__}" if foreign else "it is empty"
        raise WeightsError(f"{path} does not hold the tensors of a network by name: {what}; save its state_dict()")
    for name, value in content.items():
        _check_tensor(name, value, path)
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in content)), None):
        content = {name.removeprefix(wrapper): value for name, value in content.items()}
    return dict(content)


def _check_tensor(name: object, value: Tensor, path: Path) -> None:
    """Refuse tensors that are not what a file of weights holds: dense numbers, each of which is in the file."""
    if not isinstance(name, str):
        raise WeightsError(f"{path} holds a tensor called {name!r}; expected a name that is text")
    dense = value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())
    if not dense or value.dtype == torch.bool:
        raise WeightsError(f"{path} holds {name}, a tensor of {value.layout} and {value.dtype}; expected dense numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise WeightsError(f"{path} holds {name} of shape {tuple(value.shape)}, which repeats few numbers; expected all")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise WeightsError(f"{path} holds {name}, which is not all finite: it may be damaged")


def read_names(path: Path) -> list[str]:
    """The names of the tensors in a file; none where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError):
        pass
    try:
        return list(read_tensors(path))
    except (WeightsError, OSError):
        return []


def _open(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    try:
        with open_regular(path) as file:
            start = file.read(9)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot open {path}: {error}") from error
    try:
        if start[8:9] == b"{":
            return load_file(path)
        if not start.startswith(_OF_TORCH):
            raise ValueError(f"it starts with {start[:4]!r}, as neither safetensors nor torch.save begin")
        if start.startswith(b"PK"):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another kind, which are refused with an error of their own
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not opened further, since a pickle can "
            "run any code. Where you trust it, load it with the code it comes from and save the network's state_dict() "
            f"with torch.save or safetensors ({str(error).partition(chr(10))[0]})"
        ) from error
    if isinstance(content, list) and content and isinstance(content[0], Mapping):  # NCSNv2's: network, .., averages
        content = {"model": content[0], **({"ema": content[4]} if len(content) > 4 else {})}
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected the tensors of a network by name")
    return content


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is a compressed archive, which torch.save does not write, and may unpack to any size")


def _averaged(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The network with the averages of its trained tensors, which are listed in the order of the network's."""
    model, named = dict(content["model"]), content["ema"]
    if any(not isinstance(name, str) or not isinstance(value, Tensor) for name, value in model.items()):
        return model  # which is refused as it is
    if isinstance(named, Mapping) and named and all(f"module.{name}" in model for name in named):  # as NCSNv2 has them
        return model | {f"module.{name}": average for name, average in named.items()}
    averages = content["ema"].get("shadow_params") if isinstance(content["ema"], Mapping) else None
    trained = [name for name in model if not name.endswith(("sigmas", "all_modules.0.W"))]
    if not isinstance(averages, list) or len(averages) != len(trained):
        found = len(averages) if isinstance(averages, list) else "no list of"
        raise WeightsError(f"{path} has {found} averages for {len(trained)} trained tensors; pass ema=False to do without")
    for name, average in zip(trained, averages, strict=True):
        if not isinstance(average, Tensor) or average.shape != model[name].shape:
            raise WeightsError(f"{path} has an average of another shape than {name}; pass ema=False to do without")
        model[name] = average
    return model
