r"""Sampling the density that guidance aims at, with weighted particles that are resampled on the way.

**Products.** Guidance by predictions with weights :math:`w_i` has the score of :math:`\pi_t \propto \prod_i p_{i,t}^{w_i}`,
but the densities :math:`\pi_t` do not belong to one forward process. Each :math:`p_{i,t}` follows the Fokker-Planck
equation. With :math:`\sum_i w_i = 1` their product follows it up to one term, and a particle that moves by any of the
reverse processes with the guided score gets a weight for it:

.. math:: d \log W = \Big( \big\lVert \textstyle\sum_i w_i \epsilon_i \big\rVert^2
          - \sum_i w_i \lVert \epsilon_i \rVert^2 \Big) d\lambda
          = - \tfrac12 \sum_{i,j} w_i w_j \lVert \epsilon_i - \epsilon_j \rVert^2\, d\lambda .

For classifier-free guidance of scale s it is :math:`s (s - 1) \lVert \epsilon_{cond} - \epsilon_{uncond} \rVert^2 d\lambda`.
No divergence is needed. Other sums are completed by an expert with :math:`\epsilon = 0`.

**Potentials.** Guidance by a potential :math:`\psi_t` aims at the law of the unguided reverse process times
:math:`\psi`. The guided step is a proposal, and with the unguided step :math:`k(x_v \mid x_u)` and the guided one
:math:`q(x_v \mid x_u)`, both Gaussian, the weight of a step is exact:

.. math:: W = \frac{k(x_v \mid x_u)\, \psi_v(x_v)}{q(x_v \mid x_u)\, \psi_u(x_u)} .

Particles are resampled systematically where their effective sample size falls below a share of their number.

Sources: Skreta et al., "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts", 2025,
https://arxiv.org/abs/2503.02819; Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
2023, https://arxiv.org/abs/2306.17775; Del Moral, "Feynman-Kac Formulae", 2004, for the theory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.devices import as_device, as_dtype
from scoresde.base.numbers import whole
from scoresde.base.shape import check_shape
from scoresde.guidance.composition import Compose
from scoresde.guidance.contrast import Contrast
from scoresde.guidance.tilted import Tilted
from scoresde.sampling.counted import evaluation_mode
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.solvers.path import PathLike, Point, make_path
from scoresde.solvers.prediction import Data

__all__ = ["Particles", "feynman_kac", "systematic"]


@dataclass(frozen=True, eq=False)
class Particles:
    """The weighted particles of :func:`feynman_kac`.

    Attributes:
        x: the particles, shape ``(batch, particles, *event)``.
        log_weights: the logarithms of their weights, which sum to 1 in each population, shape ``(batch, particles)``.
        effective: the effective sample size of each population at every step, before resampling, shape ``(steps, batch)``:
            1 / (sum of squared weights), at most the number of particles.
        resampled: whether a population was resampled at the step, shape ``(steps, batch)``.
        evaluations: the number of network calls, each on all particles of all populations.
        backward: the number of backward calls of the network.
        seeds: the seed of each population.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> found = feynman_kac(scoresde.guidance.Auto(model, model, 2.0), (1, 2), 8, 5)
        >>> found.x.shape, found.mean().shape, found.equally_weighted().shape
        (torch.Size([1, 8, 2]), torch.Size([1, 2]), torch.Size([1, 8, 2]))
    """

    x: Tensor
    log_weights: Tensor
    effective: Tensor
    resampled: Tensor
    evaluations: int
    backward: int
    seeds: list[int]

    def mean(self, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the weighted mean of ``function``, by default of x itself, in each population.

        Args:
            function: maps ``(batch, particles, *event)`` to ``(batch, particles, ..)``.
        """
        values = self.x if function is None else function(self.x)
        weights = self.log_weights.exp().to(values)
        return (weights.reshape(*weights.shape, *[1] * (values.ndim - 2)) * values).sum(1)

    def equally_weighted(self, seed: int = 0) -> Tensor:
        """Return the particles resampled once more, so that all weigh the same, shape ``(batch, particles, *event)``."""
        chosen = systematic(self.log_weights, _uniform(sample_seeds(seed, len(self.x))))
        return torch.stack([x[index] for x, index in zip(self.x, chosen, strict=True)])

    def __repr__(self) -> str:
        batch, particles = self.log_weights.shape
        return (
            f"Particles({batch} x {particles} of shape {tuple(self.x.shape[2:])}, effective="
            f"{float(self.effective[-1].mean()):.4g}, evaluations={self.evaluations})"
        )


