"""The files of the presets, read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from scoresde.base.names import near

__all__ = ["NAMES", "TABLES", "Preset", "get"]

_FOLDER = files("scoresde.presets")

NAMES = tuple(sorted(file.name.removesuffix(".toml") for file in _FOLDER.iterdir() if file.name.endswith(".toml")))
"""The names of the presets."""

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


def get(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        ValueError: if there is none, with the nearest names.

    Example:
        >>> preset = get("edm-cifar10-vp")
        >>> preset.images, preset.published["fid"]
        (200000000, 1.97)
    """
    if name not in NAMES:
        raise ValueError(f"got preset {name!r}; expected one of {', '.join(NAMES)}{near(name, NAMES)}")
    text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    tables = {table: content.pop(table) for table in TABLES}
    return Preset(name, content, text=text, **tables)
