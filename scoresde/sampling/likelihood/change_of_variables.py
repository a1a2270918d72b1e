r"""The likelihood of data under a score model, by the change of variables along the probability flow.

In the variables :math:`w = x / (\alpha + \sigma)` and :math:`u = \sigma / (\alpha + \sigma)`, which are finite at both ends
of time, the flow is :math:`dw = (\epsilon - m)\, du`, where :math:`\epsilon` is the noise prediction and m the data
prediction. The density changes along it by

.. math:: \log p_{t_{min}}(x) = \log p_{t_{max}}(x_T) + d \log \frac{\alpha_T + \sigma_T}{\alpha_0 + \sigma_0}
          + \int_{u_0}^{u_T} \nabla_w \cdot (\epsilon - m)\, du .

Sources: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
https://arxiv.org/abs/2011.13456, appendix D.2; Chen et al., "Neural Ordinary Differential Equations", 2018,
https://arxiv.org/abs/1806.07366; Grathwohl et al., "FFJORD", 2019, https://arxiv.org/abs/1810.01367.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.likelihood.adams import Course, Solved, follow
from scoresde.sampling.likelihood.clock import Clock, Where
from scoresde.sampling.likelihood.divergence import TRACES, TraceEstimate
from scoresde.sampling.likelihood.flow import Flow
from scoresde.sampling.likelihood.gradients import differentiable
from scoresde.sampling.likelihood.matrix import FEW_DIMENSIONS, matrix_likelihood
from scoresde.sampling.likelihood.result import Likelihood
from scoresde.sampling.start import check_data
from scoresde.score import Conditions, DataMoments, ScoreModel
from scoresde.sde import MatrixSDE
from scoresde.solvers.noise.fresh import sample_seeds
from scoresde.solvers.path import PathLike, make_path

__all__ = ["log_likelihood"]


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    tolerance: float = 1e-4,
    *,
    steps: int | None = None,
    path: PathLike | None = None,
    trace: str = "auto",
    probes: int = 4,
    draws: int = 4,
    seed: int | Sequence[int] = 0,
    t_min: float | None = None,
    moments: DataMoments | None = None,
    gradients: bool = False,
    conditions: Mapping[str, Any] | None = None,
) -> Likelihood:
    r"""Return the log-density of ``x`` in nats by the probability flow, with its error.

    This is the density at ``t_min`` of samples drawn along the flow with ``end="stop"``. Each sample has its own steps,
    which keep to the tolerance, at one evaluation and one divergence a step: see
    :mod:`scoresde.sampling.likelihood.adams`. A sample's result does not depend on its batch. Data on a grid, such as bytes,
    have no density: use :func:`scoresde.objectives.bits_per_dim`.

    Args:
        model: the score model.
        x: data of shape ``(batch, *event)``, floating point.
        tolerance: the error from the steps, in nats per dimension.
        steps, path: the number of steps and the path, as in :func:`scoresde.sample`. If one of them is given, all samples
            take the steps of the path, and the tolerance does not count; the error is reported as well. The path is
            ``"lam"`` by default.
        trace: the divergence, a name in :data:`~scoresde.sampling.TRACES`. ``"exact"`` takes one backward pass for each
            dimension of the data. ``"rademacher"``, ``"gaussian"`` and ``"hutch++"`` are unbiased estimates, with one
            backward pass for each probe. ``"auto"`` is exact up to 16 dimensions, and ``"rademacher"`` above.
        probes: the number of random probes for each sample. They stay the same along the whole trajectory.
        draws: the number of draws of the other variables, such as velocities, on an SDE that has some; see
            :mod:`scoresde.sampling.likelihood.matrix`.
        seed: the seed or seeds of the probes and draws, as in :func:`scoresde.sample`. Those of a sample depend on its own
            seed only.
        t_min: the time of the data, by default that of the SDE.
        moments: the moments of the data, by default ``model.moments``, if there are no conditions. They correct the prior,
            and are a control variate for the probes. There are none on an SDE with matrix coefficients.
        gradients: let gradients flow from ``log_prob`` and ``latent`` to ``x``, to the parameters of the model, and to
            conditions that require gradients. The steps are constants. The backward pass makes the evaluations again; its
            memory grows with the logarithm of the number of steps: see :mod:`scoresde.sampling.likelihood.gradients`.
        conditions: the values on which the model is conditioned, as in :func:`scoresde.sample`.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for ``x`` of a wrong shape or dtype, without samples or with numbers that are not finite; for a path that
            does not lead from the prior down to a time with some noise; for a tolerance that is not between 0 and 1, unknown
            choices, and moments of another shape; and for a model that detaches its predictions from ``x``, which has no
            divergence to integrate.
        ArithmeticError: if the flow cannot be followed to the tolerance, or is not finite.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.ring()
        >>> x = problem.sample(3, torch.Generator().manual_seed(0))
        >>> found = log_likelihood(problem.model(VP()), x)
        >>> torch.allclose(found.log_prob.float(), problem.log_prob(x, VP(), VP().span[0]), atol=1e-3)
        True
    """
    if not 0 < tolerance < 1:
        raise ValueError(
            f"got tolerance={tolerance}; expected nats per dimension, between 0 and 1; steps=50 gives a number of steps"
        )
    if isinstance(model, ScoreModel) and isinstance(cast(Any, model.sde), MatrixSDE):
        if moments is not None:
            raise ValueError(
                f"got moments on {type(model.sde).__name__}, whose coefficients are matrices; expected moments=None: "
                ".mismatch of the result estimates what they correct"
            )
        return matrix_likelihood(model, x, tolerance, steps, path, trace, probes, draws, seed, t_min, gradients, conditions)
    check_data(model, x)
    probes = whole("probes", probes, 1)
    if trace == "auto":
        trace = "exact" if x[0].numel() <= FEW_DIMENSIONS else "rademacher"
    make = TRACES[trace]
    model.check_convertible()
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    if moments is None and not told:
        moments = model.moments
    clock, nodes = _course(model, steps, path, t_min, x.device)
    # Gradients are enabled whatever the caller's mode is; without them the divergence would silently be zero.
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        model.check_start(x, **told)
        x = x.clone() if gradients else x.detach().clone()
        estimate = make(x.detach(), probes, sample_seeds(seed, len(x)))
        return _integrated(model, x, clock, nodes, tolerance, estimate, moments, gradients, told)


def _course(
    model: ScoreModel, steps: int | None, path: PathLike | None, t_min: float | None, device: torch.device
) -> tuple[Clock, list[Where]]:
    """Return the clock, and the points of the path in rising order; none where the steps are chosen on the way."""
    sde = model.sde
    falling: Sequence[float] = (sde.span[1], sde.span[0] if t_min is None else t_min)
    if steps is not None or path is not None:
        falling = make_path(sde, path or "lam", 50 if steps is None else steps, t_min=t_min, end="stop").times
    times = falling[::-1]
    rises = all(a < b for a, b in itertools.pairwise(times))
    if not (rises and float(sde.sigma(times[0])) > 0 and times[-1] >= sde.span[1] * (1 - 1e-6)):
        raise ValueError(
            f"got times from {falling[0]:.6g} to {falling[-1]:.6g}; expected falling ones from the prior, at "
            f"t={sde.span[1]:.6g}, to one with some noise, where the data have a density"
        )
    clock = Clock(sde, times[0], times[-1], device)
    return clock, clock.points(times) if steps is not None or path is not None else []


def _integrated(
    model: ScoreModel,
    x: Tensor,
    clock: Clock,
    nodes: list[Where],
    tolerance: float,
    trace: TraceEstimate,
    moments: DataMoments | None,
    gradients: bool,
    conditions: Mapping[str, Any],
) -> Likelihood:
    first, last = clock.points((clock.t_min, clock.t_max))
    radius, end = (float(p.alpha + p.sigma) for p in (first, last))
    w = x.to(torch.promote_types(x.dtype, torch.float32)) / radius
    flow = Flow(model, trace, conditions, moments)
    if nodes:
        found = Course.start(flow, w.detach(), nodes[0]).along(flow, nodes[1:]).solved([p.tau for p in nodes])
    else:
        found = follow(flow, w.detach(), clock, tolerance * x[0].numel())
    if gradients:
        found = differentiable(flow, w, nodes or [clock.at(tau) for tau in found.nodes], found)
    latent = end * found.w
    prior = model.sde.prior_log_prob(latent.double())
    if moments is None:
        mismatch = _estimated_mismatch(flow, latent.detach(), last, found)
    else:
        known = moments.log_prob(latent, model.sde, clock.t_max)
        mismatch, prior = (known - prior).detach(), known
    log_prob = prior + x[0].numel() * math.log(end / radius) + found.gained.mean(0) - _outside(model, x, first, conditions)
    if not bool(torch.isfinite(log_prob).all()):
        raise ArithmeticError(
            f"the likelihood is not finite on the way from t={clock.t_min:.6g} to t={clock.t_max:.6g}. Check the network "
            "there, or take more steps"
        )
    estimates = len(found.gained)
    probe_error = torch.zeros_like(found.error)
    if trace.random:
        unknown = torch.full_like(probe_error, math.nan)
        probe_error = found.gained.detach().std(0) / math.sqrt(estimates) if estimates > 1 else unknown
    return Likelihood(log_prob, latent.to(x.dtype), flow.evaluations, found.error, probe_error, mismatch, estimates)


def _outside(model: ScoreModel, x: Tensor, first: Where, conditions: Mapping[str, Any]) -> Tensor | float:
    """Return the log-density of the noise outside of the subspace of the data, where data in it have none of this noise."""
    dimensions = model.outside(x, **conditions)
    if dimensions is None:
        return 0.0
    beside = (x - model.project(x, **conditions)).detach().flatten(1).double()
    if not bool((beside.norm(dim=1) <= 1e-5 * x.detach().flatten(1).double().norm(dim=1) + 1e-12).all()):
        raise ValueError(
            "got data outside of the subspace of the model, such as point sets whose centre of mass is not zero; expected "
            "model.project(x, **conditions)"
        )
    return -0.5 * dimensions.double() * math.log(2 * math.pi * float(first.sigma) ** 2)


def _estimated_mismatch(flow: Flow, latent: Tensor, end: Where, found: Solved) -> Tensor:
    r"""Return an estimate of log p_T - log prior at the latents, to second order in a = alpha / sigma^2.

    .. math:: \log \frac{p_T(x)}{N(x; 0, \sigma^2 I)} = a\, x \cdot \tfrac12 (m(0) + m(x))
              - \tfrac{a \alpha}{2} \big(\operatorname{tr} C + |m(0)|^2\big)

    The data prediction m at x and at 0 and its divergence a tr C are those of the model.
    """
    alpha, sigma = float(end.alpha), float(end.sigma)
    if alpha == 0:
        return torch.zeros_like(found.error)
    c = flow.model.coefficients(end.t)
    with torch.no_grad():
        at_zero, at_end = (
            (float(c.x0[0]) * x + float(c.x0[1]) * flow.predicted(x, end.t)).flatten(1).double()
            for x in (torch.zeros_like(latent), latent)
        )
    # G = sigma div(eps - m) = d - (alpha + sigma) div m
    divergence = (latent[0].numel() - found.density.detach().mean(0)) / (alpha + sigma)
    a = alpha / sigma**2
    linear = (latent.flatten(1).double() * (at_zero + at_end) / 2).sum(1)
    return a * linear - 0.5 * (alpha * divergence + a * alpha * at_zero.square().sum(1))
