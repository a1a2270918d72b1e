"""The exact law of the samples of an affine sampler: zero and the unit vectors pushed through, no Monte Carlo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde import ScoreModel, sample
from scoresde.solvers import FreshNoise, Solver

F64 = torch.float64
Law = tuple[Tensor, Tensor]
"""A mean and a covariance."""


class UnitNoise(FreshNoise):
    """Draw number k is a unit vector for the d samples that belong to it, and zero for all others."""

    def __init__(self, n: int, d: int) -> None:
        super().__init__(range(n), "cpu")
        self.d, self.drawn = d, 0

    def normal(self, out: Tensor) -> Tensor:
        self.drawn += 1
        first = 1 + self.d * self.drawn
        out.zero_()
        out[first : first + self.d] = torch.eye(self.d, dtype=out.dtype).reshape(self.d, *out.shape[1:])
        return out


def law(model: ScoreModel, event: tuple[int, ...], solver: str | Solver, steps: int, draws: int = 0, **how: Any) -> Law:
    """The exact mean and covariance of the flattened samples, for a sampler that makes at most ``draws`` draws."""
    d = torch.Size(event).numel()
    x = torch.zeros(1 + d * (1 + draws), *event, dtype=F64)
    x[1 : 1 + d] = float(model.sde.sigma(model.sde.span[1])) * torch.eye(d, dtype=F64).reshape(d, *event)
    noise = UnitNoise(len(x), d)
    end = sample(model, x, solver, steps, noise=noise, progress=False, **how).x.flatten(1)
    assert noise.drawn <= draws
    columns = end[1:] - end[0]
    return end[0], columns.T @ columns


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def wasserstein(one: Law, other: Law) -> float:
    """The Wasserstein-2 distance of two Gaussians."""
    half = root(one[1])
    of_covariances = one[1].trace() + other[1].trace() - 2 * root(half @ other[1] @ half).trace()
    return float(((one[0] - other[0]).square().sum() + of_covariances.clamp(min=0)).sqrt())


def posterior(mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, sigma: float) -> Law:
    """The law of N(mean, covariance) given y = A x + sigma noise, by the textbook formula."""
    gain = (
        covariance
        @ matrix.T
        @ torch.linalg.inv(matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=F64))
    )
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance
