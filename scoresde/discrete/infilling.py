"""Infilling: samples with some tokens given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.discrete.model import DenoisingModel, TokenWrapper
from scoresde.discrete.processes.process import check_tokens

__all__ = ["Infilled"]


class Infilled(TokenWrapper):
    r"""A model on tokens of which some are given: it sees them at all times, and predicts them with certainty.

    In the absorbing process a token that is not masked is the token of the data, so that the conditional law of an exact
    model is exact. In other processes the model takes the given tokens for noised ones, which the samples are biased by.

    Args:
        model: a denoising model.
        known: tokens, shape ``event`` or ``(batch, *event)``; what stands where ``given`` is false is ignored.
        given: which tokens are given, the same shape, or ``event``.

    Raises:
        ValueError: for tokens out of range, and shapes that do not fit.

    Example:
        >>> import scoresde
        >>> from scoresde.discrete import Absorbing, MarkovChain
        >>> chain = MarkovChain([0.5, 0.5], [[1.0, 0.0], [0.0, 1.0]], length=4)  # four times the same token
        >>> known, given = torch.tensor([0, 1, 0, 0]), torch.tensor([False, True, False, False])
        >>> model = Infilled(chain.model(Absorbing(2)), known, given)
        >>> scoresde.sample(model, (1, 4), progress=False).x.tolist()
        [[1, 1, 1, 1]]
    """

    known: Tensor
    given: Tensor

    def __init__(self, model: DenoisingModel, known: Tensor, given: Tensor) -> None:
        super().__init__(model)
        if not isinstance(given, Tensor) or given.dtype != torch.bool:
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"got given of {kind}; expected a tensor of truth values, true where a token is given")
        if not isinstance(known, Tensor) or given.ndim > known.ndim or given.shape != known.shape[known.ndim - given.ndim :]:
            shape = tuple(known.shape) if isinstance(known, Tensor) else type(known).__name__
            raise ValueError(f"got known of shape {shape} and given of shape {tuple(given.shape)}; expected the same shape")
        given = given.expand(known.shape)
        if not bool(given.any()):
            raise ValueError("got no token that is given; expected at least one: sample the model itself")
        check_tokens(known[given][None], self.process.vocabulary, "given tokens")
        self.register_buffer("known", torch.where(given, known, 0).to(torch.int64), persistent=False)
        self.register_buffer("given", given, persistent=False)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch of another shape than the given tokens."""
        if tuple(self.known.shape) not in (tuple(x.shape), tuple(x.shape[1:])):
            raise ValueError(
                f"got samples of shape {tuple(x.shape)} with given tokens of shape {tuple(self.known.shape)}; expected the "
                "shape of one sample, or of the batch"
            )
        super().check_start(x, **conditions)

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the laws of the data tokens, those that are given with certainty; ``(batch, *event, vocabulary)``."""
        known, given = (v.to(x.device).expand(x.shape) for v in (self.known, self.given))
        p = self.model.x0(torch.where(given, known, x), t, **conditions)
        certain = torch.nn.functional.one_hot(known, self.process.vocabulary).to(p)
        return torch.where(given[..., None], certain, p)