def systematic(log_weights: Tensor, offset: Tensor) -> Tensor:
    """Return the numbers of the particles that systematic resampling chooses, shape ``(batch, particles)``.

    A particle of weight w is chosen floor(n w) or floor(n w) + 1 times.

    Args:
        log_weights: the logarithms of the weights, up to a constant in each population, shape ``(batch, particles)``.
        offset: a uniform number in [0, 1) for each population, shape ``(batch,)``.

    Source: Kitagawa, "Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models", 1996.

    Example:
        >>> systematic(torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log(), torch.tensor([0.5]))
        tensor([[0, 0, 1, 2]])
    """
    n = log_weights.shape[1]
    cumulative = log_weights.to(torch.float64).softmax(1).cumsum(1)
    cumulative = cumulative / cumulative[:, -1:]  # ends at 1, so that no position lies beyond
    places = (torch.arange(n, device=log_weights.device) + offset.to(cumulative)[:, None]) / n
    return torch.searchsorted(cumulative, places, right=True).clamp(max=n - 1)


class _Found(NamedTuple):
    """What an evaluation gives, each with an entry for each particle."""

    guided: Tensor
    base: Tensor
    value: Tensor


def feynman_kac(
    model: ScoreModel,
    shape: Sequence[int],
    particles: int = 64,
    steps: int = 100,
    path: PathLike = "lam",
    *,
    eta: float = 1.0,
    threshold: float = 0.5,
    seed: int | Sequence[int] | None = 0,
    t_min: float | None = None,
    conditions: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Particles:
    r"""Sample the density that a guided model aims at, with populations of weighted particles.

    The particles follow the reverse process of the guided model by SDE-DPM-Solver++(2M). As their number grows the weighted
    particles follow the tilted density, up to the error of the steps. See the module for the weights.

    Args:
        model: a guided model: :class:`~scoresde.guidance.ClassifierFree`, :class:`~scoresde.guidance.Auto` or
            :class:`~scoresde.guidance.Compose` with constant scales, :class:`~scoresde.guidance.Classifier` or
            :class:`~scoresde.guidance.Energy`.
        shape: ``(batch, *event)``, where each of the batch is a population of its own.
        particles: the number of particles in a population.
        steps, path, t_min: see :func:`scoresde.sample`. The weights belong to the density at ``t_min``, whose noise is
            then removed.
        eta: the strength of the noise, above 0; 1 is the reverse SDE.
        threshold: the share of the effective sample size below which a population is resampled, from 0 (never) to 1.
        seed: one integer, one for each population, or ``None``. A population depends on its own seed only.
        conditions: see :func:`scoresde.sample`; an entry for each population.
        device, dtype: device and dtype of the particles; by default those of the model.

    Raises:
        TypeError: for a model that tilts no density.
        ValueError: for a scale that changes with time, and numbers out of range.
        FloatingPointError: if a particle becomes infinite or NaN.

    Example:
        >>> import scoresde
        >>> from scoresde import guidance, problems
        >>> sde = scoresde.VP()
        >>> narrow, wide = problems.Gaussian([1.0], 0.5).model(sde), problems.Gaussian([0.0], 2.0).model(sde)
        >>> found = feynman_kac(guidance.Auto(narrow, wide, 2.0), (1, 1), 4096, 50)
        >>> round(found.mean().item(), 1), found.effective.shape  # the product of N(1, 0.5)^2 and N(0, 2)^-1
        (1.1, torch.Size([50, 1]))
    """
    weighing = _weighing(model)
    particles = whole("particles", particles, 1)
    if not eta > 0 or not 0 <= threshold <= 1:
        raise ValueError(f"got eta={eta} and threshold={threshold}; expected eta above 0, and a threshold from 0 to 1")
    shape = check_shape(shape)
    points = make_path(model.sde, path, steps, t_min=t_min).points
    if any(v.lam <= u.lam for u, v in itertools.pairwise(points)):
        raise ValueError("got a path that goes back towards the noise; expected one that leads from noise to data")
    model.check_convertible(points[0].t)
    device, dtype = as_device(device or model.device), as_dtype(dtype or model.dtype)
    seeds = sample_seeds(seed, shape[0])
    own = [sample_seeds(s, particles + 1) for s in seeds]
    # All first particles of the populations, all second ones and so on: the order of Conditions.repeated.
    noise = FreshNoise([o[k] for k in range(particles) for o in own], device)
    offsets = _uniform([o[-1] for o in own], len(points))
    told = Conditions.of(conditions, shape[0], device=device, dtype=dtype)
    x = noise.normal(torch.empty((shape[0] * particles, *shape[1:]), device=device, dtype=dtype))
    x = x * (points[0].sigma / math.sqrt(_total(model)))
    with torch.no_grad(), evaluation_mode(model):
        model.check_start(x[: shape[0]], **told.values)
        run = _Population(weighing, noise, told.repeated(particles), shape[0], eta, threshold)
        for k, u in enumerate(points[:-1]):
            x = run.step(x, u, points[k + 1], offsets[:, k])
        if points[-1].log_sigma != -math.inf:
            x = run.weigh(x, points[-1], offsets[:, -1])[0]
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(run.log_weights).any(0).all()):
        raise FloatingPointError(
            "a particle or all weights of a population became non-finite; check the network, take more steps, or a "
            "smaller scale"
        )
    evaluated = points[: len(run.effective)]
    calls = [model.calls_at(point.t) for point in evaluated]
    return Particles(
        x.reshape(particles, *shape).transpose(0, 1).contiguous(),
        run.log_weights.log_softmax(0).T.contiguous(),
        torch.stack(run.effective),
        torch.stack(run.resampled),
        sum(c.forward for c in calls),
        sum(c.backward for c in calls),
        seeds,
    )


