"""CFG++: classifier-free guidance whose noise is that of the unconditional prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.guidance.contrast import Factor, Nulled
from scoresde.guidance.scale import Scale, StepFactor, gaussian_sde
from scoresde.score import ScoreModel
from scoresde.solvers.path import PathLike

__all__ = ["CFGPlusPlus"]


class CFGPlusPlus(Nulled):
    r"""CFG++: a DDIM step that moves the data by the guided prediction and keeps the noise of the unconditional one.

    With :math:`D_s = D_{uncond} + s\, (D_{cond} - D_{uncond})`, s from 0 to 1, a step from u to v is

    .. math:: x_v = \alpha_v D_s + \sigma_v\, \frac{x_u - \alpha_u D_{uncond}}{\sigma_u} .

    This is the DDIM step of classifier-free guidance with the scale :math:`s / (1 - e^{-h})`, where
    :math:`h = \lambda_v - \lambda_u` is the step in half log-SNR. CFG++ is thus a schedule of the scale that belongs to a
    path: constant on the path ``"lam"``, s in the last step, and growing in proportion to the number of steps. It has no
    limit of many steps. The model needs the path for that, and other solvers than ``"ddim"`` are not the published method.

    Args:
        model: a conditional score model, trained with :class:`~scoresde.objectives.LabelDropout`.
        scale: s, called lambda in the paper: a number, a tensor with one for each sample, or a function of time.
        null: see :class:`~scoresde.guidance.ClassifierFree`.
        path, steps: the path that is sampled, as for :func:`scoresde.sample`; give the same there.
        batched: whether to make both predictions in one call.

    Raises:
        ValueError: as :class:`~scoresde.guidance.ClassifierFree`, and for a path that goes back towards the noise.

    Source: Chung et al., "CFG++: Manifold-Constrained Classifier Free Guidance for Diffusion Models", 2024,
    https://arxiv.org/abs/2406.08070.

    Example:
        >>> import scoresde
        >>> net = scoresde.models.MLP(2, num_classes=3)
        >>> guided = CFGPlusPlus(scoresde.ScoreModel(net, scoresde.VP(), "v"), 0.6, {"label": 3}, "lam", 10)
        >>> scoresde.sample(guided, (4, 2), "ddim", 10, "lam", conditions={"label": 1}, progress=False).evaluations
        20
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale,
        null: Mapping[str, Any] | None = None,
        path: PathLike = "lam",
        steps: int = 20,
        *,
        batched: bool = True,
    ) -> None:
        super().__init__(model, scale, null, batched=batched)
        self.factor = StepFactor.of(gaussian_sde(model), path, steps)

    def combined(self, x: Tensor, t: Tensor, strong: Tensor, weak: Tensor, w: Factor) -> Tensor:
        """Return the prediction with which DDIM makes the step of CFG++, shape of ``x``."""
        return torch.lerp(weak, strong, w * expand(self.factor(t), x).to(x))

    def experts(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[list[Tensor], list[Factor]]:
        """Refuse: the scale depends on the step, and no density is tilted."""
        raise ValueError("got CFG++, whose scale depends on the step, so that it tilts no density; expected ClassifierFree")
