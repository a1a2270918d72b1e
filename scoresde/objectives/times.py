"""Distributions of times, each a map from the uniform distribution with the importance weights that correct for it.

Sources: Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258;
Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630; Karras et al., 2022,
https://arxiv.org/abs/2206.00364; Nichol and Dhariwal, 2021, https://arxiv.org/abs/2102.09672; Esser et al., "Scaling
Rectified Flow Transformers", 2024, https://arxiv.org/abs/2403.03206, for the logit-normal one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.objectives.weightings import likelihood
from scoresde.sde import GaussianSDE
from scoresde.sde.chain import ChainSDE

__all__ = [
    "TIMES",
    "AdaptiveTimes",
    "AutoTimes",
    "LikelihoodTimes",
    "LogNormalTimes",
    "ShiftedTimes",
    "StepTimes",
    "Times",
    "UniformTimes",
    "quantiles",
]


@dataclass(frozen=True)
class Times(ABC):
    """Interface of a distribution of times: a map from the uniform distribution on [0, 1).

    The map is explicit so that times can be stratified, binned by their quantiles, and integrated over exactly.
    """

    @abstractmethod
    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        """Return the times at the quantiles ``u``, float64, and their weights in the mean of the loss; shapes of ``u``."""

    def sample(
        self, n: int, sde: GaussianSDE, *, generator: torch.Generator, stratified: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` times and their weights, each of shape ``(n,)``, on the generator's device; see :func:`quantiles`."""
        return self.at(quantiles(n, generator, stratified), sde)

    def observe(self, u: Tensor, loss: Tensor) -> None:  # noqa: B027  # most have nothing to learn
        """Record the losses at the quantiles ``u``, both of shape ``(batch,)``; only adaptive distributions use them."""


def quantiles(n: int, generator: torch.Generator, stratified: bool = True) -> Tensor:
    """Draw ``n`` uniform numbers in [0, 1), float64, on the generator's device.

    Stratified numbers share one random offset, u_i = (u + i / n) mod 1. Each is uniform, so means are unbiased; together
    they cover the interval evenly (Kingma et al., 2021, appendix I.1).

    Example:
        >>> u = quantiles(4, torch.Generator().manual_seed(0))
        >>> [round(gap, 9) for gap in u.sort().values.diff().tolist()]  # evenly spread
        [0.25, 0.25, 0.25]
    """
    size = 1 if stratified else n
    u = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
    if stratified:
        u = (u + torch.arange(n, device=u.device) / n) % 1.0
    return u


@dataclass(frozen=True)
class UniformTimes(Times):
    """Times uniform from ``t_min`` to ``t_max``, with weight 1.

    Example:
        >>> from scoresde import EDM
        >>> UniformTimes().at(torch.tensor([0.5]), EDM(1.0, 3.0))
        (tensor([2.]), tensor([1.]))
    """

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        low, high = sde.span
        return torch.lerp(torch.full_like(u, low), torch.full_like(u, high), u), torch.ones_like(u)


@dataclass(frozen=True)
class StepTimes(Times):
    """The steps of a chain, t = k / n for k = 1..n with equal probability and weight 1.

    Raises:
        ValueError: if the model's SDE is not a chain.

    Example:
        >>> from scoresde import DDPM
        >>> t, weight = StepTimes().at(torch.tensor([0.0, 0.99]), DDPM.linear(10, 1e-3, 0.5).sde())
        >>> [round(value, 6) for value in t.tolist()]  # the first and the last of ten steps
        [0.1, 1.0]
    """

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        if not isinstance(sde, ChainSDE):
            raise ValueError(
                f"got discrete times for a model of {type(sde).__name__}; they belong to a chain: build the model with "
                "discretize(sde, n), or take times='uniform'"
            )
        n = len(sde.chain)
        return ((u * n).floor().clamp(max=n - 1) + 1) / n, torch.ones_like(u)


@dataclass(frozen=True)
class AutoTimes(Times):
    """The steps of the chain for a model on a chain, uniform times for any other model.

    Example:
        >>> from scoresde import DDPM
        >>> t, weight = AutoTimes().at(torch.tensor([0.3, 0.9]), DDPM.linear(10, 1e-3, 0.5).sde())  # steps of the chain
        >>> [round(value, 6) for value in t.tolist()]
        [0.4, 1.0]
    """

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        times: Times = StepTimes() if isinstance(sde, ChainSDE) else UniformTimes()
        return times.at(u, sde)


