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

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.trace import quadratic_forms, unit_vectors
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_data
from scoresde.score import Conditions, ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.solvers.path import PathLike, make_path

__all__ = ["Likelihood", "log_likelihood"]


class Likelihood(NamedTuple):
    """The result of :func:`log_likelihood`.

    Args:
        log_prob: the log-density in nats, shape ``(batch,)``, float64.
        latent: the end of the flow at ``t_max``, shape of the data.
        evaluations: the number of evaluations of the model, each with the divergence at the same point.
        error: the standard error of ``log_prob`` that the random probes leave, shape ``(batch,)``, float64: zero with the
            exact divergence, NaN (unknown) with a single probe. It does not contain the error of the steps.
    """

    log_prob: Tensor
    latent: Tensor
    evaluations: int
    error: Tensor


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    steps: int = 50,
    path: PathLike = "lam",
    *,
    trace: str = "hutchinson",
    probes: int = 1,
    seed: int | Sequence[int] = 0,
    t_min: float | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Likelihood:
    r"""Return the log-density of ``x`` in nats by the probability flow, integrated by the Runge-Kutta method of order 4.

    This is the density at ``t_min`` of samples drawn along the flow with ``end="stop"``. The divergence is exact, or an
    unbiased estimate :math:`v^T J v` with the same probes v along the whole trajectory; the result is then unbiased up to
    the error of the steps. Data on a grid, such as bytes, have no density: use :func:`scoresde.objectives.bits_per_dim`.

    Args:
        model: the score model.
        x: data of shape ``(batch, *event)``, floating point.
        steps, path, t_min: the same as in :func:`scoresde.sample`; a step costs four evaluations.
        trace: ``"hutchinson"`` takes one backward pass per probe, ``"exact"`` one per dimension of the data.
        probes: the number of probes, vectors of random signs, for each sample.
        seed: the seed or seeds of the probes, as in :func:`scoresde.sample`. The probes of a sample depend on its own seed
            only.
        conditions: the values on which the model is conditioned, as in :func:`scoresde.sample`.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for ``x`` of a wrong shape or dtype, without samples or with numbers that are not finite; for a path that
            does not lead from the prior down to a time with some noise; for unknown choices; and for a model that detaches
            its predictions from ``x``, which has no divergence to integrate.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.ring()
        >>> x = problem.sample(3, torch.Generator().manual_seed(0))
        >>> found = log_likelihood(problem.model(VP()), x, trace="exact")
        >>> torch.allclose(found.log_prob.float(), problem.log_prob(x, VP(), VP().span[0]), atol=1e-3)
        True
    """
    check_data(model, x)
    if trace not in ("hutchinson", "exact") or probes < 1:
        raise ValueError(
            f"got trace={trace!r} and probes={probes}; expected 'hutchinson' or 'exact', and at least one probe"
        )
    model.check_convertible()
    told = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    # Gradients are enabled whatever the caller's mode is; without them the divergence would silently be zero.
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        model.check_start(x, **told)
        return _integrated(model, x.detach().clone(), steps, path, trace, probes, seed, t_min, told)


def _integrated(
    model: ScoreModel,
    x: Tensor,
    steps: int,
    path: PathLike,
    trace: str,
    probes: int,
    seed: int | Sequence[int],
    t_min: float | None,
    conditions: Mapping[str, Any],
) -> Likelihood:
    times, u = _grid(model.sde, make_path(model.sde, path, steps, t_min=t_min, end="stop").times)
    directions = unit_vectors(x) if trace == "exact" else _signs(x, probes, seed)
    scale = model.sde.alpha(times) + model.sde.sigma(times)
    flow = _Flow(model, directions, trace, conditions)
    w, integral = x / float(scale[0]), torch.zeros(1, dtype=torch.float64, device=x.device)
    for i in range(0, len(times) - 2, 2):
        h, t, r = float(u[i + 2] - u[i]), times[i : i + 3], scale[i : i + 3]
        k1, g1 = flow(w, t[0], r[0])
        k2, g2 = flow(w + h / 2 * k1, t[1], r[1])
        k3, g3 = flow(w + h / 2 * k2, t[1], r[1])
        k4, g4 = flow(w + h * k3, t[2], r[2])
        w = w + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        integral = integral + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
    latent = w * float(scale[-1])
    volume = x[0].numel() * float(torch.log(scale[-1] / scale[0]))
    prior = model.sde.prior_log_prob(latent).to(torch.float64)
    error = torch.zeros_like(prior)
    if trace != "exact":
        error = integral.std(0) / probes**0.5 if probes > 1 else torch.full_like(prior, math.nan)
    return Likelihood(prior + volume + integral.mean(0), latent, flow.evaluations, error)


