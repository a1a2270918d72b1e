"""Reconstruction guidance: what is measured is replaced, and the rest is moved towards data that explain it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoresde.inverse.conditioned import Conditioned, check_linear, check_scale
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.observation import Observation
from scoresde.score import Calls, ScoreModel
from scoresde.sde import Time

__all__ = ["ReconstructionGuidance"]


class ReconstructionGuidance(Conditioned):
    r"""Reconstruction guidance, made to extend videos by further frames.

    With :math:`P = A^\dagger A` and the residual :math:`r = A^\dagger (y - A \hat x_0)` the data prediction is

    .. math:: A^\dagger y + (I - P) \Big( \hat x_0 + w\, \alpha_t
              \Big(\frac{\partial \hat x_0}{\partial x}\Big)^T r \Big) .

    The measured part is y, so that it is noised by exactly the forward process on every solver: that is replacement. The
    gradient tells the rest of the data of it. Without the gradient it is :class:`DDNM`; with w = 1 the rest has the
    gradient of :class:`PiGDM` for data of infinite variance. The samples are biased for every weight, also for Gaussian
    data.

    Linear operators; any noise, which is left out. A prediction costs one backward call.

    Args:
        model: the model of the data.
        observation: the measurement; given frames of a video are :func:`scoresde.systems.given_frames`.
        weight: w, a positive number.

    Raises:
        ValueError: for a nonlinear operator, and a weight that is not positive.

    Source: Ho et al., "Video Diffusion Models", 2022, https://arxiv.org/abs/2204.03458, section 3.1.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import Observation, ReconstructionGuidance
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]).model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.0)
        >>> x = scoresde.sample(ReconstructionGuidance(model, seen), (512, 2), steps=20, progress=False).x
        >>> bool(((x[:, 0] - 1).abs() < 1e-5).all()), 0.5 < float(x[:, 1].mean()) < 0.95  # of the posterior it is 0.9
        (True, True)
    """

    def __init__(self, model: ScoreModel, observation: Observation, weight: float = 1.0) -> None:
        super().__init__(model, observation)
        check_linear(observation, "ReconstructionGuidance")
        self.weight = check_scale("weight", weight)

    @property
    def calls(self) -> Calls:
        """The calls of the inner model, and one backward."""
        return self._calls(1)

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the guided data prediction, which agrees with the measurement; shape of ``x``."""
        at, seen = Linearization(self.model, x, t, conditions), self._observed(x, t)
        moved = at.m + self.weight * at.signal_times(seen.operator.pinv(seen.residual(at.m)))
        return moved + seen.operator.pinv(seen.residual(moved))
