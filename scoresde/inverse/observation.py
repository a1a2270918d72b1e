r"""Observations: what was measured, by which operator, with how much noise.

Gaussian noise: :math:`y = A(x) + \sigma \epsilon` with standard normal :math:`\epsilon`. Poisson noise of a detector with
``gain`` counts for a unit of intensity above the level ``-background``:

.. math:: g (y + b) \sim \mathrm{Poisson}\big(g (A(x) + b)\big),

so that y has the mean A(x) and the variance (A(x) + b) / g.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import check_batch
from scoresde.inverse.operators.base import Operator
from scoresde.inverse.operators.matrix import Matrix
from scoresde.solvers.noise.fresh import sample_seeds

__all__ = ["Observation", "observe"]

NOISES = ("gaussian", "poisson")


@dataclass(frozen=True, eq=False)
class Observation:
    """A measurement ``y`` of an unknown state by an operator, with noise.

    Args:
        operator: A, an :class:`~scoresde.inverse.operators.Operator`.
        y: one measurement of shape ``measured`` for all samples, or one for each sample, ``(batch, *measured)``.
        sigma: the standard deviation of Gaussian noise, at least 0; 0 for Poisson noise.
        noise: ``"gaussian"`` or ``"poisson"``.
        gain: of Poisson noise, the counts for a unit of intensity.
        background: of Poisson noise, added to A(x) to give an intensity of at least 0: 1 for one pixel of an image in [-1,
            1].

    Raises:
        TypeError: if ``operator`` is not an operator.
        ValueError: for a measurement of another shape or with values that are not finite, noise of another kind, a negative
            ``sigma``, a gain that is not positive, or counts below zero.

    Example:
        >>> from scoresde.inverse.operators import Mask
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.1)
        >>> seen.for_batch(2)
        tensor([[1.],
                [1.]])
    """

    operator: Operator
    y: Tensor
    sigma: float
    noise: str = "gaussian"
    gain: float = 1.0
    background: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise TypeError(
                f"got {type(self.operator).__name__} for the operator of an observation; expected one of "
                "scoresde.inverse.operators, such as Mask(mask), or Function(f, event) for any function"
            )
        y, measured = torch.as_tensor(self.y), self.operator.measured
        object.__setattr__(self, "y", (y if y.is_floating_point() else y.to(torch.get_default_dtype())).detach())
        if self.y.shape != measured and self.y.shape[1:] != measured:
            raise ValueError(
                f"got y of shape {tuple(self.y.shape)} for {self.operator!r}; expected one measurement for all samples, "
                f"shape {tuple(measured)}, or one for each, shape {('batch', *measured)}"
            )
        if not bool(torch.isfinite(self.y).all()):
            raise ValueError(
                "got y with values that are not finite; expected finite measurements: leave the others to a Mask"
            )
        if self.noise not in NOISES:
            raise ValueError(f"got noise={self.noise!r}; expected one of {', '.join(NOISES)}")
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"got sigma={self.sigma!r}; expected a standard deviation of at least 0")
        if self.noise == "poisson":
            if self.sigma != 0:
                raise ValueError(f"got sigma={self.sigma!r} for Poisson noise, which has none; expected sigma=0 and a gain")
            if not 0 < self.gain < math.inf or not math.isfinite(self.background):
                raise ValueError(
                    f"got gain={self.gain!r}, background={self.background!r}; expected a positive gain, the counts for a "
                    "unit of intensity, and a finite background"
                )
            if bool((self.y + self.background < 0).any()):
                raise ValueError(
                    f"got y as low as {float(self.y.min()):.3g} for Poisson noise with background={self.background:g}; "
                    "expected y + background of at least 0, since counts are: for images in [-1, 1] take background=1"
                )

    @classmethod
    def of(cls, posterior: Any) -> Observation:
        """Return the observation that a posterior problem is given.

        Args:
            posterior: what :meth:`scoresde.problems.Problem.posterior` returned; a matrix becomes a :class:`Matrix`.

        Raises:
            ValueError: for a problem that is no posterior.

        Example:
            >>> from scoresde import problems
            >>> Observation.of(problems.ring().posterior([[1.0, 0.0]], [0.5], 0.1)).y
            tensor([0.5000], dtype=torch.float64)
        """
        given = getattr(posterior, "given", None)
        if given is None:
            raise ValueError(f"got {posterior!r}, which is no posterior; expected problem.posterior(operator, y, sigma)")
        known = isinstance(given.operator, Operator)
        operator = given.operator if known else Matrix(given.operator, given.prior.event)
        return cls(operator, given.y.reshape(operator.measured), given.sigma)

    @property
    def batched(self) -> bool:
        """Whether there is one measurement for each sample."""
        return self.y.shape != self.operator.measured

    @property
    def variance(self) -> float | Tensor:
        """The variance of the noise: sigma^2 or, for Poisson noise, the estimate (y + background) / gain, shape of ``y``.

        A count of zero has the estimate of one count, which is its smallest.
        """
        if self.noise == "gaussian":
            return float(self.sigma) ** 2
        return (self.y + self.background).clamp(min=1 / self.gain) / self.gain

    def for_batch(self, n: int, like: Tensor | None = None) -> Tensor:
        """Return a measurement for each of ``n`` samples, shape ``(n, *measured)``.

        Args:
            n: the number of samples.
            like: a tensor whose device and dtype the result has; by default those of ``y``.

        Raises:
            ValueError: if there is one measurement for each sample of another number of samples.
        """
        if self.batched and len(self.y) != n:
            raise ValueError(
                f"got {len(self.y)} measurements for {n} samples; expected one for each sample, or one of shape "
                f"{tuple(self.operator.measured)} for all"
            )
        y = self.y if like is None else self.y.to(like)
        return y if self.batched else y.expand(n, *y.shape)

    def residual(self, x0: Tensor) -> Tensor:
        """Return y - A(x0), shape ``(batch, *measured)``."""
        of: Tensor = self.operator(x0)
        return self.for_batch(len(x0), of) - of

    def log_likelihood(self, x0: Tensor) -> Tensor:
        """Return log p(y | x0) in nats, shape ``(batch,)``.

        With Poisson noise it is minus infinity where A(x0) + background is negative.

        Raises:
            ValueError: without noise, where y has no density given x0.

        Example:
            >>> from scoresde.inverse.operators import Mask
            >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 1.0)
            >>> seen.log_likelihood(torch.tensor([[1.0, 5.0]]))  # -log(2 pi) / 2
            tensor([-0.9189])
        """
        if self.noise == "poisson":
            intensity = self.operator(x0) + self.background
            counts = self.gain * (self.for_batch(len(x0), intensity) + self.background)
            rate = self.gain * intensity.clamp(min=0)
            found = torch.special.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)
            return torch.where(intensity < 0, -math.inf, found).flatten(1).sum(1)
        if self.sigma == 0:
            raise ValueError(
                "got sigma=0, where a measurement without noise has no density given the state; expected sigma > 0"
            )
        scaled = self.residual(x0).flatten(1) / self.sigma
        return -0.5 * scaled.square().sum(1) - scaled.shape[1] * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))

    def select(self, index: Any) -> Observation:
        """Return the observation of some of the samples, for an index into the batch; ``self`` if there is one for all."""
        return replace(self, y=self.y[index]) if self.batched else self

    def __repr__(self) -> str:
        given = (
            f"sigma={self.sigma:g}" if self.noise == "gaussian" else f"gain={self.gain:g}, background={self.background:g}"
        )
        return f"Observation({self.operator!r}, y of shape {tuple(self.y.shape)}, {self.noise}, {given})"


def observe(
    operator: Operator,
    x: Tensor,
    sigma: float = 0.0,
    *,
    noise: str = "gaussian",
    gain: float = 1.0,
    background: float = 0.0,
    seed: int | Sequence[int] = 0,
) -> Observation:
    """Return a noisy observation of the state ``x``, for tests and figures.

    Args:
        operator: the operator that measures.
        x: one state, shape ``event``, or several, ``(batch, *event)``, each with a measurement of its own.
        sigma, noise, gain, background: see :class:`Observation`.
        seed: an integer, or one for each state; the noise of a state depends on its own seed and not on its batch.

    Raises:
        TypeError, ValueError: see :class:`Observation`; also for Poisson noise where A(x) + background is negative.

    Example:
        >>> from scoresde.inverse.operators import Mask
        >>> observe(Mask([True, False]), torch.tensor([2.0, 3.0])).y
        tensor([2.])
    """
    if not isinstance(operator, Operator):
        raise TypeError(f"got {type(operator).__name__} to observe with; expected an operator, such as Mask(mask)")
    one = x.shape == operator.event
    clean: Tensor = operator(operator.check_x(check_batch(x[None] if one else x))).detach()
    Observation(operator, clean, sigma, noise, gain, background)  # refuses what cannot be drawn
    seeds = sample_seeds(seed, len(clean))
    noisy = []
    for value, each in zip(clean.double().cpu(), seeds, strict=True):
        draws = torch.Generator().manual_seed(each)
        if noise == "gaussian":
            noisy.append(value + sigma * torch.randn(value.shape, generator=draws, dtype=torch.float64))
        else:
            noisy.append(torch.poisson(gain * (value + background), generator=draws) / gain - background)
    y = torch.stack(noisy).to(clean)
    return Observation(operator, y[0] if one else y, sigma, noise, gain, background)
