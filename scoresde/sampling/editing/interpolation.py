"""Interpolation between data, through their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.sampling.editing.encoding import decode, encode
from scoresde.sampling.editing.latents import slerp
from scoresde.sampling.start import check_data
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.path import PathLike
from scoresde.solvers.solver import Solver

__all__ = ["interpolate"]


def interpolate(
    model: ScoreModel,
    a: Tensor,
    b: Tensor,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    solver: str | Solver = "dpmpp-2m",
    steps: int = 50,
    path: PathLike = "lam",
    *,
    t_max: float | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return data between ``a`` and ``b``: both are encoded, their latents interpolated spherically, and decoded.

    Args:
        model: the score model.
        a, b: data of shape ``(batch, *event)``.
        weights: 0 is a and 1 is b, up to the error of the steps.
        solver, steps, path, t_max: the same as in :func:`scoresde.sampling.encode`.
        conditions: the same as in :func:`scoresde.sample`, for ``a`` and ``b`` alike.

    Returns:
        A tensor of shape ``(weights, batch, *event)``.

    Raises:
        ValueError: for no weights, shapes that differ, and whatever :func:`scoresde.sampling.encode` refuses.

    Source: Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2020, https://arxiv.org/abs/2010.02502, section 5.3.

    Example:
        >>> import scoresde
        >>> problem = scoresde.problems.ring()
        >>> x = problem.sample(8, torch.Generator().manual_seed(0))
        >>> interpolate(problem.model(scoresde.VP()), x[:4], x[4:], weights=[0.0, 0.5, 1.0]).shape
        torch.Size([3, 4, 2])
    """
    if a.shape != b.shape or not len(weights):
        raise ValueError(
            f"got data of shapes {tuple(a.shape)} and {tuple(b.shape)} and {len(weights)} weights; expected one shape "
            "and at least one weight"
        )
    check_data(model, a)
    told = Conditions.of(conditions, len(a), device=a.device, dtype=a.dtype)

    how: dict[str, Any] = {"solver": solver, "steps": steps, "path": path, "t_max": t_max}
    ends = encode(model, torch.cat([a, b]), conditions=told.repeated(2), **how).x
    mixed = torch.cat([slerp(ends[: len(a)], ends[len(a) :], w) for w in weights])
    between = decode(model, mixed, conditions=told.repeated(len(weights)), **how).x
    return between.reshape(len(weights), *a.shape)
