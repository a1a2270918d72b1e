"""The start of sampling: a given tensor, or noise drawn from the prior; and the check of data to start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.base.devices import as_device, as_dtype
from scoresde.base.shape import check_batch, check_shape
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE, MatrixSDE
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds

__all__ = ["check_data", "check_model", "check_values", "start"]


def start(
    shape_or_start: Tensor | Sequence[int],
    model: ScoreModel | None,
    seed: int | Sequence[int] | None,
    prior_std: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    grads: bool = False,
    copy: bool = True,
) -> tuple[Tensor, FreshNoise]:
    """Return the start, given or drawn from the prior, and the source of the noise that the solver draws after it.

    Args:
        shape_or_start: the shape ``(batch, *event)`` of a start to draw, or the start itself.
        model: the model whose device and dtype a drawn start has by default.
        seed: one integer, one for each sample, or ``None``.
        prior_std: the standard deviation of a drawn start.
        device, dtype: device and dtype of the start.
        grads: whether to keep the graph of a start that is given.
        copy: whether to copy a start that is given, since a network may write into it.

    Raises:
        ValueError: for a shape that is not made of positive whole numbers, at least two of them, a device that is not
            there, and a dtype of other than floating-point numbers.
    """
    device = None if device is None else as_device(device)
    dtype = None if dtype is None else as_dtype(dtype)
    if isinstance(shape_or_start, Tensor):
        x = check_batch(shape_or_start if grads else shape_or_start.detach())
        x = x.clone() if copy else x
        x = x.to(device=x.device if device is None else device, dtype=dtype or x.dtype)
        return x, FreshNoise(sample_seeds(seed, x.shape[0]), x.device)
    shape = check_shape(shape_or_start)
    if device is None:
        device = "cpu" if model is None else model.device
    if dtype is None:
        dtype = torch.get_default_dtype() if model is None else model.dtype
    noise = FreshNoise(sample_seeds(seed, shape[0]), torch.device(device))
    return noise.normal(torch.empty(shape, device=device, dtype=dtype)).mul_(prior_std), noise


def check_model(model: ScoreModel) -> None:
    """Refuse what is not a score model on an SDE with Gaussian marginals.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for an SDE without Gaussian marginals.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"got model of type {type(model).__name__}; expected a ScoreModel: ScoreModel(net, sde) makes one")
    if isinstance(model.sde, MatrixSDE):
        raise ValueError(
            f"got a model on {type(model.sde).__name__}, whose coefficients are matrices, no alpha(t) and sigma(t); "
            "expected a model on a GaussianSDE, such as VP(). On SDEs with matrix coefficients there are sample, encode, "
            "decode, log_likelihood and the score models of scoresde.guidance and scoresde.inverse"
        )
    if not isinstance(model.sde, GaussianSDE):
        raise ValueError(
            f"got a model on {type(model.sde).__name__}, which has no alpha(t) and sigma(t); expected a model on a "
            "GaussianSDE, such as VP()"
        )


def check_data(model: ScoreModel, x: Tensor) -> None:
    """Refuse a model by :func:`check_model`, and data that it cannot start from.

    Raises:
        ValueError: for data of a wrong shape or dtype, without samples, or with numbers that are not finite.
    """
    check_model(model)
    check_values(x)


def check_values(x: Tensor) -> None:
    """Refuse data without samples, or with numbers that are not finite.

    Raises:
        ValueError: saying how many there are of both.
    """
    bad = int((~torch.isfinite(check_batch(x))).sum())
    if bad or not len(x):
        raise ValueError(f"got {len(x)} samples with {bad} numbers that are not finite; expected at least one, all finite")
