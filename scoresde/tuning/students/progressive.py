"""Progressive distillation: a student makes in one step what its teacher makes in two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.objectives import Times
from scoresde.objectives.matching import noised
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers import make_path
from scoresde.tuning.students.distillation import Taught, composed, jump, marginal

__all__ = ["GridTimes", "Progressive"]


@dataclass(frozen=True)
class GridTimes(Times):
    """The starts of the moves of the path ``"straight"`` of ``steps`` moves, with equal probability and weight 1.

    Example:
        >>> from scoresde import RectifiedFlow
        >>> GridTimes(4).at(torch.tensor([0.0, 0.3, 0.6, 0.9]), RectifiedFlow())[0].tolist()
        [1.0, 0.75, 0.5, 0.25]
    """

    steps: int

    def grid(self, sde: GaussianSDE) -> Tensor:
        """Return the times of the path, of which the last is 0, shape ``(steps + 1,)``, float64."""
        return torch.tensor(make_path(sde, "straight", self.steps).times, dtype=torch.float64)

    def at(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        number = (u * self.steps).floor().clamp(max=self.steps - 1).long()
        return self.grid(sde).to(u.device)[number], torch.ones_like(u)


@dataclass(frozen=True, repr=False)  # the digest of the teacher is shown
class Progressive(Taught):
    r"""Progressive distillation into a student of ``steps`` steps.

    At each start of a step of the path ``"straight"`` the target is the data prediction whose single step of DDIM equals two
    steps of the teacher, on the path of twice as many. Repeat it with the student as the teacher to halve the steps again.
    A student is sampled by ``sample(student, shape, "student", steps, "straight")``.

    Args:
        steps: the steps of the student.
        weighting: the weighting of the error, by default that of v-prediction, SNR + 1 on the data prediction.
        teacher: a score model on the same SDE.

    Raises:
        ValueError: without a teacher, and for more steps than fit above ``t_min``.

    Source: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512, algorithm 2.

    Example:
        >>> import scoresde
        >>> teacher = scoresde.problems.ring().model(scoresde.VP())
        >>> objective = Progressive(steps=4, teacher=teacher)
        >>> x0, eps, t = torch.ones(3, 2), torch.randn(3, 2), objective.distribution.at(torch.rand(3), teacher.sde)[0]
        >>> objective.at(teacher, x0, t, eps).shape
        torch.Size([3])
    """

    weighting: Any = "v"
    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", whole("steps", self.steps, 1))
        if self.teacher is None:
            raise ValueError("got no teacher; expected the model to distill: Progressive(steps=4, teacher=model)")

    @property
    def distribution(self) -> Times:
        """The starts of the steps of the student."""
        return GridTimes(self.steps)

    def target(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """Return the data prediction at ``x`` whose jump from ``t`` equals two steps of the teacher, shape of ``x``."""
        assert self.teacher is not None
        sde = self.teacher.sde
        grid = GridTimes(2 * self.steps).grid(sde).to(t.device)
        if not torch.allclose(grid[::2], GridTimes(self.steps).grid(sde).to(t.device), rtol=1e-9, atol=0):
            raise ValueError(
                f"got steps={self.steps} on {sde!r}, whose smallest time is longer than half a step; expected fewer "
                "steps, or a smaller t_min"
            )
        number = 2 * (grid[::2, None] - t.to(torch.float64)).abs().argmin(0)
        t, r, s = (grid[number + i] for i in range(3))
        start, middle, end = (marginal(sde, time) for time in (t, r, s))
        m1 = self.taught(x, t, conditions)
        return composed(m1, self.taught(jump(x, m1, start, middle), r, conditions), start, middle, end)

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        self.check_teacher(model)
        t = t.to(torch.float64)
        x = noised(model.sde, x0, t, eps)
        return self.of_prediction(model, model(x, t, **conditions), x, t, self.target(x, t, **conditions))
