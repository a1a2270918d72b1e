r"""The probability flow from data to noise, as the sampling of a mirrored process.

The flow :math:`dx = m\, d\alpha + \epsilon\, d\sigma` stays the same if data and noise change places,

.. math:: \alpha' = \sigma, \qquad \sigma' = \alpha, \qquad m' = \epsilon, \qquad \epsilon' = m, \qquad \lambda' = -\lambda .

A path towards the noise is therefore a path towards the "data" of the mirrored process, on which every deterministic solver
and driver runs as it is, without a row of its own. Rules that treat data and noise alike, such as DDIM, and Euler, Heun and
Runge-Kutta methods in t, become the same rules with negative steps. A rule that interpolates the data prediction becomes the
rule that interpolates the noise prediction. On the way up this is the stable choice: it carries :math:`x / \alpha` where the
other carries :math:`x / \sigma`, whose errors grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.base.shape import as_time
from scoresde.score import ScoreModel, Wrapper
from scoresde.sde import GaussianSDE, Time
from scoresde.solvers.path import Path, Point

__all__ = ["Mirrored", "MirroredSDE", "mirrored_path"]


@dataclass(frozen=True)
class MirroredSDE(GaussianSDE):
    """The process in which the data and the noise of ``sde`` have changed places: see the module.

    Its time t' runs backwards, t = t_min + t_max - t'.

    Example:
        >>> import torch
        >>> from scoresde import VP
        >>> sde = MirroredSDE(VP())
        >>> t = sde.opposite(0.3)
        >>> bool(torch.isclose(sde.lam(t), -VP().lam(0.3))), bool(torch.isclose(sde.time(sde.lam(t)), t))
        (True, True)
    """

    sde: GaussianSDE

    @property
    def span(self) -> tuple[float, float]:
        return self.sde.span

    def opposite(self, t: Time) -> Tensor:
        """Return the time of one process at the time ``t`` of the other, shape of ``t``."""
        low, high = self.span
        return (low + high - as_time(t)).clamp(0.0, high)

    def log_alpha(self, t: Time) -> Tensor:
        return self.sde.log_sigma(self.opposite(t))

    def log_sigma(self, t: Time) -> Tensor:
        return self.sde.log_alpha(self.opposite(t))

    def time(self, lam: Time) -> Tensor:
        return self.opposite(self.sde.time(-as_time(lam)))

    def d_log_alpha(self, t: Time) -> Tensor:
        return -self.sde.d_log_sigma(self.opposite(t))

    def d_log_sigma(self, t: Time) -> Tensor:
        return -self.sde.d_log_alpha(self.opposite(t))

    def d_alpha(self, t: Time) -> Tensor:
        t = self.opposite(t)
        return -self.sde.sigma(t) * self.sde.d_log_sigma(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        t = self.opposite(t)
        return (2 * self.sde.lam(t)).exp() * self.sde.diffusion_squared(t)


class Mirrored(Wrapper):
    """A score model on the mirrored process, whose data prediction is the noise prediction of the inner model.

    Example:
        >>> import scoresde, torch
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> mirrored, x = Mirrored(model), torch.ones(1, 2)
        >>> t = float(mirrored.sde.opposite(0.3))
        >>> bool(torch.allclose(mirrored.x0(x, t), model.eps(x, 0.3)))
        True
    """

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model)
        self._inner = model.sde
        self.sde = MirroredSDE(model.sde)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the noise prediction of the inner model, the data prediction of the mirrored process; shape of ``x``."""
        low, high = self._inner.span
        return self.model.eps(x, (low + high - as_time(t)).clamp(0.0, high), **conditions)

    def to_data(self, x: Tensor) -> Tensor:
        """Return the states themselves: the end of a run on the mirrored process is noise."""
        return x


def mirrored_path(path: Path) -> Path:
    """Return the points of ``path`` on the mirrored process, from its last point to its first.

    They are exchanged, not computed anew, so that no rounding comes between a path and its way back.
    """
    sde = MirroredSDE(path.sde)
    return Path(sde, tuple(_mirrored(sde, p) for p in reversed(path.points)))


def _mirrored(sde: MirroredSDE, p: Point) -> Point:
    d_log_alpha = p.d_alpha / p.alpha if p.alpha > 0 else -math.inf
    return Point(
        t=float(sde.opposite(p.t)),
        log_alpha=p.log_sigma,
        log_sigma=p.log_alpha,
        d_alpha=-p.sigma * p.d_log_sigma,
        d_log_sigma=-d_log_alpha,
        diffusion_squared=math.exp(2 * p.lam) * p.diffusion_squared,
    )
