r"""The likelihood under an SDE with matrix coefficients, by the same integrator as under scalar ones.

Where the state has more variables than the data, such as velocities v, the density of the data x at ``t_min`` is estimated
by draws of the others,

.. math:: p(x) = E_{v \sim q(v | x)} \frac{p(x, v)}{q(v | x)} .

The density q is that of v given x for data without any structure: with the noise of x at ``t_min`` close to zero it is
close to :math:`p(v | x)`, and few draws are enough. The logarithm of the mean over draws is a lower bound of the log-density
in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.likelihood.adams import Course, follow
from scoresde.sampling.likelihood.clock import Clock, Where
from scoresde.sampling.likelihood.divergence import TRACES
from scoresde.sampling.likelihood.gradients import differentiable
from scoresde.sampling.likelihood.matrix_flow import MatrixClock, MatrixFlow
from scoresde.sampling.likelihood.result import Likelihood
from scoresde.sampling.start import check_values
from scoresde.score import Conditions, ScoreModel
from scoresde.sde import MatrixSDE
from scoresde.solvers.matrix.path import make_matrix_path
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.solvers.path import PathLike

__all__ = ["FEW_DIMENSIONS", "matrix_likelihood"]

FEW_DIMENSIONS = 16
"""The largest number of dimensions of a state in which trace="auto" is exact."""


def matrix_likelihood(
    model: ScoreModel,
    x: Tensor,
    tolerance: float,
    steps: int | None,
    path: PathLike | None,
    trace: str,
    probes: int,
    draws: int,
    seed: int | Sequence[int],
    t_min: float | None,
    gradients: bool,
    conditions: Mapping[str, Any] | None,
) -> Likelihood:
    """Return the log-density of data on an SDE with matrix coefficients; see :func:`scoresde.log_likelihood`.

    Args:
        model: a score model on such an SDE.
        x: data of shape ``(batch, *event)``.
        tolerance, steps, path, trace, probes, draws, seed, t_min, gradients, conditions: as there.

    Raises:
        ValueError: for a wrong shape, data outside of the subspace of the SDE, a path that goes back, and unknown choices.
        ArithmeticError: if the flow cannot be followed to the tolerance, or is not finite.
    """
    sde = cast(MatrixSDE, cast(Any, model.sde))
    check_values(check_batch(x))
    _check_subspace(sde, x)
    probes, draws = whole("probes", probes, 1), whole("draws", draws, 1) if sde.variables > 1 else 1
    shape = sde.state_shape(x.shape)
    if trace == "auto":
        trace = "exact" if shape[1:].numel() <= FEW_DIMENSIONS else "rademacher"
    make, seeds = TRACES[trace], sample_seeds(seed, len(x))
    clock, nodes = _course(sde, steps, path, t_min, x.device)
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).repeated(draws)
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        x = x.clone() if gradients else x.detach().clone()
        z, of_others = x, None
        if sde.variables > 1:
            z, of_others = _completed(sde, x, clock.t_min, draws, FreshNoise(seeds, x.device))
            seeds = [s + k + 1 for k in range(draws) for s in seeds]
        model.check_start(z.detach(), **told)
        flow = MatrixFlow(model, make(z.detach(), probes, seeds), told, clock)
        found = _of_states(flow, z, clock, nodes, tolerance, gradients)
        return found if of_others is None else _of_data(found, of_others, draws)


def _of_states(
    flow: MatrixFlow, z: Tensor, clock: Clock, nodes: list[Where], tolerance: float, gradients: bool
) -> Likelihood:
    """Return the log-density of states with all variables."""
    sde = flow.sde
    first, last = clock.points((clock.t_min, clock.t_max))
    start, end = (flow.place(p, z) for p in (first, last))
    lower = [sde.factors(p.t.cpu()).root for p in (first, last)]
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    flow.check_gradient(wide.detach(), first.t)
    w = sde.map(start.whitening * first.tau.exp()) * wide
    if nodes:
        found = Course.start(flow, w.detach(), nodes[0]).along(flow, nodes[1:]).solved([p.tau for p in nodes])
    else:
        found = follow(flow, w.detach(), clock, tolerance * start.size)
    if gradients:
        found = differentiable(flow, w, nodes or [clock.at(tau) for tau in found.nodes], found)
    latent = sde.map(end.root / last.tau.exp()) * found.w
    zero = torch.zeros_like(z[:1].detach().double())
    volume = start.size * float(first.tau - last.tau) + sde.log_normal(zero, lower[0]) - sde.log_normal(zero, lower[1])
    log_prob = sde.log_normal(latent.double(), lower[1]) + volume + found.gained.mean(0)
    if not bool(torch.isfinite(log_prob).all()):
        raise ArithmeticError(
            f"the likelihood is not finite on the way from t={clock.t_min:.6g} to t={clock.t_max:.6g}. Check the network "
            "there, or take more steps"
        )
    mismatch = flow.mismatch(latent.detach(), last, end)
    estimates = len(found.gained)
    probe_error = torch.zeros_like(found.error)
    if flow.trace.random:
        unknown = torch.full_like(probe_error, math.nan)
        probe_error = found.gained.detach().std(0) / math.sqrt(estimates) if estimates > 1 else unknown
    return Likelihood(log_prob, latent.to(z.dtype), flow.evaluations, found.error, probe_error, mismatch, estimates)


def _of_data(found: Likelihood, of_others: Tensor, draws: int) -> Likelihood:
    """Return the log-density of the data from those of ``draws`` states of each, and q of their other variables."""
    each = found.log_prob.reshape(draws, -1) - of_others.reshape(draws, -1)
    weights = each.detach().softmax(0)  # (draws, batch)
    error = torch.full_like(weights[0], math.nan)
    if draws > 1:
        error = weights.std(0) * math.sqrt(draws)  # of the mean, relative to it
    return Likelihood(
        each.logsumexp(0) - math.log(draws),
        found.latent[: len(found.latent) // draws],
        found.evaluations,
        found.discretization.reshape(draws, -1).amax(0),
        error,
        (weights * found.mismatch.reshape(draws, -1)).sum(0),
        draws,
    )


def _completed(sde: MatrixSDE, x: Tensor, t: float, draws: int, noise: FreshNoise) -> tuple[Tensor, Tensor]:
    """Return states with the data ``x`` and draws of the other variables, one batch after another, and log q of these."""
    f = sde.factors(torch.tensor(t, dtype=torch.float64))
    slope = f.psi / f.psi[..., :1, :]  # of all variables in x, (*modes, b, 1)
    rest = f.root[..., 1:, :] - slope[..., 1:, :] @ f.root[..., :1, :]
    root = torch.linalg.cholesky(rest @ rest.mT)  # (*modes, b - 1, b - 1)
    wide = torch.nn.functional.pad(root, (0, 0, 1, 0))  # without noise of x
    base, added = sde.map(slope, of_state=False), sde.map(wide)
    xi = [noise.normal(x.new_empty(len(x), sde.variables - 1, *x.shape[1:])) for _ in range(draws)]
    states = torch.cat([base * x + added * each for each in xi])
    volume = float(root.diagonal(dim1=-2, dim2=-1).log().sum()) * x[0].numel()
    flat = torch.cat(xi).flatten(1).double()
    return states, -0.5 * flat.square().sum(1) - volume - 0.5 * flat.shape[1] * math.log(2 * math.pi)


def _course(
    sde: MatrixSDE, steps: int | None, path: PathLike | None, t_min: float | None, device: torch.device
) -> tuple[Clock, list[Where]]:
    """Return the clock, and the points of the path in rising order; none where the steps are chosen on the way."""
    where = make_matrix_path(sde, path or "lam", 50 if steps is None else steps, t_min=t_min, end="stop")
    if any(v.lam < u.lam for u, v in where.moves) or where.times[0] < sde.span[1] * (1 - 1e-6) or where.ends_clean:
        raise ValueError(
            f"got times from {where.times[0]:.6g} to {where.times[-1]:.6g}; expected falling ones from the prior, at "
            f"t={sde.span[1]:.6g}, to one with some noise, where the data have a density"
        )
    clock = MatrixClock(cast(Any, sde), where.times[-1], where.times[0], device)
    return clock, clock.points(where.times[::-1]) if steps is not None or path is not None else []


def _check_subspace(sde: MatrixSDE, x: Tensor) -> None:
    if sde.variables > 1:
        return
    beside = (x - sde.driven(x)).detach().flatten(1).double()
    if not bool((beside.norm(dim=1) <= 1e-5 * x.detach().flatten(1).double().norm(dim=1) + 1e-12).all()):
        raise ValueError(
            f"got data outside of the subspace of {type(sde).__name__}, where their density is zero; expected their "
            "projection, x @ vectors.T @ vectors"
        )
