"""Reading of the preset files."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from scoresde.base.names import Table

__all__ = ["PRESETS", "TABLES", "Preset", "find_preset", "read"]

_FOLDER = files("scoresde.presets")

TABLES = ("sample", "published", "cost")
"""The tables in a preset file; all other entries are options of ``scoresde train``."""


@dataclass(frozen=True)
class Preset:
    """A published training.

    Args:
        name: the name of the preset.
        train: options of ``scoresde train``.
        sample: options of ``scoresde evaluate``: the paper's sampler, and the number of samples for its FID.
        published: the paper's ``fid``, network ``evaluations`` per sample, ``images`` seen in training, ``source`` and
            ``hardware``.
        cost: the estimate ``a100-hours`` by :func:`gpu_hours`.
        text: the content of the file.

    Example:
        >>> preset = find_preset("ddpm-cifar10")
        >>> preset.name, preset.images
        ('ddpm-cifar10', 102400000)
    """

    name: str
    train: Mapping[str, Any] = field(repr=False)
    sample: Mapping[str, Any] = field(repr=False)
    published: Mapping[str, Any] = field(repr=False)
    cost: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)

    @property
    def images(self) -> int:
        """The number of images seen in training, steps times batch size."""
        return int(self.train["steps"]) * int(self.train["batch-size"])


def read(text: str, name: str) -> Preset:
    r"""Parse the preset in a TOML text.

    Args:
        text: the content of the file.
        name: the name of the preset.

    Raises:
        ValueError: if the text is not TOML, or lacks one of :data:`TABLES`.

    Example:
        >>> preset = read("steps = 10\nbatch-size = 4\n[sample]\n[published]\n[cost]", "mine")
        >>> preset.name, preset.images
        ('mine', 40)
    """
    content = tomllib.loads(text)
    if missing := [table for table in TABLES if table not in content]:
        raise ValueError(f"got the preset {name!r} without {', '.join(missing)}; expected the tables {', '.join(TABLES)}")
    tables = {table: content.pop(table) for table in TABLES}
    return Preset(name, content, text=text, **tables)


def _read(file: Traversable) -> Preset:
    return read(file.read_text(encoding="utf-8"), file.name.removesuffix(".toml"))


_FILES = {file.name.removesuffix(".toml"): file for file in _FOLDER.iterdir() if file.name.endswith(".toml")}

PRESETS: Table[Callable[[], Preset]] = Table(
    "preset",
    "scoresde.presets.PRESETS",
    {name: functools.partial(_read, _FILES[name]) for name in sorted(_FILES)},
    check=callable,
    expects="a function without arguments that returns a Preset",
)
"""The presets by name, as functions that read their files."""


def find_preset(name: str) -> Preset:
    """Return the preset with this name.

    Raises:
        ValueError: for an unknown name; lists the nearest names.

    Example:
        >>> preset = find_preset("edm-cifar10-vp")
        >>> preset.images, preset.published["fid"]
        (200000000, 1.97)
    """
    return PRESETS[name]()
