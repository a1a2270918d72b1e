"""How the steps of a training are made: optimizer, learning rate, averages, augmentation, arithmetic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.identity import tell
from scoresde.base.names import Table
from scoresde.base.options import check_options, option
from scoresde.data import Augmentation
from scoresde.training.batches import Batches
from scoresde.training.optimization.averages import Average, average
from scoresde.training.optimization.optimizers import MakeOptimizer
from scoresde.training.optimization.schedules import Constant, Schedule, schedule

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
    """How a training is done, whatever the model and the data.

    Raises:
        ValueError: for what its settings cannot be.

    Example:
        >>> method = Method(lr=2e-4, warmup=3, schedule="linear-100")
        >>> [round(method.lr_of(step), 8) for step in (0, 1, 50, 100)]
        [5e-05, 9.9e-05, 0.0001, 0.0]
    """

    batch_size: int = option(128, "Samples per step, of all processes together.", least=1)
    optimizer: str | MakeOptimizer = option(
        "adam", "A name of torch.optim, with settings: 'adamw: betas=[0.9, 0.99], weight_decay=0.01'."
    )
    """A name, or a function of the parameters: ``functools.partial(torch.optim.AdamW, betas=(0.9, 0.99))``. Its learning
    rate is ``lr``; groups of parameters with one of their own keep its ratio to that of the optimizer."""
    lr: float = option(1e-3, "Learning rate, reached in a straight line over the warm-up.", above=0)
    warmup: int = option(100, "Steps until it is reached.", least=0)
    schedule: str | Schedule = option(
        "constant", "What multiplies the learning rate: constant, cosine-5000, linear-5000, inverse-sqrt-70000."
    )
    clip: float = option(1.0, "Largest norm of the gradient; a larger one is scaled down to it.", above=0)
    ema: float | str | Average | None = option(
        0.999, "Decay per step of the average of the weights to sample from, or none.", kind=str
    )
    """A decay, an average, its name, or ``None`` for the last weights."""
    averages: Sequence[float | str | Average] = option(
        (), "One more average, such as power-0.1 or exponential-0.99; may be repeated.", kind=str, name="average"
    )
    seed: int = option(0, "The seed of everything random.")
    augmentation: Augmentation | float | None = option(
        None, "Probability of EDM's geometric augmentation, of which the network is told.", kind=float, name="augment"
    )
    """Of images, for a network that takes its description as the condition ``augment``. A report and a monitor see images as
    they are."""
    workers: int = option(0, "Processes that read data ahead.", least=0)
    precision: str = option("fp32", "fp32, bf16, or fp16 with a scaled loss: of the network's arithmetic.")
    accumulate: int = option(1, "Parts in which a batch is worked through, to save memory.", least=1)
    compile: bool = option(False, "Compile the network.")
    channels_last: bool = option(False, "Lay images out with their channels last.")
    nonfinite: str = option(
        "stop", "stop or skip: what to do at a loss that is not finite. The weights never see it.", choices=("stop", "skip")
    )

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "precision", PRECISIONS.name(self.precision))
        object.__setattr__(self, "schedule", schedule(self.schedule))
        if isinstance(self.augmentation, int | float):
            object.__setattr__(self, "augmentation", Augmentation(self.augmentation) if self.augmentation else None)
        if self.augmentation is not None and not isinstance(self.augmentation, Augmentation):
            raise TypeError(
                f"got augmentation={self.augmentation!r:.60}; expected one of scoresde.data, such as Augmentation(p=0.12)"
            )
        object.__setattr__(self, "ema", average(self.ema))
        object.__setattr__(self, "averages", tuple(a for a in map(average, self.averages) if a is not None))
        self.kept_averages()

    def kept_averages(self) -> list[Average]:
        """All averages, of which the first is the one to sample from.

        Raises:
            ValueError: if one is there twice.
        """
        kept = cast(list[Average], [a for a in (self.ema, *self.averages) if a is not None])
        if len({a.name for a in kept}) < len(kept):
            raise ValueError(f"got the averages {', '.join(a.name for a in kept)}; expected each once")
        return kept

    def lr_of(self, step: int) -> float:
        """Return the learning rate after ``step`` steps: a line up to ``lr`` over the warm-up, times the schedule."""
        return self.lr * min(1.0, (step + 1) / (self.warmup + 1)) * cast(Schedule, self.schedule).factor(step)

    def description(self, optimizer: str) -> dict[str, Any]:
        """What a resumed training must share; what is as usual is left out, as older files do not know of it."""
        changed = {
            "precision": (self.precision, "fp32"),
            "optimizer": (optimizer, "Adam"),
            "schedule": (tell(self.schedule), tell(Constant())),
            "augmentation": (tell(self.augmentation), tell(None)),
        }
        numbers = {"lr": self.lr, "warmup": self.warmup, "clip": self.clip}
        return numbers | {name: value for name, (value, usual) in changed.items() if value != usual}

    def check(self, batches: Batches, net: Callable[..., Tensor]) -> None:
        """Refuse to augment what are no images, or for a network that could not be told.

        Raises:
            ValueError: in these cases.
        """
        if not isinstance(self.augmentation, Augmentation):
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
