r"""Guidance of models on tokens: the contrast of predictions with and without conditions, on laws or on rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.discrete.model import DenoisingModel, TokenWrapper
from scoresde.discrete.prediction import TokenPrediction
from scoresde.score import Calls

__all__ = ["GuidedRates", "GuidedTokens"]


class _Guided(TokenWrapper):
    """Two predictions of a model, with the conditions and with null values in place of some of them."""

    def __init__(self, model: DenoisingModel, scale: float | Tensor, null: Mapping[str, Any]) -> None:
        super().__init__(model)
        if not isinstance(null, Mapping) or not null:
            raise ValueError(f"got null={null!r}; expected the value that stands for no condition, by name: {{'label': 10}}")
        numbers = torch.as_tensor(scale, dtype=torch.float64)
        if numbers.ndim > 1 or not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"got scale={scale!r}; expected a finite number, or one for each sample, shape (batch,)")
        self.scale, self.null = float(numbers) if numbers.ndim == 0 else numbers, dict(null)

    @property
    def calls(self) -> Calls:
        """Two predictions of the inner model."""
        inner = self.model.calls
        return Calls(2 * inner.forward, 2 * inner.backward)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch without the conditions that are to be contrasted, or of another size than the scale."""
        if missing := sorted(set(self.null) - set(conditions)):
            raise ValueError(
                f"got no condition {', '.join(missing)} to guide by; expected it beside the start: conditions={{'label': "
                f"labels}}"
            )
        if isinstance(self.scale, Tensor) and len(self.scale) != len(x):
            raise ValueError(
                f"got {len(self.scale)} scales for {len(x)} samples; expected one number, or one for each sample"
            )
        super().check_start(x, **conditions)

    def _without(self, x: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Return the conditions with their null values, each in the form of the condition that it replaces."""
        found = dict(conditions)
        for name, null in self.null.items():
            given = conditions.get(name)
            found[name] = (
                torch.full_like(given, null) if isinstance(given, Tensor) and not isinstance(null, Tensor) else null
            )
        return found

    def _contrast(self, x: Tensor, with_it: Tensor, without: Tensor) -> Tensor:
        """Return without^(1 - s) with_it^s, which is 0 where with_it is 0 at a scale above 0."""
        s = self.scale if isinstance(self.scale, float) else expand(self.scale, with_it).to(with_it)
        scales = torch.as_tensor(s, dtype=torch.float64, device=with_it.device)
        tiny = torch.finfo(torch.float64).tiny
        logs = torch.lerp(without.clamp(min=tiny).log(), with_it.clamp(min=tiny).log(), scales.expand_as(with_it))
        needed = torch.where(scales > 0, with_it, without)
        return torch.where(needed > 0, torch.exp(logs.clamp(max=math.log(torch.finfo(torch.float64).max) / 2)), 0.0)


class GuidedTokens(_Guided):
    r"""Classifier-free guidance of the predicted tokens: of logits, normalised for each token.

    .. math:: p(x_0^i \mid x_t) \propto p(x_0^i \mid x_t)^{1 - s}\, p(x_0^i \mid x_t, y)^s .

    Scale 1 is the conditional model, scale 0 the unconditional one. Of a single token the samples have exactly the tilted
    law in the absorbing process; of several tokens they do not, as with real numbers.

    Source: Ho and Salimans, 2022, https://arxiv.org/abs/2207.12598; for tokens Schiff et al., "Simple Guidance Mechanisms
    for Discrete Diffusion Models", 2024, https://arxiv.org/abs/2412.10193.

    Args:
        model: a denoising model, trained with and without the conditions by :class:`scoresde.objectives.LabelDropout`.
        scale: s, a number or one for each sample.
        null: the value that stands for no condition, by name: ``{"label": 10}``.

    Raises:
        ValueError: for a scale that is not finite, and no null values.

    Example:
        >>> from scoresde.discrete import Absorbing
        >>> net = lambda x, t, label: label.double()[:, None, None] * torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> guided = GuidedTokens(DenoisingModel(net, Absorbing(2)), 3.0, {"label": 0})
        >>> p = guided.x0(torch.tensor([[2]]), 0.5, label=torch.tensor([1]))[0, 0]
        >>> round((p[1] / p[0]).log().item(), 12)
        3.0
    """

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the guided laws of the data tokens, float64, shape ``(batch, *event, vocabulary)``."""
        with_it = self.model.x0(x, t, **conditions)
        p = self._contrast(x, with_it, self.model.x0(x, t, **self._without(x, conditions)))
        total = p.sum(-1, keepdim=True)
        return torch.where(total > 0, p / torch.where(total > 0, total, 1.0), with_it)


class GuidedRates(_Guided):
    r"""Classifier-free guidance of the reverse rates: those with the condition to the power s, the others to 1 - s.

    The ratios :math:`p_t(x^{i \to y}) / p_t(x)` are contrasted without normalisation, so that jumps to likelier tokens also
    come sooner. Solvers that use rates or ratios follow it ("euler", "tau-leaping", "theta-trapezoidal", "analytic").

    Source: Nisonoff et al., "Unlocking Guidance for Discrete State-Space Diffusion and Flow Models", 2024,
    https://arxiv.org/abs/2406.01572.

    Args:
        model, scale, null: the same as in :class:`GuidedTokens`.

    Example:
        >>> from scoresde.discrete import Absorbing
        >>> net = lambda x, t, label: label.double()[:, None, None] * torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> model, x, told = DenoisingModel(net, Absorbing(2)), torch.tensor([[2]]), {"label": torch.tensor([1])}
        >>> guided = GuidedRates(model, 3.0, {"label": 0}).predict(x, 0.5, **told).ratios
        >>> with_it, without = model.predict(x, 0.5, **told).ratios, model.predict(x, 0.5, label=torch.tensor([0])).ratios
        >>> torch.allclose(guided, with_it**3 / without**2)
        True
    """

    def predict(self, x: Tensor, t: Tensor | float, **conditions: Any) -> TokenPrediction:
        """Return the prediction at ``x`` and ``t`` with the guided ratios."""
        with_it = self.model.predict(x, t, **conditions)
        without = self.model.predict(x, t, **self._without(x, conditions))
        return TokenPrediction(self.process, x, with_it.t, ratios=self._contrast(x, with_it.ratios, without.ratios))

    def x0(self, x: Tensor, t: Tensor | float, **conditions: Any) -> Tensor:
        """Return the laws of the data tokens that the guided ratios imply."""
        return self.predict(x, t, **conditions).x0
