r"""Noise schedules of Markov chains on tokens: how much noise a token has met by a time.

A token jumps at the rate :math:`\beta(t)` times a fixed rate matrix. What matters at a time is the amount of noise
:math:`\bar\sigma(t) = \int_0^t \beta`, and :math:`\alpha(t) = e^{-\bar\sigma(t)}` is the probability that nothing has
happened to a token yet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scoresde.base.names import Table

__all__ = [
    "NOISE_SCHEDULES",
    "ConstantNoise",
    "CosineNoise",
    "GeometricNoise",
    "LinearNoise",
    "NoiseSchedule",
    "noise_schedule",
]

_LAST = 1 - 2.0**-50
"""The last time at which alpha > 0 where a schedule ends at alpha = 0: rates and ratios are finite there."""


@dataclass(frozen=True)
class NoiseSchedule(ABC):
    """Interface of the amount of noise as a function of time in [0, 1]; it is 0 at t = 0 and grows."""

    @abstractmethod
    def amount(self, t: Tensor) -> Tensor:
        r"""Return the amount of noise :math:`\bar\sigma(t) = -\log \alpha(t)`, float64, shape of ``t``."""

    @abstractmethod
    def speed(self, t: Tensor) -> Tensor:
        r"""Return :math:`\beta(t) = d\bar\sigma / dt`, float64, shape of ``t``."""

    @abstractmethod
    def time(self, amount: Tensor) -> Tensor:
        """Return the time at which there is this amount of noise, float64, shape of ``amount``."""

    def text(self) -> str:
        """Return the name and the settings, from which the table makes it again; the ``repr`` of a class of one's own."""
        name = next((name for name, make in NOISE_SCHEDULES.items() if make is type(self)), None)
        if name is None:
            return repr(self)
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{name}: {settings}" if settings else name


@dataclass(frozen=True)
class LinearNoise(NoiseSchedule):
    """The schedule alpha = 1 - t, called log-linear for the amount: after it every token has met noise.

    Source: Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", 2021,
    https://arxiv.org/abs/2107.03006.

    Example:
        >>> LinearNoise().amount(torch.tensor([0.0, 0.5], dtype=torch.float64)).tolist()
        [0.0, 0.6931471805599453]
    """

    def amount(self, t: Tensor) -> Tensor:
        return -torch.log1p(-t.clamp(max=_LAST))

    def speed(self, t: Tensor) -> Tensor:
        return 1 / (1 - t.clamp(max=_LAST))

    def time(self, amount: Tensor) -> Tensor:
        return -torch.expm1(-amount)


@dataclass(frozen=True)
class CosineNoise(NoiseSchedule):
    r"""The schedule :math:`\alpha = \cos(\pi t / 2)`, with little noise at first.

    Source: Chang et al., "MaskGIT: Masked Generative Image Transformer", 2022, https://arxiv.org/abs/2202.04200.

    Example:
        >>> amount = CosineNoise().amount(torch.tensor([0.0, 2 / 3], dtype=torch.float64))
        >>> (-amount).exp().round(decimals=4).tolist()  # alpha
        [1.0, 0.5]
    """

    def amount(self, t: Tensor) -> Tensor:
        angle = 0.5 * math.pi * t.clamp(max=_LAST)
        # Near 0 the cosine is 1 but for its last digits, near pi / 2 the sine is.
        return torch.where(t < 0.5, -0.5 * torch.log1p(-(torch.sin(angle) ** 2)), -torch.log(torch.cos(angle)))

    def speed(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * torch.tan(0.5 * math.pi * t.clamp(max=_LAST))

    def time(self, amount: Tensor) -> Tensor:
        # acos(e^-a) without the cancellation at small a: tan(y) = sqrt(e^2a - 1).
        return torch.atan(torch.expm1(2 * amount).sqrt()) * (2 / math.pi)


@dataclass(frozen=True)
class GeometricNoise(NoiseSchedule):
    r"""The schedule :math:`\bar\sigma = low^{1 - t}\, high^t - low`, for chains that forget slowly.

    Source: Lou et al., "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", 2024,
    https://arxiv.org/abs/2310.16834, whose amount at t = 0 is ``low`` and not 0.

    Raises:
        ValueError: unless 0 < low < high.

    Example:
        >>> GeometricNoise(low=1.0, high=16.0).amount(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).round().tolist()
        [0.0, 3.0, 15.0]
    """

    low: float = 1e-3
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"got low={self.low}, high={self.high}; expected 0 < low < high, such as 1e-3 and 20.0")

    def amount(self, t: Tensor) -> Tensor:
        return self.low * torch.expm1(t * math.log(self.high / self.low))

    def speed(self, t: Tensor) -> Tensor:
        rate = math.log(self.high / self.low)
        return self.low * rate * torch.exp(t * rate)

    def time(self, amount: Tensor) -> Tensor:
        return torch.log1p(amount / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class ConstantNoise(NoiseSchedule):
    """The schedule of a constant rate: the amount of noise is ``rate`` times t.

    Raises:
        ValueError: if the rate is not positive.

    Example:
        >>> ConstantNoise(2.0).amount(torch.tensor([0.0, 0.5], dtype=torch.float64)).tolist()
        [0.0, 1.0]
    """

    rate: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"got rate={self.rate}; expected a positive number, such as 8.0")

    def amount(self, t: Tensor) -> Tensor:
        return self.rate * t

    def speed(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.rate)

    def time(self, amount: Tensor) -> Tensor:
        return amount / self.rate


NOISE_SCHEDULES: Table[Callable[..., NoiseSchedule]] = Table(
    "noise schedule",
    "scoresde.discrete.NOISE_SCHEDULES",
    {"linear": LinearNoise, "cosine": CosineNoise, "geometric": GeometricNoise, "constant": ConstantNoise},
    also="an object of a subclass of NoiseSchedule",
    check=callable,
    expects="a function that returns a NoiseSchedule",
)
"""The noise schedules by name; settings may follow the name: ``"geometric: high=10.0"``."""


def noise_schedule(given: str | NoiseSchedule) -> NoiseSchedule:
    """Return the noise schedule of a name with settings, or the object itself.

    Raises:
        ValueError: for an unknown name, and for anything else.

    Example:
        >>> noise_schedule("constant: rate=4.0")
        ConstantNoise(rate=4.0)
    """
    made = given if isinstance(given, NoiseSchedule) else NOISE_SCHEDULES.make(given)
    if not isinstance(made, NoiseSchedule):
        raise ValueError(f"got the noise schedule {given!r}, which makes a {type(made).__name__}; expected a NoiseSchedule")
    return made
