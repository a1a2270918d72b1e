"""The settings of the steps of a training: optimizer, learning rate, averages, augmentation, precision."""

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
    expects="a torch.dtype, or None for the dtype of the weights",
)
"""The dtypes of autocast by name; ``None`` computes in the dtype of the weights."""


@dataclass(frozen=True)
class Method:
    """The settings of a training that depend neither on the model nor on the data.

    Raises:
        ValueError: for a setting out of its range, an unknown name, or an average that is listed twice.
        TypeError: for an ``augmentation`` that is neither a probability nor an augmentation.

    Example:
        >>> method = Method(lr=2e-4, warmup=3, schedule="linear-100")
        >>> [round(method.lr_of(step), 8) for step in (0, 1, 50, 100)]
        [5e-05, 9.9e-05, 0.0001, 0.0]
    """

    batch_size: int = option(128, "Samples per step, of all processes together.", least=1)
    optimizer: str | MakeOptimizer = option(
        "adam", "A name of torch.optim, with settings: 'adamw: betas=[0.9, 0.99], weight_decay=0.01'."
    )
    """A name, or a function of the parameters: ``functools.partial(torch.optim.AdamW, betas=(0.9, 0.99))``. The learning
    rate is ``lr``. A parameter group with its own learning rate keeps its ratio to the learning rate of the optimizer."""
    lr: float = option(1e-3, "Learning rate after a linear warm-up.", above=0)
    warmup: int = option(100, "Steps of the linear warm-up of the learning rate.", least=0)
    schedule: str | Schedule = option(
        "constant", "Schedule of the learning rate: constant, cosine-5000, linear-5000, inverse-sqrt-70000."
    )
    clip: float = option(1.0, "Largest norm of the gradient; larger gradients are scaled down.", above=0)
    ema: float | str | Average | None = option(
        0.999,
        "Decay per step of the average of the weights, which sampling uses; none for the last weights.",
        kind=str,
    )
    """A decay, an average, its name, or ``None`` for the last weights."""
    averages: Sequence[float | str | Average] = option(
        (),
        "A further average of weights, such as power-0.1 or exponential-0.99; may be repeated.",
        kind=str,
        name="average",
    )
    seed: int = option(0, "Seed of the batches, times, noise and dropout.")
    augmentation: Augmentation | float | None = option(
        None,
        "Probability of EDM's geometric augmentations, on which the network is conditioned.",
        kind=float,
        name="augment",
    )
    """A probability or a :class:`~scoresde.data.Augmentation` of images. The network takes the description of the
    augmentation as the condition ``augment``. Reports and monitors see images without augmentation."""
    workers: int = option(0, "Processes that read data ahead.", least=0)
    precision: str = option("fp32", "Precision of the network's arithmetic: fp32, bf16, or fp16 with a scaled loss.")
    accumulate: int = option(1, "Parts of a batch whose gradients are accumulated, to save memory.", least=1)
    compile: bool = option(False, "Compile the network.")
    channels_last: bool = option(False, "Store images with their channels last.")
    nonfinite: str = option(
        "stop",
        "What to do at a loss that is not finite, which never changes the weights: stop or skip.",
        choices=("stop", "skip"),
    )

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "precision", PRECISIONS.name(self.precision))
        object.__setattr__(self, "schedule", schedule(self.schedule))
        if isinstance(self.augmentation, int | float):
            object.__setattr__(self, "augmentation", Augmentation(self.augmentation) if self.augmentation else None)
        if self.augmentation is not None and not isinstance(self.augmentation, Augmentation):
            raise TypeError(
                f"got augmentation={self.augmentation!r:.60}; expected a probability or an augmentation: pass "
                "scoresde.data.Augmentation(p=0.12)"
            )
        object.__setattr__(self, "ema", average(self.ema))
        object.__setattr__(self, "averages", tuple(a for a in map(average, self.averages) if a is not None))
        self.kept_averages()

    def kept_averages(self) -> list[Average]:
        """Return all averages; sampling uses the first.

        Raises:
            ValueError: if an average is listed twice.
        """
        kept = cast(list[Average], [a for a in (self.ema, *self.averages) if a is not None])
        if len({a.name for a in kept}) < len(kept):
            raise ValueError(f"got the averages {', '.join(a.name for a in kept)}; expected each average once")
        return kept

    def lr_of(self, step: int) -> float:
        """Return the learning rate after ``step`` steps: a linear warm-up to ``lr``, times the factor of the schedule."""
        return self.lr * min(1.0, (step + 1) / (self.warmup + 1)) * cast(Schedule, self.schedule).factor(step)

    def description(self, optimizer: str) -> dict[str, Any]:
        """Return the settings that a resumed training must share. Default settings are left out."""
        changed = {
            "precision": (self.precision, "fp32"),
            "optimizer": (optimizer, "Adam"),
            "schedule": (tell(self.schedule), tell(Constant())),
            "augmentation": (tell(self.augmentation), tell(None)),
        }
        numbers = {"lr": self.lr, "warmup": self.warmup, "clip": self.clip}
        return numbers | {name: value for name, (value, usual) in changed.items() if value != usual}

    def check(self, batches: Batches, net: Callable[..., Tensor]) -> None:
        """Check that the data can be augmented and that the network takes the condition ``augment``.

        Raises:
            ValueError: if the samples are not images, or the network takes no descriptions of that length.
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
                f"network that takes it, such as UNet(.., augment={self.augmentation.size})"
            )