@dataclass(frozen=True)
class LikelihoodTimes(Times):
    r"""Importance sampling for the likelihood weighting: times with density proportional to :math:`g^2 / \sigma^2`.

    As :math:`g^2 / \sigma^2 = -2\,d\lambda/dt`, these times are uniform in lam. The weight is the ratio of the uniform
    density on the span to this one,

    .. math:: \frac{1}{(t_{max} - t_{min})\, p(t)} = \frac{\lambda(t_{min}) - \lambda(t_{max})}
              {(t_{max} - t_{min})\, |d\lambda/dt|},

    so that weighted means equal means over uniform times, and the likelihood weighting becomes a constant. Source: Song
    et al., "Maximum Likelihood Training", 2021, section 5.

    Raises:
        ValueError: if lam is not finite at both ends of time.

    Example:
        >>> from scoresde import EDM
        >>> t, weight = LikelihoodTimes().at(torch.tensor([0.0, 0.5], dtype=torch.float64), EDM(0.01, 100.0))
        >>> [round(value, 9) for value in t.tolist()]  # half of the times lie below the geometric mean of the ends
        [0.01, 1.0]
    """

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        low, high = sde.span
        ends = sde.lam(torch.tensor([low, high], dtype=torch.float64))
        top, bottom = ends.tolist()
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(
                f"got half log signal-to-noise ratios from {top:.4g} to {bottom:.4g} over {type(sde).__name__}'s "
                "times; times uniform in them need finite ends: take a smaller t_max (0.999), or a positive t_min"
            )
        t = sde.time(torch.lerp(torch.full_like(u, top), torch.full_like(u, bottom), u)).clamp(low, high)
        return t, 2 * (top - bottom) / (high - low) / likelihood(sde, t, 1.0)


