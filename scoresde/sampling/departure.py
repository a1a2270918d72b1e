"""The measurement of how far a model departs from the Gaussian of its data: see :mod:`scoresde.score.departure`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scoresde.base.numbers import whole
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_model
from scoresde.score import Conditions, DataMoments, Departure, ScoreModel
from scoresde.score.departure import fingerprint

__all__ = ["DEEPEST", "measure_departure", "moments_for"]

DEEPEST = -7.0
"""The smallest lam that is looked at, for data of unit scale: at alpha = 0 a path has none, and no data show there."""

SHAPED = 1.0
"""The largest lam that is looked at, for data of unit scale, whose shape is there."""

FAR = 0.03
"""The error from which on later levels are not looked at."""


def measure_departure(
    model: ScoreModel,
    shape: Sequence[int] | None = None,
    *,
    moments: DataMoments | None = None,
    n: int = 32,
    levels: int = 24,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> Departure:
    """Measure how far a model departs from the Gaussian with the moments of its data, at levels even in lam.

    Set as ``model.departure``, it lets the default solver spare the steps at high noise: see :func:`scoresde.sample`.
    :func:`scoresde.fit` sets it at the end of a training. It costs an evaluation of ``n`` samples for each level, from the
    noise on until the departure is large.

    Args:
        model: the score model.
        shape: the shape of one sample; by default that of the moments.
        moments: the mean and covariance of what the model describes under its conditions; by default ``model.moments``.
        n: the number of samples, which follow the flow of the Gaussian.
        levels: the number of levels.
        seed: the seed of the samples.
        conditions: the values on which the model is conditioned, as for :func:`scoresde.sample`, for ``n`` samples.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, one without moments, and a shape that is
            not that of the moments.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> model.departure = measure_departure(model)
        >>> found = scoresde.sample(model, (4, 2), steps=8, progress=False)
        >>> found.evaluations, 0.4 < found.info["gaussian until"] < 0.7
        (8, True)
    """
    check_model(model)
    moments = moments_for(model, moments)
    event = tuple(moments.mean.shape if shape is None else shape)
    if event != tuple(moments.mean.shape):
        raise ValueError(f"got shape={event} for moments of the shape {tuple(moments.mean.shape)}; expected the same")
    sde, begin = model.sde, model.sde.span[1]
    shift = math.log(moments.scale) if moments.scale > 0 else 0.0
    low, high = max(float(sde.lam(begin)), DEEPEST - shift), min(float(sde.lam(sde.span[0])), SHAPED - shift)
    lams = torch.linspace(low, max(low, high), whole("levels", levels, 2), dtype=torch.float64)
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    x = torch.randn((whole("n", n, 2), *event), generator=generator, dtype=torch.float64).mul_(float(sde.sigma(begin)))
    x = x.to(device=model.device, dtype=model.dtype)
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    kept, errors = [], []
    with torch.no_grad(), evaluation_mode(model):
        for lam, t in zip(lams.tolist(), sde.time(lams).clamp(max=begin).tolist(), strict=True):
            y = moments.flow(x, sde, begin, t)
            away = (model.x0(y, t, **told) - moments.x0(y, sde, t)).double()
            kept.append(lam)
            errors.append(float(away.flatten(1).square().sum(1).mean().sqrt()) * math.exp(lam))
            if not errors[-1] <= FAR or low >= high:
                break
    capped = [min(e, sys.float_info.max) if e == e else sys.float_info.max for e in errors]
    return Departure(tuple(kept), tuple(capped), fingerprint(model))


def moments_for(model: ScoreModel, moments: DataMoments | None) -> DataMoments:
    """Return the given moments, or those of the model; refuse a model without.

    Raises:
        ValueError: if there are none.
    """
    moments = model.moments if moments is None else moments
    if moments is None:
        raise ValueError(
            "got a model without the moments of its data; expected model.moments = scoresde.score.DataMoments.of(data), or "
            "moments=.."
        )
    return moments
