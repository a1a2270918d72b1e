"""The plain loops: ``readable`` and ``differentiable`` yield every state, ``fast`` works in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from scoresde.solvers.drivers.base import (
    Denoiser,
    Evaluation,
    Project,
    State,
    bind,
    depths,
    interpolated,
    nonlinear,
    plus,
    refuse_gradients,
    scaled,
)
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.rows import Op, Row

__all__ = ["differentiable", "fast", "readable"]


def readable(
    rows: Sequence[Op], model: Denoiser, x: Tensor, noise: NoiseSource, *, project: Project | None = None
) -> Iterator[State]:
    """Run ``rows`` from ``x``, shape ``(batch, *event)``, and yield the state at the end of every step.

    Args:
        project: applied to the state at the end of every step, ``project(x, t) -> x``.

    Example:
        >>> from scoresde import VP, solvers
        >>> class Zero:  # the data are one point, the origin
        ...     def at(self, times, *, device, dtype):
        ...         return [torch.zeros_like] * len(times)
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 4))
        >>> [round(state.x.item(), 3) for state in readable(rows, Zero(), torch.ones(1, 1), None)]
        [0.994, 0.825, 0.01, 0.0]
    """
    return _states(rows, bind(rows, model, x), x, noise, project)


def differentiable(
    rows: Sequence[Op],
    model: Denoiser,
    x: Tensor,
    noise: NoiseSource,
    *,
    project: Project | None = None,
    checkpoint: bool = True,
) -> Iterator[State]:
    r"""``readable`` with gradients: with respect to the start, whatever the model depends on, and coefficients and times.

    The gradient is that of the numbers computed, through every step (discretize, then optimize). Coefficients are variables
    where the rows hold 0-dim float64 tensors: put there by hand (``dataclasses.replace(row, w=...)``), or by the solver from
    a path whose times require gradients, ``Path.from_times(sde, times)``. The last move to sigma = 0 has none with respect
    to where it starts from but through the model.

    Args:
        project: as in :func:`readable`.
        checkpoint: keep nothing of an evaluation but its input, and repeat it in the backward pass. Memory then is that of
            one evaluation of the network, whatever the number of steps, and one state per evaluation; gradients with
            respect to coefficients keep the history of each row as well. A network that draws random numbers repeats them.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174, for the
    checkpoints.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> times = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
        >>> samples = scoresde.sample(model, (4, 2), "ddim", path=times, driver="differentiable", progress=False)
        >>> samples.x.square().sum().backward()
        >>> times.grad.shape
        torch.Size([3])
    """
    evaluations = bind(rows, model, x)
    if checkpoint:
        evaluations = map(_checkpointed, evaluations)
    return _states(rows, evaluations, x, noise, project)


def _checkpointed(evaluation: Evaluation) -> Evaluation:
    from torch.utils.checkpoint import checkpoint

    return partial(checkpoint, evaluation, use_reentrant=False)


def _states(
    rows: Sequence[Op], evaluate: Iterator[Evaluation], x: Tensor, noise: NoiseSource, project: Project | None
) -> Iterator[State]:
    history, draws = (deque[Tensor](maxlen=depth) for depth in depths(rows))
    y, step = x, 0
    for row in rows:
        if not isinstance(row, Row):
            x = y = nonlinear(row, next(evaluate), x, noise, project, torch.empty_like(x))
            step += row.ends_step
            yield State(step, row.to, x)
            continue
        if row.at is not None:
            history.appendleft(interpolated(row, y, next(evaluate)(y)))
        y = scaled(x, row.a)
        for w, n in zip(row.w, history, strict=False):
            if w:
                y = plus(y, n, w)
        if row.draw is not None:
            draws.appendleft(noise(*row.draw, torch.empty_like(x), row.kernel))
        for s, xi in zip(row.s, draws, strict=False):
            y = plus(y, xi, s)
        if row.ends_step:
            x = y = y if project is None else project(y, row.to.t)
            step += 1
            yield State(step, row.to, x)


def fast(
    rows: Sequence[Op],
    model: Denoiser,
    x: Tensor,
    noise: NoiseSource,
    on_step: Callable[[int], None] | None = None,
    *,
    project: Project | None = None,
) -> Tensor:
    """Run ``rows`` from ``x``, which is left as it is, and return the last state. Not differentiable.

    Memory beside the model's: the state, one stage where the solver has stages, the history, the draws of one step. Equal to
    :func:`readable` bit for bit.

    Args:
        on_step: called with the number of steps done, on the host, without waiting for the device.
        project: as in :func:`readable`.
    """
    refuse_gradients(rows, "fast")
    return run_in_place(rows, bind(rows, model, x), x, noise, on_step, project)


def run_in_place(
    rows: Sequence[Op],
    evaluate: Iterator[Evaluation],
    x: Tensor,
    noise: NoiseSource,
    on_step: Callable[[int], None] | None,
    project: Project | None,
) -> Tensor:
    """The loop of :func:`fast`, its evaluations bound beforehand: it copies nothing between host and device."""
    depth, kept = depths(rows)
    history = deque[Tensor](maxlen=depth)
    x = x.clone(memory_format=torch.contiguous_format)
    stages = any(isinstance(row, Row) and not row.ends_step for row in rows)
    stage = torch.empty_like(x) if stages else x
    kept = max(kept, any(not isinstance(row, Row) for row in rows))
    draws = deque([torch.empty_like(x) for _ in range(kept)])
    y, step = x, 0
    for row in rows:
        if not isinstance(row, Row):
            y = x.copy_(nonlinear(row, next(evaluate), x, noise, project, draws[0]))
            step += row.ends_step
            if row.ends_step and on_step is not None:
                on_step(step)
            continue
        if row.at is not None:
            m = next(evaluate)(y)
            if (row.p, row.q) != (0, 1):
                m = torch.mul(y, row.p).add_(m, alpha=row.q)
            elif m.untyped_storage().data_ptr() in (x.untyped_storage().data_ptr(), stage.untyped_storage().data_ptr()):
                m = m.clone()  # the model returned its own input, which is about to change
            history.appendleft(m)
        y = x if row.ends_step else stage
        torch.mul(x, row.a, out=y)
        for w, n in zip(row.w, history, strict=False):
            if w:
                y.add_(n, alpha=w)
        if row.draw is not None:
            draws.rotate(1)
            noise(*row.draw, draws[0], row.kernel)
        for s, xi in zip(row.s, draws, strict=False):
            y.add_(xi, alpha=s)
        if row.ends_step:
            if project is not None:
                x.copy_(project(x, row.to.t))
            step += 1
            if on_step is not None:
                on_step(step)
    return x
