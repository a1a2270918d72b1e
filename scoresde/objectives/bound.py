r"""The variational bound of a chain, and its hybrid with denoising score matching; both can train a learned variance.

On a chain of n steps the bound on :math:`-\log p(x_0)` is

.. math:: L = D(q(x_n | x_0) \,\|\, p(x_n)) + \sum_{k=2}^n D(q(x_{k-1} | x_k, x_0) \,\|\, p(x_{k-1} | x_k))
          - \log p(x_0 | x_1),

where :math:`p(x_{k-1} | x_k)` is the ancestral step. Its mean is that of the posterior with the data replaced by their
prediction; its variance is the lower bound, the upper bound, a value between them, or learned. All terms are in bits per
dimension.

Sources: Ho et al., 2020, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic
Models", 2021, https://arxiv.org/abs/2102.09672.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import check_batch, expand
from scoresde.objectives.matching import DSM, Objective, noised, times_of
from scoresde.objectives.times import TIMES, Times
from scoresde.objectives.weightings import WEIGHTINGS, Weighting
from scoresde.score import ScoreModel, target
from scoresde.sde.chain import Chain, ChainSDE

__all__ = ["Hybrid", "VariationalBound"]

FIXED = {"lower": 0.0, "upper": 1.0}


@dataclass(frozen=True)
class VariationalBound(Objective):
    """The variational bound of a score model on a chain.

    A call draws one of the n terms for each sample and returns n times its value, in bits per dimension. Its mean is the
    sum of all terms except the prior's, which does not depend on the model. :meth:`total` computes the whole bound.

    Args:
        variance: ``"learned"``, ``"lower"``, ``"upper"``, or a number from 0 (lower) to 1 (upper) that interpolates the
            logarithms. The lower bound is zero at the first step, where the value of the second step is used instead.
        levels: the number of levels of data that are integers scaled to [-1, 1]: 256 for images. p(x_0 | x_1) is then the
            probability of the interval around a level; the two outermost intervals are open. With ``None`` the data are
            real numbers and p(x_0 | x_1) is a density.
        times: a name in :data:`TIMES` or any :class:`Times`. ``AdaptiveTimes(bins=n)`` is the loss-aware resampling that
            the authors needed to train on the bound.

    Raises:
        ValueError: if the model's SDE is not a chain, or if ``variance="learned"`` and the model has no learned variance.

    Example:
        >>> from scoresde import DDPM
        >>> from scoresde.problems import Gaussian
        >>> model = Gaussian([0.0], 1.0).model(DDPM.linear(100, 1e-3, 0.1))
        >>> x0 = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> bits = VariationalBound("upper").total(model, x0, torch.Generator().manual_seed(0))
        >>> entropy = 0.5 * math.log2(2 * math.pi * math.e)
        >>> abs(bits.mean().item() - entropy) < 0.3
        True
    """

    variance: str | float = "learned"
    levels: int | None = None
    times: str | Times = "auto"

    def __post_init__(self) -> None:
        fixed = FIXED.get(self.variance, -1.0) if isinstance(self.variance, str) else self.variance
        if self.variance != "learned" and not 0 <= fixed <= 1:
            raise ValueError(f"got variance={self.variance!r}; expected 'learned', 'lower', 'upper' or a number from 0 to 1")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"got levels={self.levels}; expected at least 2, or None for data with a density")
        if isinstance(self.times, str):
            object.__setattr__(self, "times", TIMES.name(self.times))

    @property
    def weight(self) -> Weighting:
        """The likelihood weighting, which the bound approaches as the number of steps grows."""
        return WEIGHTINGS["likelihood"]

    @property
    def distribution(self) -> Times:
        """The distribution of times, as an object."""
        return times_of(self.times)

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        n = len(_chain(model))
        x = noised(model.sde, x0, t, eps)
        if self.variance == "learned":
            return n * self.of_outputs(model, *model.outputs(x, t, **conditions), x0, t, eps)
        return n * self.of_outputs(model, model(x, t, **conditions), None, x0, t, eps)

    def of_outputs(
        self, model: ScoreModel, output: Tensor, fraction: Tensor | None, x0: Tensor, t: Tensor, eps: Tensor
    ) -> Tensor:
        """Return the term at time ``t`` for a given output of the network, shape ``(batch,)``, in bits per dimension.

        Args:
            model: the score model.
            output: the network's prediction, shape of ``x0``.
            fraction: the learned variance, see :meth:`scoresde.ScoreModel.outputs`; ``None`` where it is fixed.
            x0, eps: data and noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
        """
        chain = _chain(model)
        t = t.to(torch.float64)
        k = (t * len(chain)).round().long().cpu() - 1
        lower, upper, gain = (expand(table[k].to(x0.device), x0).to(x0) for table in _tables(chain))
        if fraction is None:
            value = FIXED[self.variance] if isinstance(self.variance, str) else self.variance
            fraction = torch.full_like(x0, value)
        log_variance = torch.lerp(lower, upper, fraction)
        alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
        error = output - target(model.predicts, x0, eps, alpha, sigma, model.sigma_data)
        error = gain * expand(model.coefficients(t).x0[1], x0).to(x0) * error  # of the mean of the step
        squared = error**2 * torch.exp(-log_variance)
        divergence = 0.5 * (log_variance - lower + torch.exp(lower - log_variance) - 1 + squared)
        if self.levels is None:
            decoder = 0.5 * (math.log(2 * math.pi) + log_variance + squared)
        else:
            decoder = -_log_interval(x0, error, torch.exp(0.5 * log_variance), 1 / (self.levels - 1))
        first = expand((k == 0).to(x0.device), x0)
        nats: Tensor = torch.where(first, decoder, divergence).flatten(1).mean(1)
        return nats / math.log(2)

    def terms(self, model: ScoreModel, x0: Tensor, generator: torch.Generator, **conditions: Any) -> Tensor:
        """Return every term of the bound of each sample, shape ``(n + 1, batch)``, in bits per dimension.

        The first is the divergence from the prior N(0, sigma_n^2 I), from which sampling starts. The others are those of the
        steps 1..n, of which the first is the decoder. Each is estimated with one draw of the noise, so they cost one network
        evaluation per step of the chain.
        """
        check_batch(x0)
        chain = _chain(model)
        ratio = float((2 * chain.lam[-1]).exp())
        found = [0.5 * ratio * x0.square().flatten(1).mean(1) / math.log(2)]
        for k in range(1, len(chain) + 1):
            t = torch.full((len(x0),), k / len(chain), dtype=torch.float64, device=x0.device)
            eps = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
            found.append(self.at(model, x0, t, eps, **conditions) / len(chain))
        return torch.stack(found)

    def total(self, model: ScoreModel, x0: Tensor, generator: torch.Generator, **conditions: Any) -> Tensor:
        """Return the whole bound of each sample, shape ``(batch,)``, in bits per dimension: the sum of :meth:`terms`."""
        return self.terms(model, x0, generator, **conditions).sum(0)


@dataclass(frozen=True)
class Hybrid(Objective):
    """The hybrid objective of improved DDPM: denoising score matching for the mean, the variational bound for the variance.

    The loss is that of ``simple`` plus ``scale`` times the bound. The gradient of the bound reaches the variance only, not
    the prediction. Both parts share one evaluation of the network.

    Args:
        simple: denoising score matching with fresh noise; its times are used for both parts.
        bound: a variational bound with ``variance="learned"``.
        scale: the factor of the bound; 0.001 in the paper.

    Raises:
        ValueError: if ``simple`` has other than fresh noise, ``bound`` another variance than the learned one, or ``scale``
            is negative.

    Example:
        >>> from scoresde import DDPM
        >>> net = lambda x, t: torch.cat([x, 0 * x], 1)
        >>> model = ScoreModel(net, DDPM.linear(10, 1e-3, 0.5), learned_variance=True)
        >>> Hybrid()(model, torch.zeros(4, 2), torch.Generator())[0].shape
        torch.Size([4])
    """

    simple: DSM = field(default_factory=DSM)
    bound: VariationalBound = field(default_factory=VariationalBound)
    scale: float = 0.001

    def __post_init__(self) -> None:
        if self.simple.noise != "fresh" or self.bound.variance != "learned" or not self.scale >= 0:
            raise ValueError(
                f"got noise={self.simple.noise!r}, variance={self.bound.variance!r} and scale={self.scale}; expected "
                "'fresh' noise, a 'learned' variance and a scale of at least 0"
            )

    @property
    def weight(self) -> Weighting:
        """The weighting of the denoising score matching part."""
        return self.simple.weight

    @property
    def distribution(self) -> Times:
        """The distribution of times of the denoising score matching part, from which both parts draw."""
        return self.simple.distribution

    @property
    def spread(self) -> bool:
        return self.simple.spread

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        n = len(_chain(model))
        output, fraction = model.outputs(noised(model.sde, x0, t, eps), t, **conditions)
        simple = self.simple.of_output(model, output, x0, t, eps)
        return simple + self.scale * n * self.bound.of_outputs(model, output.detach(), fraction, x0, t, eps)


def _chain(model: ScoreModel) -> Chain:
    if not isinstance(model.sde, ChainSDE):
        raise ValueError(
            f"got a model of {type(model.sde).__name__} for the bound of a chain; build the model with discretize(sde, n)"
        )
    return model.sde.chain


def _tables(chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithms of both bounds of the variance, and the factor of x_0 in the mean of the step, float64."""
    one = torch.ones(1, dtype=torch.float64)
    upper = chain.variance
    lower = chain.posterior_variance("lower")
    lower = torch.cat([lower[1:2] if len(chain) > 1 else upper[:1], lower[1:]])
    return lower.log(), upper.log(), torch.cat([one, chain.alpha[:-1]]) * upper / chain.sigma**2


def _log_interval(x: Tensor, error: Tensor, std: Tensor, half: float) -> Tensor:
    """Return the log-probability that N(x + error, std^2) is within ``half`` of ``x``, with open intervals at -1 and 1."""
    far = torch.full_like(x, 1e4)
    low = torch.where(x < -1 + half, -far, (-half - error) / std)
    high = torch.where(x > 1 - half, far, (half - error) / std)
    # Moved to the left tail, where the difference of two distribution functions does not cancel.
    turned = low + high > 0
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    # Never below the smallest positive number, where the interval is narrower than rounding.
    gap = (above - below).clamp(min=torch.finfo(x.dtype).tiny)
    probability: Tensor = above + torch.log(-torch.expm1(-gap))
    return probability
