r"""Sequential Monte Carlo with twisted proposals, whose error falls with the number of particles."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from scoresde.inverse.conditioned import check_observation, check_scale, noise_variance
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.methods.pigdm import prior_variance
from scoresde.inverse.normal_equations import singular_or_none
from scoresde.inverse.observation import Observation
from scoresde.sampling import Samples
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.run import bar
from scoresde.sampling.start import start
from scoresde.score import Conditions, ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers import Path, Point, Row, RowSolver, ddpm, get, make_path
from scoresde.solvers.path import PathLike

__all__ = ["smc"]


def smc(
    model: ScoreModel,
    observation: Observation,
    shape: Sequence[int],
    solver: str | RowSolver | None = None,
    steps: int = 100,
    path: PathLike = "lam",
    *,
    std: float = 1.0,
    curvature: float = 1.0,
    threshold: float = 0.5,
    seed: int | Sequence[int] | None = 0,
    t_min: float | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    r"""Draw samples of the posterior by sequential Monte Carlo: exact as the number of particles grows.

    The particles follow a sampler p(x_v | x_u) whose data prediction is guided. Weights correct the difference of its law q
    from p. With any positive twist :math:`\tilde p(y \mid x_u)` the weight of a step is

    .. math:: \frac{p(x_v \mid x_u)}{q(x_v \mid x_u)}\; \frac{\tilde p(y \mid x_v)}{\tilde p(y \mid x_u)}, \qquad
              \tilde p(y \mid x_0) = p(y \mid x_0) .

    The products telescope to p(y | x_0) times the law of the unconditional sampler: weighted averages converge to those of
    its posterior, and the average weight to the evidence p(y), with an error that falls with the root of the number of
    particles. What remains is the error of the sampler with so many steps. The twist is the measurement's law for
    data :math:`N(\hat x_0, r^2 I)`, as in :class:`PiGDM`, and the guidance its gradient:

    .. math:: \tilde p(y \mid x) = N\big(y;\, A \hat x_0,\, r^2 A A^T + \sigma_y^2 I\big), \qquad
              r^2 = \frac{s^2 \sigma^2}{\sigma^2 + s^2 \alpha^2} .

    For an operator that is not linear, or has no singular value decomposition, :math:`A A^T` is replaced by ``curvature``. A
    twist far from the truth is no bias, but costs particles: look at the effective sample size.

    All particles with the same measurement are one group, which resamples (systematically) when its effective sample size
    falls below ``threshold`` times its particles. A sample depends on the seeds of its group and on no other group.

    Any operator; Gaussian noise with sigma > 0 and Poisson noise. A step costs one forward and one backward call.

    Args:
        model: the model of the data.
        observation: one measurement for all particles, or G of them, each for n / G successive particles.
        shape: ``(n, *event)`` with the number n of all particles.
        solver: the sampler, one whose steps evaluate once and draw noise, a name or a solver object; by default
            ``ddpm(0.5)``, between the lower and the upper variance, whose errors have opposite signs.
        steps, path, t_min, seed, progress, device, dtype, conditions: as in :func:`scoresde.sample`. The particles start at
            the prior.
        std: s, the standard deviation of the data in any direction, for the twist.
        curvature: the size of the squared singular values of the operator's Jacobian, for the twist of operators without
            a decomposition.
        threshold: from 0 (never resample) to 1.

    Returns:
        Samples of equal weight, shape ``(n, *event)``, resampled at the end. Their ``info`` has ``log_evidence``, the
        estimate of log p(y), shape ``(G,)``; ``ess``, the effective sample size after each step, shape ``(steps + 1, G)``;
        and ``particles`` and ``log_weights``, shape ``(n,)``, normalised in each group, before the last resampling:
        averages with these weights have less variance.

    Raises:
        TypeError: for what is no score model or no observation.
        ValueError: for sigma = 0, where a particle has a weight of zero or infinity; for a number of particles that is no
            multiple of that of the measurements; for a solver with other steps; for other values; and where all particles of
            a group lost their weight.

    Source: Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models", 2023,
    https://arxiv.org/abs/2306.17775, algorithm 1.

    Example:
        >>> import scoresde
        >>> from scoresde.inverse import Observation, smc
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]).model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.5)
        >>> samples = smc(model, seen, (2048, 2), steps=50, progress=False)
        >>> bool((samples.x.mean(0) - torch.tensor([0.8, 0.72])).abs().max() < 0.05)
        True
        >>> exact = -0.5 * (1.0 / 1.25 + math.log(2 * math.pi * 1.25))  # y is N(0, 1 + sigma^2)
        >>> bool((samples.info["log_evidence"] - exact).abs() < 0.05)
        True
    """
    check_observation(observation, "smc")
    _check_model(model)
    where = make_path(model.sde, path, steps, t_min=t_min)
    x, noise = start(shape, model, seed, math.exp(where.points[0].log_sigma), device, dtype)
    model.check_convertible(where.points[0].t)
    twist = _Twist(observation, len(x), check_scale("std", std), check_scale("curvature", curvature))
    rows = _transitions(ddpm(0.5) if solver is None else solver, where)
    weights = _Weights(noise.seeds, twist.groups, threshold, x.device)
    told: Mapping[str, Any] = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    begin, evaluations = time.perf_counter(), 0
    pending = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # what a move adds to a weight, but the new twist
    with torch.no_grad(), evaluation_mode(model), bar(progress, "smc", lambda: len(rows)) as on_step:
        for row in rows:
            xi = noise.normal(torch.empty_like(x)) if row.s else torch.zeros_like(x)
            evaluations += 1
            on_step(evaluations)
            m, guided, log_twist = twist(model, x, cast(Point, row.at).t, told)
            weights.add(pending + log_twist)
            chosen = weights.resample()
            x, m, guided, log_twist = x[chosen], m[chosen], guided[chosen], log_twist[chosen]
            if not row.s:  # the last move, to sigma = 0, draws nothing
                x, pending = row.a * x + row.w[0] * m, -log_twist
                continue
            shift = row.w[0] * (guided - m)
            x = row.a * x + row.w[0] * m + shift + row.s[0] * xi
            shift, xi = (v.flatten(1).to(torch.float64) for v in (shift / row.s[0], xi))
            pending = -log_twist - (shift * xi).sum(1) - 0.5 * shift.square().sum(1)
        weights.add(pending + twist.seen.log_likelihood(x).to(torch.float64))
        info = weights.info()
        samples = x[weights.resample(every=True)]
    seconds = time.perf_counter() - begin
    calls = model.calls
    return Samples(
        samples,
        evaluations * calls.forward,
        seconds,
        noise.seeds,
        "smc",
        tuple(float(t) for t in where.times),
        {**info, "particles": x},
        evaluations * (calls.forward + 2 * calls.backward),
    )


class _Twist:
    """The law of the measurement given the state, as far as it is known, and the data prediction that follows from it."""

    def __init__(self, observation: Observation, n: int, std: float, curvature: float) -> None:
        self.groups = len(observation.y) if observation.batched else 1
        if n % self.groups:
            raise ValueError(
                f"got {n} particles for {self.groups} measurements; expected the same number for each: {self.groups} times "
                "the particles of one measurement"
            )
        if observation.noise == "gaussian" and observation.sigma == 0:
            raise ValueError(
                "got sigma=0 for smc, which weighs particles by the likelihood, zero or infinite without noise; expected "
                "sigma > 0, such as the rounding of the measurement, or a method without weights: MMPS, TMPD or PiGDM"
            )
        each = torch.arange(self.groups, device=observation.y.device).repeat_interleave(n // self.groups)
        self.seen, self.std, self.curvature = observation.select(each), std, curvature
        linear = observation.operator.linear and observation.noise == "gaussian"
        self.of = singular_or_none(observation.operator) if linear else None

    def __call__(
        self, model: ScoreModel, x: Tensor, t: float, conditions: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the data prediction, the guided one, and the logarithm of the twist, float64."""
        operator = self.seen.operator
        at = Linearization(model, operator.check_x(x), t, conditions)
        residual, variance = self.seen.residual(at.m), prior_variance(at.alpha, at.sigma, self.std)
        if self.of is not None:
            values, noise = self.of.values.to(x.device), self.seen.sigma**2
            c = self.of.from_y(residual).to(torch.float64)
            each = variance * values**2 + noise
            rest = (residual.flatten(1).to(torch.float64).square().sum(1) - c.square().sum(1)).clamp(min=0.0)
            seen = values > 0
            size = c.square() / each
            logs = torch.where(seen, each.log(), 0.0).sum() + (residual[0].numel() - seen.sum()) * math.log(noise)
            weight = self.of.to_x((values / each).to(x.dtype) * c.to(x.dtype))
            misfit = torch.where(seen, size, 0.0).sum(1) + rest / noise
        else:
            spread = noise_variance(self.seen).to(x.device)
            spread = (spread + variance * self.curvature).expand_as(residual)
            misfit = (residual.to(torch.float64).square() / spread).flatten(1).sum(1)
            logs = spread.log().flatten(1).sum(1)
            weight = operator.vjp(at.m, (residual / spread).to(residual.dtype))
        log_twist = -0.5 * (misfit + logs + residual[0].numel() * math.log(2 * math.pi))
        return at.m, at.m + at.covariance_times(weight), log_twist


