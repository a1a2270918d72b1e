"""RePaint: replacement on a path that goes back and comes again."""

from __future__ import annotations

import math

from scoresde.base.numbers import whole
from scoresde.inverse.methods.replacement import replaced_base, replaced_rows
from scoresde.inverse.observation import Observation
from scoresde.solvers import Description, Path, Point, RowSolver

__all__ = ["repaint", "resampled"]


def repaint(observation: Observation, solver: str | RowSolver = "ddpm", resamplings: int = 10, jump: int = 10) -> RowSolver:
    """RePaint: :func:`replacement` on the path of :func:`resampled`.

    Going back to the noise and coming again lets the rest of the state adapt to what was replaced. As the number of
    resamplings grows, a jump of one step approaches a Gibbs sampler of the two parts. A path of n steps costs about
    ``resamplings`` times n steps. Where the state is less noisy than the measurement nothing is replaced, and going back
    would forget the measurement, so that part of the path is made once.

    Args:
        observation, solver: as for :func:`replacement`.
        resamplings: how often each stretch of the path is made, 1 for once.
        jump: the length of a stretch in steps.

    Raises:
        ValueError: as for :func:`replacement`, and for numbers below 1.

    Source: Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022,
    https://arxiv.org/abs/2201.09865, algorithm 1 and appendix B.

    Example:
        >>> import scoresde, torch
        >>> from scoresde.inverse import Observation, repaint
        >>> from scoresde.inverse.operators import Mask
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> seen = Observation(Mask([True, False]), torch.tensor([1.0]), 0.0)
        >>> samples = scoresde.sample(model, (2, 2), repaint(seen, resamplings=2, jump=5), 20, progress=False)
        >>> samples.x[:, 0], samples.evaluations
        (tensor([1., 1.]), 35)
    """
    base = replaced_base(observation, solver, "repaint")
    resamplings, jump = whole("resamplings", resamplings, 1), whole("jump", jump, 1)
    description = Description(
        "repaint", "inverse", "Lugmayr et al. 2022, arXiv:2201.09865", evaluations=None, stochastic=True
    )
    return RowSolver(
        description,
        lambda path: replaced_rows(observation, base, resampled(path, resamplings, jump, observation.sigma)),
    )


def resampled(path: Path, resamplings: int = 10, jump: int = 10, least: float = 0.0) -> Path:
    """Return RePaint's path, on which every stretch of ``jump`` steps is made ``resamplings`` times.

    From every ``jump``-th point with noise, counted from the data, it goes back ``jump`` points and comes again. Stretches
    that would go beyond the start are made once, and so are those that end below the level ``least``. The path works with
    every solver and every model, such as :class:`~scoresde.inverse.DDNM`, whose time travel it is:
    ``scoresde.solvers.detour(solver, resampled)``.

    Args:
        path: a path from noise to data.
        resamplings, jump: see :func:`repaint`.
        least: a level of sigma / alpha.

    Example:
        >>> from scoresde import EDM
        >>> path = resampled(Path.from_times(EDM(), [8.0, 4.0, 2.0, 1.0, 0.0]), resamplings=2, jump=2)
        >>> [round(p.sigma, 3) for p in path.points]
        [8.0, 4.0, 2.0, 1.0, 4.0, 2.0, 1.0, 0.0]
    """
    noisy = [p for p in path.points if p.sigma > 0]
    stops = [i for i in range(0, len(noisy) - jump, jump) if math.exp(-noisy[-1 - i].lam) >= least]
    remaining = dict.fromkeys(stops, resamplings - 1)  # by the number of points still to come
    made: list[Point] = []
    at = len(noisy)
    while at > 0:
        at -= 1
        made.append(noisy[-1 - at])
        if remaining.get(at, 0) > 0:
            remaining[at] -= 1
            at += jump
            made.append(noisy[-1 - at])
    return Path(path.sde, (*made, *path.points[len(noisy) :]), path.end)
