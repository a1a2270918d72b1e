"""Adaptive projected guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoresde.guidance.contrast import Factor, Nulled
from scoresde.guidance.scale import Scale
from scoresde.score import ScoreModel

__all__ = ["Projected"]


class Projected(Nulled):
    r"""Adaptive projected guidance: without the part of the contrast that only makes the prediction larger.

    The contrast :math:`\Delta = D_{cond} - D_{uncond}` is shortened to the norm r at most, and split into the part along
    :math:`D_{cond}` and the part orthogonal to it, over an event:

    .. math:: D = D_{cond} + (s - 1)\, (\Delta_\perp + \eta\, \Delta_\parallel) .

    With eta = 1 and no bound on the norm it is :class:`~scoresde.guidance.ClassifierFree`.

    The paper also subtracts a moving average of earlier contrasts (momentum). That is left out: the prediction of a score
    model is a function of x and t alone, which solvers with several stages, the parallel driver and likelihoods rely on. An
    average over earlier calls would depend on their order.

    Args:
        model: a conditional score model, trained with :class:`~scoresde.objectives.LabelDropout`.
        scale: s, a number, a tensor with one for each sample, or a function of time; 1 is the conditional model.
        null, interval, batched: see :class:`~scoresde.guidance.ClassifierFree`.
        parallel: eta, the share of the parallel part that is kept.
        norm: r, the largest Euclidean norm of the contrast of one sample; unbounded by default.

    Raises:
        ValueError: as :class:`~scoresde.guidance.ClassifierFree`, and for a norm that is not positive.

    Source: Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models", 2024,
    https://arxiv.org/abs/2410.02416.

    Example:
        >>> import scoresde
        >>> net = scoresde.models.MLP(2, num_classes=3)
        >>> guided = Projected(scoresde.ScoreModel(net, scoresde.VP(), "v"), 6.0, {"label": 3}, norm=2.5)
        >>> scoresde.sample(guided, (4, 2), "ddim", 10, conditions={"label": 1}, progress=False).evaluations
        20
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale,
        null: Mapping[str, Any] | None = None,
        interval: tuple[float, float] | None = None,
        *,
        parallel: float = 0.0,
        norm: float | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(model, scale, null, interval, batched=batched)
        if norm is not None and not norm > 0:
            raise ValueError(f"got norm={norm}; expected a positive number, or None for no bound")
        self.parallel, self.norm = float(parallel), norm

    def combined(self, x: Tensor, t: Tensor, strong: Tensor, weak: Tensor, w: Factor) -> Tensor:
        """Return the conditional prediction moved by the projected contrast, shape of ``x``."""
        dims = tuple(range(1, strong.ndim))
        contrast = strong - weak
        if self.norm is not None:
            length = contrast.square().sum(dims, keepdim=True).clamp(min=1e-24).sqrt()
            contrast = contrast * (self.norm / length).clamp(max=1.0)
        share = (contrast * strong).sum(dims, keepdim=True) / strong.square().sum(dims, keepdim=True).clamp(min=1e-24)
        return strong + (w - 1) * (contrast - (1 - self.parallel) * share * strong)

    def experts(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[list[Tensor], list[Factor]]:
        """Refuse: a projected contrast is no score, and no density is tilted."""
        raise ValueError("got projected guidance, which tilts no density; expected ClassifierFree")
