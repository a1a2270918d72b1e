r"""Nonlinear least squares over the numbers of a family of solvers: the Levenberg-Marquardt method, robust and damped.

The residuals are those of many samples, of which a few may be much larger than all others: starts near the boundary between
two modes, whose samples a small error sends to the other mode. The objective grows with the logarithm of such an error,

.. math:: \frac1N \sum_s \tau \log(1 + e_s / \tau) + \rho \sum_k \theta_k^2,

with e_s the mean square residual of the sample s, and tau a multiple of their median (Barron, "A General and Adaptive Robust
Loss Function", 2019, https://arxiv.org/abs/1701.03077). The penalty keeps the numbers near zero, where the solver is a
method of known order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LeastSquares", "Progress", "minimize"]


@dataclass(frozen=True)
class LeastSquares:
    """The residuals of samples as a function of the numbers.

    Attributes:
        residuals: a function ``(vectors, samples, apart) -> (copies, samples, ..)`` of vectors of numbers,
            ``(copies, size)``, and a slice of the samples. ``apart`` says that the copies differ from the first in one
            number each, in order.
        samples: the number of samples.
        chunk: the number of residuals that may be held at a time, in numbers.
    """

    residuals: Callable[[Tensor, slice, bool], Tensor]
    samples: int
    chunk: int = 1 << 24

    def errors(self, numbers: Tensor) -> Tensor:
        """Return the mean square residual of each sample, shape ``(samples,)``."""
        return self.residuals(numbers[None], slice(0, self.samples), False)[0].flatten(1).square().mean(1)

    def normal(self, numbers: Tensor, free: int, tau: float) -> tuple[Tensor, Tensor]:
        """Return J^T W J and J^T W r over the first ``free`` numbers, averaged as in the objective; J by differences."""
        vectors = numbers.repeat(free + 1, 1)
        vectors[range(1, free + 1), range(free)] += STEP
        matrix, vector = numbers.new_zeros(free, free), numbers.new_zeros(free)
        size = self.residuals(numbers[None], slice(0, 1), False).numel()
        count = max(1, self.chunk // (size * (free + 1)))
        for first in range(0, self.samples, count):
            found = self.residuals(vectors, slice(first, min(first + count, self.samples)), True).flatten(2)
            r, jacobian = found[0], (found[1:] - found[:1]) / STEP
            weight = 1 / (1 + r.square().mean(1) / tau)
            scaled = (weight.sqrt()[:, None] * jacobian).flatten(1)
            matrix += scaled @ scaled.T
            vector += scaled @ (weight.sqrt()[:, None] * r).flatten()
        return matrix / (self.samples * size), vector / (self.samples * size)


STEP = 1e-6
"""The difference of a number by which derivatives are taken, in float64."""


@dataclass(frozen=True)
class Progress:
    """The numbers after an iteration, and the objective's scale tau and the errors of the samples there."""

    numbers: Tensor
    errors: Tensor


def minimize(
    problem: LeastSquares,
    numbers: Tensor,
    free: int,
    *,
    penalty: float,
    robust: float,
    most: float = 4.0,
    tolerance: float = 1e-3,
) -> Iterator[Progress]:
    """Minimise over the first ``free`` numbers, and yield the state after every step that lowers the objective.

    Args:
        problem: the residuals.
        numbers: the vector to start from.
        free: the number of entries that may change.
        penalty: rho, in units of the mean error.
        robust: tau, in units of the median of the errors; infinite for least squares.
        most: the largest size of any number.
        tolerance: the relative gain of the objective below which the iteration ends.
    """
    damping, errors = 1e-2, problem.errors(numbers)
    while True:
        tau = float(robust * errors.median())
        rho = penalty * float(_robust(errors, tau).mean())

        def objective(found: Tensor, at: Tensor, tau: float = tau, rho: float = rho) -> float:
            return float(_robust(found, tau).mean()) + rho * float(at.square().sum())

        now = objective(errors, numbers)
        matrix, vector = problem.normal(numbers, free, tau)
        diagonal = matrix.diagonal() + rho
        diagonal = diagonal.clamp(min=1e-12 * float(diagonal.max()))
        for _ in range(TRIES):
            step = torch.linalg.solve(matrix + torch.diag(rho + damping * diagonal), vector + rho * numbers[:free])
            tried = numbers.clone()
            tried[:free] -= step
            if float(tried.abs().max()) <= most:
                found = problem.errors(tried)
                if objective(found, tried) < now:
                    break
            damping *= 4
        else:
            return
        gain = (now - objective(found, tried)) / now
        numbers, errors, damping = tried, found, max(damping / 3, 1e-9)
        yield Progress(numbers, errors)
        if gain < tolerance:
            return


TRIES = 8
"""The number of dampings, each four times the one before, after which no step is found."""


def _robust(errors: Tensor, tau: float) -> Tensor:
    return errors if tau == float("inf") else tau * torch.log1p(errors / tau)
