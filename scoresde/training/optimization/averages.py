r"""Moving averages of the weights, and those that were not kept, reconstructed afterwards.

Every average is :math:`\bar\theta_t = \beta_t \bar\theta_{t-1} + (1 - \beta_t) \theta_t` with a :math:`\beta_t` that depends
on the number of the step, t = 1, 2, .., alone, and :math:`\beta_1 = 0`, so that it holds nothing of the untrained network
from before the first step.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.base.names import Table
from scoresde.score import ScoreModel
from scoresde.training.files import checkpoint, models
from scoresde.training.files.checkpoint import CheckpointError

__all__ = ["AVERAGES", "Average", "ExponentialAverage", "PowerAverage", "average", "combination", "reconstruct"]


@dataclass(frozen=True)
class ExponentialAverage:
    r"""The usual average: :math:`\beta_t = \min(decay, t / (9 + t))`, which remembers less at first.

    Args:
        decay: per step, at least 0 and less than 1.

    Example:
        >>> ExponentialAverage(0.99).name, ExponentialAverage(0.99).beta(1), ExponentialAverage(0.99).beta(10**6)
        ('exponential-0.99', 0.0, 0.99)
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"got ema={self.decay}; expected 0 <= ema < 1, such as 0.999")

    @property
    def name(self) -> str:
        """What it is called in files."""
        return f"exponential-{self.decay!r}"

    def beta(self, step: int) -> float:
        r""":math:`\beta_t` at step t."""
        return 0.0 if step == 1 else min(self.decay, step / (9 + step))


