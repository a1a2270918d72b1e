"""Checkpoints: safetensors files that are replaced as a whole.

The header holds a JSON text that describes the model and the training (:mod:`~scoresde.training.files.description`), a
checksum of each tensor and a checksum of the header. The body holds tensors: ``model.*`` the weights, ``ema.*`` their
averages, ``companion.*`` and ``ema_companion.*`` the weights and averages of the objective's companion, ``optimizer.*`` and
``history`` the state of the training. Nothing is ever unpickled, and nothing in a file is used before it is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.base.files import replacing
from scoresde.base.version import __version__
from scoresde.score import ScoreModel
from scoresde.training.files.description import CheckpointError, check

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "average_group",
    "companion_of",
    "fill",
    "group_of",
    "read",
    "weights",
    "write",
]

FORMAT = 4  # files of earlier formats have no checksums
_KEY, _SUMS, _WHOLE = "scoresde", "checksums", "header"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint: its description and its tensors by name."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors ``name.*``, without this prefix in their names."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


# Files ---------------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; at every instant ``path`` is either the old file or the complete new one."""
    from safetensors.torch import save as serialize

    versions = {"format": FORMAT, "scoresde": __version__, "torch": torch.__version__}
    # Tensors are copied, since safetensors can write neither shared memory (tied weights) nor the memory of a device.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    told = json.dumps({"versions": versions, **description})
    sums = json.dumps({name: _checksum(tensor) for name, tensor in copies.items()})
    content = serialize(copies, metadata={_KEY: told, _SUMS: sums, _WHOLE: _of_header(told, sums)})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def read(path: str | os.PathLike[str], groups: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint: all of its tensors, or only the tensors of ``groups``, the first parts of their names.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, not a safetensors file, or not written by scoresde.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a", {"process": {"type": "VP"}}, {"model.w": torch.ones(2), "ema.w": torch.zeros(2)})
        ...     read(f"{folder}/a", ("ema",)).group("ema")
        {'w': tensor([0., 0.])}
    """
    path = Path(path)
    for _ in range(_ATTEMPTS):
        version = _version(path)
        try:
            found = _read(path, groups)
        except CheckpointError:
            if _version(path) == version:
                raise
            continue
        if _version(path) == version:
            return found
    return _read(path, groups)


_ATTEMPTS = 20  # safetensors opens a file twice, and another process may put a new version in its place in between


def _version(path: Path) -> tuple[int, ...]:
    """Return what differs between two versions of a file that was replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path, groups: Collection[str] | None) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    _check_is_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            description, sums = _header(path, metadata)
            names = set(file.keys())
            if names != sums.keys():
                raise CheckpointError(
                    f"{path} is damaged: its header lists {len(sums)} tensors and its body holds {len(names)}, or "
                    "others; take an older checkpoint, or a copy"
                )
            wanted = [key for key in names if groups is None or key.split(".")[0] in groups]
            tensors = {key: file.get_tensor(key) for key in sorted(wanted)}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is truncated or damaged: {error}; take an older checkpoint, or a copy") from error
    for name, tensor in tensors.items():
        if _checksum(tensor) != sums[name]:
            raise CheckpointError(
                f"{path} is damaged: the tensor {name} is not the one that was written; take an older checkpoint, or a copy"
            )
    return Checkpoint(description, tensors)


def _checksum(tensor: Tensor) -> str:
    sha = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    sha.update(memoryview(cast(Any, tensor.flatten().view(torch.uint8).numpy())) if tensor.numel() else b"")
    return sha.hexdigest()


def _of_header(told: str, sums: str) -> str:
    return hashlib.blake2b(f"{told}\0{sums}".encode(), digest_size=16).hexdigest()


