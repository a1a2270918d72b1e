"""Series: values that are missing or still to come, drawn given the others.

A series has the shape ``(channels, length)``, such as ``UNet(channels, dims=1)`` takes. What is known of it is a measurement
by a mask, so that imputation and forecasting are inverse problems: see :func:`~scoresde.systems.fill` for the methods. The
draws are scored by :func:`scoresde.metrics.crps` and shown by :func:`scoresde.plots.quantile_bands`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.inverse import Mask, Observation
from scoresde.score import ScoreModel
from scoresde.solvers import sample_seeds
from scoresde.systems.filling import fill

__all__ = ["forecast", "impute"]


def impute(
    model: ScoreModel,
    series: Tensor,
    known: Tensor | None = None,
    draws: int = 100,
    *,
    sigma: float = 0.0,
    seed: int | Sequence[int] | None = 0,
    **options: Any,
) -> Tensor:
    """Draw the missing values of series given the known ones.

    Args:
        model: a score model of series.
        series: shape ``(channels, length)`` or ``(batch, channels, length)``; values that are not known may be nan.
        known: true where a value is known, a shape that broadcasts to that of ``series``; by default where it is not nan.
        draws: the number of samples of each series.
        sigma: the standard deviation of the noise of the known values.
        seed: an integer, or one for each series; a sample depends on its series, its own number and the seed.
        options: further arguments of :func:`~scoresde.systems.fill`, such as ``by="tmpd"``.

    Returns:
        The samples, shape ``(draws, *series.shape)``; without noise they agree with the known values.

    Raises:
        ValueError: for another shape, a mask that does not fit, a series of which nothing is known, and known values that
            are not finite.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.gaussian_process((2, 4), (1, 3)).model(scoresde.VP())
        >>> series = torch.tensor([[0.0, float("nan"), float("nan"), 1.0], [0.0, 0.0, 0.0, float("nan")]])
        >>> x = impute(model, series, draws=3, steps=10, progress=False)
        >>> x.shape, x[:, 0, 3]
        (torch.Size([3, 2, 4]), tensor([1., 1., 1.]))
    """
    draws = whole("draws", draws, 1)
    if series.ndim not in (2, 3) or not series.is_floating_point():
        raise ValueError(
            f"got series of shape {tuple(series.shape)} and dtype {series.dtype}; expected floats of shape (channels, "
            "length) or (batch, channels, length)"
        )
    given = ~series.isnan() if known is None else torch.as_tensor(known) != 0
    try:
        given = given.expand(series.shape)
    except RuntimeError:
        raise ValueError(
            f"got a mask of shape {tuple(given.shape)} for series of shape {tuple(series.shape)}; expected one that is true "
            "where a value is known, of the shape of the series"
        ) from None
    rows, masks = series.reshape(-1, *series.shape[-2:]), given.reshape(-1, *series.shape[-2:])
    seeds = sample_seeds(seed, len(rows))
    found = []
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        if not bool(mask.any()) or not bool(torch.isfinite(row[mask]).all()):
            raise ValueError(
                f"got series {i} with {int(mask.sum())} known values, of which {int(torch.isfinite(row[mask]).sum())} are "
                "finite; expected at least one, all of them finite: nan stands for a missing value"
            )
        seen = Observation(Mask(mask), row[mask], sigma)
        found.append(fill(model, seen, draws, seed=sample_seeds(seeds[i], draws), **options).x)
    return torch.stack(found, 1).reshape(draws, *series.shape)


def forecast(model: ScoreModel, history: Tensor, total: int, draws: int = 100, **options: Any) -> Tensor:
    """Draw the continuation of series.

    Args:
        model: a score model of series of length ``total``.
        history: what has been, shape ``(channels, k)`` or ``(batch, channels, k)``.
        total: the length of the series of the model, more than k.
        draws: the number of samples of each series.
        options: further arguments of :func:`impute`.

    Returns:
        The samples, the history included, shape ``(draws, *history.shape[:-1], total)``.

    Raises:
        ValueError: for a history that is not shorter than ``total``; see also :func:`impute`.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.gaussian_process((1, 8), (0, 3)).model(scoresde.VP())
        >>> forecast(model, torch.ones(1, 5), 8, draws=4, steps=10, progress=False).shape
        torch.Size([4, 1, 8])
    """
    k = history.shape[-1] if history.ndim else 0
    if not 0 < k < whole("total", total, 2):
        raise ValueError(
            f"got a history of {k} values to continue to {total}; expected at least one and fewer than the model's have"
        )
    later = torch.full((*history.shape[:-1], total - k), torch.nan, dtype=history.dtype, device=history.device)
    return impute(model, torch.cat([history, later], -1), draws=draws, **options)
