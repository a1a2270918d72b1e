r"""The scale of guidance: a number, one for each sample, or a function of time; and the factor of one step of a path."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE, MatrixSDE
from scoresde.solvers.path import PathLike, make_path
from scoresde.solvers.scalar import value

__all__ = ["Scale", "StepFactor", "check_samples", "checked_scale", "gaussian_sde", "guided_sde", "scale_at"]

Scale = float | Tensor | Sequence[float] | Callable[[Tensor], Any]
"""A finite number; a tensor or a list with an entry for each sample; or a function of time, t of shape () or (batch,)."""


def checked_scale(scale: Any) -> float | Tensor | Callable[[Tensor], Any]:
    """Return ``scale`` as a number, a floating-point tensor of shape ``(batch,)`` or a function.

    Raises:
        TypeError: for anything else.
        ValueError: for a tensor of another shape, and numbers that are not finite.

    Example:
        >>> checked_scale(3), checked_scale([1.0, 2.0])
        (3.0, tensor([1., 2.], dtype=torch.float64))
    """
    if callable(scale) and not isinstance(scale, Tensor):
        return scale  # type: ignore[no-any-return]
    if isinstance(scale, bool | str) or not isinstance(scale, numbers.Real | np.generic | np.ndarray | Tensor | Sequence):
        raise TypeError(
            f"got a scale of type {type(scale).__name__}; expected a number such as 3.0, a tensor with one for each "
            "sample, or a function of time"
        )
    found = scale if isinstance(scale, Tensor) else torch.as_tensor(scale, dtype=torch.float64)
    if found.is_complex() or found.dtype == torch.bool or not bool(torch.isfinite(found).all()):
        raise ValueError(f"got scale={scale!r}; expected finite numbers")
    if found.ndim == 0:
        return float(found)
    if found.ndim > 1 or not len(found):
        raise ValueError(
            f"got a scale of shape {tuple(found.shape)}; expected a number, or one for each sample, shape (batch,)"
        )
    return found if found.is_floating_point() else found.to(torch.float64)


def check_samples(scale: float | Tensor | Callable[[Tensor], Any], n: int) -> None:
    """Refuse a scale for each sample that has another number of entries than there are samples.

    Raises:
        ValueError: naming both numbers.
    """
    if isinstance(scale, Tensor) and len(scale) != n:
        raise ValueError(f"got a scale with {len(scale)} entries for {n} samples; expected one for each sample, or a number")


def scale_at(scale: float | Tensor | Callable[[Tensor], Any], t: Tensor, x: Tensor) -> float | Tensor:
    """Return the scale at time ``t``, a number or a tensor that broadcasts against ``x``.

    Args:
        scale: see :func:`checked_scale`.
        t: time, shape ``()`` or ``(batch,)``.
        x: states, shape ``(batch, *event)``. Where samples have times of their own, the batch may be several copies of the
            one to which the scale belongs, one after another, as a driver stacks them.
    """
    if isinstance(scale, float):
        return scale
    if isinstance(scale, Tensor):
        copies = len(x) // len(scale)
        if t.ndim == 0 or len(scale) * copies != len(x):
            check_samples(scale, len(x))
        return expand(scale.repeat(copies), x).to(x)
    value = scale(t)
    if not isinstance(value, Tensor):
        return float(value)
    return expand(value, x).to(x)


def guided_sde(model: ScoreModel) -> GaussianSDE | MatrixSDE:
    """Return the SDE of ``model``, which guidance needs to have a data prediction.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for another SDE than one with Gaussian marginals, of numbers or of matrices.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"got {type(model).__name__} for the model to guide; expected a ScoreModel: ScoreModel(net, sde)")
    sde: Any = model.sde
    if isinstance(sde, MatrixSDE):
        return sde
    return gaussian_sde(model)


def gaussian_sde(model: ScoreModel) -> GaussianSDE:
    """Return the SDE of ``model``, which needs to have Gaussian marginals with an alpha and a sigma.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for another SDE.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"got {type(model).__name__} for the model to guide; expected a ScoreModel: ScoreModel(net, sde)")
    if isinstance(cast(Any, model.sde), MatrixSDE):
        raise ValueError(
            f"got a model on {type(model.sde).__name__}, whose coefficients are matrices, for guidance that belongs to the "
            "steps of scalar solvers; expected a model on a GaussianSDE, such as VP(), or guidance of the data prediction "
            "alone: ClassifierFree, Auto, Projected, Classifier, Energy, Compose, Mixture, StaticThreshold or "
            "DynamicThreshold without a path"
        )
    if not isinstance(model.sde, GaussianSDE):
        raise ValueError(
            f"got a model on {type(model.sde).__name__}, which has no Gaussian marginals and so no data prediction to "
            "guide; expected a model on a GaussianSDE, such as VP()"
        )
    return model.sde


@dataclass(frozen=True)
class StepFactor:
    r"""The function of time :math:`1 / (1 - e^{-h})`, where h is the step in lam of a path that begins there.

    Let a DDIM step from u to v use two data predictions, :math:`m + \Delta` for the data and m for the noise:

    .. math:: x_v = \alpha_v (m + \Delta) + \sigma_v \frac{x_u - \alpha_u m}{\sigma_u} .

    It equals the DDIM step with the one prediction :math:`m + \Delta / (1 - e^{-h})`, where
    :math:`h = \lambda_v - \lambda_u`. In the last step, to sigma = 0, the factor is 1. Between two points of the path it
    belongs to the nearer one in lam.

    Args:
        sde: the SDE.
        factors: the factor of each step.
        edges: the values of lam between the starts of the steps, rising.

    Example:
        >>> from scoresde import EDM
        >>> factor = StepFactor.of(EDM(), [4.0, 1.0, 0.0], 0)
        >>> factor(4.0), factor(1.0)  # from sigma = 4 to 1, and from there to 0
        (tensor(1.3333, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """

    sde: GaussianSDE
    factors: tuple[float, ...]
    edges: tuple[float, ...]

    @classmethod
    def of(cls, sde: GaussianSDE, path: PathLike, steps: int) -> StepFactor:
        """Return the factors of a path, given as for :func:`scoresde.sample`.

        Raises:
            ValueError: for a path with a move towards the noise, on which DDIM is not all there is.
        """
        lams = [value(point.lam) for point in make_path(sde, path, steps).points]
        if any(v <= u for u, v in itertools.pairwise(lams)):
            raise ValueError(
                "got a path that goes back towards the noise; expected one that leads from noise to data without a way back"
            )
        factors = tuple(1 / -math.expm1(u - v) for u, v in itertools.pairwise(lams))
        return cls(sde, factors, tuple((u + v) / 2 for u, v in itertools.pairwise(lams[:-1])))

    def __call__(self, t: Tensor | float) -> Tensor:
        """Return the factor at the times ``t``, float64, shape of ``t``."""
        lam = torch.as_tensor(self.sde.lam(t)).detach().to(torch.float64)
        factors, edges = (torch.tensor(row, dtype=torch.float64, device=lam.device) for row in (self.factors, self.edges))
        return factors[torch.bucketize(lam, edges)]
