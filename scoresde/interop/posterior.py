r"""Posteriors of parameters given an observation, by a score model conditioned on observations.

Pairs of parameters and simulated observations, :math:`\theta \sim p(\theta), y \sim p(y \mid \theta)`, train the score of
:math:`p_t(\theta \mid y)` by denoising score matching with y as a condition, since the minimizer of that loss is the
conditional score. Sampling by any solver then draws from the posterior of any observation, without a likelihood and without
new simulations.

Sources: Geffner et al., "Compositional Score Modeling for Simulation-Based Inference", 2023,
https://arxiv.org/abs/2209.14249; Sharrock et al., "Sequential Neural Score Estimation", 2024,
https://arxiv.org/abs/2210.04872.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.models import MLP
from scoresde.sampling import log_likelihood, sample
from scoresde.score import ScoreModel
from scoresde.sde import VP, GaussianSDE
from scoresde.solvers import Solver
from scoresde.training import fit

__all__ = ["EstimatedPosterior", "fit_posterior"]


class EstimatedPosterior:
    r"""The posterior of parameters given an observation, estimated by a conditional score model.

    Args:
        model: a score model of parameters of shape ``(batch, size)`` that takes the condition ``observation``, with an entry
            for each sample. It models :math:`(\theta - c) / s`.
        size: the number of parameters.
        observation: the observation that is meant where a method is given none, of the shape of a single one.
        center, scale: c and s, shape ``(size,)``.

    Raises:
        TypeError: for another kind of model.

    Example:
        >>> import scoresde
        >>> class Linear(scoresde.ScoreModel):  # prior N(0, 1), observation N(theta, 1): posterior N(y / 2, 1 / 2)
        ...     def x0(self, x, t, observation):
        ...         alpha, variance = self.sde.alpha(t).to(x), (self.sde.sigma(t) ** 2).to(x)
        ...         return (0.5 * alpha * x + variance * observation / 2) / (0.5 * alpha**2 + variance)
        >>> posterior = EstimatedPosterior(Linear(None, scoresde.VP()), 1, torch.tensor([1.0]))
        >>> theta = posterior.sample((4000,), steps=20)
        >>> theta.shape, abs(theta.mean().item() - 0.5) < 0.05, abs(theta.var().item() - 0.5) < 0.05
        (torch.Size([4000, 1]), True, True)
    """

    def __init__(
        self,
        model: ScoreModel,
        size: int,
        observation: Tensor | None = None,
        center: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        if not isinstance(model, ScoreModel):
            raise TypeError(f"got model of type {type(model).__name__}; expected a ScoreModel that takes observation=..")
        self.model, self.size, self.observation = model, size, observation
        self.center = torch.zeros(size) if center is None else center
        self.scale = torch.ones(size) if scale is None else scale

    def given(self, observation: Tensor) -> EstimatedPosterior:
        """Return the posterior given another observation."""
        return EstimatedPosterior(self.model, self.size, observation, self.center, self.scale)

    def sample(
        self,
        shape: Sequence[int] = (1,),
        *,
        observation: Tensor | None = None,
        solver: str | Solver = "dpmpp-2m",
        steps: int = 30,
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        """Draw parameters from the posterior, shape ``(*shape, size)``.

        Args:
            shape: the number of draws, ``(1000,)``, or several numbers.
            observation: a single observation; by default that of the posterior.
            solver, steps, seed, options: as in :func:`scoresde.sample`.

        Raises:
            ValueError: without an observation.
        """
        n = math.prod(shape)
        return self.sample_each(self._observed(observation, n), solver=solver, steps=steps, seed=seed, **options).reshape(
            *shape, self.size
        )

    def sample_each(
        self, observations: Tensor, *, solver: str | Solver = "dpmpp-2m", steps: int = 30, seed: int = 0, **options: Any
    ) -> Tensor:
        """Draw one set of parameters for each of ``observations``, shape ``(n, *observation)``; returns ``(n, size)``."""
        conditions = {"observation": observations.to(self.model.dtype)}
        found = sample(
            self.model,
            (len(observations), self.size),
            solver,
            steps,
            seed=seed,
            conditions=conditions,
            **{"progress": False, **options},
        )
        return self.center.to(found.x) + self.scale.to(found.x) * found.x

    def log_prob(self, theta: Tensor, *, observation: Tensor | None = None, **options: Any) -> Tensor:
        """Return the log density of parameters of shape ``(n, size)`` given one observation, shape ``(n,)``, float64.

        It is that of the probability flow at ``t_min``, with the exact divergence.

        Args:
            theta: the parameters.
            observation: a single observation; by default that of the posterior.
            options: as in :func:`scoresde.log_likelihood`.
        """
        conditions = {"observation": self._observed(observation, len(theta)).to(self.model.dtype)}
        x = ((theta - self.center.to(theta)) / self.scale.to(theta)).to(self.model.dtype)
        found = log_likelihood(self.model, x, conditions=conditions, **{"trace": "exact", **options})
        return found.log_prob - self.scale.double().log().sum()

    def _observed(self, observation: Tensor | None, n: int) -> Tensor:
        found = self.observation if observation is None else observation
        if found is None:
            raise ValueError("got no observation; expected one: posterior.given(observation), or observation=..")
        return torch.as_tensor(found).expand(n, *torch.as_tensor(found).shape)


class _Conditioned(nn.Module):
    """A perceptron of parameters and standardized observations, side by side."""

    center: Tensor
    scale: Tensor

    def __init__(self, size: int, observations: Tensor, hidden: Sequence[int]) -> None:
        super().__init__()
        flat = observations.flatten(1)
        self.size = size
        self.net = MLP(size + flat.shape[1], hidden)
        self.register_buffer("center", flat.mean(0))
        self.register_buffer("scale", _spread(flat))

    def forward(self, x: Tensor, t: Tensor, observation: Tensor) -> Tensor:
        seen = (observation.flatten(1) - self.center) / self.scale
        found: Tensor = self.net(torch.cat([x, seen.to(x)], dim=1), t)
        return found[:, : self.size]


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation of each component; 1 where it does not vary."""
    std = values.std(0)
    return torch.where(std > 0, std, 1.0)


