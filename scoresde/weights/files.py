"""Reading of tensors from files without running code in them."""

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
_OF_TORCH = (b"PK", b"\x80")  # the first bytes of files by torch.save, in the current and the older format
_WRAPPERS = ("module.", "model.", "_orig_mod.")  # prefixes of DataParallel, EDM's preconditioning and torch.compile


class WeightsError(ValueError):
    """The error for a file whose weights cannot be used."""


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as an object of the dataclass ``kind``, whose fields declare the entries.

    Raises:
        WeightsError: if the file is missing, is not JSON, or has an entry of another type.
    """
    try:
        with open_regular(path) as file:
            return decode_json(file.read(), kind)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON of {kind.__name__}: {error}") from error


def read_tensors(path: str | os.PathLike[str], *, ema: bool = True) -> dict[str, Tensor]:
    """Read the tensors in a file by name, from safetensors or from ``torch.save`` with tensors and plain values alone.

    The checkpoints of NCSNv2 and score_sde_pytorch hold a network and its moving average. In the latter the averages have no
    names; they get the names of the network's tensors.

    Args:
        path: the file.
        ema: return the averaged weights, where the file has both.

    Raises:
        WeightsError: if the file is missing, damaged, or holds anything else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"module.w": torch.ones(2)}, f"{folder}/net.pt")
        ...     read_tensors(f"{folder}/net.pt")
        {'w': tensor([1., 1.])}
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"there is no file {path}; check the path")
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
    """Check that a tensor is dense, finite, and stored in full."""
    if not isinstance(name, str):
        raise WeightsError(f"{path} holds a tensor called {name!r}; expected a text for a name")
    dense = value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())
    if not dense or value.dtype == torch.bool:
        raise WeightsError(f"{path} holds {name}, a tensor of {value.layout} and {value.dtype}; expected dense numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise WeightsError(
            f"{path} holds {name} of shape {tuple(value.shape)}, with fewer numbers in the file; expected all"
        )
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise WeightsError(
            f"{path} holds {name}, which has nan or inf; expected finite numbers: the file may be damaged, download it again"
        )


def read_names(path: Path) -> list[str]:
    """Return the names of the tensors in a file; an empty list if it cannot be read.

    Example:
        >>> read_names(Path("no-such-file.pt"))
        []
    """
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
            raise ValueError(f"it starts with {start[:4]!r}, unlike files of safetensors and torch.save")
        if start.startswith(b"PK"):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickles of another kind also raise an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not opened further, since a pickle can "
            "run any code. If you trust it, load it with the code it comes from and save the network's state_dict() "
            f"with torch.save or safetensors ({str(error).partition(chr(10))[0]})"
        ) from error
    if isinstance(content, list) and content and isinstance(content[0], Mapping):  # a list of NCSNv2: network, .., averages
        content = {"model": content[0], **({"ema": content[4]} if len(content) > 4 else {})}
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected the tensors of a network by name")
    return content


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError(
                "it is a compressed archive, which torch.save does not write and which may have any size after decompression"
            )


def _averaged(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the network's tensors with the trained ones replaced by their averages, which are in the same order."""
    model, named = dict(content["model"]), content["ema"]
    if any(not isinstance(name, str) or not isinstance(value, Tensor) for name, value in model.items()):
        return model  # the caller refuses it
    if isinstance(named, Mapping) and named and all(f"module.{name}" in model for name in named):  # the form of NCSNv2
        return model | {f"module.{name}": average for name, average in named.items()}
    averages = content["ema"].get("shadow_params") if isinstance(content["ema"], Mapping) else None
    trained = [name for name in model if not name.endswith(("sigmas", "all_modules.0.W"))]
    if not isinstance(averages, list) or len(averages) != len(trained):
        found = len(averages) if isinstance(averages, list) else "no list of"
        raise WeightsError(
            f"{path} has {found} averages for {len(trained)} trained tensors; expected one for each: pass ema=False "
            "to load the last weights"
        )
    for name, average in zip(trained, averages, strict=True):
        if not isinstance(average, Tensor) or average.shape != model[name].shape:
            raise WeightsError(
                f"{path} has an average of another shape than {name}; pass ema=False to load the last weights"
            )
        model[name] = average
    return model
