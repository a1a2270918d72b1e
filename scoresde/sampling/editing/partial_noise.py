"""Partial noising: data are noised up to a time and denoised again, SDEdit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.sampling.kept import Times
from scoresde.sampling.samples import Samples, sample
from scoresde.sampling.start import check_data
from scoresde.score import ScoreModel
from scoresde.solvers.drivers import Driver
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.solvers.path import PathLike
from scoresde.solvers.solver import Solver

__all__ = ["sdedit"]


def sdedit(
    model: ScoreModel,
    x: Tensor,
    t: float,
    solver: str | Solver = "auto",
    steps: int = 20,
    path: PathLike | None = None,
    *,
    seed: int | Sequence[int] | None = 0,
    t_min: float | None = None,
    end: str | None = None,
    keep: Times | None = None,
    progress: bool = False,
    driver: str | Driver = "auto",
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    r"""Noise images up to a time ``t`` and denoise them again: SDEdit, image-to-image by partial noising.

    The start is :math:`x_t = \alpha_t x + \sigma_t \epsilon`. What the noise at t hides, the model draws anew; what it
    leaves is kept. A drawing becomes an image of the data that resembles it. With other ``conditions`` than those of an
    image, it becomes one of another class.

    For Gaussian data N(mu, C) and an exact model the result is known. With the variance
    :math:`S = \alpha^2 C + \sigma^2` of an eigenvector at t, the reverse SDE draws it from
    :math:`N(\mu + K \alpha (x - \mu),\, C - K \alpha C + K^2 \sigma^2)` with :math:`K = \alpha C / S`, and the flow from
    :math:`N(\mu + G \alpha (x - \mu),\, G^2 \sigma^2)` with :math:`G = \sqrt{C / S}`.

    Args:
        model: the score model.
        x: images or other data to edit, shape ``(batch, *event)``, not changed.
        t: the time up to which noise is added, from ``t_min`` to ``t_max`` of the SDE; ``float(sde.time(0.0))`` is where
            signal and noise are equal.
        solver, steps, t_min, end, keep, progress, driver, conditions: the same as in :func:`scoresde.sample`.
        path: the name of a spacing or a spacing function; by default the solver's own path.
        seed: the seed or seeds of the noise, of that which is added first and of the solver's after it.

    Returns:
        The edited data ``x`` and how they were computed, see :class:`~scoresde.Samples`.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for a time outside the span, data that are empty, of a wrong shape or not finite, a path of times, and
            whatever :func:`scoresde.sample` refuses.

    Source: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2108.01073, algorithm 1.

    Example:
        >>> import scoresde
        >>> problem, sde = scoresde.problems.ring(), scoresde.VP()
        >>> x = torch.tensor([[1.0, 0.0]]).expand(8, 2)
        >>> edited = sdedit(problem.model(sde), x, float(sde.time(2.0)), steps=10).x  # little noise: near x
        >>> bool((edited - x).norm(dim=1).max() < 0.7)
        True
    """
    check_data(model, x)
    low, high = model.sde.span[0] if t_min is None else t_min, model.sde.span[1]
    if not low < t <= high:
        raise ValueError(
            f"got t={t:.6g} to add noise up to; expected a time above t_min={low:.6g} and up to {high:.6g} on "
            f"{type(model.sde).__name__}, such as {float(model.sde.time(0.0)):.3g}, where signal and noise are equal"
        )
    if path is not None and not isinstance(path, str) and not callable(path):
        raise ValueError(f"got a path of type {type(path).__name__}; expected a spacing such as 'lam', laid out from t on")
    noise = FreshNoise(sample_seeds(seed, len(x)), x.device)
    start = model.sde.perturb(x.detach(), torch.tensor(t, dtype=torch.float64), noise.normal(torch.empty_like(x))).to(x)
    return sample(
        model,
        start,
        solver,
        steps,
        path,
        noise=noise,
        t_max=t,
        t_min=t_min,
        end=end,
        keep=keep,
        progress=progress,
        driver=driver,
        conditions=conditions,
    )
