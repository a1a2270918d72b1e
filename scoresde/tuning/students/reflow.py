"""Reflow: a rectified flow trained on the pairs of noise and data that a flow makes, whose trajectories are straighter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.objectives import DSM
from scoresde.sampling import sample
from scoresde.sampling.start import start
from scoresde.score import ScoreModel
from scoresde.solvers import Solver, get

__all__ = ["Reflow", "pairs"]


def pairs(
    model: ScoreModel,
    shape: Sequence[int],
    solver: str | Solver = "dpmpp-2m",
    steps: int = 50,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    conditions: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return samples of a model by a deterministic solver, and the standard normal noise each was made from.

    Args:
        model: the teacher, on any SDE.
        shape: the shape of the samples, ``(n, *event)``.
        solver, steps, seed, dtype, conditions, options: as in :func:`scoresde.sample`.

    Returns:
        The samples and the noise, of one shape: the data and the condition ``noise`` of a training with :class:`Reflow`.

    Raises:
        ValueError: for a stochastic solver, whose samples are not functions of the start.

    Example:
        >>> import scoresde
        >>> x0, noise = pairs(scoresde.problems.ring().model(scoresde.VP()), (16, 2), steps=10)
        >>> x0.shape, noise.shape
        (torch.Size([16, 2]), torch.Size([16, 2]))
    """
    method = get(solver) if isinstance(solver, str) else solver
    if method.stochastic:
        raise ValueError(f"got solver {method.name!r}, which draws noise on the way; expected a deterministic one")
    noise, _ = start(shape, model, seed, 1.0, None, dtype)
    begin = noise * float(model.sde.sigma(model.sde.span[1]))
    found = sample(model, begin, method, steps, seed=seed, conditions=conditions, **{"progress": False, **options})
    return found.x, noise


@dataclass(frozen=True)
class Reflow(DSM):
    r"""Reflow: denoising score matching in which each sample keeps the noise it was made from.

    The condition ``noise`` has the noise of each sample, as :func:`pairs` returns it. Trained on the pairs of a flow, a
    model on :class:`~scoresde.RectifiedFlow` has the same samples and straighter trajectories. Where the pairs do not cross
    on their straight lines, as for Gaussian data, one step of Euler's method is exact.

    .. code-block:: python

        x0, noise = pairs(teacher, (50_000, 2))
        Trainer(student, x0, Reflow(), conditions={"noise": noise}).run(10_000)

    Args:
        weighting, times, stratified, noise: as in :class:`~scoresde.objectives.DSM`; by default those of rectified flow.

    Raises:
        ValueError: in training, without the condition.

    Source: Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", 2022,
    https://arxiv.org/abs/2209.03003, section 2.2.

    Example:
        >>> import scoresde, torch
        >>> student = scoresde.ScoreModel(scoresde.models.MLP(2), scoresde.RectifiedFlow(), "velocity")
        >>> x0, noise = pairs(scoresde.problems.ring().model(scoresde.VP()), (16, 2), steps=10)
        >>> Reflow().at(student, x0.float(), torch.full((16,), 0.5), torch.zeros(16, 2), noise=noise.float()).shape
        torch.Size([16])
    """

    weighting: Any = "velocity"
    times: Any = "uniform"

    def at(
        self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, noise: Tensor | None = None, **conditions: Any
    ) -> Tensor:
        if noise is None or noise.shape != x0.shape:
            raise ValueError(
                f"got {'no noise' if noise is None else f'noise of shape {tuple(noise.shape)}'} for data of shape "
                f"{tuple(x0.shape)}; expected the noise of each sample: conditions={{'noise': noise}} with "
                "x0, noise = pairs(..)"
            )
        return super().at(model, x0, t, noise.to(x0), **conditions)