class _Population:
    """Particles on their way: their weights, and what the next step looks back on."""

    def __init__(
        self,
        weighing: _Product | _Potential,
        noise: FreshNoise,
        conditions: Mapping[str, Any],
        batch: int,
        eta: float,
        threshold: float,
    ) -> None:
        self.weighing, self.noise, self.conditions = weighing, noise, conditions
        self.prediction, self.threshold, self.batch = Data(eta), threshold, batch
        self.particles = len(noise.seeds) // batch
        self.log_weights = torch.zeros(self.particles, batch, dtype=torch.float64, device=noise.device)
        self.last: _Found | None = None  # of the point before
        self.step_before = math.inf
        self.proposed = torch.zeros_like(self.log_weights)  # log k - log q of the step before
        self.effective: list[Tensor] = []
        self.resampled: list[Tensor] = []

    def weigh(self, x: Tensor, u: Point, offset: Tensor) -> tuple[Tensor, _Found]:
        """Evaluate at ``x``, update the weights, and resample where they are too uneven."""
        t = torch.full((len(x),), u.t, dtype=torch.float64)
        found = self.weighing.evaluate(x, t, u, self.conditions)
        gained = self.weighing.gained(self.last, found, self.step_before)
        self.log_weights = self.log_weights + self.proposed + gained.reshape(-1, self.batch)
        weights = self.log_weights.softmax(0)
        self.effective.append(1 / weights.square().sum(0))
        few = self.effective[-1] < self.threshold * self.particles
        self.resampled.append(few)
        chosen = torch.where(few[:, None], systematic(self.log_weights.T, offset), _identity(self.particles, few.device))
        index = (chosen.T * self.batch + torch.arange(self.batch, device=chosen.device)).flatten()
        self.log_weights = torch.where(few, 0.0, self.log_weights)
        if self.last is not None:
            self.last = _Found(*(part[index] for part in self.last))
        return x[index], _Found(*(part[index] for part in found))

    def step(self, x: Tensor, u: Point, v: Point, offset: Tensor) -> Tensor:
        """Weigh the particles at ``u`` and move them to ``v``."""
        x, found = self.weigh(x, u, offset)
        if v.log_sigma == -math.inf:
            return found.guided
        h = v.lam - u.lam
        carried, share = self.prediction.carry(u, v), -math.expm1(-self.prediction.rate * h) * v.alpha
        ahead = 0.5 * h / self.step_before if self.last is not None and math.isfinite(self.step_before) else 0.0

        def mean(now: Tensor, before: Tensor) -> Tensor:
            return carried * x + share * (now + ahead * (now - before))

        last = found if self.last is None else self.last
        guided, std = mean(found.guided, last.guided), self.prediction.noise(u, v)
        xi = self.noise(u, v, torch.empty_like(x), self.prediction.kernel)
        if found.base is not found.guided:
            apart = (guided - mean(found.base, last.base)) / std
            ratio = -(apart * xi + 0.5 * apart.square()).flatten(1).sum(1)
            self.proposed = ratio.to(torch.float64).reshape(-1, self.batch)
        self.last, self.step_before = found, h
        return guided + std * xi


