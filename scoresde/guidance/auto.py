"""Autoguidance: a model guided by a worse version of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoresde.guidance.contrast import Contrast
from scoresde.guidance.scale import Scale, guided_sde
from scoresde.score import Calls, ScoreModel

__all__ = ["Auto"]


class Auto(Contrast):
    r"""Autoguidance: :math:`D = D_{weak} + s\, (D - D_{weak})`, with a weaker model of the same data and conditions.

    The weak model is smaller or trained for a shorter time. With an unconditional model in its place this is classifier-free
    guidance by two networks. Scale 1 is the model itself.

    Args:
        model: the model to guide.
        weak: the worse one, on the same SDE; it gets the same conditions (:class:`~scoresde.guidance.Given` removes some).
        scale: s, a number, a tensor with one for each sample, or a function of time.
        interval: the times (low, high) between which to guide.

    Raises:
        TypeError: for a model that is no score model.
        ValueError: for models on different SDEs, and as :class:`~scoresde.guidance.ClassifierFree`.

    Source: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, https://arxiv.org/abs/2406.02507.

    Example:
        >>> import torch, scoresde
        >>> from scoresde import problems
        >>> sharp, blurred = (problems.ring(std=std).model(scoresde.VP()) for std in (0.1, 0.3))
        >>> guided = Auto(sharp, blurred, 2.0)
        >>> scoresde.sample(guided, (4, 2), "ddim", 10, progress=False).evaluations
        20
    """

    def __init__(
        self, model: ScoreModel, weak: ScoreModel, scale: Scale, interval: tuple[float, float] | None = None
    ) -> None:
        super().__init__(model, scale, interval)
        if guided_sde(weak) != model.sde:
            raise ValueError(f"got a weak model on {weak.sde!r} for one on {model.sde!r}; expected both on the same SDE")
        self.weak = weak

    @property
    def calls(self) -> Calls:
        """The network calls of both models."""
        strong, weak = self.model.calls, self.weak.calls
        return Calls(strong.forward + weak.forward, strong.backward + weak.backward)

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a batch that does not fit one of the models or the scale."""
        super().check_start(x, **conditions)
        self.weak.check_start(x, **conditions)

    def check_convertible(self, t: float | None = None) -> None:
        """Refuse a prediction that does not determine the data where alpha = 0."""
        super().check_convertible(t)
        self.weak.check_convertible(t)

    def both(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the predictions of both models, shapes of ``x``."""
        return self.model.x0(x, t, **conditions), self.weak.x0(x, t, **conditions)
