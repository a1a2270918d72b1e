"""Flow maps: one network for the jumps from any time to any earlier one, trained by their composition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.objectives.matching import noised
from scoresde.score import ScoreModel
from scoresde.tuning.students.distillation import Taught, composed, jump, marginal, part

__all__ = ["Shortcut"]


@dataclass(frozen=True, repr=False)  # the digest of the teacher is shown
class Shortcut(Taught):
    r"""Training of a flow map without a teacher: short jumps learn the data, and each long jump learns two shorter ones.

    The network takes the end of a jump as its condition ``to``, and says so by an attribute ``jumps``, as
    ``MLP(.., jumps=True)`` does. A share of the samples trains the jump from t to a random earlier s, whose target is the
    jump over the middle r of both. The others train jumps of no length, by denoising score matching or on the data
    prediction of a teacher.

    .. math:: J(x, t, s) \leftarrow \mathrm{sg}\, J(J(x, t, r), r, s) .

    A student is sampled by ``sample(student, shape, "student", steps, "straight")``, in any number of steps, and by any
    other solver as the score model that its jumps of no length are.

    Args:
        weighting, times, teacher: as in :class:`Taught`.
        share: the share of the samples that train long jumps, more than 0 and less than 1.

    Raises:
        ValueError: for another share and, in training, for a network that takes no ends.

    Sources: Frans et al., "One Step Diffusion via Shortcut Models", 2024, https://arxiv.org/abs/2410.12557; Boffi et al.,
    "Flow Map Matching", 2024, https://arxiv.org/abs/2406.07507, for jumps between any two times.

    Example:
        >>> import scoresde
        >>> net = scoresde.models.MLP(2, jumps=True)
        >>> student = scoresde.ScoreModel(net, scoresde.RectifiedFlow(), "velocity")
        >>> objective, generator = Shortcut(), torch.Generator().manual_seed(0)
        >>> loss, t = objective(student, torch.ones(8, 2), generator)
        >>> loss.shape
        torch.Size([8])
    """

    weighting: Any = "velocity"
    times: Any = "uniform"
    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"got share={self.share}; expected a number between 0 and 1, such as 0.25")

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw for each sample whether it trains a long jump, and the part of its time at which the jump ends."""
        length = torch.rand(2, len(x0), generator=generator, device=generator.device, dtype=torch.float64)
        return {"long": (length[0] < self.share).to(x0.device), "ends": length[1].to(x0.device)}

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        long: Tensor | None = None,
        ends: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        if not model.jumps:
            raise ValueError(
                "got a network that takes no end of a jump; expected one with an argument to=.. and an attribute "
                "jumps=True: MLP(.., jumps=True)"
            )
        self.check_teacher(model)
        t = t.to(torch.float64)
        x = noised(model.sde, x0, t, eps)
        loss = torch.empty(len(x), dtype=x.dtype, device=x.device)
        short = torch.ones(len(x), dtype=torch.bool, device=x.device) if long is None else ~long
        for of, learns in ((short, False), (~short, True)):
            some = of.nonzero().flatten()
            if not len(some):
                continue
            told, y, time = part(conditions, some), x[some], t[some]
            if learns:
                assert ends is not None
                s = ends[some] * time
                told_end = {**told, "to": model.time_inputs(s).to(y)}
                wanted = self.target(model, y, time, s, **told)
                loss[some] = self.of_prediction(model, model(y, time, **told_end), y, time, wanted)
            elif self.teacher is not None:
                loss[some] = self.of_prediction(model, model(y, time, **told), y, time, self.taught(y, time, told))
            else:
                loss[some] = self.of_output(model, model(y, time, **told), x0[some], time, eps[some])
        return loss

    @torch.no_grad()
    def target(self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, **conditions: Any) -> Tensor:
        """Return the data prediction at ``x`` whose jump from ``t`` to ``s`` equals two jumps over their middle."""
        r = 0.5 * (t + s)
        start, middle, end = (marginal(model.sde, time) for time in (t, r, s))
        m1 = model.x0(x, t, to=model.time_inputs(r).to(x), **conditions)
        m2 = model.x0(jump(x, m1, start, middle), r, to=model.time_inputs(s).to(x), **conditions)
        return composed(m1, m2, start, middle, end)
