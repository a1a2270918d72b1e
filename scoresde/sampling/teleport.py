r"""The teleported start: noise carried towards the data in closed form, as far as the data look like a Gaussian.

The start is carried from the prior to a later time along the flow of the Gaussian with the moments of the data, without
evaluations, and the steps of a solver go where the model departs from that Gaussian. With d the root mean square difference
of both data predictions, over coordinates and samples, :math:`d(\rho) / \rho` estimates the error at the data: see
:mod:`scoresde.score.departure`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.departure import DEEPEST, moments_for
from scoresde.sampling.start import check_model, start
from scoresde.score import Conditions, DataMoments, ScoreModel

__all__ = ["Teleported", "teleport"]


@dataclass(frozen=True)
class Teleported:
    """A start that was carried along the flow of a Gaussian.

    Attributes:
        x: the states at ``t``, ``(batch, *event)``.
        t: the time, for ``scoresde.sample(model, found.x, t_max=found.t)``.
        error: the estimate of the root mean square error at the data; NaN where the time was given.
        evaluations: the data predictions made to find the time.

    Example:
        >>> import scoresde
        >>> found = teleport(scoresde.problems.ring().model(scoresde.VP()), (4, 2), seed=0, t=0.5)
        >>> found.t, found.evaluations
        (0.5, 0)
    """

    x: Tensor
    t: float
    error: float
    evaluations: int


def teleport(
    model: ScoreModel,
    shape_or_start: Tensor | Sequence[int],
    *,
    tolerance: float = 1e-3,
    t: float | None = None,
    moments: DataMoments | None = None,
    pilot: int = 64,
    halvings: int = 8,
    seed: int | Sequence[int] | None = None,
    conditions: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Teleported:
    """Carry the start of sampling to the last time at which the model does not depart from a Gaussian.

    The time is found by halving the interval of lam, at one evaluation of a few samples each. It belongs to the model:
    pass it as ``t`` to the next calls, which then make no evaluation. Moments that do not fit the model are noticed as a
    departure, and the start is left where it is.

    Args:
        model: the score model.
        shape_or_start: the shape ``(batch, *event)`` of a start to draw, or the start at the end of the SDE's time.
        tolerance: the largest estimate of the error at the data, relative to their scale: see the module.
        t: the time to go to, instead of the one that the tolerance allows.
        moments: the mean and covariance of what the model describes under its conditions; by default ``model.moments``.
        pilot: the number of samples on which the departure is measured.
        halvings: the number of evaluations in the search.
        seed, conditions, device, dtype: as for :func:`scoresde.sample`.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, one without moments, a tolerance that is
            not positive, and a time outside the SDE's.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> found = teleport(model, (64, 2), seed=0)
        >>> 0.3 < found.t < 0.8, found.evaluations
        (True, 8)
        >>> scoresde.sample(model, found.x, steps=8, t_max=found.t, progress=False).evaluations
        8
    """
    check_model(model)
    moments = moments_for(model, moments)
    if not tolerance > 0:
        raise ValueError(f"got tolerance={tolerance}; expected a positive number")
    sde = model.sde
    first, last = sde.span[1], sde.span[0]
    if t is not None and not last <= t <= first:
        raise ValueError(f"got t={t}; expected a time between {last} and {first}")
    x, _ = start(shape_or_start, model, seed, float(sde.sigma(first)), device, dtype)
    if t is not None:
        return Teleported(moments.flow(x, sde, first, t), float(t), math.nan, 0)
    few = x[: whole("pilot", pilot, 1)]
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype)
    some = {name: v[: len(few)] if name in told.per_sample else v for name, v in told.values.items()}
    low, high = max(float(sde.lam(first)), DEEPEST), float(sde.lam(last))
    found, error = first, 0.0
    with torch.no_grad(), evaluation_mode(model):
        for _ in range(whole("halvings", halvings, 1)):
            lam = (low + high) / 2
            to = float(sde.time(torch.tensor(lam, dtype=torch.float64)))
            y = moments.flow(few, sde, first, to)
            away = (model.x0(y, to, **some) - moments.x0(y, sde, to)).double()
            estimate = float(away.square().mean().sqrt()) * math.exp(lam)
            if estimate <= tolerance:
                found, error, low = to, estimate, lam
            else:
                high = lam
    return Teleported(moments.flow(x, sde, first, found), found, error, halvings)
