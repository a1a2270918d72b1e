r"""Consistency distillation and training.

The consistency function f(x, t) maps every state of a trajectory of the probability flow to its end at the data. It is the
data prediction of a jump to the data, constant along each trajectory, with f(x, 0) = x. Every parametrization whose data
prediction is x at sigma = 0 satisfies this by itself: all but ``"x0"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import expand
from scoresde.objectives import Times
from scoresde.objectives.matching import noised
from scoresde.score import ScoreModel
from scoresde.tuning.students.distillation import Taught, jump, marginal
from scoresde.tuning.students.progressive import GridTimes

__all__ = ["Consistency"]


@dataclass(frozen=True, repr=False)  # the digest of the teacher is shown
class Consistency(Taught):
    r"""Consistency distillation, with a teacher, and consistency training, without one.

    The loss compares f at neighbouring points t > s of the path ``"straight"``,

    .. math:: w(t)\, \lVert f(x_t, t) - \mathrm{sg} f(x_s, s) \rVert^2,

    where x_s is a step of second order of the teacher from x_t or, without a teacher, the same data with the same noise. The
    stop-gradient sg holds the second f constant.

    A student is sampled by ``sample(student, shape, "student: gamma=1.0", steps, "straight")``.

    Args:
        weighting: as in :class:`~scoresde.objectives.DSM`.
        steps: the number of steps of the path.
        teacher: a score model on the same SDE, or ``None``.

    Raises:
        ValueError: for fewer than 2 steps, and, in training, for a model that predicts ``"x0"``.

    Sources: Song et al., "Consistency Models", 2023, https://arxiv.org/abs/2303.01469; Song and Dhariwal, "Improved
    Techniques for Training Consistency Models", 2023, https://arxiv.org/abs/2310.14189, for the target without an average.

    Example:
        >>> import scoresde
        >>> teacher = scoresde.problems.ring().model(scoresde.EDM())
        >>> student = scoresde.ScoreModel(scoresde.models.MLP(2), scoresde.EDM(), "edm")
        >>> x0, eps, t = torch.ones(3, 2), torch.randn(3, 2), torch.tensor([0.1, 1.0, 10.0])
        >>> Consistency(steps=20, teacher=teacher).at(student, x0, t, eps).shape
        torch.Size([3])
    """

    weighting: Any = "edm"
    steps: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", whole("steps", self.steps, 2))

    @property
    def distribution(self) -> Times:
        """The starts of the steps of the path."""
        return GridTimes(self.steps)

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        self.check_teacher(model)
        if model.predicts == "x0":
            raise ValueError(
                "got a student that predicts 'x0', whose prediction at sigma = 0 may be anything; expected 'edm', 'v', "
                "'velocity' or 'eps', for which it is x itself"
            )
        t = t.to(torch.float64)
        x = noised(model.sde, x0, t, eps)
        target = self._earlier(model, x, t, self._before(model, t), x0, eps, conditions)
        return self.of_prediction(model, model(x, t, **conditions), x, t, target)

    def _before(self, model: ScoreModel, t: Tensor) -> Tensor:
        """Return the next point of the path after each of the points ``t``, shape ``(batch,)``."""
        grid = GridTimes(self.steps).grid(model.sde).to(t.device)
        return grid[(grid[:-1, None] - t).abs().argmin(0) + 1]

    @torch.no_grad()
    def _earlier(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, x0: Tensor, eps: Tensor, conditions: Mapping[str, Any]
    ) -> Tensor:
        """Return f at the state at ``s`` on the trajectory through ``x``; the state itself where ``s`` is the data."""
        start, end, clean = marginal(model.sde, t), marginal(model.sde, s), expand(s <= 0, x)
        inside = torch.where(s > 0, s, t)  # a time at which models may be evaluated
        if self.teacher is None:
            alpha, sigma = (expand(c, x).to(x) for c in end)
            y = alpha * x0 + sigma * eps
        else:
            m = self.taught(x, t, conditions)
            y = jump(x, m, start, end)
            other = self.taught(torch.where(clean, x, y), inside, conditions)
            y = torch.where(clean, y, jump(x, 0.5 * (m + other), start, end))
        return torch.where(clean, y, model.x0(y, inside, **conditions))
