r"""Thresholding: data predictions brought back to the range of the data.

Solvers take the data prediction, and the noise prediction follows from it: :math:`\epsilon = (x - \alpha D) / \sigma` with
the thresholded D. Some published code keeps the noise prediction of before. That belongs to a DDIM step: with ``path``
the change of D is enlarged by the factor :math:`1 / (1 - e^{-h})` of each step, which makes the same step, see
:class:`~scoresde.guidance.CFGPlusPlus`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.guidance.scale import StepFactor, gaussian_sde, guided_sde
from scoresde.score import ScoreModel, Transformed
from scoresde.solvers.path import PathLike

__all__ = ["DynamicThreshold", "StaticThreshold"]


class StaticThreshold(Transformed):
    """A score model whose data predictions are clipped to the range of the data.

    Predictions inside the range are returned as they are, bit for bit. Guidance belongs inside: threshold the guided model.

    Args:
        model: any score model.
        low, high: the range.
        path: keep the noise prediction of before in the steps of ``"ddim"`` on this path, given as for
            :func:`scoresde.sample`; by default it follows from the clipped prediction.
        steps: the number of steps of that path.

    Raises:
        ValueError: for a range whose ends are reversed.

    Example:
        >>> import scoresde
        >>> model = StaticThreshold(scoresde.problems.ring().model(scoresde.VP()))
        >>> model.x0(3 * torch.ones(1, 2), 0.1).tolist()
        [[1.0, 1.0]]
    """

    def __init__(
        self,
        model: ScoreModel,
        low: float = -1.0,
        high: float = 1.0,
        *,
        path: PathLike | None = None,
        steps: int = 20,
    ) -> None:
        if not low < high:
            raise ValueError(f"got low={low} and high={high}; expected low < high, as -1.0 and 1.0 for images")
        super().__init__(model, _kept(_Clip(float(low), float(high)), model, path, steps))


class DynamicThreshold(Transformed):
    r"""A score model whose data predictions are clipped to a range of their own and scaled back, sample by sample.

    With s the quantile of :math:`|D|` over one sample, but at least the bound b, the prediction is
    :math:`\mathrm{clip}(D, -s, s)\, b / s`. A prediction within the bound is returned as it is, bit for bit. Guidance
    belongs inside: threshold the guided model.

    Args:
        model: any score model.
        quantile: the quantile, from 0 to 1.
        bound: b, the largest absolute value of data.
        path, steps: see :class:`StaticThreshold`.

    Raises:
        ValueError: for a quantile outside [0, 1], and a bound that is not positive.

    Source: Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", 2022,
    https://arxiv.org/abs/2205.11487, section 2.3.

    Example:
        >>> import scoresde
        >>> model = DynamicThreshold(scoresde.problems.ring().model(scoresde.VP()), quantile=1.0)
        >>> model.x0(torch.tensor([[8.0, 4.0]]), 0.5).abs().max() <= 1
        tensor(True)
    """

    def __init__(
        self,
        model: ScoreModel,
        quantile: float = 0.995,
        bound: float = 1.0,
        *,
        path: PathLike | None = None,
        steps: int = 20,
    ) -> None:
        if not 0 <= quantile <= 1 or not bound > 0:
            raise ValueError(
                f"got quantile={quantile} and bound={bound}; expected a number from 0 to 1, as 0.995, and a positive one"
            )
        super().__init__(model, _kept(_Dynamic(float(quantile), float(bound)), model, path, steps))


@dataclass(frozen=True)
class _Clip:
    low: float
    high: float

    def __call__(self, m: Tensor, t: Any) -> Tensor:
        return m.clamp(self.low, self.high)


@dataclass(frozen=True)
class _Dynamic:
    quantile: float
    bound: float

    def __call__(self, m: Tensor, t: Any) -> Tensor:
        s = expand(_quantile(m.abs().flatten(1), self.quantile).clamp(min=self.bound), m)
        return m.clamp(-s, s) * (self.bound / s)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Return the quantile of each row, interpolated linearly, shape ``(batch,)``; for rows of any length."""
    place = q * (values.shape[1] - 1)
    lower = math.floor(place)
    top = values.topk(values.shape[1] - lower, dim=1, sorted=True).values
    return torch.lerp(top[:, -1], top[:, max(-2, -top.shape[1])], place - lower)


@dataclass(frozen=True)
class _Enlarged:
    """A threshold whose change is enlarged by the factor of the step, so that DDIM keeps the noise prediction."""

    inner: Callable[[Tensor, Any], Tensor]
    factor: Callable[[Any], Tensor]

    def __call__(self, m: Tensor, t: Any) -> Tensor:
        changed = self.inner(m, t)
        return torch.where(changed == m, m, torch.lerp(m, changed, expand(self.factor(t), m).to(m)))


def _kept(
    threshold: Callable[[Tensor, Any], Tensor], model: ScoreModel, path: PathLike | None, steps: int
) -> Callable[[Tensor, Any], Tensor]:
    guided_sde(model)
    return threshold if path is None else _Enlarged(threshold, StepFactor.of(gaussian_sde(model), path, steps))
