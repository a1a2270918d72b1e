r"""Objectives on tokens: upper bounds of the negative log-likelihood of data, in nats per token.

All are bounds of the same kind, :math:`E \sum_t KL(q \,\|\, p)` over the steps of a chain or over continuous time, in which
p is the reversed process of the model. They go through noised tokens drawn by inversion from uniform numbers, so that a
training is a function of its seed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.base.numbers import whole
from scoresde.discrete.processes.process import Absorbing, of_laws
from scoresde.objectives import Objective, Times, UniformTimes, Weighting, quantiles

__all__ = [
    "TOKEN_OBJECTIVES",
    "ChainBound",
    "ChainTimes",
    "MaskedBound",
    "ScoreEntropy",
    "TokenObjective",
    "token_objective",
]


@dataclass(frozen=True)
class TokenObjective(Objective):
    """Interface of the objectives on tokens; a subclass overrides :meth:`of_tokens`."""

    @property
    def weight(self) -> Weighting:
        """Refused: an objective on tokens has no squared error of a score to weight."""
        raise ValueError("got the weighting of an objective on tokens, which has no squared error of a score")

    @property
    def distribution(self) -> Times:
        """The distribution of times, uniform over the span of the process."""
        return UniformTimes()

    @abstractmethod
    def of_tokens(self, model: Any, x0: Tensor, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """Return the loss at given noised tokens, in nats per token, shape ``(batch,)``; its mean is the bound.

        Args:
            model: a denoising model.
            x0: tokens of the data, shape ``(batch, *event)``.
            x: noised tokens, of the same shape.
            t: times, shape ``(batch,)``.
            conditions: passed to the network.
        """

    def draw_noise(self, model: Any, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw uniform numbers in [0, 1), one for each token, float64, on the device of ``generator``."""
        return torch.rand(x0.shape, generator=generator, dtype=torch.float64, device=generator.device)

    def at(self, model: Any, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the loss at given times and uniform numbers ``eps``, in nats per token, shape ``(batch,)``."""
        t, x0 = t.to(torch.float64), x0.to(torch.int64)
        return self.of_tokens(model, x0, model.process.noised(x0, t, eps), t, **conditions)

    def compared(
        self, model: Any, truth: Any, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the loss less that of the exact model at the same noised tokens, shape ``(batch,)``, and no errors."""
        excess = self.at(model, x0, t, eps, **conditions) - self.at(truth, x0, t, eps, **conditions)
        return excess, None, None

    def bound(self, model: Any, x0: Tensor, generator: torch.Generator, **conditions: Any) -> Tensor:
        """Return one unbiased estimate for each sample of the bound of its -log p, in nats, shape ``(batch,)``, float64.

        It has the divergence of the noised data from the prior in it, which no training changes. The loss is taken from t =
        1e-4 on.

        Args:
            model: a denoising model.
            x0: tokens, shape ``(batch, *event)``.
            generator: the source of the random numbers.
            conditions: passed to the network.
        """
        x0 = model.check_data(x0)
        t, _ = self.distribution.at(quantiles(len(x0), generator), model.process)
        eps = self.draw_noise(model, x0, generator)
        with torch.no_grad():
            loss = self.at(model, x0, t.to(x0.device), eps.to(x0.device), **conditions)
        found: Tensor = loss.double() * x0[0].numel() + model.process.prior_divergence(x0)
        return found


@dataclass(frozen=True)
class MaskedBound(TokenObjective):
    r"""The bound of masked diffusion: cross-entropies of the masked tokens, weighted by time (MDLM).

    .. math:: L = \int_0^1 \frac{-\alpha'(t)}{1 - \alpha(t)}\; E \sum_{i:\, x_t^i = mask} -\log p(x_0^i \mid x_t)\; dt .

    Sources: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", 2024, https://arxiv.org/abs/2406.07524;
    Shi et al., "Simplified and Generalized Masked Diffusion for Discrete Data", 2024, https://arxiv.org/abs/2406.04329.

    Raises:
        ValueError: for a model on another process than :class:`~scoresde.discrete.Absorbing`.

    Example:
        >>> from scoresde.discrete import Absorbing, DenoisingModel
        >>> even = DenoisingModel(lambda x, t: torch.zeros(*x.shape, 4), Absorbing(4))
        >>> x0 = torch.zeros(4000, 8, dtype=torch.long)
        >>> bound = MaskedBound().bound(even, x0, torch.Generator().manual_seed(0)).mean() / 8
        >>> abs(bound.item() - math.log(4)) < 0.02
        True
    """

    def of_tokens(self, model: Any, x0: Tensor, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        process = model.process
        if not isinstance(process, Absorbing):
            raise ValueError(
                f"got the bound of masked diffusion for a model on {type(process).__name__}; expected one on Absorbing, or "
                "another objective: 'sedd' or 'd3pm'"
            )
        # A token that is not masked adds nothing, and log 0 of it has no gradient to spoil.
        masked = x == process.mask
        p = model.predict(x, t, **conditions).x0.gather(-1, x0[..., None])[..., 0]
        entropies = torch.where(masked, -torch.log(torch.where(masked, p, 1.0)), 0.0)
        weight = process.speed(t) / torch.expm1(process.amount(t))
        return (process.span[1] - process.span[0]) * weight.to(p.device) * entropies.flatten(1).mean(1)


@dataclass(frozen=True)
class ScoreEntropy(TokenObjective):
    r"""The denoising score entropy (SEDD), which is the bound in continuous time of every process.

    With the model's ratios s and those of the noised token, :math:`r_y = P[x_0, y] / P[x_0, x]`,

    .. math:: L = \int_0^1 \beta(t)\, E \sum_i \sum_{y \ne x^i} Q[y, x^i]
              \Big( s_y - r_y + r_y \log \frac{r_y}{s_y} \Big)\, dt .

    For the absorbing process it equals :class:`MaskedBound` where a model predicts the data.

    Source: Lou et al., "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", 2024,
    https://arxiv.org/abs/2310.16834; the bound is that of Campbell et al., 2022, https://arxiv.org/abs/2205.14987.

    Example:
        >>> from scoresde.discrete import Absorbing, DenoisingModel
        >>> even = DenoisingModel(lambda x, t: torch.zeros(*x.shape, 4), Absorbing(4))
        >>> x0 = torch.zeros(2, 8, dtype=torch.long)
        >>> loss, t = ScoreEntropy()(even, x0, torch.Generator().manual_seed(0))
        >>> masked, _ = MaskedBound()(even, x0, torch.Generator().manual_seed(0))
        >>> torch.allclose(loss, masked)
        True
    """

    def of_tokens(self, model: Any, x0: Tensor, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        process = model.process
        s = model.predict(x, t, **conditions).ratios
        one_hot = torch.nn.functional.one_hot(x0, process.vocabulary).to(s)
        r = process.ratios(x, one_hot, process.amount(t))
        rates = of_laws(process.speed(t), s) * process.rates_into(x)
        counted = rates > 0
        s, r = torch.where(counted, s, 1.0), torch.where(counted, r, 1.0)
        terms = rates * (s - r + torch.xlogy(r, r) - torch.xlogy(r, s))
        losses: Tensor = (process.span[1] - process.span[0]) * terms.sum(-1).flatten(1).mean(1)
        return losses


@dataclass(frozen=True)
class ChainTimes(Times):
    """The times k / n of a chain of n steps, k = 1..n with equal probability, and weight 1.

    Example:
        >>> t, weight = ChainTimes(4).at(torch.tensor([0.0, 0.6, 0.9]), None)
        >>> t.tolist(), weight.tolist()
        ([0.25, 0.75, 1.0], [1.0, 1.0, 1.0])
    """

    steps: int = 1000

    def at(self, u: Tensor, sde: Any) -> tuple[Tensor, Tensor]:
        return ((u * self.steps).floor().clamp(max=self.steps - 1) + 1) / self.steps, torch.ones_like(u)


@dataclass(frozen=True)
class ChainBound(TokenObjective):
    r"""The variational bound of a chain of n steps (D3PM), with the divergences of its steps in closed form.

    .. math:: L = \sum_{k=1}^n E\; KL\big( q(x_{k-1} \mid x_k, x_0) \,\|\, p(x_{k-1} \mid x_k) \big),

    whose last one, k = 1, is :math:`-\log p(x_0 \mid x_1)`. It is the bound of ancestral sampling with n steps.

    Source: Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", 2021,
    https://arxiv.org/abs/2107.03006.

    Args:
        steps: n.
        cross_entropy: the weight of the cross-entropy of the predicted data, which is added; published values are 0.001 to
            0.1. With any but 0 the loss is no bound.

    Raises:
        ValueError: for fewer than one step or a negative weight.

    Example:
        >>> from scoresde.discrete import Absorbing, MarkovChain
        >>> exact = MarkovChain([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], length=4).model(Absorbing(2))
        >>> x0 = torch.zeros(2000, 4, dtype=torch.long)
        >>> bound = ChainBound(steps=8).bound(exact, x0, torch.Generator().manual_seed(0)).mean() / 4
        >>> abs(bound.item() - math.log(2)) < 0.05  # nats a token
        True
    """

    steps: int = 1000
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if not 0 <= self.cross_entropy < math.inf:
            raise ValueError(f"got cross_entropy={self.cross_entropy}; expected a weight of at least 0, such as 0.001")

    @property
    def distribution(self) -> Times:
        """The times of the chain."""
        return ChainTimes(self.steps)

    def of_tokens(self, model: Any, x0: Tensor, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        process = model.process
        prediction = model.predict(x, t, **conditions)
        amount, to = process.amount(t), process.amount((t - 1 / self.steps).clamp(min=0.0))
        one_hot = torch.nn.functional.one_hot(x0, process.vocabulary).to(prediction.x0)
        q = process.posterior(x, one_hot, amount, to)
        p = process.posterior(x, prediction.x0, amount, to)
        some = q > 0
        terms = torch.where(some, q * (torch.where(some, q, 1.0).log() - torch.where(some, p, 1.0).log()), 0.0)
        loss: Tensor = self.steps * terms.sum(-1).flatten(1).mean(1)
        if self.cross_entropy:
            p0 = prediction.x0.gather(-1, x0[..., None])[..., 0]
            loss = loss - self.cross_entropy * p0.log().flatten(1).mean(1)
        return loss


TOKEN_OBJECTIVES: Table[Objective] = Table(
    "token objective",
    "scoresde.discrete.TOKEN_OBJECTIVES",
    {
        "sedd": ScoreEntropy(),
        "mdlm": MaskedBound(),
        "d3pm": ChainBound(),
        "d3pm-hybrid": ChainBound(cross_entropy=0.001),
    },
    also="an Objective",
    check=lambda value: isinstance(value, Objective),
    expects="an Objective",
)
"""The published objectives on tokens by name: score entropy, masked diffusion, and the bound of a chain, with and without
the cross-entropy of the data."""


def token_objective(given: str | Objective | None) -> Objective:
    """Return the objective of a name, or the objective itself; the score entropy, which fits every process, for ``None``.

    Example:
        >>> token_objective("d3pm")
        ChainBound(steps=1000, cross_entropy=0.0)
    """
    return TOKEN_OBJECTIVES["sedd" if given is None else given] if given is None or isinstance(given, str) else given
