"""The interface of every forward process, and its reverse process for a given score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from scoresde.base.identity import Identified
from scoresde.base.shape import as_time

__all__ = ["SDE", "HasScore", "ReverseSDE", "Time"]

Time = Tensor | float
"""A time: a number, or a tensor of shape ``()`` or ``(batch,)``."""
Field = Callable[[Tensor, Tensor], Tensor]


class HasScore(Protocol):
    """Interface of an object with a method ``score(x, t)``."""

    def score(self, x: Tensor, t: Time, /) -> Tensor: ...


@dataclass(frozen=True)
class ReverseSDE:
    r"""The process that turns noise into data, :math:`dx = b(x,t)\,dt + c(x,t)\,d\bar w`, run from ``t_max`` to ``t_min``.

    ``eta`` = 1 is the time reversal (Anderson, "Reverse-time diffusion equation models", 1982), ``eta`` = 0 the
    probability-flow ODE (Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    2021). The marginals are the same for every ``eta`` of at least zero:

    .. math:: b = f - \tfrac{1+\eta}{2} \left( \nabla\cdot(g g^T) + g g^T\, \nabla_x \log p_t \right),
              \qquad c = \sqrt{\eta}\, g.

    Example:
        >>> from scoresde import VP
        >>> reverse = VP().reverse(lambda x, t: -x)  # of standard normal data
        >>> x = torch.ones(1, 2, dtype=torch.float64)
        >>> bool(torch.allclose(reverse.drift(x, 0.5), -VP().drift(x, 0.5)))
        True
    """

    forward: SDE
    score: Field
    eta: float = 1.0

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the drift b(x, t), shape of ``x``."""
        t = as_time(t)
        g = self.forward.diffusion(x, t)
        spread = g**2 * self.score(x, t) + self.forward.diffusion_divergence(x, t)
        return self.forward.drift(x, t) - 0.5 * (1 + self.eta) * spread

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """Return the diffusion c(x, t), broadcastable to ``x``."""
        return math.sqrt(self.eta) * self.forward.diffusion(x, t)


@dataclass(frozen=True)
class SDE(Identified, ABC):
    """Interface of every forward process: a drift, a diffusion, a span of time and a Gaussian prior at the noisy end.

    Two processes are equal if :func:`scoresde.base.identity.digest` is. It covers the fields, the numbers that a subclass
    keeps outside its fields, and the code of its functions.
    """

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """The span of time, ``(t_min, t_max)``."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """The standard deviation of the prior, the zero-mean Gaussian from which sampling starts at ``t_max``."""

    @abstractmethod
    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the forward drift at ``x`` and ``t``, shape of ``x``."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """Return the forward diffusion at ``x`` and ``t``, broadcastable to ``x``."""

    @abstractmethod
    def diffusion_divergence(self, x: Tensor, t: Time) -> Tensor | float:
        r"""Return :math:`\nabla_x \cdot (g g^T)`, which is zero if the diffusion does not depend on the state."""

    def state_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the states of data of ``shape``, ``(batch, *event)``; by default the same."""
        return torch.Size(shape)

    def data_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the data of states of ``shape``; by default the same."""
        return torch.Size(shape)

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw a tensor of ``shape`` from the prior N(0, prior_std^2 I), with random numbers of ``generator`` only."""
        return self.prior_std * torch.randn(*shape, generator=generator, dtype=dtype, device=device)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of the prior at ``x`` of shape ``(batch, *event)``, in nats, shape ``(batch,)``."""
        z = (x / self.prior_std).flatten(1)
        return -0.5 * (z**2).sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    def reverse(self, model: HasScore | Field, eta: float = 1.0) -> ReverseSDE:
        """Return the reverse-time SDE for a score.

        Args:
            model: an object with ``score(x, t)``, or a function of ``(x, t)`` that returns the score.
            eta: 1 for the time reversal, 0 for the probability flow, or another number of at least zero.

        Raises:
            ValueError: if ``eta`` is negative.

        Example:
            >>> from scoresde import VP
            >>> sde = VP()
            >>> reverse = sde.reverse(lambda x, t: -x)  # standard normal data stay standard normal at all times
            >>> x = torch.ones(1, 2)
            >>> bool(torch.allclose(reverse.drift(x, 0.5), -sde.drift(x, 0.5)))
            True
        """
        if not eta >= 0:
            raise ValueError(f"got eta={eta}; expected a number >= 0 (0: probability flow, 1: time reversal)")
        score = cast(Field, getattr(model, "score", model))
        return ReverseSDE(self, score, eta)

    def probability_flow(self, model: HasScore | Field) -> ReverseSDE:
        """Return the probability-flow ODE, the deterministic process with the same marginals: ``reverse(model, eta=0)``."""
        return self.reverse(model, eta=0.0)
