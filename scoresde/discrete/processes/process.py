r"""Processes that turn tokens into noise: continuous-time Markov chains, each token by itself.

With the amount of noise :math:`a = \bar\sigma(t)` a token goes from i to j with the probability

.. math:: P_a = e^{a Q}, \qquad P_a[i, j] = p(x_t = j \mid x_0 = i),

where Q is a rate matrix: its rows sum to zero and its entries off the diagonal are rates of jumps. Everything that sampling
and training need follows from four operations with :math:`P_a`, so that no matrix is formed where Q has a closed form.
States have shape ``(batch, *event)`` and are int64; laws of tokens have one dimension more, float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.discrete.processes.draws import draw_tokens
from scoresde.discrete.processes.schedules import NoiseSchedule, noise_schedule

__all__ = ["Absorbing", "Mixing", "TokenProcess", "Uniform", "check_tokens"]


def check_tokens(x: Any, most: int, what: str = "tokens") -> Tensor:
    """Return tokens as an int64 tensor after a check of their shape, dtype and range.

    Args:
        x: tokens, shape ``(batch, *event)`` with at least one sample and one event dimension, of any integer type.
        most: the number of tokens; they go from 0 to ``most - 1``.
        what: what the error calls them.

    Raises:
        TypeError: for something else than a tensor.
        ValueError: for another shape, floats, and tokens out of range.

    Example:
        >>> check_tokens(torch.tensor([[0, 2]], dtype=torch.uint8), 3)
        tensor([[0, 2]])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"got {what} of type {type(x).__name__}; expected an integer tensor: torch.as_tensor(tokens)")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"got {what} of dtype {x.dtype}; expected integers from 0 to {most - 1}: x.long()")
    if x.ndim < 2 or not x.numel():
        raise ValueError(
            f"got {what} of shape {tuple(x.shape)}; expected (batch, *event) with at least one sample and one token: write "
            "a single sequence as (1, length)"
        )
    x = x.to(torch.int64)
    low, high = (int(v) for v in torch.aminmax(x))
    if low < 0 or high >= most:
        raise ValueError(
            f"got {what} from {low} to {high}; expected whole numbers from 0 to {most - 1}: a vocabulary of n tokens has "
            "the numbers 0 to n - 1"
        )
    checked: Tensor = x
    return checked


