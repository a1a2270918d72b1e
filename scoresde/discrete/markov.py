r"""Markov chains of tokens as data, whose denoiser is known exactly, and whose laws can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.identity import Identified
from scoresde.base.numbers import whole
from scoresde.discrete.laws import all_sequences
from scoresde.discrete.model import DenoisingModel
from scoresde.discrete.processes.draws import draw_tokens
from scoresde.discrete.processes.process import TokenProcess, check_tokens

__all__ = ["ExactDenoiser", "MarkovChain"]


@dataclass(frozen=True, eq=False)
class MarkovChain(Identified):
    r"""The distribution of sequences in which each token depends on the one before it.

    Given noised tokens, the sequence is a hidden Markov chain, so that the laws of its tokens are exact sums over all
    sequences, computed forwards and backwards along the sequence.

    Args:
        initial: the law of the first token, shape ``(vocabulary,)``.
        transition: the law of each further token given the one before it, shape ``(vocabulary, vocabulary)``.
        length: the number of tokens.

    Raises:
        ValueError: for laws that are negative or do not sum to one.

    Example:
        >>> chain = MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], length=3)
        >>> chain.sample(2, torch.Generator().manual_seed(0)).shape, round(chain.entropy, 3)
        (torch.Size([2, 3]), 1.51)
    """

    initial: Any
    transition: Any
    length: int

    def __post_init__(self) -> None:
        initial, transition = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (self.initial, self.transition))
        n = len(initial) if initial.ndim == 1 else 0
        if n < 2 or transition.shape != (n, n):
            raise ValueError(
                f"got laws of shapes {tuple(initial.shape)} and {tuple(transition.shape)}; expected (n,) and (n, n) with at "
                "least two tokens"
            )
        for name, laws in (("initial", initial[None]), ("transition", transition)):
            if bool((laws < 0).any()) or bool(((laws.sum(1) - 1).abs() > 1e-9).any()):
                raise ValueError(f"got {name}={laws.tolist()}; expected probabilities that sum to one in each row")
        object.__setattr__(self, "initial", initial)
        object.__setattr__(self, "transition", transition)
        object.__setattr__(self, "length", whole("length", self.length, 1))

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sequence."""
        return (self.length,)

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self.initial)

    @property
    def law(self) -> Tensor:
        """The probabilities of all sequences, shape ``(vocabulary,) * length``, float64."""
        x = all_sequences(self.vocabulary, self.length)
        return self.log_prob(x).exp().reshape((self.vocabulary,) * self.length)

    @property
    def entropy(self) -> float:
        """The entropy of a sequence, in nats."""
        law, total = self.initial, -float(torch.xlogy(self.initial, self.initial).sum())
        each = -torch.xlogy(self.transition, self.transition).sum(1)
        for _ in range(self.length - 1):
            total += float(law @ each)
            law = law @ self.transition
        return total

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of sequences of shape ``(n, length)``, in nats, float64, shape ``(n,)``."""
        x = self._checked(x)
        steps = self.transition.to(x.device).log()[x[:, :-1], x[:, 1:]]
        found: Tensor = self.initial.to(x.device).log()[x[:, 0]] + steps.sum(1)
        return found

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent sequences, shape ``(n, length)``, int64, on the device of ``generator``."""
        u = torch.rand(n, self.length, generator=generator, dtype=torch.float64, device=generator.device)
        initial, transition = self.initial.to(u.device), self.transition.to(u.device)
        tokens = [draw_tokens(initial.expand(n, -1), u[:, 0])]
        for i in range(1, self.length):
            tokens.append(draw_tokens(transition[tokens[-1]], u[:, i]))
        return torch.stack(tokens, 1)

    def model(self, process: TokenProcess) -> ExactDenoiser:
        """Return the exact denoising model of these data under ``process``."""
        return ExactDenoiser(self, process)

    def marginals(self, likelihood: Tensor) -> Tensor:
        """Return the laws of the tokens given independent evidence of each.

        Args:
            likelihood: the likelihood of the evidence at place i given token j, shape ``(.., length, vocabulary)``, float64.
        """
        forward, backward = [], [torch.ones_like(likelihood[..., 0, :])]
        transition = self.transition.to(likelihood.device)
        law = self.initial.to(likelihood.device).expand_as(likelihood[..., 0, :])
        for i in range(self.length):
            forward.append(_scaled(law * likelihood[..., i, :]))
            law = forward[-1] @ transition
        for i in range(self.length - 1, 0, -1):
            backward.append(_scaled((backward[-1] * likelihood[..., i, :]) @ transition.T))
        joint = torch.stack(forward, -2) * torch.stack(backward[::-1], -2)
        return joint / joint.sum(-1, keepdim=True)

    def _checked(self, x: Tensor) -> Tensor:
        x = check_tokens(x, self.vocabulary)
        if x.shape[1:] != self.event:
            raise ValueError(
                f"got tokens of shape {tuple(x.shape)}; expected (batch, {self.length}), the sequences of the chain"
            )
        return x

    def __repr__(self) -> str:
        return f"MarkovChain of {self.vocabulary} tokens and length {self.length}"


def _scaled(p: Tensor) -> Tensor:
    """Return weights that sum to one, where they are not all zero."""
    total = p.sum(-1, keepdim=True)
    return p / torch.where(total > 0, total, 1.0)


class ExactDenoiser(DenoisingModel):
    """The exact denoising model of a Markov chain, which has no network.

    Args:
        problem: the distribution of the data.
        process: the process that noises tokens.

    Raises:
        ValueError: for a process with another vocabulary.

    Example:
        >>> from scoresde.discrete import Absorbing
        >>> chain = MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], length=2)
        >>> chain.model(Absorbing(2)).x0(torch.tensor([[0, 2]]), 0.5)[0, 1]
        tensor([0.9000, 0.1000], dtype=torch.float64)
    """

    def __init__(self, problem: MarkovChain, process: TokenProcess) -> None:
        super().__init__(None, process)
        if process.vocabulary != problem.vocabulary:
            raise ValueError(
                f"got a process of {process.vocabulary} tokens for a chain of {problem.vocabulary}; expected the same: "
                f"{type(process).__name__}({problem.vocabulary})"
            )
        self.problem = problem

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the exact laws of the data tokens given x, float64, shape ``(batch, length, vocabulary)``."""
        likelihood = self.process.columns(x, self.process.amount(t))[..., : self.problem.vocabulary]
        # Sequences that the data cannot be noised to have no law: any will do, for they are never reached.
        found = self.problem.marginals(likelihood)
        return torch.where(torch.isfinite(found).all(-1, keepdim=True), found, 1 / self.problem.vocabulary)

    def __repr__(self) -> str:
        return f"{self.problem!r}.model({self.process!r})"
