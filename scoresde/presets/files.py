"""The files of the presets, read."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from scoresde.base.names import Table

__all__ = ["PRESETS", "TABLES", "Preset", "get", "read"]

_FOLDER = files("scoresde.presets")

TABLES = ("sample", "published", "cost")
"""What a file holds beside options of ``scoresde train``."""


@dataclass(frozen=True)
class Preset:
    """A published training.

    Args:
        name: what it is called.
        train: options of ``scoresde train``.
        sample: options of ``scoresde evaluate``: the sampler of the paper, and how many samples its FID is of.
        published: ``fid``, ``evaluations`` of the network for a sample, ``images`` that the training sees, ``source``, and
            ``hardware``, as the paper states it.
        cost: ``a100-hours``, of :func:`gpu_hours`.
        text: the file.
    """

    name: str
    train: Mapping[str, Any] = field(repr=False)
    sample: Mapping[str, Any] = field(repr=False)
    published: Mapping[str, Any] = field(repr=False)
    cost: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)

    @property
    def images(self) -> int:
        """How many images these options train on."""
        return int(self.train["steps"]) * int(self.train["batch-size"])


def read(text: str, name: str) -> Preset:
    """Return the preset that ``text`` holds, in TOML, under ``name``.

    Raises:
        ValueError: if it is no TOML, or lacks one of :data:`TABLES`.
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
"""The presets by name: functions that read their file."""


def get(name: str) -> Preset:
    """Return the preset called ``name``.

    Raises:
        ValueError: if there is none, with the nearest names.

    Example:
        >>> preset = get("edm-cifar10-vp")
        >>> preset.images, preset.published["fid"]
        (200000000, 1.97)
    """
    return PRESETS[name]()
