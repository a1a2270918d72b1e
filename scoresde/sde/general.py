"""A forward SDE of any drift and diffusion, which has no closed-form marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from scoresde.base.shape import as_time
from scoresde.sde.base import SDE, Field, Time

__all__ = ["GeneralSDE"]


@dataclass(frozen=True)
class GeneralSDE(SDE):
    r"""A forward SDE from any drift and diffusion, :math:`dx = f(x,t)\,dt + g(x,t)\,dw`.

    It has no closed-form marginals, so only Euler-Maruyama, Heun and torchsde can sample it. The noise is diagonal: each
    component of ``diffusion(x, t)`` may depend on ``t`` and on the same component of ``x``.

    Args:
        f: drift, ``f(x, t) -> (batch, *event)``.
        g: diffusion, ``g(x, t)``, broadcastable to ``(batch, *event)``.
        t_min, t_max: the span of time.
        std: standard deviation of the prior at ``t_max``.

    Raises:
        ValueError: if ``t_min`` is not below ``t_max``.

    Example:
        >>> sde = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: 2.0 ** 0.5 * torch.ones_like(x), t_max=3.0)
        >>> sde.drift(torch.ones(1, 2), 0.0)
        tensor([[-1., -1.]])
    """

    f: Field
    g: Field
    t_min: float = 0.0
    t_max: float = 1.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.t_min < self.t_max:
            raise ValueError(f"got t_min={self.t_min} and t_max={self.t_max}; expected t_min < t_max")

    @property
    def span(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    @property
    def prior_std(self) -> float:
        return self.std

    def drift(self, x: Tensor, t: Time) -> Tensor:
        return self.f(x, as_time(t))

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        return self.g(x, as_time(t))

    def diffusion_divergence(self, x: Tensor, t: Time) -> Tensor:
        # Each component of g depends on its own component of x alone, so the gradient of the sum is the divergence.
        def total(y: Tensor) -> Tensor:
            return (self.g(y, as_time(t)).expand_as(y) ** 2).sum()

        return cast(Tensor, torch.func.grad(total)(x))
