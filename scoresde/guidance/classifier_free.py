"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoresde.guidance.contrast import Factor, Nulled
from scoresde.guidance.scale import Scale
from scoresde.score import ScoreModel

__all__ = ["ClassifierFree"]


class ClassifierFree(Nulled):
    r"""Classifier-free guidance: the conditional prediction, moved away from the unconditional one.

    .. math:: D = D_{uncond} + s\, (D_{cond} - D_{uncond})

    Scale s = 1 is the conditional model and s = 0 the unconditional one. The w of the paper is s - 1. The score is that of
    :math:`p_t(x)^{1 - s}\, p_t(x \mid y)^{s}` at every time. These densities are not the noised versions of one density, so
    samples do not follow the tilted density :math:`p(x)^{1 - s} p(x \mid y)^s`: they are narrower. Use
    :func:`~scoresde.guidance.feynman_kac` to sample that density.

    A prediction costs two network calls, which are made as one call on twice the batch.

    Args:
        model: a conditional score model, trained with :class:`~scoresde.objectives.LabelDropout`.
        scale: s, a number, a tensor with one for each sample, or a function of time.
        null: the value of each condition that stands for its absence, by name: a number, or a tensor of the condition's
            shape without the batch dimension.
        interval: the times (low, high) between which to guide; at other times the model is the conditional one and costs one
            call. On ``EDM`` times are noise levels.
        rescale: how far to scale the guided prediction to the standard deviation, over an event, of the conditional one:
            from 0 (not at all) to 1.
        batched: whether to make both predictions in one call; ``False`` saves memory.

    Raises:
        TypeError: for a scale that is neither a number, a tensor nor a function.
        ValueError: for no null value, a reversed interval, ``rescale`` outside [0, 1], a scale of another length than the
            batch, and conditions without the one that null stands for.

    Sources: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598; for the interval
    Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
    Models", 2024, https://arxiv.org/abs/2404.07724; for the rescaling Lin et al., "Common Diffusion Noise Schedules and
    Sample Steps are Flawed", 2023, https://arxiv.org/abs/2305.08891, here of the data prediction.

    Example:
        >>> import torch, scoresde
        >>> net = scoresde.models.MLP(2, num_classes=3)
        >>> model = scoresde.ScoreModel(net, scoresde.VP(), "v")
        >>> guided = ClassifierFree(model, 4.0, {"label": 3})
        >>> samples = scoresde.sample(guided, (5, 2), "ddim", 10, conditions={"label": [0, 1, 2, 0, 1]}, progress=False)
        >>> samples.evaluations
        20
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale,
        null: Mapping[str, Any] | None = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        *,
        batched: bool = True,
    ) -> None:
        super().__init__(model, scale, null, interval, batched=batched)
        if not 0 <= rescale <= 1:
            raise ValueError(f"got rescale={rescale}; expected a number from 0 (not at all) to 1")
        self.rescale = float(rescale)

    def combined(self, x: Tensor, t: Tensor, strong: Tensor, weak: Tensor, w: Factor) -> Tensor:
        """Return the guided data prediction, rescaled where asked for; shape of ``x``."""
        guided = super().combined(x, t, strong, weak, w)
        if not self.rescale or guided[0].numel() == 1:
            return guided
        dims = tuple(range(1, strong.ndim))
        ratio = strong.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp(min=1e-12)
        return guided * (1 + self.rescale * (ratio - 1))

    def experts(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[list[Tensor], list[Factor]]:
        """Return both data predictions and their weights; refused with ``rescale``, which is no tilt of a density."""
        if self.rescale:
            raise ValueError(f"got rescale={self.rescale}, under which no density is tilted; expected rescale=0")
        return super().experts(x, t, **conditions)