class _Weights:
    """The logarithms of the weights of all particles, of the evidence, and the resampling of each group by itself."""

    def __init__(self, seeds: Sequence[int], groups: int, threshold: float, device: torch.device) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"got threshold={threshold!r}; expected a number from 0 (never resample) to 1")
        self.threshold, self.count = threshold, len(seeds) // groups
        self.logs = torch.zeros(groups, self.count, dtype=torch.float64, device=device)
        self.log_evidence = torch.zeros(groups, dtype=torch.float64, device=device)
        self.ess: list[Tensor] = []
        ofs = [seeds[i * self.count : (i + 1) * self.count] for i in range(groups)]
        self.draws = [np.random.default_rng([int(seed) for seed in of]) for of in ofs]

    def add(self, logs: Tensor) -> None:
        """Multiply the weights, of which the logarithms are given, shape ``(n,)``."""
        self.logs = self.logs + logs.reshape(self.logs.shape)
        self.ess.append((2 * self.logs.logsumexp(1) - (2 * self.logs).logsumexp(1)).exp())

    def resample(self, every: bool = False) -> Tensor:
        """Return the indices of the particles that go on, shape ``(n,)``, after systematic resampling where it is due."""
        total = self.logs.logsumexp(1, keepdim=True)
        due = torch.ones_like(total, dtype=torch.bool) if every else self.ess[-1][:, None] < self.threshold * self.count
        uniform = torch.tensor([draw.random() for draw in self.draws], dtype=torch.float64, device=self.logs.device)
        ladder = (torch.arange(self.count, device=self.logs.device) + uniform[:, None]) / self.count
        heights = (self.logs - total).exp().cumsum(1)
        drawn = torch.searchsorted(heights / heights[:, -1:], ladder).clamp(max=self.count - 1)
        stay = torch.arange(self.count, device=self.logs.device).expand_as(drawn)
        self.log_evidence = self.log_evidence + torch.where(due, total - math.log(self.count), 0.0)[:, 0]
        self.logs = torch.where(due, 0.0, self.logs)
        first = self.count * torch.arange(len(self.logs), device=self.logs.device)[:, None]
        return (first + torch.where(due, drawn, stay)).flatten()

    def info(self) -> dict[str, Tensor]:
        """Return the evidence, the effective sample sizes, and the normalised weights.

        Raises:
            ValueError: where all particles of a group have lost their weight.
        """
        total = self.logs.logsumexp(1, keepdim=True)
        evidence = self.log_evidence + total[:, 0] - math.log(self.count)
        if not bool(torch.isfinite(evidence).all()):
            raise ValueError(
                "all particles of a measurement have lost their weight: the measurement is impossible for each of them; "
                "expected more particles, more steps, or an observation with more noise"
            )
        ess = torch.stack(self.ess)
        return {"log_evidence": evidence, "ess": ess, "log_weights": (self.logs - total).flatten()}


