"""The files of a model in a folder of diffusers: configuration, tensors in one file or several, and scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from scoresde.weights.diffusers.schedulers import Scheduler
from scoresde.weights.files import WeightsError, read_json, read_tensors

__all__ = ["Files", "check_sizes", "find", "refuse"]

T = TypeVar("T")
_PARTS = ("unet", "transformer", "prior", "")
"""The folders of a pipeline that may hold its denoiser; the last is the folder itself."""
_STEMS = ("diffusion_pytorch_model", "model")
_LARGEST = 2**20
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class _Kind:
    """The entry of a configuration that names its class."""

    _class_name: str | None = None


@dataclass(frozen=True)
class _Index:
    """The names of the files of a model whose tensors are in several."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Files:
    """The files of one model.

    Args:
        place: the folder with ``config.json`` and the tensors.
        root: the folder that was asked for, which is ``place`` or a pipeline that contains it.
    """

    place: Path
    root: Path

    @property
    def config_file(self) -> Path:
        """The file with the configuration of the network."""
        return self.place / "config.json"

    @property
    def kind(self) -> str | None:
        """The name of the network's class in diffusers, or ``None`` where the configuration does not state it."""
        return read_json(self.config_file, _Kind)._class_name

    def config(self, kind: type[T]) -> T:
        """Read the configuration of the network as an object of the dataclass ``kind``."""
        return read_json(self.config_file, kind)

    @property
    def scheduler_file(self) -> Path:
        """The file with the configuration of the scheduler.

        Raises:
            WeightsError: if there is none.
        """
        places = (self.root / "scheduler", self.root, self.place, self.place.parent / "scheduler")
        found = next((p / "scheduler_config.json" for p in places if (p / "scheduler_config.json").is_file()), None)
        if found is None:
            raise WeightsError(
                f"{self.root} has no scheduler_config.json, which contains the noise schedule; copy it beside config.json"
            )
        return found

    def scheduler(self) -> Scheduler:
        """Read the configuration of the scheduler."""
        return read_json(self.scheduler_file, Scheduler)

    def tensors(self) -> dict[str, Tensor]:
        """Read the tensors, from one file or from the files that an index names.

        Raises:
            WeightsError: if a file is missing or cannot be read.
        """
        names = [f"{stem}.{ending}" for stem in _STEMS for ending in ("safetensors", "bin")]
        if (file := next((self.place / name for name in names if (self.place / name).is_file()), None)) is not None:
            return _renamed(read_tensors(file))
        indices = [self.place / f"{stem}.safetensors.index.json" for stem in _STEMS]
        if (index := next((path for path in indices if path.is_file()), None)) is None:
            raise WeightsError(f"{self.place} has no weights; expected {' or '.join(names[:2])}: copy one of them there")
        files = sorted(set(read_json(index, _Index).weight_map.values()))
        if outside := [name for name in files if Path(name).name != name]:
            raise WeightsError(
                f"{index} names a file outside its folder, {outside[0]!r}; expected the names of files beside it"
            )
        return _renamed({name: tensor for file in files for name, tensor in read_tensors(self.place / file).items()})

    def check_depth(self, layers: int, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a configuration with more layers than there are tensors, before a network of so many is built."""
        if layers > len(tensors):
            raise WeightsError(
                f"{self.config_file} has more layers than {self.place} has tensors, {len(tensors)}; expected the "
                "configuration of these weights"
            )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention layers of files from before diffusers 0.15 to the names used since."""
    renamed = {}
    for name, tensor in tensors.items():
        place, _, parameter = name.rpartition(".")
        before, _, layer = place.rpartition(".")
        renamed[f"{before}.{_OLD_ATTENTION[layer]}.{parameter}" if layer in _OLD_ATTENTION else name] = tensor
    return renamed


def find(folder: Path, parts: Iterable[str] = _PARTS) -> Files | None:
    """Return the files of the denoiser in a folder of diffusers, flat or a pipeline; ``None`` where there is none.

    Example:
        >>> find(Path("no-such-folder")) is None
        True
    """
    places = (folder / part if part else folder for part in parts)
    found = next((place for place in places if (place / "config.json").is_file()), None)
    return None if found is None else Files(found, folder)


def check_sizes(config: Any, names: Iterable[str], source: str) -> None:
    """Refuse entries of a configuration that are not whole numbers from 1 on, or several of them; ``None`` is accepted.

    Raises:
        WeightsError: for a number out of range, and for an empty list.
    """
    for name in names:
        value = getattr(config, name)
        values = [1] if value is None else list(value) if isinstance(value, tuple) else [value]
        if not values or not 1 <= min(values) <= max(values) <= _LARGEST:
            raise WeightsError(f"{source} has {name}={value}; expected whole numbers from 1 to {_LARGEST}")


def refuse(config: Any, expected: Mapping[str, tuple[Any, ...]], source: str) -> None:
    """Refuse entries of a configuration that have no equivalent here.

    Args:
        config: the configuration.
        expected: the values that have one, by the name of the entry.
        source: the name of the file, for messages.

    Raises:
        WeightsError: for another value.
    """
    for name, allowed in expected.items():
        if getattr(config, name) not in allowed:
            raise WeightsError(f"{source} has {name}={getattr(config, name)!r}; expected {' or '.join(map(repr, allowed))}")
