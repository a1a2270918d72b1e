r"""The objective of the stages of a cascade: smaller samples as a condition, augmented to be robust to errors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.base.numbers import is_whole, whole
from scoresde.base.shape import expand
from scoresde.objectives.matching import Around, Objective
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE

__all__ = ["BlurredLow", "LowAugmentation", "NoisedLow", "SuperResolved", "along_axes", "check_factor", "downsampled"]


def check_factor(name: str, factor: Any, least: int) -> tuple[int, ...]:
    """Return a factor as one number, or a number for each axis of which one is at least ``least``.

    Raises:
        ValueError: for numbers that are not whole and at least 1, and if all of them are below ``least``.

    Example:
        >>> check_factor("factor", 2, 2), check_factor("factor", [2, 1, 1], 2)
        ((2,), (2, 1, 1))
    """
    found = tuple(whole(name, n, 1) for n in ([factor] if is_whole(factor) or not isinstance(factor, Sequence) else factor))
    if not found or max(found) < least:
        raise ValueError(
            f"got {name}={factor!r}; expected a whole number of at least {least}, or one for each axis: (2, 1, 1) for twice "
            "as many frames of a video"
        )
    return found


def along_axes(factor: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return the factor along each of the axes of a sample.

    Raises:
        ValueError: for numbers of another number of axes.

    Example:
        >>> along_axes(2, 3), along_axes((2, 1, 1), 3)
        ((2, 2, 2), (2, 1, 1))
    """
    found = check_factor("factor", factor, 1)
    if len(found) not in (1, axes):
        raise ValueError(f"got factor={factor!r} for samples with {axes} axes; expected one number, or one for each axis")
    return found * axes if len(found) == 1 else found


def downsampled(x: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Return the means over cells of ``factor`` points along each axis, shape ``(batch, channels, *axes / factor)``.

    Args:
        x: samples, shape ``(batch, channels, *axes)``.
        factor: one number, or one for each axis: ``(2, 1, 1)`` takes the means of pairs of frames of videos.

    Raises:
        ValueError: for axes that are no multiples of the factor.

    Example:
        >>> downsampled(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), 2)
        tensor([[[2., 6.]]])
    """
    factors = along_axes(factor, max(x.ndim - 2, 1))
    if x.ndim < 3 or any(n % k for n, k in zip(x.shape[2:], factors, strict=True)):
        raise ValueError(
            f"got samples of shape {tuple(x.shape)} to reduce by {factor}; expected (batch, channels, ..) with axes "
            f"that are multiples of {factor}"
        )
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[x.ndim - 2]
    return pool(x, factors)


@dataclass(frozen=True)
class LowAugmentation(ABC):
    """Interface of the augmentations of smaller samples, at a level that the network is told.

    Attributes:
        highest: the highest level of training, whose levels are uniform from 0.

    Raises:
        ValueError: if ``highest`` is not positive and finite.
    """

    highest: float

    def __post_init__(self) -> None:
        if not (self.highest > 0 and math.isfinite(self.highest)):
            raise ValueError(f"got highest={self.highest}; expected a positive number")

    @abstractmethod
    def apply(self, low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Return the augmented samples, shape of ``low``; at level 0 they are ``low`` itself.

        Args:
            low: smaller samples in the range of the data: normalise first, then augment.
            level: shape ``(batch,)``.
            noise: standard normal draws of the shape of ``low``.
        """


