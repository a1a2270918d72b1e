r"""Tokens as vectors: diffusion of their embeddings in real numbers, and rounding back to tokens.

The other way to sample tokens. A token is a vector of length one, its noised form :math:`x = \alpha e + \sigma \epsilon` has
real numbers, and a network estimates the law of the token from it. The data prediction is the mean of the embeddings under
this law, so that the model is a score model like any other: every SDE, solver and way to steer one applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.numbers import whole
from scoresde.discrete.markov import MarkovChain
from scoresde.discrete.processes.process import check_tokens
from scoresde.objectives import TIMES, Objective, Times, Weighting, noised
from scoresde.score import ScoreModel, Shared
from scoresde.sde import GaussianSDE, Time

__all__ = ["EmbeddedChain", "EmbeddedModel", "TokenCrossEntropy", "TokenEmbedding"]


class TokenEmbedding(nn.Module):
    """A vector of length one for each token.

    Args:
        vocabulary: the number of tokens.
        features: the number of features of a vector.
        learned: whether training changes the vectors; they are scaled to length one where they are used.
        seed: the seed of the random vectors. With as many features as tokens they start as unit vectors instead.

    Raises:
        ValueError: for fewer than two tokens or one feature.

    Example:
        >>> embedding = TokenEmbedding(26, 16)
        >>> tokens = torch.tensor([[0, 25, 3]])
        >>> embedding(tokens).shape, bool((embedding.round(embedding(tokens)) == tokens).all())
        (torch.Size([1, 3, 16]), True)
    """

    def __init__(self, vocabulary: int, features: int, *, learned: bool = False, seed: int = 0) -> None:
        super().__init__()
        whole("vocabulary", vocabulary, 2)
        whole("features", features, 1)
        generator = torch.Generator("cpu").manual_seed(seed)
        rows = torch.eye(vocabulary) if features == vocabulary else torch.randn(vocabulary, features, generator=generator)
        self.table = nn.Parameter(rows / rows.norm(dim=1, keepdim=True), requires_grad=learned)

    @property
    def vectors(self) -> Tensor:
        """The vectors of all tokens, shape ``(vocabulary, features)``."""
        return torch.nn.functional.normalize(self.table, dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens, shape ``(*tokens.shape, features)``."""
        return self.vectors[check_tokens(tokens, len(self.table))]

    def round(self, x: Tensor) -> Tensor:
        """Return the tokens whose vectors are nearest, int64, shape ``x.shape[:-1]``."""
        return (x @ self.vectors.to(x).T).argmax(-1)  # all vectors have the same length


