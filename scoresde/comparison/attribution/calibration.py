"""Samples of the data, noised, by which the size of a function of the state is measured at every time."""

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
"""Samples by which errors are scaled: the root mean square of one coordinate is good to 1.6 %."""


def samples(data: Tensor | Samplable | None, n: int, seed: int) -> Tensor:
    """Samples of the data in float64, ``(n or less, *event)``."""
    if data is None:
        raise ValueError("got a model whose data are not known; expected data=, samples or a problem, to scale the error by")
    if isinstance(data, Tensor):
        return check_batch(data)[:n].double()
    return check_batch(data.sample(n, torch.Generator().manual_seed(seed))).double()


def noised(sde: GaussianSDE, data: Tensor | Samplable, n: int, seed: int) -> Callable[[Tensor], Tensor]:
    """The noised data at any time, from the same samples and the same noise."""
    x0 = samples(data, n, seed)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(x0.device)
    return lambda t: sde.perturb(x0, t, eps)


def finite(sde: GaussianSDE, lam: Tensor) -> Tensor:
    """lam, at most as far below zero as a time at which alpha = 0 may sensibly be taken to lie."""
    low, high = (float(v) for v in (sde.lam(sde.span[1]), sde.lam(sde.span[0])))
    return lam.clamp(min=low if math.isfinite(low) else -abs(high) - 1, max=high)


def sizes(
    raw: Callable[[Tensor, Tensor], Tensor], sde: GaussianSDE, x0: Tensor, length: float
) -> Callable[[Tensor], Tensor]:
    """The root mean square of ``raw``, which changes over ``length`` in lam, under the noised data as a function of lam.

    Its logarithm is interpolated by a polynomial in Chebyshev's points: without the kinks of lines between points, at which
    solvers of high order would stumble.
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
