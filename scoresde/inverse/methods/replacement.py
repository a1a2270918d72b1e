"""Replacement: the measured part of the state is that of a noised measurement, after every step of a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoresde.inverse.conditioned import check_gaussian, check_linear, check_observation, observed
from scoresde.inverse.observation import Observation
from scoresde.solvers import Description, Path, Point, RowSolver, Update, get
from scoresde.solvers.updates import States

__all__ = ["replacement"]


def replacement(observation: Observation, solver: str | RowSolver = "ddpm") -> RowSolver:
    r"""Any solver, with what is measured of the state replaced after every step: score_sde's conditional sampling.

    .. math:: x \leftarrow x + A^\dagger \big( \alpha_t\, y + \sqrt{\sigma_t^2 - \alpha_t^2 \sigma_y^2}\; A \xi - A x \big)

    With a :class:`~scoresde.inverse.operators.Mask` this is conditional inpainting. Colorization is inpainting after an
    orthogonal rotation of the channels, ``Mask(..) @ Channels(rotation, event)``. The noise makes the replaced part a draw
    from its own marginal where the rows of A are orthonormal; where the state is less noisy than the measurement nothing is
    replaced. The published method takes the measurement to be without noise, and replaces at the time before the step.

    The rest of the state does not know of later replacements, so that it is drawn given too little: samples are biased, and
    more steps do not help. :func:`repaint` goes back and forth to reduce that; ``smc`` weighs it.

    It draws noise after a step, so it is a solver, which runs on every driver that runs updates one after another.

    Args:
        observation: the measurement.
        solver: the solver whose steps are taken, one that makes rows: a name or a solver object.

    Raises:
        ValueError: for a nonlinear operator, Poisson noise, and a solver that makes no rows.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, appendix I.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import Observation, replacement
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.0)
        >>> scoresde.sample(model, (2, 2), replacement(seen), 20, progress=False).x[:, 0]
        tensor([1., 1.])
    """
    base = replaced_base(observation, solver, "replacement")
    description = Description("replacement", "inverse", "Song et al. 2021, arXiv:2011.13456", stochastic=True)
    return RowSolver(description, lambda path: replaced_rows(observation, base, path))


def replaced_base(observation: Observation, solver: str | RowSolver, method: str) -> RowSolver:
    """Return the solver whose steps are taken, and refuse what replacement cannot carry."""
    check_observation(observation, method)
    check_linear(observation, method)
    check_gaussian(observation, method)
    base = get(solver) if isinstance(solver, str) else solver
    if not isinstance(base, RowSolver):
        raise ValueError(
            f"got solver {base!r} for {method}; expected one that makes rows, such as 'ddpm', 'ddim' or 'dpmpp-2m': an "
            "adaptive or outside one has no steps after which a state could be replaced"
        )
    return base


def replaced_rows(observation: Observation, base: RowSolver, path: Path) -> list[Update]:
    """Return the updates of ``base``, with a replacement after each that leaves a state, but for moves to the noise."""
    out: list[Update] = []
    for row in base.rows(path):
        out.append(row)
        noise = row.to.sigma**2 - (row.to.alpha * observation.sigma) ** 2
        if row.shown and not row.goes_back and noise >= 0:
            out.append(_Replaced(row.to, observation, math.sqrt(noise)))
    return out


@dataclass(frozen=True, eq=False)
class _Replaced(Update):
    to: Point
    observation: Observation
    std: float
    at: ClassVar[None] = None  # type: ignore[misc]
    ends_step: ClassVar[bool] = False  # type: ignore[misc]

    def apply(self, on: States) -> None:
        x: Tensor = on.x
        seen = observed(self.observation, x)
        known = self.to.alpha * seen.for_batch(len(x), x)
        if self.std:
            known = known + self.std * seen.operator(on.draw_apart(self.to, self.to, 0.0))
        on.replace(x + seen.operator.pinv(known - seen.operator(x)), self.to, False)

    @property
    def draws(self) -> bool:
        return self.std > 0

    def __str__(self) -> str:
        return f"  {'':9} {self.to.t:9.5f} replaced, with noise {self.std:.6g}: {self.observation!r}"
