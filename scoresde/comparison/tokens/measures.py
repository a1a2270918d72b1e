"""The measures of comparisons on tokens, in a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.names import Table
from scoresde.comparison.measures import Measure
from scoresde.discrete import total_variation
from scoresde.metrics import Estimate, seconds_per_evaluation

__all__ = ["TOKEN_MEASURES", "TokenRun", "bigram_distance", "unigram_distance"]


@dataclass(frozen=True)
class TokenRun:
    """The sequences that one solver drew within one budget, and the data to measure them by.

    Attributes:
        end: the sequences, shape ``(n, *event)``, int64.
        truth: sequences of the data, shape ``(m, *event)``, where there are some.
        problem: the distribution of the data, where it is known.
        vocabulary: the number of tokens.
        evaluations, seconds: counted evaluations and wall time.
        laws: a function that returns the exact law of the solver and of the data, where all sequences can be enumerated.

    Example:
        >>> run = TokenRun(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), None, 2, evaluations=2, seconds=0.1)
        >>> sorted(run.has)
        ['truth']
    """

    end: Tensor
    truth: Tensor | None
    problem: Any
    vocabulary: int
    evaluations: int
    seconds: float
    laws: Callable[[], tuple[Tensor, Tensor]] | None = None

    @property
    def has(self) -> frozenset[str]:
        """The names of the requirements of measures that this run meets: "truth", "log_prob", "law"."""
        met = {"truth": self.truth, "log_prob": getattr(self.problem, "log_prob", None), "law": self.laws}
        return frozenset(name for name, value in met.items() if value is not None)


def unigram_distance(samples: Tensor, truth: Tensor, vocabulary: int) -> float:
    """Return the total variation between the frequencies of tokens at each place, averaged over the places.

    Example:
        >>> unigram_distance(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 2)
        0.5
    """
    a, b = (torch.nn.functional.one_hot(x.flatten(1), vocabulary).double().mean(0) for x in (samples, truth))
    return 0.5 * float((a - b).abs().sum(1).mean())


def bigram_distance(samples: Tensor, truth: Tensor, vocabulary: int) -> float:
    """Return the total variation between the frequencies of pairs of neighbouring tokens, wherever they stand.

    Example:
        >>> bigram_distance(torch.tensor([[0, 1, 0]]), torch.tensor([[0, 1, 1]]), 2)
        0.5
    """

    def frequencies(x: Tensor) -> Tensor:
        x = x.flatten(1)
        counts = torch.bincount((x[:, :-1] * vocabulary + x[:, 1:]).flatten(), minlength=vocabulary**2).double()
        return counts / counts.sum()

    return total_variation(frequencies(samples), frequencies(truth))


def _law(run: Any) -> Estimate:
    return Estimate.exact(total_variation(*run.laws()))


def _unigrams(run: Any) -> Estimate:
    return Estimate.exact(unigram_distance(run.end, run.truth, run.vocabulary))


def _bigrams(run: Any) -> Estimate:
    return Estimate.exact(bigram_distance(run.end, run.truth, run.vocabulary))


def _nll(run: Any) -> Estimate:
    tokens = run.end[0].numel()
    found = [-run.problem.log_prob(x).clamp(min=-1e3) / tokens for x in (run.end, run.truth)]
    value = float(found[0].mean() - found[1].mean())
    half = 1.96 * float(sum(f.var() / len(f) for f in found)) ** 0.5
    return Estimate(value, value - half, value + half)


def _time(run: Any) -> Estimate:
    return seconds_per_evaluation([run.seconds], run.evaluations)


_ALL = (
    Measure(
        "total-variation", frozenset({"law"}), _law, "total variation between the laws of sequences, by enumeration, exact"
    ),
    Measure("unigrams", frozenset({"truth"}), _unigrams, "total variation between the frequencies of tokens at each place"),
    Measure("bigrams", frozenset({"truth"}), _bigrams, "total variation between the frequencies of neighbouring tokens"),
    Measure(
        "nll",
        frozenset({"log_prob", "truth"}),
        _nll,
        "negative log-likelihood of the samples under the data's law, less that of the data",
        "zero",
        "nats/token",
    ),
    Measure("time", frozenset(), _time, "wall time of an evaluation", unit="s"),
)

TOKEN_MEASURES: Table[Measure] = Table(
    "token metric",
    "scoresde.comparison.tokens.TOKEN_MEASURES",
    {measure.name: measure for measure in _ALL},
    check=lambda value: isinstance(value, Measure),
    expects="a scoresde.comparison.measures.Measure",
)
"""Every measure on tokens by name."""
