"""The parts of a U-Net that have parameters, in the order in which all code bases build them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from scoresde.models import UNet

__all__ = ["Part", "parts"]


@dataclass(frozen=True)
class Part:
    """A part of a U-Net.

    Args:
        name: the name of its module here.
        kind: "embedding", "stem", "frames", "down", "shrink", "input", "middle", "up", "enlarge", "output" or "end".
        level: the level, counted from the full resolution.
        index: the index of a stage within its level, or of a block in the middle.
    """

    name: str
    kind: str
    level: int = 0
    index: int = 0


def parts(net: UNet) -> Iterator[Part]:
    """Yield the parts that have parameters, from the input to the output.

    Example:
        >>> [part.kind for part in parts(UNet(1, 4, (1,), blocks=1))]
        ['embedding', 'stem', 'down', 'middle', 'middle', 'up', 'up', 'end']
    """
    levels = len(net.down)
    yield Part("embedding", "embedding")
    yield Part("stem", "stem")
    if net.frames is not None:
        yield Part("frames", "frames")
    for i in range(levels):
        for j in range(len(cast(Any, net.down[i]).stages)):
            yield Part(f"down.{i}.stages.{j}", "down", i, j)
        if i < levels - 1:
            yield Part(f"down.{i}.resample", "shrink", i)
            if net.config["input_pyramid"] != "none":
                yield Part(f"down.{i}.pyramid", "input", i)
    for j in range(2):
        yield Part(f"middle.{j}", "middle", levels - 1, j)
    for position, i in enumerate(reversed(range(levels))):
        for j in range(len(cast(Any, net.up[position]).stages)):
            yield Part(f"up.{position}.stages.{j}", "up", i, j)
        if net.config["output_pyramid"] != "none":
            yield Part(f"up.{position}.pyramid", "output", i)
        if i:
            yield Part(f"up.{position}.resample", "enlarge", i)
    if net.output is not None:
        yield Part("", "end")