class EmbeddedModel(ScoreModel):
    r"""The score model of embedded tokens, whose network estimates the law of each token.

    .. math:: E[x_0 \mid x] = \sum_j p(j \mid x)\, e_j .

    Source: Dieleman et al., "Continuous Diffusion for Categorical Data", 2022, https://arxiv.org/abs/2211.15089; after Li et
    al., "Diffusion-LM Improves Controllable Text Generation", 2022, https://arxiv.org/abs/2205.14217.

    Args:
        net: ``net(x, t, **conditions)`` returns logits, shape ``(batch, *event, vocabulary)``, at noised vectors of shape
            ``(batch, *event, features)``, scaled to a size of about one.
        embedding: the vectors of the tokens.
        sde: the forward SDE.

    Example:
        >>> import scoresde
        >>> even = EmbeddedModel(lambda x, t: torch.zeros(*x.shape[:-1], 4), TokenEmbedding(4, 4), scoresde.VP())
        >>> x = scoresde.sample(even, (2, 8, 4), "ddim", 4, progress=False).x
        >>> even.tokens(x).shape
        torch.Size([2, 8])
    """

    def __init__(self, net: Callable[..., Any] | None, embedding: TokenEmbedding, sde: GaussianSDE) -> None:
        super().__init__(net, sde, "x0")
        self.embedding = embedding

    def law(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the law of each token given noised vectors, shape ``(batch, *event, vocabulary)``, float64.

        Args:
            x: noised vectors, shape ``(batch, *event, features)``.
            t: time, shape ``()`` or ``(batch,)``.
            conditions: passed to the network.
        """
        t = self.sde.check_time(t)
        times = t.to(torch.float64)
        size = (self.sde.alpha(times) ** 2 / x.shape[-1] + self.sde.sigma(times) ** 2).sqrt()
        scaled = x / size.to(x).reshape(-1, *([1] * (x.ndim - 1)))
        told = self._time(times).to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)).expand(len(x))
        given = {name: value.value if isinstance(value, Shared) else value for name, value in conditions.items()}
        logits = self.net(scaled, told, **given)
        shape = (*x.shape[:-1], len(self.embedding.table))
        if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the network returned {got}; expected logits of shape {shape}")
        return logits.double().softmax(-1)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the mean of the embeddings given x, shape of ``x``."""
        return (self.law(x, t, **conditions) @ self.embedding.vectors.to(torch.float64)).to(x.dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens of vectors, int64, shape ``x.shape[:-1]``."""
        return self.embedding.round(x)

    def check_data(self, data: Tensor) -> Tensor:
        """Return data to train on, after a check that they are tokens of the vocabulary."""
        return check_tokens(data, len(self.embedding.table), "data")


class EmbeddedChain(EmbeddedModel):
    """The exact score model of the embedded sequences of a Markov chain, which has no network.

    Args:
        problem: the distribution of the sequences.
        embedding: the vectors of the tokens.
        sde: the forward SDE.

    Example:
        >>> import scoresde
        >>> chain = MarkovChain([0.5, 0.5], [[1.0, 0.0], [0.0, 1.0]], length=2)
        >>> model = EmbeddedChain(chain, TokenEmbedding(2, 4), scoresde.VP())
        >>> model.law(torch.zeros(1, 2, 4), 0.5).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """

    def __init__(self, problem: MarkovChain, embedding: TokenEmbedding, sde: GaussianSDE) -> None:
        super().__init__(None, embedding, sde)
        self.problem = problem

    def law(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the exact law of each token given noised vectors, shape ``(batch, length, vocabulary)``, float64."""
        times = self.sde.check_time(t).to(torch.float64)
        alpha, sigma = self.sde.alpha(times), self.sde.sigma(times)
        of_signal = (alpha / sigma**2).to(x.device).reshape(-1, 1, 1)  # all vectors have the same length
        logs = of_signal * (x.double() @ self.embedding.vectors.to(x.device, torch.float64).T)
        return self.problem.marginals((logs - logs.amax(-1, keepdim=True)).exp())


@dataclass(frozen=True)
class TokenCrossEntropy(Objective):
    r"""The cross-entropy of tokens given their noised vectors, :math:`-\log p(x_0^i \mid x_t)`, averaged over times.

    It trains an :class:`EmbeddedModel`, and its vectors where they are learned: at least noise the vectors of different
    tokens are driven apart, and their length is fixed, so that they do not vanish.

    Args:
        times: a name in :data:`scoresde.objectives.TIMES` or any :class:`~scoresde.objectives.Times`.

    Source: Dieleman et al., 2022, https://arxiv.org/abs/2211.15089, section 3.

    Example:
        >>> import scoresde
        >>> model = EmbeddedModel(lambda x, t: torch.zeros(*x.shape[:-1], 4), TokenEmbedding(4, 4), scoresde.VP())
        >>> loss, t = TokenCrossEntropy()(model, torch.tensor([[0, 3]]), torch.Generator().manual_seed(0))
        >>> round(loss.item(), 4)  # log 4
        1.3863
    """

    times: str | Times = "uniform"

    def __post_init__(self) -> None:
        if isinstance(self.times, str):
            object.__setattr__(self, "times", TIMES.name(self.times))

    @property
    def weight(self) -> Weighting:
        """Refused: a cross-entropy has no squared error of a score to weight."""
        raise ValueError("got the weighting of a cross-entropy of tokens, which has no squared error of a score")

    @property
    def distribution(self) -> Times:
        """The distribution of times, as an object."""
        return TIMES[self.times] if isinstance(self.times, str) else self.times

    def draw_noise(self, model: Any, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Draw standard normal noise for the vectors of tokens like ``x0``, shape ``(batch, *event, features)``."""
        shape = (*x0.shape, model.embedding.table.shape[1])
        return torch.randn(shape, generator=generator, device=generator.device, dtype=model.dtype)

    def at(self, model: Any, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the cross-entropy at given times and noise, in nats per token, shape ``(batch,)``."""
        x0 = x0.to(torch.int64)
        p = model.law(noised(model.sde, model.embedding(x0).to(eps), t, eps), t, **conditions)
        entropies: Tensor = -torch.log(p.gather(-1, x0[..., None])[..., 0].clamp(min=torch.finfo(p.dtype).tiny))
        return entropies.flatten(1).mean(1)

    def compared(
        self, model: Any, truth: Any, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the loss less that of the exact model at the same noised vectors, shape ``(batch,)``, and no errors."""
        return self.at(model, x0, t, eps, **conditions) - self.at(truth, x0, t, eps, **conditions), None, None
