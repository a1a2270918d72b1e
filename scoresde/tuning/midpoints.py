"""The mid-points of AMED-Solver: a learned time in each step, and a learned scale of the step."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.start import check_model
from scoresde.score import Conditions, ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.solvers.drivers import readable
from scoresde.solvers.fitted import Midpoints, MidpointSteps, midpoint_rows, model_identity
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path, PathLike, Point, make_path
from scoresde.solvers.rows import last_move
from scoresde.solvers.updates import Row
from scoresde.training.interrupts import interrupts
from scoresde.tuning.families import Copies
from scoresde.tuning.least_squares import LeastSquares, minimize
from scoresde.tuning.sharing import stopped
from scoresde.tuning.teacher import Metric, Teacher, bar, event_of

__all__ = ["midpoints"]


def midpoints(
    model: ScoreModel,
    evaluations: int = 7,
    *,
    path: PathLike = "karras",
    shape: Sequence[int] | None = None,
    starts: int = 256,
    conditions: Mapping[str, Any] | None = None,
    metric: Metric | None = None,
    t_max: float | None = None,
    end: str = "denoise",
    iterations: int = 30,
    penalty: float = 1e-3,
    robust: float = 100.0,
    tolerance: float = 1e-8,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Midpoints:
    """Fit the mid-points of a singlestep solver to a model: a time and a scale for each step.

    A step evaluates at its start and at its mid-point, and the last one at its start. With the mid-point in the middle in
    lam and the scale one it is DPM-Solver-2. The Levenberg-Marquardt method fits both to the ends of the model's own flow.
    The authors predict both for each sample by a small network, and fit the trajectory step by step; here they are 2 n - 2
    numbers of the solver, fitted to the end. The result is a solver for this model alone.

    Args:
        model: any score model. A network is copied to float64.
        evaluations: the number of data predictions, odd and at least 3: 2 n - 1 for n steps.
        path: the times of the steps, as for :func:`scoresde.sample`.
        shape: the shape of one sample; by default that of the model's problem, or else it is needed.
        starts: the number of starts of the fit. Half as many choose among its iterations, and half as many measure it.
        conditions, metric, t_max, penalty, robust, tolerance, seed, cache, progress: as for :func:`scoresde.tuning.tune`.
        end: the end of the model's own flow and of the solver, "denoise" or "flow".
        iterations: the largest number of iterations.

    Raises:
        TypeError, ValueError: for what is no score model with Gaussian marginals, for wrong numbers, and for a model without
            a shape.
        ArithmeticError: if the model's flow has no end: see :func:`scoresde.comparison.flow_end`.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.

    Source of the idea: Zhou et al., "Fast ODE-based Sampling for Diffusion Models in Around 5 Steps" (AMED-Solver), 2024,
    https://arxiv.org/abs/2312.00094.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> solver = midpoints(model, 5, starts=64, iterations=4, tolerance=1e-6, progress=False)
        >>> solver.steps[0].held_out < solver.steps[0].untuned
        True
        >>> scoresde.sample(model, (4, 2), solver, steps=3, progress=False).evaluations
        5
    """
    check_model(model)
    if whole("evaluations", evaluations, 3) % 2 == 0:
        raise ValueError(
            f"got evaluations={evaluations}; expected an odd number, as a step makes two evaluations and the last step one"
        )
    if end not in ("denoise", "flow"):
        raise ValueError(f"got end={end!r}; expected 'denoise' or 'flow', the moves to sigma = 0")
    count, sde = whole("starts", starts, 4), model.sde
    first = sde.span[1] if t_max is None else t_max
    first = first if math.isfinite(float(sde.lam(first))) else float(sde.time(-5.0))
    where = make_path(sde, path, (evaluations + 1) // 2, t_max=first, end=end)
    given: dict[str, Any] = {"conditions": conditions, "metric": metric, "end": end, "tolerance": tolerance}
    given |= {"t_max": first, "seed": seed, "cache": cache}
    with interrupts() as interrupted, torch.no_grad():
        teacher = Teacher.of(model, event_of(model, shape), (count, count // 2, count // 2), **given)
        family = _Family(where)
        with evaluation_mode(teacher.model), bar(progress, iterations, "midpoints", "iteration") as advance:
            begun = [(family.error(teacher, at, 1), at) for at in map(family.at, BEGINNINGS)]
            least, best = min(begun, key=lambda pair: pair[0])
            reached = minimize(family.problem(teacher, 0), best, len(best), penalty=penalty, robust=robust)
            for _, found in zip(range(whole("iterations", iterations, 0)), reached, strict=False):
                if interrupted():
                    raise stopped([], [evaluations], None)
                error = family.error(teacher, found.numbers, 1)
                best, least = (found.numbers, error) if error < least else (best, least)
                advance(1, least)
            training, held_out = (family.error(teacher, best, part) for part in (0, 2))
            untuned = family.error(teacher, family.at(0.0), 2)
    places, scales = family.unpack(best[None])
    return Midpoints(
        (
            MidpointSteps(
                where.times[:-1],
                tuple(p.log_alpha for p in where.points[:-1]),
                tuple(p.log_sigma for p in where.points[:-1]),
                tuple(places[0].tolist()),
                tuple(scales[0].tolist()),
                training,
                held_out,
                untuned,
            ),
        ),
        model_identity(model),
    )


BEGINNINGS = (-1.5, -0.75, 0.0, 0.75, 1.5)
"""The logits of r from the best of which a fit begins."""


@dataclass(frozen=True)
class _Family:
    """All solvers with mid-points on one path: the numbers are the logits of r and c - 1 of each step; 0 is DPM-Solver-2."""

    path: Path

    def at(self, place: float) -> Tensor:
        """Return the numbers with one logit of r for all steps, and c = 1."""
        n = len(self.path) - 1
        return torch.tensor([place] * n + [0.0] * n, dtype=torch.float64)

    def unpack(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and c of the steps, shapes ``(copies, steps - 1)``."""
        n = len(self.path) - 1
        return torch.sigmoid(numbers[:, :n]), 1 + numbers[:, n:]

    def ends(self, numbers: Tensor, model: ScoreModel, x: Tensor, told: Conditions) -> Tensor:
        """Return the ends of several solvers from the same starts, shape ``(copies, batch, *event)``."""
        copies, shape = len(numbers), (-1, 1, *[1] * (x.ndim - 1))
        places, scales = self.unpack(numbers)
        rows: list[Row] = []
        for i, (u, v) in enumerate(self.path.moves[:-1]):
            s = _points(self.path.sde, places[:, i] * u.lam + (1 - places[:, i]) * v.lam, shape)
            begin, to = (_held(p, copies) for p in (u, v))
            rows += midpoint_rows(begin, s, to, cast(float, scales[:, i].reshape(shape)))
        last = last_move(self.path)
        rows.append(Row(to=last.to, at=_held(self.path.points[-2], copies), a=last.a, w=last.w, p=last.p, q=last.q))
        of = Copies(model, told, iter([copies] * len(rows)))
        for state in readable(rows, of, x.expand(copies, *x.shape), FreshNoise([0], x.device)):  # type: ignore[arg-type]
            x = state.x
        return x

    def problem(self, taught: Teacher, part: int) -> LeastSquares:
        first, last = taught.parts[part].start, taught.parts[part].stop

        def residuals(vectors: Tensor, samples: slice, apart: bool) -> Tensor:
            where = slice(first + samples.start, min(first + samples.stop, last))
            x, reference = taught.x[where], taught.reference[where]
            ends = self.ends(vectors, taught.model, x, taught.told(where))
            found = taught.metric(ends.flatten(0, 1), reference.expand_as(ends).flatten(0, 1))
            return found.reshape(len(vectors), len(x), -1)

        return LeastSquares(residuals, last - first)

    def error(self, taught: Teacher, numbers: Tensor, part: int) -> float:
        """Return the root mean square residual on a part of the starts; infinite where it is not finite."""
        error = float(self.problem(taught, part).errors(numbers).mean().sqrt())
        return error if math.isfinite(error) else math.inf


def _points(sde: GaussianSDE, lam: Tensor, shape: tuple[int, ...]) -> Point:
    """Return the points at the values ``lam``, one for each copy, as a point of tensors."""
    t = sde.time(lam)
    columns = (sde.log_alpha(t), sde.log_sigma(t), sde.d_alpha(t), sde.d_log_sigma(t), sde.diffusion_squared(t))
    return Point(cast(float, t), *(cast(float, c.reshape(shape)) for c in columns))


def _held(point: Point, copies: int) -> Point:
    """Return a point whose time is repeated for each copy."""
    return point._replace(t=cast(float, torch.full((copies,), point.t, dtype=torch.float64)))
