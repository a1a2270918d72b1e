r"""Moving averages of the weights, and the reconstruction of further averages from snapshots.

Every average is :math:`\bar\theta_t = \beta_t \bar\theta_{t-1} + (1 - \beta_t) \theta_t`. The coefficient :math:`\beta_t`
depends on the number of the step alone, t = 1, 2, .. Since :math:`\beta_1 = 0`, the initial weights have no influence.
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
    r"""The exponential moving average with a warm-up: :math:`\beta_t = \min(decay, t / (9 + t))`.

    Args:
        decay: decay per step, at least 0 and less than 1.

    Raises:
        ValueError: for a decay out of this range.

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
        """The name of the average in files and options."""
        return f"exponential-{self.decay!r}"

    def beta(self, step: int) -> float:
        r"""Return :math:`\beta_t` of step t, from 1."""
        return 0.0 if step == 1 else min(self.decay, step / (9 + step))


@dataclass(frozen=True)
class PowerAverage:
    r"""The power-function average of EDM2, in which step :math:`\tau` has a weight proportional to :math:`\tau^\gamma`.

    .. math:: \beta_t = (1 - 1/t)^{\gamma + 1}, \qquad
              \bar\theta_t = \int_0^t \frac{(\gamma + 1)\, \tau^\gamma}{t^{\gamma + 1}}\, \theta(\tau)\, d\tau,

    The two formulas are equal for weights that are constant during a step.

    Args:
        sigma_rel: the standard deviation of this weighting relative to the length of the training, more than 0 and less
            than :math:`12^{-1/2}`, the value of the uniform mean.

    Raises:
        ValueError: for a ``sigma_rel`` out of this range.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
    https://arxiv.org/abs/2312.02696, section 3.1 and appendix C.

    Example:
        >>> round(PowerAverage(0.1).gamma, 3)
        6.937
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel < 12**-0.5:
            raise ValueError(
                f"got sigma_rel={self.sigma_rel}; expected more than 0 and less than 12^-1/2 = 0.2887, such as 0.1"
            )

    @property
    def name(self) -> str:
        """The name of the average in files and options."""
        return f"power-{self.sigma_rel!r}"

    @property
    def gamma(self) -> float:
        r"""The exponent: the positive root of :math:`\sigma_{rel}^2 = (\gamma + 1) / ((\gamma + 2)^2 (\gamma + 3))`."""
        s = self.sigma_rel**-2
        return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())

    def beta(self, step: int) -> float:
        r"""Return :math:`\beta_t` of step t, from 1."""
        return float((1 - 1 / step) ** (self.gamma + 1))


Average = ExponentialAverage | PowerAverage
"""The type of all averages of weights."""


def average(given: float | str | Average | None) -> Average | None:
    """Return the average that is given as an object, by its name or by the decay of an exponential average.

    ``None`` and ``"none"`` give ``None``.

    Raises:
        ValueError: for an unknown name or a number out of range.

    Example:
        >>> average("power-0.1"), average(0.999), average("none")
        (PowerAverage(sigma_rel=0.1), ExponentialAverage(decay=0.999), None)
    """
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
"""The averages by name; a number follows the name: ``"exponential-0.999"``, ``"power-0.1"``."""


def named(name: str) -> Average:
    """Return the average whose name in files and options is ``name``.

    Raises:
        ValueError: for an unknown name, or a name without its number.

    Example:
        >>> named("exponential-0.99")
        ExponentialAverage(decay=0.99)
    """
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
    """Return a copy of a model in which parameters of half precision are float32, to hold an average of its weights.

    A step moves an average by a small part of its distance from the weights. In half precision the move is rounded to zero.

    Example:
        >>> start(nn.Linear(1, 1).half()).weight.dtype
        torch.float32
    """
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dtype in _HALVES:
            parameter.data = parameter.data.float()
    return copied


@torch.no_grad()
def update(averaged: nn.Module, current: nn.Module, beta: float) -> None:
    """Update an average in place with the current weights, with coefficient ``beta``; copy the buffers.

    Example:
        >>> averaged, current = nn.ParameterList([torch.zeros(1)]), nn.ParameterList([torch.ones(1)])
        >>> update(averaged, current, beta=0.75)
        >>> averaged[0].item()
        0.25
    """
    ours: list[Tensor] = list(averaged.parameters())
    theirs: list[Tensor] = [t.to(own.dtype) for own, t in zip(ours, current.parameters(), strict=True)]
    if ours:
        torch._foreach_lerp_(ours, theirs, 1 - beta)
    for own, other in zip(averaged.buffers(), current.buffers(), strict=True):
        own.copy_(other)


# Reconstruction ------------------------------------------------------------------------------------------------------


def _inner(a: tuple[float, float], b: tuple[float, float]) -> float:
    r"""Return the inner product of two profiles, pairs (t, gamma): with :math:`m = \min(t_a, t_b)`,

    :math:`(\gamma_a+1)(\gamma_b+1)\, m^{\gamma_a+\gamma_b+1} / ((\gamma_a+\gamma_b+1)\, t_a^{\gamma_a+1} t_b^{\gamma_b+1})`.
    """
    (s, c), (t, d) = a, b
    logs = (c + d + 1) * math.log(min(s, t)) - (c + 1) * math.log(s) - (d + 1) * math.log(t)
    return (c + 1) * (d + 1) / (c + d + 1) * math.exp(logs)


def combination(stored: Sequence[tuple[int, PowerAverage]], wanted: tuple[int, PowerAverage]) -> Tensor:
    r"""Return the coefficients of stored averages whose sum approximates another average best.

    They minimise the :math:`L^2` distance between the weighting over steps of the sum and that of the wanted average.

    Args:
        stored: pairs of the step of a snapshot and its average.
        wanted: the step and the average to approximate.

    Returns:
        The coefficients, shape ``(len(stored),)``, float64.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
    https://arxiv.org/abs/2312.02696, section 3.2 and appendix C.2.

    Example:
        >>> stored = [(t, PowerAverage(s)) for t in (50, 100) for s in (0.05, 0.1)]
        >>> [round(c, 6) + 0.0 for c in combination(stored, (100, PowerAverage(0.05))).tolist()]
        [0.0, 0.0, 1.0, 0.0]
    """
    profiles = [(float(step), profile.gamma) for step, profile in stored]
    target = (float(wanted[0]), wanted[1].gamma)
    gram = np.array([[_inner(a, b) for b in profiles] for a in profiles])
    scale = 1 / np.sqrt(gram.diagonal())  # normalises the profiles, whose norms differ by orders of magnitude
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
    """Reconstruct the score model with a power-function average of any ``sigma_rel`` from snapshots of other averages.

    Args:
        snapshots: the folder with the snapshots of a :class:`~scoresde.training.Trainer` with ``snapshot_every``, or a list
            of snapshot files.
        sigma_rel: the ``sigma_rel`` of the :class:`PowerAverage` to reconstruct. The reconstruction is most accurate between
            the values of the stored averages.
        step: the step of the average; by default the step of the last snapshot. Later snapshots are not used.
        run: the training whose snapshots to use, if the folder has several: the start of the names of its files.
        net: a network for the weights; needed for a network that scoresde cannot build.
        load: further arguments of :func:`~scoresde.training.load`.

    Raises:
        CheckpointError: if there are no snapshots, a file is not a snapshot, or the snapshots are of several trainings.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
    https://arxiv.org/abs/2312.02696, section 3.2 and appendix C.2.

    Example:
        >>> import scoresde, tempfile
        >>> from scoresde.training import Files, Method
        >>> method = Method(batch_size=8, averages=[PowerAverage(0.05), PowerAverage(0.1)])
        >>> model = scoresde.ScoreModel(scoresde.models.MLP(2, hidden=(8,)), scoresde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     how = {"method": method, "files": Files(f"{folder}/a.safetensors", snapshot_every=2, log=False)}
        ...     _ = scoresde.fit(model, scoresde.problems.ring(), steps=4, progress=False, **how)
        ...     found = reconstruct(f"{folder}/snapshots", 0.07)
        >>> found.predicts, found.sde
        ('eps', VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0))
    """
    if isinstance(snapshots, str | os.PathLike):
        files = sorted(Path(snapshots).glob("*.safetensors"))
    else:
        files = [Path(file) for file in snapshots]
    descriptions = {file: checkpoint.read(file, ()).description for file in files}
    runs = sorted({str(d.get("run", "")) for d in descriptions.values()})
    if run is None and len(runs) > 1:
        names = " or ".join(f"run={name!r}" for name in runs)
        raise CheckpointError(
            f"got snapshots of {len(runs)} trainings; expected the snapshots of one training: pass {names}"
        )
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
    """Return the averages in a file: the name of each average by the name of its group of tensors."""
    return {checkpoint.group_of(i): name for i, name in enumerate(description.get("averages", []))}