def _check_is_safetensors(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}; expected the path of a file or run folder: check the path")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file; expected a checkpoint written by scoresde")
    with open(path, "rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise CheckpointError(f"{path} holds {len(start)} bytes: the checkpoint is truncated; take an older one, or a copy")
    if start[8:9] != b"{":
        pickled = start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"
        what = " (it looks like a pickle, which can run any code and is never opened)" if pickled else ""
        raise CheckpointError(f"{path} is not a safetensors file{what}; expected a checkpoint written by scoresde")


def _header(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check the header, and return its description and its checksums."""
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of scoresde's: its header has no {_KEY!r} entry. To use its "
            "weights, read them with safetensors.torch.load_file into a network of your own"
        )
    try:
        description = json.loads(metadata[_KEY])
        version = description["versions"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged description in its header: {error!r:.200}") from error
    if version != FORMAT:
        other = "an earlier" if isinstance(version, int) and 0 < version < FORMAT else "another"
        raise CheckpointError(
            f"{path} has format {version!r:.40}, written by {other} version of scoresde; this one reads format {FORMAT}: "
            "use that version, or train again"
        )
    told, sums = metadata[_KEY], metadata.get(_SUMS, "")
    if metadata.get(_WHOLE) != _of_header(told, sums):
        raise CheckpointError(
            f"{path} has a damaged header: its description is not the one that was written; take an older "
            "checkpoint, or a copy"
        )
    return check(description, path), json.loads(sums)


# Tensors -------------------------------------------------------------------------------------------------------------


def group_of(index: int) -> str:
    """Return the group name of the tensors of an average: ``ema`` for the first, used for sampling, then ``ema1``, ..

    Example:
        >>> group_of(0), group_of(1)
        ('ema', 'ema1')
    """
    return f"ema{index}" if index else "ema"


def average_group(description: Mapping[str, Any], ema: bool | str, path: str | os.PathLike[str]) -> str:
    """Return the group name of the weights or average in a file that the argument ``ema`` of :func:`load` selects.

    Raises:
        CheckpointError: if the file has no average with the name ``ema``.

    Example:
        >>> average_group({"averages": ["power-0.05", "power-0.1"]}, "power-0.1", "model.safetensors")
        'ema1'
    """
    names = description.get("averages", [])
    if isinstance(ema, bool):
        return "ema" if ema and names else "model"
    if ema not in names:
        raise CheckpointError(
            f"{path} holds no average called {ema!r}; it holds {', '.join(names) or 'none'}: pass the name of one, or "
            "ema=False for the last weights"
        )
    return group_of(names.index(ema))


def companion_of(group: str) -> str:
    """Return the group name of the companion's tensors that belong to the weights in ``group``.

    Example:
        >>> companion_of("model"), companion_of("ema")
        ('companion', 'ema_companion')
    """
    return "companion" if group == "model" else f"{group}_companion"


def _wrappers(module: nn.Module) -> list[str]:
    """Return the prefixes that ``torch.compile`` and data-parallel wrappers add to the names of a module's tensors."""
    found = []
    for name, inner in module.named_modules():
        place = f"{name}." if name else ""
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            found.append(f"{place}module.")
        elif "_orig_mod" in inner._modules:
            found.append(f"{place}_orig_mod.")
    return sorted(found, key=len, reverse=True)  # the innermost first


def _plain_names(module: nn.Module) -> dict[str, str]:
    """Map the names of a module's tensors to the names without the prefixes of wrappers."""
    names = {}
    prefixes = _wrappers(module)
    for name in module.state_dict():
        plain = name
        for prefix in prefixes:
            if plain.startswith(prefix):
                outer = prefix.removesuffix(".").rpartition(".")[0]
                plain = (f"{outer}." if outer else "") + plain.removeprefix(prefix)
        names[name] = plain
    return names


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module by name, without the prefixes of compilation and data-parallel wrappers.

    Raises:
        CheckpointError: if the state of the module holds anything but tensors.

    Example:
        >>> sorted(weights(nn.DataParallel(nn.Linear(1, 1))))
        ['bias', 'weight']
    """
    state = module.state_dict()
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(
            f"the network's state holds {_some(foreign)}, not tensors; expected only "
            "tensors: move them out of the state of the network"
        )
    return {plain: state[name] for name, plain in _plain_names(module).items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str], *, assign: bool = False) -> None:
    """Load ``tensors`` into ``module`` by name.

    Raises:
        CheckpointError: if a tensor is missing, surplus or of another shape. The module is then left as it was.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> fill(net, {"weight": torch.full((1, 1), 2.0), "bias": torch.zeros(1)}, "model.safetensors")
        >>> net.weight.item()
        2.0
    """
    names = _plain_names(module)
    own = {plain: value for value, plain in zip(module.state_dict().values(), names.values(), strict=True)}
    missing, surplus = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    reshaped = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or surplus or reshaped:
        shapes = [f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}" for name in reshaped]
        listed = (("lacks", missing), ("also holds", surplus), ("has in another shape", shapes))
        kind = type(module.net if isinstance(module, ScoreModel) else module).__name__
        problems = "; it ".join(f"{what} {_some(names)}" for what, names in listed if names)
        raise CheckpointError(
            f"{path} is of another architecture than this {kind}: it {problems}; take the one that it was saved with"
        )
    module.load_state_dict({name: tensors[plain] for name, plain in names.items()}, assign=assign)


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