def _transitions(solver: str | RowSolver, path: Path) -> list[Row]:
    """Return the rows of a solver whose steps are Gaussian transitions, and refuse others."""
    method = get(solver) if isinstance(solver, str) else solver
    rows = list(method.rows(path)) if isinstance(method, RowSolver) else []
    for row in rows:
        if row.goes_back:
            raise ValueError(
                "got a path that goes back to the noise for smc, whose particles would forget the measurement there; "
                "expected one that falls from noise to data"
            )
        if not isinstance(row, Row) or not row.ends_step or row.p or row.q != 1 or len(row.w) > 1 or len(row.s) > 1:
            rows = []
    if not rows or not any(cast(Row, row).s for row in rows):
        raise ValueError(
            f"got solver {solver!r} for smc, which weighs the Gaussian transitions of a sampler that draws noise; expected "
            "one whose steps evaluate once, look back on nothing and draw noise: 'ddpm', 'ncsn' or 'ddim: eta=1.0'"
        )
    return cast(list[Row], rows)


def _check_model(model: Any) -> None:
    """Refuse what is not a score model on an SDE with Gaussian marginals."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"got {type(model).__name__} for the model of smc; expected a ScoreModel: ScoreModel(net, sde)")
    if not isinstance(model.sde, GaussianSDE):
        raise ValueError(
            f"got a model on {type(model.sde).__name__} for smc; expected an SDE with Gaussian marginals, such as VP()"
        )