@dataclass(frozen=True)
class TokenProcess(ABC):
    """Interface of the processes that turn tokens into noise.

    Attributes:
        vocabulary: the number of tokens that occur in data.
        noise: the noise schedule; given as a name in :data:`~scoresde.discrete.NOISE_SCHEDULES`, settings may follow it.

    Raises:
        ValueError: for a vocabulary of fewer than two tokens, and an unknown noise schedule.
    """

    vocabulary: int
    noise: str | NoiseSchedule = "linear"

    def __post_init__(self) -> None:
        if whole("vocabulary", self.vocabulary) < 2:
            raise ValueError(
                f"got vocabulary={self.vocabulary}; expected at least 2 tokens: with a single one there is nothing to sample"
            )
        object.__setattr__(self, "vocabulary", whole("vocabulary", self.vocabulary))
        object.__setattr__(self, "noise", noise_schedule(self.noise))

    # What a process implements ---------------------------------------------------------------------------------------

    @property
    def states(self) -> int:
        """The number of states of a token: the vocabulary, and the mask where there is one."""
        return self.vocabulary

    @property
    @abstractmethod
    def prior(self) -> Tensor:
        """The law of a token after much noise, shape ``(states,)``, float64."""

    @abstractmethod
    def rows(self, x: Tensor, amount: Tensor) -> Tensor:
        """Return P[x, :], the law of a token that was ``x``, shape ``(*x.shape, states)``."""

    @abstractmethod
    def columns(self, x: Tensor, amount: Tensor) -> Tensor:
        """Return P[:, x], the likelihood of each origin of a token that is ``x``, shape ``(*x.shape, states)``."""

    @abstractmethod
    def push(self, p: Tensor, amount: Tensor) -> Tensor:
        """Return p P, the law of a token whose law was ``p``, shape ``(.., states)``."""

    @abstractmethod
    def pull(self, p: Tensor, amount: Tensor) -> Tensor:
        """Return p times the inverse of P, shape ``(.., states)``."""

    @abstractmethod
    def rates_into(self, x: Tensor) -> Tensor:
        """Return Q[:, x], the rates of jumps into ``x`` per amount of noise, 0 from x itself; ``(*x.shape, states)``."""

    # What follows ----------------------------------------------------------------------------------------------------

    @property
    def span(self) -> tuple[float, float]:
        """The times of training: a little after the data, where rates may be infinite, to the noise."""
        return 1e-4, 1.0

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule, as an object."""
        return cast(NoiseSchedule, self.noise)

    def config(self) -> dict[str, Any]:
        """Return the arguments as plain values, from which a checkpoint builds the process again."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "noise"}
        return {"type": type(self).__name__, **given, "noise": self.schedule.text()}

    def amount(self, t: Tensor | float) -> Tensor:
        r"""Return the amount of noise :math:`\bar\sigma(t)`, float64, shape of ``t``.

        Raises:
            ValueError: for a time outside [0, 1].
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        if bool((t < 0).any()) or not bool((t <= 1).all()):
            raise ValueError(f"got times from {float(t.min()):.6g} to {float(t.max()):.6g}; expected times from 0 to 1")
        return self.schedule.amount(t)

    def speed(self, t: Tensor | float) -> Tensor:
        r"""Return the rate :math:`\beta(t)` at which the amount of noise grows, float64, shape of ``t``."""
        return self.schedule.speed(torch.as_tensor(t, dtype=torch.float64))

    def padded(self, p: Tensor) -> Tensor:
        """Return laws of data tokens, ``(.., vocabulary)``, as laws of states, float64, ``(.., states)``."""
        p = p.to(torch.float64)
        return p if self.states == self.vocabulary else torch.nn.functional.pad(p, (0, self.states - self.vocabulary))

    def noised(self, x0: Tensor, t: Tensor | float, u: Tensor) -> Tensor:
        """Return noised tokens, of the shape of ``x0``.

        Args:
            x0: tokens, shape ``(batch, *event)``.
            t: times, shape ``()`` or ``(batch,)``.
            u: uniform numbers in [0, 1), float64, shape of ``x0``.
        """
        return draw_tokens(self.rows(x0, self.amount(t)), u)

    def weights(self, x: Tensor, p0: Tensor, amount: Tensor) -> Tensor:
        r"""Return :math:`p(x_0 \mid x_t) / P[x_0, x_t]`, 0 for an origin from which x cannot come; ``(.., states)``."""
        likelihood = self.columns(x, amount)
        possible = likelihood > 0
        return torch.where(possible, self.padded(p0), 0.0) / torch.where(possible, likelihood, 1.0)

    def constrained(self, x: Tensor, p0: Tensor, amount: Tensor) -> Tensor:
        """Return predictions without the tokens from which ``x`` cannot come, normalised; ``(.., vocabulary)``.

        In the absorbing process a token that is not masked is its own prediction.
        """
        possible = self.columns(x, amount)[..., : self.vocabulary] > 0
        kept = torch.where(possible, p0, 0.0)
        total = kept.sum(-1, keepdim=True)
        # A network may give all its probability, to rounding, to tokens that are impossible: the possible ones share it.
        return torch.where(total > 0, kept, possible.to(kept)) / torch.where(
            total > 0, total, possible.sum(-1, keepdim=True)
        )

    def ratios(self, x: Tensor, p0: Tensor, amount: Tensor) -> Tensor:
        r"""Return the ratios :math:`p_t(x^{i \to y}) / p_t(x)` that predictions ``p0`` imply; 1 at x itself.

        .. math:: \frac{p_t(x^{i \to y})}{p_t(x)} = \sum_{x_0} p(x_0^i \mid x)\, \frac{P[x_0^i, y]}{P[x_0^i, x^i]} .

        Source: Campbell et al., "A Continuous Time Framework for Discrete Denoising Models", 2022,
        https://arxiv.org/abs/2205.14987, proposition 3.
        """
        return self.push(self.weights(x, p0, amount), amount)

    def posterior(self, x: Tensor, p0: Tensor, amount: Tensor, to: Tensor) -> Tensor:
        r"""Return the law of the token at the smaller amount of noise ``to``, given x and predictions; ``(.., states)``.

        .. math:: p(x_s \mid x_t) = \sum_{x_0} p(x_0 \mid x_t)\, \frac{P_s[x_0, x_s]\, P_{t|s}[x_s, x_t]}{P_t[x_0, x_t]} .

        Source: Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", 2021,
        https://arxiv.org/abs/2107.03006, section 3.
        """
        return _normalised(self.push(self.weights(x, p0, amount), to) * self.columns(x, amount - to))

    def tweedie(self, x: Tensor, ratios: Tensor, amount: Tensor, to: Tensor) -> Tensor:
        r"""Return the law of the token at the smaller amount of noise ``to`` from ratios; ``(.., states)``.

        .. math:: p(x_s \mid x_t) \propto \big(r\, P_{t|s}^{-1}\big)_{x_s}\, P_{t|s}[x_s, x_t] .

        It is :meth:`posterior` where the ratios are those of predictions. Negative values, which only inexact ratios give,
        count as 0.

        Source: Lou et al., "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", 2024,
        https://arxiv.org/abs/2310.16834, theorem 4.2.
        """
        step = amount - to
        return _normalised(self.pull(ratios, step).clamp(min=0) * self.columns(x, step))

    def prior_divergence(self, x0: Tensor) -> Tensor:
        """Return KL(p(x_1 | x_0) || prior), summed over the tokens, in nats, shape ``(batch,)``, float64."""
        end = self.rows(x0, self.amount(1.0))
        prior = self.prior.to(end.device).expand_as(end)
        end = torch.where(end > 2.0**-49, end, 0.0)  # alpha of a schedule that ends at alpha = 0 is 2^-50
        return (torch.xlogy(end, end) - torch.xlogy(end, prior)).flatten(1).sum(1)


def _normalised(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


def against(amount: Tensor, x: Tensor) -> Tensor:
    """Return an amount of shape ``()`` or ``(batch,)`` in a shape that broadcasts against laws of the tokens ``x``."""
    amount = amount.to(x.device)
    return amount if amount.ndim == 0 else amount.reshape(-1, *([1] * x.ndim))


def of_laws(amount: Tensor, p: Tensor) -> Tensor:
    """Return an amount in a shape that broadcasts against the laws ``p``."""
    amount = amount.to(p.device)
    return amount if amount.ndim == 0 else amount.reshape(-1, *([1] * (p.ndim - 1)))


# Processes in closed form --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixing(TokenProcess):
    r"""Base of the processes in which a jump goes to a draw from the prior, whatever the token was.

    With the law :math:`\pi` of the prior, :math:`Q = 1 \pi^T - I` and :math:`P_a = \alpha I + (1 - \alpha)\, 1 \pi^T`.
    """

    def rows(self, x: Tensor, amount: Tensor) -> Tensor:
        a = against(amount, x)
        return torch.exp(-a) * self._one_hot(x) - torch.expm1(-a) * self.prior.to(x.device)

    def columns(self, x: Tensor, amount: Tensor) -> Tensor:
        a = against(amount, x)
        return torch.exp(-a) * self._one_hot(x) - torch.expm1(-a) * self.prior.to(x.device)[x][..., None]

    def push(self, p: Tensor, amount: Tensor) -> Tensor:
        a = of_laws(amount, p)
        return torch.exp(-a) * p - torch.expm1(-a) * p.sum(-1, keepdim=True) * self.prior.to(p.device)

    def pull(self, p: Tensor, amount: Tensor) -> Tensor:
        a = of_laws(amount, p)
        return torch.exp(a) * p - torch.expm1(a) * p.sum(-1, keepdim=True) * self.prior.to(p.device)

    def rates_into(self, x: Tensor) -> Tensor:
        into = self.prior.to(x.device)[x][..., None].expand(*x.shape, self.states)
        return torch.where(self._one_hot(x) > 0, 0.0, into)

    def _one_hot(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x, self.states).to(torch.float64)


@dataclass(frozen=True)
class Uniform(Mixing):
    """The process in which a jump goes to any token with equal probability.

    Source: Hoogeboom et al., "Argmax Flows and Multinomial Diffusion", 2021, https://arxiv.org/abs/2102.05379.

    Args:
        vocabulary: the number of tokens.
        noise: the noise schedule.

    Example:
        >>> Uniform(2, "constant: rate=1.0").rows(torch.tensor([[0]]), torch.tensor(0.5, dtype=torch.float64))
        tensor([[[0.8033, 0.1967]]], dtype=torch.float64)
    """

    noise: str | NoiseSchedule = "constant: rate=8.0"

    @property
    def prior(self) -> Tensor:
        """The uniform law of a token."""
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)


@dataclass(frozen=True)
class Absorbing(Mixing):
    """The process that masks tokens: a jump goes to the mask, a state beside the vocabulary, and ends there.

    Source: Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", 2021,
    https://arxiv.org/abs/2107.03006.

    Args:
        vocabulary: the number of tokens that occur in data; the mask has the number ``vocabulary``.
        noise: the noise schedule.

    Example:
        >>> process = Absorbing(26)
        >>> process.states, process.mask
        (27, 26)
        >>> process.noised(torch.tensor([[0, 1, 2]]), 0.5, torch.tensor([[0.2, 0.7, 0.4]], dtype=torch.float64))
        tensor([[ 0, 26,  2]])
    """

    @property
    def states(self) -> int:
        """The number of states of a token: the vocabulary and the mask."""
        return self.vocabulary + 1

    @property
    def mask(self) -> int:
        """The number of the mask."""
        return self.vocabulary

    @property
    def prior(self) -> Tensor:
        """The law of a token that is masked for certain."""
        return torch.nn.functional.one_hot(torch.tensor(self.mask), self.states).to(torch.float64)

    def pull(self, p: Tensor, amount: Tensor) -> Tensor:
        a = of_laws(amount, p)  # without the cancellation of the general formula where alpha is tiny
        tokens, mask = p[..., : self.mask], p[..., self.mask :]
        return torch.cat([torch.exp(a) * tokens, mask - torch.expm1(a) * tokens.sum(-1, keepdim=True)], -1)