# Weights -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product:
    """Weights for a product of densities; ``value`` is the rate of their logarithm in lam."""

    model: Contrast | Compose

    def evaluate(self, x: Tensor, t: Tensor, u: Point, conditions: Mapping[str, Any]) -> _Found:
        predictions, weights = self.model.experts(x, t, **conditions)
        guided = sum(w * m for w, m in zip(weights, predictions, strict=True))
        assert isinstance(guided, Tensor)
        ratio = u.alpha / u.sigma
        rest = 1 - sum(w.reshape(-1) if isinstance(w, Tensor) else w for w in weights)
        if isinstance(self.model, Compose) and self.model.rest:  # an expert without noise
            predictions, weights = [*predictions, x / u.alpha], [*weights, rest]
            guided = guided + rest * (x / u.alpha)
        rate = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for (w, m), (other, n) in itertools.combinations(zip(weights, predictions, strict=True), 2):
            both = torch.as_tensor(w * other, dtype=torch.float64, device=x.device).reshape(-1)
            rate = rate - both * ratio**2 * (m - n).to(torch.float64).square().flatten(1).sum(1)
        return _Found(guided, guided, rate)

    def gained(self, last: _Found | None, now: _Found, h: float) -> Tensor:
        if last is None:
            return torch.zeros_like(now.value)
        return 0.5 * now.value if math.isinf(h) else 0.5 * h * (last.value + now.value)


@dataclass(frozen=True)
class _Potential:
    """Weights for a potential; ``value`` is its logarithm."""

    model: Tilted

    def evaluate(self, x: Tensor, t: Tensor, u: Point, conditions: Mapping[str, Any]) -> _Found:
        found = self.model.parts(x, t, **conditions)
        return _Found(found.guided, found.base, found.log_potential.to(torch.float64))

    def gained(self, last: _Found | None, now: _Found, h: float) -> Tensor:
        return now.value if last is None else now.value - last.value


def _weighing(model: ScoreModel) -> _Product | _Potential:
    if isinstance(model, Tilted):
        return _Potential(model)
    if isinstance(model, Contrast | Compose):
        return _Product(model)
    raise TypeError(
        f"got a {type(model).__name__}, which tilts no density that is known; expected ClassifierFree, Auto, Compose, "
        "Classifier or Energy as the outermost model"
    )


def _total(model: ScoreModel) -> float:
    """Return the sum of the exponents, by which the precision of the prior is multiplied."""
    total = 1 - model.rest if isinstance(model, Compose) else 1.0
    if not total > 0:
        raise ValueError(f"got weights that sum to {total:g}; expected a positive sum, without which there is no density")
    return total


def _uniform(seeds: Sequence[int], n: int = 1) -> Tensor:
    """Return uniform numbers for each seed, shape ``(seeds,)`` for one of each or ``(seeds, n)``."""
    rows = [torch.rand(n, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    drawn = torch.stack(rows)
    return drawn[:, 0] if n == 1 else drawn


def _identity(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device).expand(1, n)