@dataclass(frozen=True)
class PowerAverage:
    r"""The power-function average of EDM2: the step :math:`\tau` weighs as :math:`\tau^\gamma`, whatever the length.

    .. math:: \beta_t = (1 - 1/t)^{\gamma + 1}, \qquad
              \bar\theta_t = \int_0^t \frac{(\gamma + 1)\, \tau^\gamma}{t^{\gamma + 1}}\, \theta(\tau)\, d\tau,

    exactly so for weights that are constant during a step.

    Args:
        sigma_rel: the standard deviation of that profile relative to the length of the training, between 0 and
            :math:`12^{-1/2}`, which is the plain mean.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
    https://arxiv.org/abs/2312.02696, section 3.1 and appendix C.

    Example:
        >>> round(PowerAverage(0.1).gamma, 3)
        6.937
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel < 12**-0.5:
            raise ValueError(f"got sigma_rel={self.sigma_rel}; expected more than 0 and less than 12^-1/2 = 0.2887")

    @property
    def name(self) -> str:
        """What it is called in files."""
        return f"power-{self.sigma_rel!r}"

    @property
    def gamma(self) -> float:
        r"""The exponent: the positive root of :math:`\sigma_{rel}^2 = (\gamma + 1) / ((\gamma + 2)^2 (\gamma + 3))`."""
        s = self.sigma_rel**-2
        return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())

    def beta(self, step: int) -> float:
        r""":math:`\beta_t` at step t."""
        return float((1 - 1 / step) ** (self.gamma + 1))


Average = ExponentialAverage | PowerAverage
"""Any of the averages."""


def average(given: float | str | Average | None) -> Average | None:
    """Return an average, the one of a name, the exponential one of a decay, or ``None`` for ``None`` and ``"none"``."""
    if given is None or isinstance(given, ExponentialAverage | PowerAverage):
        return given
    if isinstance(given, str):
        if given.lower() == "none":
            return None
        try:
            return ExponentialAverage(float(given))
        except ValueError as error:
            if "expected 0 <= ema" in str(error):
                raise
            return named(given)
    return ExponentialAverage(float(given))


AVERAGES: Table[Callable[[float], Average]] = Table(
    "average",
    "scoresde.training.optimization.averages.AVERAGES",
    {"exponential": ExponentialAverage, "power": PowerAverage},
    also="one of them with its number, such as exponential-0.999 or power-0.1",
    check=callable,
    expects="a class or a function of one number that returns an average",
)
"""The averages by name, which their number follows: ``"exponential-0.999"``, ``"power-0.1"``."""


def named(name: str) -> Average:
    """Return the average that is called ``name`` in a file."""
    kind, _, number = name.partition("-")
    if kind not in AVERAGES:
        raise AVERAGES.unknown(name)
    try:
        value = float(number)
    except ValueError:
        raise ValueError(
            f"got average {name!r}; expected a number after the name, such as {AVERAGES.name(kind)}-0.1"
        ) from None
    return AVERAGES[kind](value)


_HALVES = (torch.float16, torch.bfloat16)


def start(model: nn.Module) -> nn.Module:
    """Return a copy of a model to average into, whose parameters of half precision are float32.

    A step of an average changes its weights by 1e-3 or less of their difference, which a half rounds away.
    """
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dtype in _HALVES:
            parameter.data = parameter.data.float()
    return copied


@torch.no_grad()
def update(averaged: nn.Module, current: nn.Module, beta: float) -> None:
    """Make one step of an average, in place; buffers are copied."""
    ours: list[Tensor] = list(averaged.parameters())
    theirs: list[Tensor] = [t.to(own.dtype) for own, t in zip(ours, current.parameters(), strict=True)]
    if ours:
        torch._foreach_lerp_(ours, theirs, 1 - beta)
    for own, other in zip(averaged.buffers(), current.buffers(), strict=True):
        own.copy_(other)


# Reconstruction ------------------------------------------------------------------------------------------------------


def _inner(a: tuple[float, float], b: tuple[float, float]) -> float:
    r"""The inner product of two profiles (t, gamma): with :math:`m = \min(t_a, t_b)`,

    :math:`(\gamma_a+1)(\gamma_b+1)\, m^{\gamma_a+\gamma_b+1} / ((\gamma_a+\gamma_b+1)\, t_a^{\gamma_a+1} t_b^{\gamma_b+1})`.
    """
    (s, c), (t, d) = a, b
    logs = (c + d + 1) * math.log(min(s, t)) - (c + 1) * math.log(s) - (d + 1) * math.log(t)
    return (c + 1) * (d + 1) / (c + d + 1) * math.exp(logs)


def combination(stored: Sequence[tuple[int, PowerAverage]], wanted: tuple[int, PowerAverage]) -> Tensor:
    r"""The coefficients with which stored averages come closest to another one, shape ``(len(stored),)``, float64.

    They minimise the distance in :math:`L^2` of the combined profile from the wanted one.

    Args:
        stored: averages and the steps at which they were taken.
        wanted: the average, and the step at which it would have been.

    Example:
        >>> stored = [(t, PowerAverage(s)) for t in (50, 100) for s in (0.05, 0.1)]
        >>> [round(c, 6) + 0.0 for c in combination(stored, (100, PowerAverage(0.05))).tolist()]
        [0.0, 0.0, 1.0, 0.0]
    """
    profiles = [(float(step), profile.gamma) for step, profile in stored]
    target = (float(wanted[0]), wanted[1].gamma)
    gram = np.array([[_inner(a, b) for b in profiles] for a in profiles])
    scale = 1 / np.sqrt(gram.diagonal())  # profiles of length one: their own lengths differ by orders of magnitude
    product = np.array([_inner(a, target) for a in profiles])
    found = np.linalg.lstsq(gram * np.outer(scale, scale), product * scale, rcond=1e-13)[0] * scale
    return torch.from_numpy(found)


def reconstruct(
    snapshots: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    sigma_rel: float,
    *,
    step: int | None = None,
    run: str | None = None,
    net: nn.Module | None = None,
    **load: Any,
) -> ScoreModel:
    """Build the score model whose weights are averaged with any ``sigma_rel``, from snapshots of at least one other.

    Args:
        snapshots: the folder that a :class:`~scoresde.training.Trainer` with ``snapshot_every`` filled, or its files.
        sigma_rel: of the :class:`PowerAverage` to reconstruct; best between those that were stored.
        step: where it ends; by default at the last snapshot. Later snapshots are not used.
        run: which training they are of, where there are several in the folder: what the names of its files start with.
        net, load: as of :func:`~scoresde.training.load`.

    Raises:
        CheckpointError: if there are no snapshots, the files are none, or they are of several trainings.

    Source: Karras et al., 2024, https://arxiv.org/abs/2312.02696, section 3.2 and appendix C.2.
    """
    if isinstance(snapshots, str | os.PathLike):
        files = sorted(Path(snapshots).glob("*.safetensors"))
    else:
        files = [Path(file) for file in snapshots]
    descriptions = {file: checkpoint.read(file, ()).description for file in files}
    runs = sorted({str(d.get("run", "")) for d in descriptions.values()})
    if run is None and len(runs) > 1:
        names = " or ".join(f"run={name!r}" for name in runs)
        raise CheckpointError(f"got snapshots of {len(runs)} trainings; expected those of one: pass {names}")
    descriptions = {file: d for file, d in descriptions.items() if run in (None, d.get("run"))}
    end = max((int(d.get("step", 0)) for d in descriptions.values()), default=0) if step is None else step
    stored: list[tuple[int, PowerAverage]] = []
    places: list[tuple[Path, str]] = []
    for file, description in descriptions.items():
        for group, name in _groups(description).items():
            profile = named(name)
            if isinstance(profile, PowerAverage) and description["step"] <= end:
                stored.append((description["step"], profile))
                places.append((file, group))
    if not stored:
        raise CheckpointError(
            f"got {len(files)} files, none a snapshot of a power-function average up to step {end}; expected the folder "
            "of a training with averages=[PowerAverage(0.05), PowerAverage(0.1)] and snapshot_every"
        )
    coefficients = combination(stored, (end, PowerAverage(sigma_rel))).tolist()
    total: dict[str, Tensor] = {}
    for (file, group), coefficient in zip(places, coefficients, strict=True):
        for name, value in checkpoint.read(file, (group,)).group(group).items():
            total[name] = total.get(name, 0.0) + coefficient * value.double() if value.is_floating_point() else value
    model = models.load(max(places)[0], net, **load)
    own = checkpoint.weights(model)
    checkpoint.fill(model, {name: value.to(own[name]) for name, value in total.items()}, files[-1])
    return model


def _groups(description: Mapping[str, Any]) -> dict[str, str]:
    """The averages in a file: the name of the group of tensors and of the average."""
    return {checkpoint.group_of(i): name for i, name in enumerate(description.get("averages", []))}