@dataclass(frozen=True)
class LogNormalTimes(Times):
    r"""The distribution of EDM, :math:`\log(\sigma / \alpha) \sim N(P_{mean}, P_{std}^2)`, clipped to the span; weight 1.

    The distribution is part of EDM's objective, so no weight corrects for it. In the time :math:`\sigma / (\alpha + \sigma)`
    of rectified flow it is the logit-normal distribution.

    Args:
        mean, std: P_mean and P_std; the defaults are for data of standard deviation 0.5.

    Raises:
        ValueError: if ``std`` is not positive.

    Example:
        >>> from scoresde import EDM
        >>> t, weight = LogNormalTimes().at(torch.tensor([0.5], dtype=torch.float64), EDM())
        >>> round(t.log().item(), 9)  # the median is exp(mean)
        -1.2
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"got std={self.std}; expected a positive number")

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        low, high = sde.span
        top, bottom = sde.lam(torch.tensor([low, high], dtype=torch.float64)).tolist()
        lam = -(self.mean + self.std * torch.special.ndtri(u)).clamp(-top, -bottom)
        return sde.time(lam).clamp(low, high), torch.ones_like(u)


@dataclass(frozen=True)
class ShiftedTimes(Times):
    r"""A distribution of times moved towards the noise: lam is translated by :math:`-\log k`, within the span.

    In the time of rectified flow it is :math:`s' = k s / (1 + (k - 1) s)`, the shift for images of higher resolution; see
    :class:`scoresde.solvers.Shifted` for the spacing of a sampler. The weights stay those of the base, since the shift is a
    part of the objective.

    Args:
        factor: k, positive; above 1 for more times at high noise.
        base: the distribution that is shifted, a name in :data:`TIMES` or any :class:`Times`; by default "logit-normal".

    Raises:
        ValueError: for a factor that is not a positive number, and for an unknown name.

    Source: Esser et al., 2024, https://arxiv.org/abs/2403.03206, section 5.3.2.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> ShiftedTimes(3.0, "uniform").at(torch.tensor([0.5], dtype=torch.float64), RectifiedFlow(t_min=1e-9))[0]
        tensor([0.7500], dtype=torch.float64)
    """

    factor: float = 3.0
    base: str | Times = LogNormalTimes(0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"got factor={self.factor}; expected a positive number: above 1 for more times at high noise")
        if isinstance(self.base, str):
            object.__setattr__(self, "base", TIMES.name(self.base))

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        base = TIMES[self.base] if isinstance(self.base, str) else self.base
        t, weight = base.at(u, sde)
        return sde.time(sde.lam(t) - math.log(self.factor)).clamp(*sde.span), weight

    def observe(self, u: Tensor, loss: Tensor) -> None:
        """Record the losses at the quantiles ``u``, shape ``(batch,)``, in the base."""
        base = TIMES[self.base] if isinstance(self.base, str) else self.base
        base.observe(u, loss)


@dataclass(frozen=True, eq=False)
class AdaptiveTimes(Times):
    r"""Loss-aware resampling: importance sampling that is learned from the losses.

    The quantiles of a base distribution are cut into bins of equal probability. Once every bin has seen ``memory`` losses,
    bin b is drawn with probability

    .. math:: p_b \propto \sqrt{E[L_b^2]}^{\,power},

    mixed with a small part of the uniform distribution. Its losses are weighted by 1 / (bins p_b), so the mean is unbiased,
    and with ``power=1`` the variance of the loss is the smallest that bins can give. On a chain with one bin per step this
    is the sampler of improved DDPM.

    The object changes as it is used: an :class:`~scoresde.objectives.Objective` with these times reports its losses here,
    which copies them to the host at every training step.

    Args:
        base: a name in :data:`TIMES` or any :class:`Times`.
        bins: the number of bins.
        memory: the number of recent losses kept for each bin.
        uniform: the fraction of the uniform distribution in the mixture.
        power: the exponent of the root mean square loss in p_b. The published value 1 minimises the variance of the loss.
            For a squared error 1/2 is better for the gradient, which is proportional to the error and not to its square.

    Raises:
        ValueError: for fewer than one bin or one loss, a fraction outside [0, 1], or a power that is not positive.

    Source: Nichol and Dhariwal, 2021, https://arxiv.org/abs/2102.09672, section 3.3.

    Example:
        >>> from scoresde import VP
        >>> times, u = AdaptiveTimes("uniform", bins=2, memory=1, uniform=0.0), torch.tensor([0.2, 0.8])
        >>> times.observe(u, torch.tensor([3.0, 1.0]))
        >>> times.probabilities
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    base: str | Times = "auto"
    bins: int = 100
    memory: int = 10
    uniform: float = 0.001
    power: float = 1.0
    history: Tensor = field(init=False, repr=False)
    seen: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.base, str):
            object.__setattr__(self, "base", TIMES.name(self.base))
        if self.bins < 1 or self.memory < 1 or not 0 <= self.uniform <= 1 or not self.power > 0:
            raise ValueError(
                f"got bins={self.bins}, memory={self.memory}, uniform={self.uniform}, power={self.power}; expected at least "
                "one bin and one loss, a part between 0 and 1, and a positive power"
            )
        object.__setattr__(self, "history", torch.zeros(self.bins, self.memory, dtype=torch.float64))
        object.__setattr__(self, "seen", torch.zeros(self.bins, dtype=torch.long))

    @property
    def probabilities(self) -> Tensor:
        """The probabilities of the bins, shape ``(bins,)``, float64, on the host; equal until all have enough losses."""
        even = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        size = self.history.square().mean(1) ** (0.5 * self.power)
        if bool((self.seen < self.memory).any()) or not 0 < float(size.sum()) < math.inf:
            return even
        return torch.lerp(size / size.sum(), even, self.uniform)

    def _place(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bin of each ``u``, its position inside the bin, in [0, 1), and the weight of the bin."""
        p = self.probabilities.to(u.device)
        ends = p.cumsum(0)
        k = torch.searchsorted(ends, u.to(p), right=True).clamp(max=self.bins - 1)
        return k, ((u - (ends - p)[k]) / p[k]).clamp(0, 1 - 1e-12), 1 / (self.bins * p[k])

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        k, inside, weight = self._place(u)
        base = TIMES[self.base] if isinstance(self.base, str) else self.base
        t, given = base.at((k + inside) / self.bins, sde)
        return t, given * weight

    def observe(self, u: Tensor, loss: Tensor) -> None:
        """Record the losses at the quantiles ``u``; each bin keeps its newest ``memory``."""
        order = (k := self._place(u)[0].cpu()).argsort(stable=True)
        k, loss = k[order], loss.detach().to(device="cpu", dtype=torch.float64)[order]
        counts = torch.bincount(k, minlength=self.bins)
        rank = torch.arange(len(k)) - (counts.cumsum(0) - counts)[k]
        new = rank >= counts[k] - self.memory  # more would write one place twice
        self.history[k[new], (self.seen[k] + rank)[new] % self.memory] = loss[new]
        self.seen.add_(counts)


TIMES: Table[Times] = Table(
    "distribution of times",
    "scoresde.objectives.TIMES",
    {
        "auto": AutoTimes(),
        "uniform": UniformTimes(),
        "steps": StepTimes(),
        "likelihood": LikelihoodTimes(),
        "lognormal": LogNormalTimes(),
        "logit-normal": LogNormalTimes(0.0, 1.0),
        "shifted": ShiftedTimes(),
    },
    also="an object of a subclass of Times",
    check=lambda value: isinstance(value, Times),
    expects="an object of a subclass of Times",
)
"""The distributions of times by name."""
