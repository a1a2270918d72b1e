"""Predictions at noised tokens, in each of the forms that solvers and objectives use."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor

from scoresde.discrete.processes.process import TokenProcess, of_laws
from scoresde.score import Calls

__all__ = ["Predictor", "TokenPrediction"]


class Predictor(Protocol):
    """What solvers use of a denoising model."""

    @property
    def process(self) -> TokenProcess: ...

    @property
    def calls(self) -> Calls: ...

    def predict(self, x: Tensor, t: Tensor | float, **conditions: Any) -> TokenPrediction: ...


class TokenPrediction:
    r"""What a model predicts at noised tokens, in each of the forms that solvers and objectives use, from one evaluation.

    Args:
        process: the process.
        x: noised tokens, shape ``(batch, *event)``.
        t: the time, shape ``()`` or ``(batch,)``.
        x0: laws of the data tokens, float64, shape ``(batch, *event, vocabulary)``.
        ratios: the ratios :math:`p_t(x^{i \to y}) / p_t(x)`, float64, shape ``(batch, *event, states)``. One of ``x0`` and
            ``ratios`` is given, the other follows.

    Example:
        >>> from scoresde.discrete import Absorbing
        >>> mask, half = torch.tensor([[2]]), torch.tensor([[[0.5, 0.5]]], dtype=torch.float64)
        >>> here = TokenPrediction(Absorbing(2), mask, torch.tensor(0.5, dtype=torch.float64), x0=half)
        >>> here.ratios.round(decimals=4).tolist(), here.earlier(torch.tensor(0.25)).round(decimals=4).tolist()
        ([[[0.5, 0.5, 1.0]]], [[[0.25, 0.25, 0.5]]])
    """

    def __init__(
        self, process: TokenProcess, x: Tensor, t: Tensor, *, x0: Tensor | None = None, ratios: Tensor | None = None
    ) -> None:
        self.process, self.x, self.t = process, x, t
        self.amount = process.amount(t)
        self._x0, self._ratios = x0, ratios

    @functools.cached_property
    def x0(self) -> Tensor:
        """The laws of the data tokens, shape ``(batch, *event, vocabulary)``."""
        if self._x0 is not None:
            return self._x0
        zero = torch.zeros_like(self.amount)
        return self.process.tweedie(self.x, self.ratios, self.amount, zero)[..., : self.process.vocabulary]

    @functools.cached_property
    def ratios(self) -> Tensor:
        r"""The ratios :math:`p_t(x^{i \to y}) / p_t(x)`, 1 at x itself, shape ``(batch, *event, states)``."""
        return self.process.ratios(self.x, self.x0, self.amount) if self._ratios is None else self._ratios

    @functools.cached_property
    def rates(self) -> Tensor:
        r"""The reverse rates :math:`\beta(t)\, Q[y, x]\, p_t(x^{i \to y}) / p_t(x)`, 0 at x itself; shape of the ratios."""
        speed = of_laws(self.process.speed(self.t), self.ratios)
        return speed * self.process.rates_into(self.x) * self.ratios

    def earlier(self, t: Tensor) -> Tensor:
        """Return the laws of the tokens at an earlier time, given these and the predicted data; shape of the ratios."""
        return self.process.posterior(self.x, self.x0, self.amount, self.process.amount(t))

    def tweedie(self, t: Tensor) -> Tensor:
        """Return the laws of the tokens at an earlier time from the ratios alone; shape of the ratios."""
        if self._ratios is None:  # the two are the same where the ratios are those of predictions
            return self.earlier(t)
        return self.process.tweedie(self.x, self._ratios, self.amount, self.process.amount(t))