@dataclass(frozen=True)
class NoisedLow(LowAugmentation):
    r"""Gaussian noise: the sample at time s of an SDE, :math:`\alpha_s x + \sigma_s \epsilon`, and s is the level.

    With the SDE of the stage before, a sample of that stage that is stopped at time s has the law of an augmented one, so
    that its last steps may be left out: truncated sampling.

    Raises:
        ValueError: if ``highest`` is not positive or lies beyond the span of the SDE, or ``sde`` has no Gaussian marginals.

    Example:
        >>> import scoresde
        >>> low, noise = torch.ones(2, 1, 4), torch.zeros(2, 1, 4)
        >>> NoisedLow(0.5, scoresde.VP()).apply(low, torch.tensor([0.0, 0.5]), noise)[:, 0, 0]
        tensor([1.0000, 0.2812])
    """

    sde: GaussianSDE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sde, GaussianSDE) or self.highest > self.sde.span[1]:
            raise ValueError(
                f"got highest={self.highest} for the times of {type(self.sde).__name__}; expected a GaussianSDE, and at "
                "most the end of its span"
            )

    def apply(self, low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Return the samples at the times ``level`` of the SDE."""
        s = level.to(torch.float64)
        inside = s.clamp(min=1e-12)
        alpha = torch.where(s > 0, self.sde.alpha(inside), 1.0)
        sigma = torch.where(s > 0, self.sde.sigma(inside), 0.0)
        return expand(alpha, low).to(low) * low + expand(sigma, low).to(low) * noise


@dataclass(frozen=True)
class BlurredLow(LowAugmentation):
    """Gaussian blur, whose standard deviation in pixels is the level; for samples of high resolution.

    Example:
        >>> spike = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]])
        >>> [round(v, 3) for v in BlurredLow(1.0).apply(spike, torch.tensor([0.5]), spike).flatten().tolist()]
        [0.0, 0.106, 0.787, 0.106, 0.0]
    """

    def apply(self, low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Return the samples blurred along each axis; at the border the outermost pixel is repeated."""
        reach = math.ceil(3 * self.highest)
        place = torch.arange(-reach, reach + 1, device=low.device, dtype=torch.float64)
        spread = level.to(device=low.device, dtype=torch.float64).clamp(min=1e-3)[:, None]
        kernel = (-0.5 * (place / spread) ** 2).exp()
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(low)  # (batch, 2 reach + 1)
        for axis in range(2, low.ndim):
            moved = low.movedim(axis, -1)
            padded = torch.cat([moved[..., :1].expand(*moved.shape[:-1], reach), moved], -1)
            padded = torch.cat([padded, moved[..., -1:].expand(*moved.shape[:-1], reach)], -1)
            windows = padded.unfold(-1, 2 * reach + 1, 1)
            low = torch.einsum("b...k,bk->b...", windows, kernel).movedim(-1, axis)
        return low


@dataclass(frozen=True)
class SuperResolved(Around):
    """An objective whose network is also given the sample in a lower resolution, the condition ``low``.

    The smaller sample is made of the data, augmented at a random level, and the network is told the level, the condition
    ``level``, :class:`~scoresde.models.SuperResolution`. In a report, which draws nothing, the level is 0.

    Args:
        inner: the objective of the score model.
        factor: the ratio of the resolutions, or one for each axis: ``(2, 1, 1)`` of videos with twice as many frames.
        augmentation: the augmentation of the smaller sample; ``None`` for none.

    Source: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", 2021,
    https://arxiv.org/abs/2106.15282.

    Example:
        >>> import scoresde
        >>> model = ScoreModel(scoresde.models.SuperResolution(1, {"width": 8, "multipliers": [1, 2]}), scoresde.VP(), "v")
        >>> objective = SuperResolved("v", 2, NoisedLow(0.5, scoresde.VP()))
        >>> loss, t = objective(model, torch.zeros(3, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> loss.shape
        torch.Size([3])
    """

    inner: str | Objective = "v"
    factor: int | Sequence[int] = 2
    augmentation: LowAugmentation | None = field(default=None)

    def __post_init__(self) -> None:
        check_factor("factor", self.factor, 2)
        super().__post_init__()

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of the inner objective, and the level and the noise of the augmentation."""
        inner = super().draws(x0, generator)
        if self.augmentation is None:
            return inner
        device, size = generator.device, _reduced(x0.shape, self.factor)
        u = torch.rand(len(x0), generator=generator, device=device, dtype=torch.float64)
        noise = torch.randn(size, generator=generator, device=device, dtype=x0.dtype)
        return {**inner, "level": (self.augmentation.highest * u).to(x0.device), "low_noise": noise.to(x0.device)}

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        level: Tensor | None = None,
        low_noise: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Return the loss of the inner objective with the smaller samples as a condition, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            level, low_noise: the level and the noise of the augmentation, shapes ``(batch,)`` and that of the smaller
                samples; with ``None`` there is none.
            conditions: passed to the network.
        """
        low = downsampled(x0, self.factor)
        if level is None or low_noise is None or self.augmentation is None:
            level = torch.zeros(len(x0), device=x0.device)
        else:
            low = self.augmentation.apply(low, level, low_noise)
        told = {"low": low, "level": level.to(torch.promote_types(x0.dtype, torch.float32))}
        return self.wrapped.at(model, x0, t, eps, **told, **conditions)


def _reduced(shape: Sequence[int], factor: int | Sequence[int]) -> tuple[int, ...]:
    factors = along_axes(factor, len(shape) - 2)
    return (*shape[:2], *(n // k for n, k in zip(shape[2:], factors, strict=True)))
