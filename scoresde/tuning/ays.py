r"""The times of "Align Your Steps": those of the least bound of the distance between the sampled and the true process.

The reverse SDE with the data prediction m held constant over each step differs from the true one by a Kullback-Leibler
divergence of at most, by Girsanov's theorem,

.. math:: \sum_i \int_{\lambda_i}^{\lambda_{i+1}} e^{2 \lambda}\;
          E \| m(x_\lambda, \lambda) - m(x_i, \lambda_i) \|^2\, d\lambda .

The authors estimate each expectation from pairs of noised data. For the exact denoiser, m is a martingale of the reverse
process, and the expectation is the difference of two numbers, :math:`\mathrm{mse}(\lambda_i) - \mathrm{mse}(\lambda)` with
:math:`\mathrm{mse}(\lambda) = E \| x_0 - m(x_\lambda, \lambda) \|^2`. The bound then needs this one curve, which is
measured on a grid, and its minimum over all choices of n times of the grid is found by dynamic programming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_model
from scoresde.score import Conditions, ScoreModel
from scoresde.tuning.chains import cheapest_chain

__all__ = ["ays", "ays_costs", "denoising_errors"]


def ays(
    model: ScoreModel,
    evaluations: int = 10,
    *,
    data: Tensor | None = None,
    grid: int = 400,
    n: int = 256,
    t_max: float | None = None,
    t_min: float | None = None,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> list[float]:
    """Return the times of least bound, "Align Your Steps", for a number of evaluations: see the module.

    The times are those of n + 1 points from ``t_max`` to ``t_min``, of which the last is replaced by sigma = 0, as in the
    published schedules. They suit any solver: ``sample(.., path=times)``.

    Args:
        model: the score model.
        evaluations: n.
        data: samples of the data, shape ``(m, *event)``; by default they are drawn from the model's problem.
        grid: the number of times of the grid, even in lam, among which times are chosen.
        n: the number of samples drawn where ``data`` is not given.
        t_max, t_min: the first and the last time, by default those of the SDE or, where alpha = 0, the time with lam = -5.
        seed: the seed of the noise.
        conditions: the values on which the model is conditioned, one for each sample of ``data``.

    Returns:
        n times, from noise to data, and 0 for the last move, to sigma = 0.

    Raises:
        ValueError: for a model without data, and more evaluations than the grid has room for.

    Source: Sabour et al., "Align Your Steps: Optimizing Sampling Schedules in Diffusion Models", 2024,
    https://arxiv.org/abs/2404.14507. Its published schedules are the paths "ays-sd15", "ays-sdxl" and "ays-svd".

    Example:
        >>> from scoresde import VP, problems
        >>> times = ays(problems.ring().model(VP()), 5)
        >>> len(times), times[0], times[-1]
        (6, 1.0, 0.0)
    """
    check_model(model)
    evaluations = whole("evaluations", evaluations, 1)
    if evaluations >= whole("grid", grid, 2):
        raise ValueError(f"got evaluations={evaluations} with grid={grid}; expected a grid of more times")
    sde = model.sde
    low = sde.span[1] if t_max is None else t_max
    low_lam = float(sde.lam(low))
    if not math.isfinite(low_lam):
        low_lam = -5.0
    lam = torch.linspace(low_lam, float(sde.lam(sde.span[0] if t_min is None else t_min)), grid, dtype=torch.float64)
    errors = denoising_errors(model, sde.time(lam), data=data, n=n, seed=seed, conditions=conditions)
    chain = cheapest_chain(ays_costs(lam, errors), evaluations)
    times = [float(t) for t in sde.time(lam[chain[:-1]])]
    return [low if math.isfinite(float(sde.lam(low))) else times[0], *times[1:], 0.0]


def denoising_errors(
    model: ScoreModel,
    times: Tensor,
    *,
    data: Tensor | None = None,
    n: int = 256,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return E ||x_0 - m||^2 at ``times``, shape ``(grid,)`` in float64: see :func:`ays` for the arguments.

    The same data and noise serve all times, so that differences are less noisy than values.

    Raises:
        ValueError: for a model without its data, and no ``data``.

    Example:
        >>> from scoresde import VP, problems
        >>> model = problems.Gaussian([0.0, 0.0], 1.0).model(VP())
        >>> errors = denoising_errors(model, torch.tensor([0.1, 1.0]), n=64)
        >>> errors.shape, bool(errors[0] < errors[1])  # more noise leaves more error
        (torch.Size([2]), True)
    """
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    if data is None:
        problem = getattr(model, "problem", None)
        if problem is None:
            raise ValueError("got a model without its data; expected data=samples, of shape (m, *event)")
        data = problem.sample(whole("n", n, 2), generator, model.dtype)
    data = check_batch(data).to(model.device)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64).to(data)
    told = Conditions.of(conditions, len(data), device=data.device, dtype=data.dtype).values
    found = []
    with torch.no_grad(), evaluation_mode(model):
        for t in times.tolist():
            m = model.x0(model.sde.perturb(data, t, noise), t, **told)
            found.append((data - m).double().flatten(1).square().sum(1).mean())
    return torch.stack(found).cpu()


def ays_costs(lam: Tensor, errors: Tensor) -> Tensor:
    r"""Return the terms of the bound for all steps between the values ``lam``, shape ``(grid, grid)``.

    .. math:: F(u, v) = \int_u^v e^{2 \lambda}\, [ \mathrm{mse}(u) - \mathrm{mse}(\lambda) ]\, d\lambda

    The error is linear in lam between two values, and the integrals are exact for it.

    Args:
        lam: values of lam, rising, shape ``(grid,)``.
        errors: E ||x_0 - m||^2 there.

    Example:
        >>> lam = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
        >>> errors = torch.full((5,), 0.7, dtype=torch.float64)  # a constant error costs nothing
        >>> ays_costs(lam, errors).abs().max().item() < 1e-12
        True
    """
    h, weight = lam.diff(), (2 * lam).exp()
    masses = weight.diff() / 2  # the integral of e^{2 lam} over each interval
    slopes = errors.diff() / h
    # The integral of e^{2 lam} (lam - u) is e^{2 v} h / 2 - masses / 2.
    moments = errors[:-1] * masses + slopes * (weight[1:] * h - masses) / 2
    zero = masses.new_zeros(1)
    mass, moment = torch.cat([zero, masses.cumsum(0)]), torch.cat([zero, moments.cumsum(0)])
    return errors[:, None] * (mass - mass[:, None]) - (moment - moment[:, None])
