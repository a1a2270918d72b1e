"""The front door: :func:`sample` turns noise into data with any model, solver and path."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.sampling.counted import Counted, evaluation_mode
from scoresde.sampling.start import start
from scoresde.sampling.without_marginals import CountedDynamics, falling_times
from scoresde.score import Conditions, ScoreModel, Transformed
from scoresde.sde import SDE, GaussianSDE, ReverseSDE
from scoresde.solvers.drivers import DRIVERS, Project, State, cuda_graph, differentiable, fast, readable
from scoresde.solvers.noise.brownian import BrownianNoise
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path, PathLike, make_path
from scoresde.solvers.rows import Row
from scoresde.solvers.scalar import value
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import get

__all__ = ["NonFiniteError", "Samples", "sample"]

Driver = Callable[..., Iterator[State] | Tensor]
Transform = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Samples:
    """What :func:`sample` returns.

    Attributes:
        x: the samples, shape ``(batch, *event)``.
        evaluations: how often a network was called for the batch, as counted: a guided model calls its network twice.
        seconds: wall time of the solver.
        seeds: the seed of each sample; ``sample(..., seed=seeds[i:i+1])`` draws the i-th one again.
        solver: the name of the solver.
        times: the times of the path, as far as it was followed.
        info: what the driver or the solver reports of itself: ``sweeps`` of the parallel driver, ``accepted`` and
            ``rejected`` steps of an adaptive solver for each sample.
        backward: how often it was called backward, by a model that needs gradients.
    """

    x: Tensor
    evaluations: int
    seconds: float
    seeds: list[int]
    solver: str
    times: tuple[float, ...]
    info: dict[str, Any] = field(default_factory=dict)
    backward: int = 0

    def __repr__(self) -> str:
        return (
            f"Samples(x={tuple(self.x.shape)}, solver={self.solver!r}, evaluations={self.evaluations}, "
            f"seconds={self.seconds:.3g})"
        )


class NonFiniteError(FloatingPointError):
    """A state became infinite or NaN.

    Attributes:
        solver: its name.
        last_finite: the last state that was finite.
        step, t: the step that left it, and the time at which it ended.
    """

    def __init__(self, solver: str, step: int, t: float, last_finite: Tensor) -> None:
        super().__init__(
            f"the state became non-finite in step {step} of solver {solver!r}, on the way to t={t:.6g}; the last finite "
            "state is on this exception as .last_finite. Check the network there, take more steps, or another solver"
        )
        self.solver, self.last_finite, self.step, self.t = solver, last_finite, step, t

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, int, float, Tensor]]:
        return type(self), (self.solver, self.step, self.t, self.last_finite)  # an exception keeps its sentence alone


def sample(
    model: ScoreModel | ReverseSDE,
    shape_or_start: Tensor | Sequence[int],
    solver: str | Solver = "dpmpp-2m",
    steps: int = 20,
    path: PathLike = "lam",
    *,
    seed: int | Sequence[int] | None = 0,
    noise: FreshNoise | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "denoise",
    progress: bool = True,
    callback: Callable[[State], object] | None = None,
    transform: Transform | None = None,
    project: Project | None = None,
    driver: str | Driver = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    r"""Draw samples.

    Args:
        model: a score model; on an SDE without marginals, ``ScoreModel(score, sde)``, or its reverse process
            ``sde.reverse(score)``.
        shape_or_start: ``(batch, *event)``, whose start is drawn from the prior; or a tensor to start from, which is left
            as it is.
        solver: a name of ``scoresde.solvers.SOLVERS`` or a solver object.
        steps: number of steps; each costs the solver's evaluations per step.
        path: "t", "quadratic", "lam", "karras"; a spacing function; times from noise to data; or a ``Path``.
        seed: one integer, from which every sample's own seed derives, or a seed per sample; ``None`` for a new one. A
            sample depends on its own seed and not on the batch it is drawn in.
        noise: where the solver's noise comes from, with the seeds of the samples, in place of ``seed``: a
            :class:`~scoresde.solvers.BrownianNoise` that several calls share. By default fresh noise.
        t_min: the smallest time but zero, by default the SDE's. What it costs: the last move takes away, or with
            ``end="stop"`` leaves, noise of variance ``sigma(t_min)^2``. A 1000-step "ddpm" chain on data of variance 1,
            which it reproduces exactly otherwise, loses 1.1e-4 of it at VP's default of 1e-3 and 1.0e-6 at 1e-5. A
            smaller one costs steps: they go to where there is little noise, away from where few matter more.
        t_max: where to start, by default the end of the SDE's span.
        end: how the last step ends. ``"denoise"``: at sigma = 0, by returning the data prediction D (Tweedie's formula);
            ``"flow"``: at sigma = 0, by following the flow there, (x / alpha + D) / 2, closer for smooth densities and worse
            for data on a manifold, such as images; ``"stop"``: at ``t_min``, with its noise.
        progress: a progress bar.
        callback: called with every :class:`~scoresde.solvers.State` (step, point, x); sampling stops there if it returns
            something true.
        transform: applied to each data prediction, ``transform(m, t)``: clipping, thresholding. ``t`` is a number, or a
            tensor of shape ``(batch,)`` where samples have times of their own (adaptive solvers, the parallel driver).
        project: applied to the state at the end of each step, ``project(x, t)``: a constraint.
        driver: the loop that runs the solver's rows. ``"auto"``: ``"fast"``, or ``"readable"`` where there is a callback;
            ``"compiled"``, ``"cuda-graph"``, ``"parallel"``, ``"differentiable"``: see :mod:`scoresde.solvers.drivers`; or
            a driver with its options set, ``functools.partial(scoresde.solvers.parallel, window=8)``. ``"differentiable"``
            is the only one through which gradients flow.
        device, dtype: of the start, where it is drawn; by default those of the model's parameters.
        conditions: what the model is told, by name, ``{"label": labels}``: a tensor, an array or a list with an entry for
            each sample; a number for all of them; or :class:`scoresde.Shared`, passed on as it is.

    Returns:
        :class:`Samples`.

    Raises:
        ValueError: for a wrong shape, an unknown solver, path or driver, ``steps=0``, a path that does not start at the
            prior, a callback or a projection that the driver cannot honour, conditions of another length than the batch, a
            network whose output has not the shape and dtype of its input, or which writes into that.
        NonFiniteError: where a state becomes infinite or NaN; it carries the last finite one.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> samples = sample(model, (4, 2), "dpmpp-2m", steps=10, progress=False)
        >>> samples.x.shape, samples.evaluations
        (torch.Size([4, 2]), 10)
    """
    method = get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, Solver):
        raise TypeError(f"got solver {solver!r}; expected a name or a solver object")
    if isinstance(model, ReverseSDE) or (isinstance(model, ScoreModel) and not isinstance(model.sde, GaussianSDE)):
        given = {"driver": driver not in ("auto", "readable"), "project": project, "noise": noise, "transform": transform}
        _refuse_without_marginals({**given, "end": end == "flow"})
        noising, scored = (model.forward, None) if isinstance(model, ReverseSDE) else (model.sde, model)
        general = falling_times(noising.span, path, steps, t_max, t_min)
        x, fresh = start(shape_or_start, scored, seed, noising.prior_std, device, dtype)
        return _integrate(model, method, general, x, fresh, progress, callback, conditions)
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"got model of type {type(model).__name__}; expected a ScoreModel: ScoreModel(net, sde) makes one of a network"
        )
    model = model if transform is None else Transformed(model, transform)
    where = make_path(model.sde, path, steps, t_max=t_max, t_min=t_min, end=end)
    drawn = not isinstance(shape_or_start, Tensor)
    if drawn:
        _check_prior(where, model.sde)
    loop = _loop(method, driver, callback, project)
    grads = getattr(loop, "func", loop) is differentiable
    seed = seed if noise is None else noise.seeds
    x, fresh = start(shape_or_start, model, seed, math.exp(value(where.points[0].log_sigma)), device, dtype, grads)
    model.check_convertible(value(where.points[0].t))
    counted = Counted(model, Conditions.of(conditions, x.shape[0], device=x.device, dtype=x.dtype), grads=grads)
    run = _Run(method, loop, where, counted, x, fresh if noise is None else noise, project)
    with torch.set_grad_enabled(grads), evaluation_mode(model), _bar(progress, method.name, run.steps) as on_step:
        begin = time.perf_counter()
        last = run.last(callback, on_step)
        finite = _finite(last.x)  # the one synchronisation with the device
        seconds, forward, backward = time.perf_counter() - begin, counted.forward, counted.backward
        if not finite:
            last = run.again(drawn and noise is None).last_checked()
    times = tuple(value(t) for t in where.times[: last.reached])
    return Samples(last.x, forward, seconds, run.noise.seeds, method.name, times, dict(last.info or {}), backward)


def _finite(x: Tensor) -> bool:
    """Whether no number of ``x`` is infinite or NaN: by the sum of all, and only where that overflows one by one."""
    return bool(torch.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))) or bool(torch.isfinite(x).all())


# Refusals ------------------------------------------------------------------------------------------------------------


def _loop(
    method: Solver, driver: str | Driver, callback: Callable[[State], object] | None, project: Project | None
) -> Driver | None:
    """The driver to run the rows of ``method`` with, or ``None`` for a solver that has a loop of its own."""
    if isinstance(driver, str) and driver != "auto":
        driver = DRIVERS.name(driver)
    if not isinstance(method, RowSolver):
        if driver not in ("auto", "readable"):
            raise ValueError(
                f"got driver {driver!r} for solver {method.name!r}, which chooses its own steps and makes no rows that a "
                "driver could run; expected driver='auto'"
            )
        if project is not None:
            raise ValueError(
                f"got a projection for solver {method.name!r}, which chooses its own steps and cannot project the states at "
                "their ends; take a solver that makes rows (dpmpp-2m, heun, ddpm)"
            )
        return None
    if driver == "auto":
        return readable if callback is not None else fast
    loop = DRIVERS[driver] if isinstance(driver, str) else driver
    if callback is not None and loop in (fast, cuda_graph):
        raise ValueError(
            f"got a callback for driver {driver!r}, which overwrites its states and has none to show; take "
            "driver='readable', which computes the same, or 'auto'"
        )
    return loop


def _refuse_without_marginals(given: Mapping[str, Any]) -> None:
    """Refuse what only a score model, and a step that is a row, have a use for."""
    if names := [name for name, value in given.items() if value is not None and value is not False]:
        raise ValueError(
            f"got {', '.join(names)} for an SDE without marginals, of which there are a drift and a diffusion but no rows, "
            "and no data predictions; expected none of these"
        )


def _check_prior(path: Path, sde: GaussianSDE) -> None:
    if path.times[0] < sde.span[1] * (1 - 1e-6):
        raise ValueError(
            f"got a path that starts at t={path.times[0]:.6g}, while the prior is at t={sde.span[1]:.6g}; expected "
            "a start tensor noised to that time (sde.perturb), or a path from the prior on"
        )


# Running -------------------------------------------------------------------------------------------------------------


class _Last(NamedTuple):
    """The last state of a run, what was reported with it, and how many points of the path were reached (None: all)."""

    x: Tensor
    info: Mapping[str, Any] | None = None
    reached: int | None = None


@dataclass(frozen=True)
class _Run:
    """A solver on a path from ``x``, run by ``loop``, or where that is ``None`` by a loop of its own."""

    method: Solver
    loop: Driver | None
    path: Path
    model: Counted
    x: Tensor
    noise: FreshNoise
    project: Project | None

    def steps(self) -> int | None:
        """How many there will be; ``None`` where the solver decides."""
        if not isinstance(self.method, RowSolver):
            return None
        return sum(isinstance(row, Row) and row.ends_step for row in self.method.rows(self.path))

    def states(self) -> Iterator[State]:
        if self.loop is None or not isinstance(self.method, RowSolver):
            return self.method.states(self.path, self.model, self.x, self.noise)
        rows = self.method.rows(self.path)
        return cast(Iterator[State], self.loop(rows, self.model, self.x, self.noise, project=self.project))

    def last(self, callback: Callable[[State], object] | None, on_step: Callable[[int], None]) -> _Last:
        if isinstance(self.method, RowSolver) and self.loop in (fast, cuda_graph):
            rows = self.method.rows(self.path)
            return _Last(self.loop(rows, self.model, self.x, self.noise, on_step, project=self.project))
        last = _Last(self.x)
        states = self.states()
        for state in states if callback is None else _checked(states, self.x, self.method.name):
            last = _Last(state.x, state.info)
            on_step(state.step)
            if callback is not None and callback(state):
                return last._replace(reached=state.step + 1)
        return last

    def last_checked(self) -> _Last:
        """The same with every state checked, to say where it became non-finite: only a failure costs that."""
        last = _Last(self.x)
        for state in _checked(self.states(), self.x, self.method.name):
            last = _Last(state.x, state.info)
        return last

    def again(self, drawn: bool) -> _Run:
        """The run from the beginning, its noise too, of which the start took the first numbers if it was drawn."""
        noise = self.noise if isinstance(self.noise, BrownianNoise) else FreshNoise(self.noise.seeds, self.x.device)
        if drawn:
            noise.normal(torch.empty_like(self.x))
        return replace(self, loop=readable, noise=noise)


def _integrate(
    model: ReverseSDE | ScoreModel,
    method: Solver,
    times: list[float],
    x: Tensor,
    noise: FreshNoise,
    progress: bool,
    callback: Callable[[State], object] | None,
    conditions: Mapping[str, Any] | None,
) -> Samples:
    """Samples of an SDE without marginals, of which a drift and a diffusion are all there is."""
    calls = 1
    mode: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(model, ScoreModel):
        told = Conditions.of(conditions, x.shape[0], device=x.device, dtype=x.dtype).values
        calls, mode = model.calls.forward, evaluation_mode(model)
        model = cast(SDE, model.sde).reverse(functools.partial(model.score, **told), float(method.stochastic))
    elif conditions:
        raise ValueError(
            f"got conditions {sorted(conditions)} for a reverse process, whose score is given; expected them in its score, "
            "or ScoreModel(score, sde) in its place"
        )
    counted = CountedDynamics(model)
    begin = time.perf_counter()
    with torch.no_grad(), mode, _bar(progress, method.name, lambda: len(times) - 1) as on_step:
        for state in _checked(method.integrate(counted.dynamics(), x, times, noise), x, method.name):
            x = state.x
            on_step(state.step)
            if callback is not None and callback(state):
                times = times[: state.step + 1]
                break
    return Samples(x, counted.calls * calls, time.perf_counter() - begin, noise.seeds, method.name, tuple(times))


def _checked(states: Iterator[State], x: Tensor, solver: str) -> Iterator[State]:
    for state in states:
        if not _finite(state.x):
            raise NonFiniteError(solver, state.step, state.point.t, x)
        x = state.x
        yield state


@contextlib.contextmanager
def _bar(progress: bool, name: str, total: Callable[[], int | None]) -> Iterator[Callable[[int], None]]:
    if not progress:
        yield lambda step: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total(), desc=name, unit="step", leave=False) as bar:
        yield lambda step: cast(None, bar.update(step - bar.n))
