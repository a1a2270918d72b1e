r"""What the objectives of students share: jumps, their composition, and the error of a data prediction.

The jump from t to s with the data prediction m is the step of DDIM,

.. math:: x_s = a\, x_t + w\, m, \qquad a = \sigma_s / \sigma_t, \qquad w = \alpha_s - \alpha_t\, a .

Two jumps, from t over r to s, are one jump with a mean of both predictions,

.. math:: m = \frac{a_2 w_1 m_1 + w_2 m_2}{a_2 w_1 + w_2},

since :math:`a_2 w_1 + w_2` is the w of the whole jump. Nothing is divided by the length of a jump, so the target of a
student has no cancellation however short the jumps are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.base.identity import digest
from scoresde.base.shape import expand
from scoresde.objectives import DSM
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE

__all__ = ["Marginal", "Taught", "composed", "jump", "marginal", "part"]

Marginal = tuple[Tensor, Tensor]
"""The factor alpha of the data and the standard deviation sigma of the noise, float64, shape ``(batch,)``."""


def marginal(sde: GaussianSDE, t: Tensor) -> Marginal:
    """Return alpha and sigma at the times ``t``, float64; the time 0 is the data, alpha = 1 and sigma = 0."""
    t = t.to(torch.float64)
    clean = t <= 0
    return torch.where(clean, 1.0, sde.alpha(t)), torch.where(clean, 0.0, sde.sigma(t))


def _factors(start: Marginal, end: Marginal) -> tuple[Tensor, Tensor]:
    a = end[1] / start[1]
    return a, end[0] - start[0] * a


def jump(x: Tensor, m: Tensor, start: Marginal, end: Marginal) -> Tensor:
    """Return the state at the end of a jump with the data prediction ``m``.

    Args:
        x, m: the state and the prediction, shape ``(batch, *event)``.
        start, end: alpha and sigma at both ends, float64, shape ``(batch,)``.

    Example:
        >>> one, half = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
        >>> jump(torch.tensor([[2.0]]), torch.tensor([[1.0]]), (one, one), (one, half)).item()
        1.5
    """
    a, w = (expand(c, x).to(x) for c in _factors(start, end))
    return a * x + w * m


def composed(m1: Tensor, m2: Tensor, start: Marginal, middle: Marginal, end: Marginal) -> Tensor:
    """Return the data prediction of one jump that equals two, with the predictions ``m1`` and ``m2``: see the module.

    Example:
        >>> start, middle, end = [(torch.ones(1), torch.tensor([s])) for s in (3.0, 2.0, 1.0)]
        >>> x, m1, m2 = (torch.tensor([[v]]) for v in (6.0, 1.0, 2.0))
        >>> two = jump(jump(x, m1, start, middle), m2, middle, end)
        >>> bool(torch.isclose(jump(x, composed(m1, m2, start, middle, end), start, end), two))
        True
    """
    (_, w1), (a2, w2) = _factors(start, middle), _factors(middle, end)
    share = a2 * w1 / (a2 * w1 + w2)
    return torch.lerp(m2, m1, expand(share, m1).to(m1))


def part(conditions: Mapping[str, Any], of: Tensor) -> dict[str, Any]:
    """Return the conditions of some samples, whose numbers are ``of``."""
    return {name: value[of] if isinstance(value, Tensor) else value for name, value in conditions.items()}


@dataclass(frozen=True, repr=False)
class Taught(DSM):
    """Interface of the objectives with a teacher.

    Args:
        weighting, times, stratified: as in :class:`~scoresde.objectives.DSM`.
        teacher: a score model on the same SDE. It is not trained. A resumed training refuses another one.

    Raises:
        TypeError: for another kind of teacher.

    Example:
        >>> from scoresde import VP, problems
        >>> from scoresde.tuning.students import Progressive
        >>> isinstance(Progressive(teacher=problems.ring().model(VP())), Taught)
        True
    """

    teacher: ScoreModel | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and not isinstance(self.teacher, ScoreModel):
            raise TypeError(f"got a {type(self.teacher).__name__} for the teacher; expected a ScoreModel")

    def __repr__(self) -> str:
        identity = "" if self.teacher is None else f", teacher={digest(self.teacher)[:16]}"
        settings = {name: value for name, value in vars(self).items() if name != "teacher"}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())}{identity})"

    def check_teacher(self, model: ScoreModel) -> None:
        """Refuse a student on another SDE than its teacher's.

        Raises:
            ValueError: for two different SDEs.
        """
        if self.teacher is not None and self.teacher.sde != model.sde:
            raise ValueError(
                f"got a student on {model.sde!r} of a teacher on {self.teacher.sde!r}; expected one SDE: "
                "ScoreModel(net, teacher.sde)"
            )

    @torch.no_grad()
    def taught(self, x: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """Return the data prediction of the teacher in evaluation mode, shape of ``x``."""
        assert self.teacher is not None
        self.teacher.to(x.device).eval()
        return self.teacher.x0(x, t, **conditions)

    def of_prediction(self, model: ScoreModel, output: Tensor, x: Tensor, t: Tensor, m: Tensor) -> Tensor:
        """Return the loss of an ``output`` whose data prediction at ``x`` should be ``m``, shape ``(batch,)``."""
        alpha, sigma = (expand(c, x).to(x) for c in marginal(model.sde, t))
        return self.of_output(model, output, m, t, (x - alpha * m) / sigma)
