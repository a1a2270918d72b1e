"""How the steps of a training are made: optimizer, step size, augmentation, arithmetic."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.data import Augmentation
from scoresde.training.batches import Batches
from scoresde.training.optimization.optimizers import MakeOptimizer
from scoresde.training.optimization.schedules import Constant, Schedule

__all__ = ["PRECISIONS", "Method"]

PRECISIONS: Table[torch.dtype | None] = Table(
    "precision",
    "scoresde.training.method.PRECISIONS",
    {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16},
    check=lambda value: value is None or isinstance(value, torch.dtype),
    expects="a torch.dtype, or None for that of the weights",
)
"""The types of the network's arithmetic by name; ``None`` for that of the weights."""


@dataclass(frozen=True)
class Method:
    """What a step does, whatever the model and the data; the arguments of :class:`Trainer` of the same names.

    Raises:
        ValueError: for what they cannot be.
    """

    lr: float
    warmup: int
    clip: float
    optimizer: str | MakeOptimizer = "adam"
    schedule: Schedule = Constant()  # noqa: RUF009  # frozen
    augmentation: Augmentation | None = None
    precision: str = "fp32"
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = False
    nonfinite: str = "stop"

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("clip", self.clip)):
            if not value > 0:
                raise ValueError(f"got {name}={value}; expected a positive number")
        if self.warmup < 0:
            raise ValueError(f"got warmup={self.warmup}; expected a whole number of at least 0")
        object.__setattr__(self, "precision", PRECISIONS.name(self.precision))
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(f"got accumulate={self.accumulate!r}; expected a whole number of at least 1")
        if self.nonfinite not in ("stop", "skip"):
            raise ValueError(f"got nonfinite={self.nonfinite!r}; expected 'stop' or 'skip'")
        if self.augmentation is not None and not isinstance(self.augmentation, Augmentation):
            raise TypeError(
                f"got augmentation={self.augmentation!r:.60}; expected one of scoresde.data, such as Augmentation(p=0.12)"
            )

    def step_size(self, step: int) -> float:
        """That of the step after ``step`` steps: a straight line up to ``lr`` over the warm-up, times the schedule."""
        return self.lr * min(1.0, (step + 1) / (self.warmup + 1)) * self.schedule.factor(step)

    def description(self, optimizer: str) -> dict[str, Any]:
        """What a resumed training must share; what is as usual is left out, as older files do not know of it."""
        changed = {
            "precision": (self.precision, "fp32"),
            "optimizer": (optimizer, "Adam"),
            "schedule": (repr(self.schedule), repr(Constant())),
            "augmentation": (repr(self.augmentation), "None"),
        }
        numbers = {"lr": self.lr, "warmup": self.warmup, "clip": self.clip}
        return numbers | {name: value for name, (value, usual) in changed.items() if value != usual}

    def check(self, batches: Batches, net: Callable[..., Tensor]) -> None:
        """Refuse to augment what are no images, or for a network that could not be told.

        Raises:
            ValueError: in these cases.
        """
        if self.augmentation is None:
            return
        event = batches.event()
        if len(event) != 3:
            raise ValueError(f"got augmentation for samples of shape {event}; expected images (c, h, w)")
        parameters = inspect.signature(getattr(net, "forward", net)).parameters
        taken = "augment" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        size = getattr(net, "config", {}).get("augment", self.augmentation.size)
        if not taken or size != self.augmentation.size:
            found = f"one of length {size}" if taken and size else "none"
            raise ValueError(
                f"got augmentation for a {type(net).__name__} that takes {found} as its condition 'augment'; expected a "
                f"network that is told, such as UNet(.., augment={self.augmentation.size})"
            )