def fit_posterior(
    theta: Tensor,
    observations: Tensor,
    *,
    steps: int = 3000,
    sde: GaussianSDE | None = None,
    hidden: Sequence[int] = (128, 128, 128),
    objective: str = "v",
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> EstimatedPosterior:
    """Estimate posteriors from simulations, pairs of parameters and observations, for all observations at once.

    Args:
        theta: parameters drawn from the prior, shape ``(n, size)``.
        observations: an observation simulated for each, shape ``(n, *observation)``.
        steps, objective, batch_size, lr, seed, options: as in :func:`scoresde.fit`.
        sde: the forward process; by default ``VP()``.
        hidden: the widths of the hidden layers.

    Returns:
        The posterior without an observation; ``posterior.given(observation)`` has one.

    Raises:
        ValueError: for parameters and observations of different numbers, or other shapes.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> theta = torch.randn(256, 2, generator=generator)
        >>> posterior = fit_posterior(theta, theta + torch.randn(256, 2, generator=generator), steps=5, progress=False)
        >>> posterior.sample((10,), observation=torch.zeros(2)).shape
        torch.Size([10, 2])
    """
    if theta.ndim != 2 or observations.ndim < 2 or len(theta) != len(observations) or len(theta) < 2:
        raise ValueError(
            f"got theta of shape {tuple(theta.shape)} and observations of shape {tuple(observations.shape)}; expected "
            "(n, size) and (n, *observation) with one n of at least 2"
        )
    theta, observations = theta.float(), observations.float()
    center, scale = theta.mean(0), _spread(theta)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Conditioned(theta.shape[1], observations, hidden)
    model = ScoreModel(net, VP() if sde is None else sde, "v")
    data, conditions = (theta - center) / scale, {"observation": observations}
    fitted = fit(
        model,
        data,
        objective,
        steps=steps,
        batch_size=min(batch_size, len(data)),
        lr=lr,
        seed=seed,
        conditions=conditions,
        **options,
    )
    return EstimatedPosterior(fitted.model, theta.shape[1], None, center, scale)
