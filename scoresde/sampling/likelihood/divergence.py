r"""The divergence of a prediction: exact, or an unbiased estimate by random probes, the same along a whole trajectory.

For a Jacobian J and random vectors v with :math:`E[v v^T] = I`, the mean of :math:`v^T J v` is the trace of J (Hutchinson).
For random signs (Rademacher) its variance does not contain the diagonal of J. Hutch++ spends two thirds of its products on
an orthonormal basis Q of the range of J, in which the trace is exact, and estimates the rest with what is left of the probes
orthogonal to Q.

Sources: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989; Grathwohl et al., "FFJORD", 2019,
https://arxiv.org/abs/1810.01367; Meyer et al., "Hutch++: Optimal Stochastic Trace Estimation", 2021,
https://arxiv.org/abs/2010.09649.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.base.trace import quadratic_forms, unit_vectors
from scoresde.solvers.noise.fresh import FreshNoise

__all__ = ["TRACES", "Exact", "HutchPlusPlus", "Probes", "TraceEstimate"]


class TraceEstimate(ABC):
    """Interface of what estimates the trace of the Jacobian of a prediction."""

    @abstractmethod
    def __call__(self, output: Tensor, x: Tensor, create_graph: bool) -> Tensor:
        """Return independent estimates of the trace of d output / d x for each sample, shape ``(estimates, batch)``."""

    @property
    def random(self) -> bool:
        """Whether the estimates are random."""
        return True

    @property
    def vectors(self) -> Tensor | None:
        """The probes v, shape ``(probes, batch, *event)``, if the estimates are v^T J v for any J."""
        return None


@dataclass(frozen=True)
class Exact(TraceEstimate):
    """The exact trace, by one backward pass for each dimension of the data.

    Example:
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> Exact()(torch.stack([3 * x[:, 0] + x[:, 1], x[:, 1] ** 2], 1), x, create_graph=False)
        tensor([[5.]])
    """

    def __call__(self, output: Tensor, x: Tensor, create_graph: bool) -> Tensor:
        return quadratic_forms(output, x, unit_vectors(x), create_graph=create_graph).sum(0, keepdim=True)

    @property
    def random(self) -> bool:
        return False


@dataclass(frozen=True)
class Probes(TraceEstimate):
    """Hutchinson's estimates, one backward pass each.

    Args:
        drawn: the probes, shape ``(probes, batch, *event)``.
    """

    drawn: Tensor

    def __call__(self, output: Tensor, x: Tensor, create_graph: bool) -> Tensor:
        return quadratic_forms(output, x, self.drawn, create_graph=create_graph)

    @property
    def vectors(self) -> Tensor | None:
        return self.drawn


@dataclass(frozen=True)
class HutchPlusPlus(TraceEstimate):
    """Hutch++ with two thirds of the probes for the basis, and an estimate for each of the others.

    Args:
        drawn: the probes, shape ``(probes, batch, *event)``, at least three.

    Raises:
        ValueError: for fewer than three probes.
    """

    drawn: Tensor

    def __post_init__(self) -> None:
        if len(self.drawn) < 3:
            raise ValueError(f"got probes={len(self.drawn)} for trace='hutch++'; expected at least 3")

    def __call__(self, output: Tensor, x: Tensor, create_graph: bool) -> Tensor:
        third = min(len(self.drawn) // 3, x[0].numel())
        sketch, others = self.drawn[:third], self.drawn[third : len(self.drawn) - third]
        if not output.requires_grad:
            return x.new_zeros(len(others), len(x))
        columns = [
            torch.autograd.grad(output, x, v, retain_graph=True, materialize_grads=True)[0].flatten(1) for v in sketch
        ]
        basis, _ = torch.linalg.qr(torch.stack(columns, 2))  # (batch, d, third); a constant of the estimate
        flat = others.flatten(2)
        outside = flat - torch.einsum("bdk,bek,pbe->pbd", basis, basis, flat)
        directions = torch.cat([basis.permute(2, 0, 1), outside]).reshape(-1, *x.shape)
        forms = quadratic_forms(output, x, directions, create_graph=create_graph)
        return forms[:third].sum(0) + forms[third:]


def _normal(x: Tensor, probes: int, seeds: list[int]) -> Tensor:
    noise = FreshNoise(seeds, x.device)
    return torch.stack([noise.normal(torch.empty_like(x)) for _ in range(probes)])


def _signs(x: Tensor, probes: int, seeds: list[int]) -> Tensor:
    return torch.where(_normal(x, probes, seeds) < 0, -1.0, 1.0).to(x)


TRACES: Table[Callable[[Tensor, int, list[int]], TraceEstimate]] = Table(
    "trace",
    "scoresde.sampling.TRACES",
    {
        "exact": lambda x, probes, seeds: Exact(),
        "rademacher": lambda x, probes, seeds: Probes(_signs(x, probes, seeds)),
        "gaussian": lambda x, probes, seeds: Probes(_normal(x, probes, seeds)),
        "hutch++": lambda x, probes, seeds: HutchPlusPlus(_signs(x, probes, seeds)),
    },
    also="'auto'",
    check=callable,
    expects="a function (x, probes, seeds) -> TraceEstimate",
)
"""Every estimate of the divergence by name: functions of the data, the number of probes and the seeds of the samples."""
