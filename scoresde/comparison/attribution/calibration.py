"""Calibration of score errors: noised samples of the data, which give the size of a function of the state at any time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.base.shape import check_batch
from scoresde.sde import GaussianSDE
from scoresde.training.batches import Samplable

__all__ = ["CALIBRATION", "finite", "noised", "samples", "sizes"]

CALIBRATION = 2048
"""The number of samples that scale errors: the root mean square of one coordinate is good to 1.6 %."""


def samples(data: Tensor | Samplable | None, n: int, seed: int) -> Tensor:
    """Return samples of the data in float64, ``(n or less, *event)``."""
    if data is None:
        raise ValueError("got a model whose data are not known; expected data=, samples or a problem, to scale the error by")
    if isinstance(data, Tensor):
        return check_batch(data)[:n].double()
    return check_batch(data.sample(n, torch.Generator().manual_seed(seed))).double()


def noised(sde: GaussianSDE, data: Tensor | Samplable, n: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function from times to noised data, from the same samples and the same noise at every time."""
    x0 = samples(data, n, seed)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(x0.device)
    return lambda t: sde.perturb(x0, t, eps)


def finite(sde: GaussianSDE, lam: Tensor) -> Tensor:
    """Return lam, clamped to the span of the SDE, or to a finite bound where the span ends at alpha = 0."""
    low, high = (float(v) for v in (sde.lam(sde.span[1]), sde.lam(sde.span[0])))
    return lam.clamp(min=low if math.isfinite(low) else -abs(high) - 1, max=high)


def sizes(
    raw: Callable[[Tensor, Tensor], Tensor], sde: GaussianSDE, x0: Tensor, length: float
) -> Callable[[Tensor], Tensor]:
    """Return the root mean square of ``raw`` under the noised data, as a function of lam.

    ``raw`` changes over ``length`` in lam. The logarithm is interpolated by a polynomial in Chebyshev's points. Lines
    between the points would have kinks, at which solvers of high order lose their order.
    """
    low, high = (float(finite(sde, torch.tensor(v, dtype=torch.float64))) for v in (-math.inf, math.inf))
    degrees = torch.arange(8 + math.ceil(4 * (high - low) / length), dtype=torch.float64)
    angles = math.pi * (degrees + 0.5) / len(degrees)
    times = sde.time(low + (high - low) * 0.5 * (1 + angles.cos()))
    at = noised(sde, x0, len(x0), 0)
    values = torch.stack([raw(at(t), t).square().mean().log() / 2 for t in times]).cpu()
    table = 2 / len(degrees) * torch.cos(angles * degrees[:, None]) @ values
    table[0] /= 2

    def size(lam: Tensor) -> Tensor:
        place = 2 * (finite(sde, lam) - low) / (high - low) - 1
        angle = place.clamp(-1, 1).acos()
        return (torch.cos(angle[..., None] * degrees.to(lam.device)) @ table.to(lam.device)).exp()

    return size
