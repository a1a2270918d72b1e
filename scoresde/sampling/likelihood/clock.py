r"""The clock of the flow for densities: :math:`\tau = \log u`, with :math:`u = \sigma / (\alpha + \sigma)` from 0 to 1.

It is finite at both ends of time, wherever there is some noise: :math:`\tau = 0` where :math:`\alpha = 0`. At low noise it
is log sigma up to a constant.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.sde import GaussianSDE

__all__ = ["Clock", "Where"]


class Where(NamedTuple):
    """Points of the flow, one for all samples or one for each: tensors of shape ``()`` or ``(batch,)``, float64."""

    tau: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Clock:
    """The clock of one SDE between two times.

    Args:
        sde: the SDE.
        t_min, t_max: the times of the start and of the end.
        device: the device of the points.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> clock = Clock(RectifiedFlow(), 0.001, 1.0)
        >>> clock.at(torch.log(torch.tensor([0.25, 1.0], dtype=torch.float64))).t.tolist()
        [0.25, 1.0]
    """

    sde: GaussianSDE
    t_min: float
    t_max: float
    device: torch.device | str = "cpu"

    @functools.cached_property
    def ends(self) -> tuple[float, float]:
        """The values of tau at ``t_min`` and ``t_max``."""
        tau = self.tau(torch.tensor([self.t_min, self.t_max], dtype=torch.float64)).tolist()
        return tau[0], tau[1]

    def tau(self, t: Tensor) -> Tensor:
        """Return tau at times ``t``, shape of ``t``."""
        return torch.nn.functional.logsigmoid(-self.sde.lam(t))

    def at(self, tau: Tensor) -> Where:
        """Return the points at ``tau``, shape ``(batch,)``, between the ends."""
        start, end = self.ends
        t = self.sde.time(torch.log(torch.expm1(-tau))).clamp(self.t_min, self.t_max)
        t = torch.where(tau >= end, self.t_max, torch.where(tau <= start, self.t_min, t))
        return self._where(tau, t)

    def _where(self, tau: Tensor, t: Tensor) -> Where:
        """Return the points at times ``t`` with the clock ``tau``."""
        return Where(tau, t, self.sde.alpha(t), self.sde.sigma(t))

    def points(self, times: Sequence[float]) -> list[Where]:
        """Return the points at rising times, of shape ``()``."""
        t = torch.tensor(times, dtype=torch.float64)
        columns = self._where(self.tau(t), t)
        return [Where(*(c[i].to(self.device) for c in columns)) for i in range(len(t))]