def _grid(sde: GaussianSDE, falling: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the times in rising order, with one more at the midpoint in u of each interval, and their u."""
    ends = torch.tensor(falling, dtype=torch.float64).flip(0)
    if bool((ends.diff() <= 0).any()) or not sde.sigma(ends[0]) > 0 or ends[-1] < sde.span[1] * (1 - 1e-6):
        raise ValueError(
            f"got times from {falling[0]:.6g} to {falling[-1]:.6g}; expected falling ones from the prior, at "
            f"t={sde.span[1]:.6g}, to one with some noise, where the data have a density"
        )
    u_ends = torch.sigmoid(-sde.lam(ends))
    middles = (u_ends[1:] + u_ends[:-1]) / 2
    between = sde.time(torch.log1p(-middles) - torch.log(middles))
    times, u = (torch.empty(2 * len(ends) - 1, dtype=torch.float64) for _ in range(2))
    times[::2], times[1::2], u[::2], u[1::2] = ends, between, u_ends, middles
    return times, u


class _Flow:
    """The flow eps - m of a model and its divergence, with the number of network calls made for them."""

    def __init__(self, model: ScoreModel, directions: Tensor, trace: str, conditions: Mapping[str, Any]) -> None:
        self.model, self.directions, self.trace, self.conditions = model, directions, trace, conditions
        self.evaluations = 0
        self.constant = False  # in x, as far as was seen: a prediction without a graph has no divergence then

    def __call__(self, w: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return eps - m at w, and its divergence in w, shape ``(probes, batch)``, or ``(1, batch)`` if exact."""
        c = self.model.coefficients(t)
        of_x, of_output = (float(eps - x0) for eps, x0 in zip(c.eps, c.x0, strict=True))
        x = (float(r) * w).detach().requires_grad_()
        output = self._predicted(x.clone(), t)  # of no leaf, or what writes into it is not told so in plain words
        if not output.requires_grad and not self.constant:
            self._check_constant(x.detach(), t, output)
        forms = quadratic_forms(output, x, self.directions, create_graph=False)
        jacobian = (forms.sum(0, keepdim=True) if self.trace == "exact" else forms).to(torch.float64)
        return of_x * x.detach() + of_output * output.detach(), float(r) * (of_x * x[0].numel() + of_output * jacobian)

    def _predicted(self, x: Tensor, t: Tensor) -> Tensor:
        self.evaluations += self.model.calls_at(float(t)).forward
        output: Tensor = self.model(x, t, **self.conditions)
        return output

    def _check_constant(self, x: Tensor, t: Tensor, output: Tensor) -> None:
        """Refuse a prediction that carries no gradient although it depends on ``x``."""
        self.constant = torch.equal(self._predicted(1.01 * x + 0.01, t), output)
        if not self.constant:
            raise ValueError(
                "the model's predictions depend on x but carry no gradient, so that the divergence of the flow would be "
                "left out; expected a network without no_grad(), inference_mode() or detach() inside"
            )


def _signs(x: Tensor, probes: int, seed: int | Sequence[int]) -> Tensor:
    """Draw random signs, shape ``(probes, *x.shape)``."""
    noise = FreshNoise(sample_seeds(seed, len(x)), x.device)
    draws = [noise.normal(torch.empty_like(x)) for _ in range(probes)]
    return torch.where(torch.stack(draws) < 0, -1.0, 1.0).to(x)
