r"""Processes with any rate matrix, and the discretised Gaussian, whose jumps go to nearby levels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.discrete.processes.process import TokenProcess, of_laws
from scoresde.discrete.processes.schedules import NoiseSchedule

__all__ = ["DiscretizedGaussian", "RateMatrix", "transition"]

_TERMS = 24
"""The terms of the series, whose first neglected one is 1 / 24! = 2e-24 of the sum."""


def transition(rates: Tensor, amount: Tensor) -> Tensor:
    r"""Return :math:`P_a = e^{a Q}` to a small relative error in every entry, shape ``(*amount.shape, n, n)``, float64.

    With the largest rate q out of a state, :math:`e^{a Q} = e^{-a q} \sum_k (a q)^k / k!\; (I + Q / q)^k` has no negative
    term (uniformization: Jensen, 1953). Long times are reached by squaring. Sums of terms of both signs would lose the small
    entries, by which predictions are divided.

    Args:
        rates: Q, shape ``(n, n)``, float64, with rows that sum to zero.
        amount: a, at least 0, any shape.

    Example:
        >>> Q = torch.tensor([[-1.0, 1.0], [0.5, -0.5]], dtype=torch.float64)
        >>> transition(Q, torch.tensor(2.0, dtype=torch.float64))
        tensor([[0.3665, 0.6335],
                [0.3167, 0.6833]], dtype=torch.float64)
    """
    q = float((-rates.diagonal()).max())
    jumps = torch.eye(len(rates), dtype=torch.float64, device=rates.device) + rates / q  # rows are laws
    most = float(amount.max()) * q if amount.numel() else 0.0
    squarings = max(0, math.ceil(math.log2(most))) if most > 1 else 0
    small = (amount.to(rates.device) * q / 2**squarings)[..., None, None]
    term = total = torch.eye(len(rates), dtype=torch.float64, device=rates.device).expand(*amount.shape, *rates.shape)
    for k in range(1, _TERMS):
        term = term @ jumps * small / k
        total = total + term
    found = total * torch.exp(-small)
    for _ in range(squarings):
        found = found @ found
    return found / found.sum(-1, keepdim=True)


@dataclass(frozen=True)
class RateMatrix(TokenProcess):
    """The process of a rate matrix of one's own.

    Args:
        vocabulary: the number of tokens.
        noise: the noise schedule.
        rates: the matrix Q, shape ``(vocabulary, vocabulary)``: ``rates[i][j]`` is the rate from i to j per amount of noise.
        start: the law from which sampling starts; by default the stationary law of Q.

    Raises:
        ValueError: for another shape, a negative rate between two tokens, rows that do not sum to zero, a chain that can
            settle in several places, or a law that does not sum to one.

    Example:
        >>> process = RateMatrix(2, "constant", rates=((-1.0, 1.0), (0.5, -0.5)))
        >>> process.prior
        tensor([0.3333, 0.6667], dtype=torch.float64)
    """

    noise: str | NoiseSchedule = "constant: rate=8.0"
    rates: Any = ()
    start: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        q = torch.as_tensor(self.rates, dtype=torch.float64)
        n = self.vocabulary
        if q.shape != (n, n):
            raise ValueError(f"got rates of shape {tuple(q.shape)} for {n} tokens; expected a matrix of shape ({n}, {n})")
        if not bool(torch.isfinite(q).all()):
            raise ValueError("got rates that are not all finite; expected finite numbers")
        jumps = q - q.diagonal().diag()
        if bool((jumps < 0).any()):
            i, j = (jumps < 0).nonzero()[0].tolist()
            raise ValueError(
                f"got the rate {float(q[i, j]):.6g} from token {i} to token {j}; expected at least 0 off the diagonal"
            )
        sums = q.sum(1)
        scale = float(q.abs().max())
        if not scale > 0 or bool((sums.abs() > 1e-9 * scale).any()):
            i = int(sums.abs().argmax())
            raise ValueError(
                f"got a rate matrix whose row {i} sums to {float(sums[i]):.6g}; expected rows that sum to zero, not all of "
                "them zeros: set each diagonal entry to minus the sum of the others, Q.fill_diagonal_(0); Q -= "
                "Q.sum(1).diag()"
            )
        # Rounding of the rows is put on the diagonal, so that probability is conserved.
        object.__setattr__(self, "rates", tuple(map(tuple, (jumps - jumps.sum(1).diag()).tolist())))
        if self.start is not None:
            law = torch.as_tensor(self.start, dtype=torch.float64)
            if law.shape != (n,) or bool((law < 0).any()) or abs(float(law.sum()) - 1) > 1e-9:
                raise ValueError(f"got start={self.start!r}; expected {n} probabilities that sum to one")
            object.__setattr__(self, "start", tuple(law.tolist()))
        elif not bool((self._stationary[1] > 1e-9 * scale).all()):
            raise ValueError(
                "got a rate matrix whose chain can settle in several places, so that it has no law that sampling could "
                "start from; expected one in which a token is reached from every other, or start=, the law to start from"
            )

    @functools.cached_property
    def matrix(self) -> Tensor:
        """The rate matrix Q, shape ``(vocabulary, vocabulary)``, float64, on the host."""
        return torch.tensor(self.rates, dtype=torch.float64)

    @functools.cached_property
    def _stationary(self) -> tuple[Tensor, Tensor]:
        """The law with pi Q = 0, and the singular values of Q but the smallest, which is zero."""
        _, values, right = torch.linalg.svd(self.matrix.T)
        law = right[-1].abs()
        return law / law.sum(), values[:-1]

    @property
    def prior(self) -> Tensor:
        """The law from which sampling starts."""
        return self._stationary[0] if self.start is None else torch.tensor(self.start, dtype=torch.float64)

    def _transition(self, amount: Tensor, like: Tensor) -> Tensor:
        """Return P at an amount of shape ``()`` or ``(batch,)``, on the device of ``like``: ``(.., n, n)``."""
        return transition(self.matrix.to(like.device), amount.to(like.device))

    def rows(self, x: Tensor, amount: Tensor) -> Tensor:
        return _picked(self._transition(amount, x), x)

    def columns(self, x: Tensor, amount: Tensor) -> Tensor:
        return _picked(self._transition(amount, x).mT, x)

    def push(self, p: Tensor, amount: Tensor) -> Tensor:
        return _applied(p, self._transition(amount, p))

    def pull(self, p: Tensor, amount: Tensor) -> Tensor:
        return _applied(p, torch.linalg.inv(self._transition(amount, p)))

    def rates_into(self, x: Tensor) -> Tensor:
        jumps = self.matrix.to(x.device).clone().fill_diagonal_(0.0)
        return jumps.T[x]


def _picked(matrices: Tensor, x: Tensor) -> Tensor:
    """Return the rows ``x`` of one matrix, or of one for each sample; ``(*x.shape, n)``."""
    if matrices.ndim == 2:
        return matrices[x]
    sample = torch.arange(len(x), device=x.device).reshape(-1, *([1] * (x.ndim - 1)))
    return matrices[sample, x]


def _applied(p: Tensor, matrices: Tensor) -> Tensor:
    if matrices.ndim == 2:
        return p @ matrices
    return (p.flatten(1, -2) @ matrices).reshape(p.shape) if p.ndim > 2 else of_laws(p, p) @ matrices


@dataclass(frozen=True)
class DiscretizedGaussian(TokenProcess):
    r"""The process of ordered levels, such as grey values: jumps go to nearby levels, with rates of a Gaussian.

    .. math:: Q_{ij} \propto e^{-(i - j)^2 / 2 w^2}, \quad i \ne j.

    Q is symmetric, so that the prior is uniform, and is scaled such that a level in the middle jumps once per amount of
    noise. A width of a quarter of the levels forgets within an amount of about 30.

    Source: Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", 2021,
    https://arxiv.org/abs/2107.03006, appendix A.2.3, and in continuous time Campbell et al., 2022,
    https://arxiv.org/abs/2205.14987, appendix E.

    Args:
        vocabulary: the number of levels.
        noise: the noise schedule.
        width: w, in levels; by default a quarter of them, and at least 1.

    Raises:
        ValueError: for a width that is not positive.

    Example:
        >>> process = DiscretizedGaussian(8, width=1.0)
        >>> p = process.rows(torch.tensor([[2]]), process.amount(0.05))[0, 0]
        >>> p.argmax().item(), bool(p[1] > p[0]), bool(abs(p.sum() - 1) < 1e-14)
        (2, True, True)
    """

    noise: str | NoiseSchedule = "constant: rate=40.0"
    width: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        width = max(1.0, self.vocabulary / 4) if self.width is None else self.width
        if not 0 < width < math.inf:
            raise ValueError(f"got width={self.width}; expected a positive number of levels, such as {self.vocabulary / 4}")
        object.__setattr__(self, "width", float(width))

    @functools.cached_property
    def as_rates(self) -> RateMatrix:
        """The same process by its rate matrix."""
        assert self.width is not None
        level = torch.arange(self.vocabulary, dtype=torch.float64)
        jumps = torch.exp(-0.5 * ((level[:, None] - level) / self.width) ** 2).fill_diagonal_(0.0)
        jumps = jumps / jumps.sum(1).max()
        return RateMatrix(self.vocabulary, self.schedule, tuple(map(tuple, (jumps - jumps.sum(1).diag()).tolist())))

    @property
    def prior(self) -> Tensor:
        """The uniform law of a level."""
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)

    def rows(self, x: Tensor, amount: Tensor) -> Tensor:
        return self.as_rates.rows(x, amount)

    def columns(self, x: Tensor, amount: Tensor) -> Tensor:
        return self.as_rates.columns(x, amount)

    def push(self, p: Tensor, amount: Tensor) -> Tensor:
        return self.as_rates.push(p, amount)

    def pull(self, p: Tensor, amount: Tensor) -> Tensor:
        return self.as_rates.pull(p, amount)

    def rates_into(self, x: Tensor) -> Tensor:
        return self.as_rates.rates_into(x)
