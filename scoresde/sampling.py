"""The front door: :func:`sample` turns noise into data with any model, solver and path."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoresde._door import Door, Transform, evaluation_mode, start
from scoresde.score import ScoreModel
from scoresde.sde import ReverseSDE
from scoresde.solvers.brownian import BrownianNoise
from scoresde.solvers.drivers import DRIVERS, Project, State, cuda_graph, differentiable, fast, readable
from scoresde.solvers.noise import FreshNoise
from scoresde.solvers.path import Path, PathLike, make_path
from scoresde.solvers.rows import Row
from scoresde.solvers.scalar import value
from scoresde.solvers.solver import Dynamics, RowSolver, Solver
from scoresde.solvers.table import get

__all__ = ["NonFiniteError", "Samples", "sample"]

Driver = Callable[..., Iterator[State] | Tensor]


@dataclass(frozen=True)
class Samples:
    """What :func:`sample` returns.

    Attributes:
        x: the samples, shape ``(batch, *event)``.
        evaluations: how often the network was called for the batch, as counted.
        seconds: wall time of the solver.
        seeds: the seed of each sample; ``sample(..., seed=seeds[i:i+1])`` draws the i-th one again.
        solver: the name of the solver.
        times: the times of the path, as far as it was followed.
        info: what the driver or the solver reports of itself: ``sweeps`` of the parallel driver, ``accepted`` and
            ``rejected`` steps of an adaptive solver for each sample.
    """

    x: Tensor
    evaluations: int
    seconds: float
    seeds: list[int]
    solver: str
    times: tuple[float, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Samples(x={tuple(self.x.shape)}, solver={self.solver!r}, evaluations={self.evaluations}, "
            f"seconds={self.seconds:.3g})"
        )


class NonFiniteError(FloatingPointError):
    """A state became infinite or NaN.

    Attributes:
        last_finite: the last state that was finite.
        step, t: the step that left it, and the time at which it ended.
    """

    def __init__(self, solver: str, step: int, t: float, last_finite: Tensor) -> None:
        super().__init__(
            f"the state became non-finite in step {step} of solver {solver!r}, on the way to t={t:.6g}; the last finite "
            "state is on this exception as .last_finite. Check the network there, take more steps, or another solver"
        )
        self.last_finite, self.step, self.t = last_finite, step, t


def _loop(
    method: Solver, driver: str | Driver, callback: Callable[[State], object] | None, project: Project | None
) -> Driver | None:
    """The driver to run the rows of ``method`` with, or ``None`` for a solver that has a loop of its own."""
    if isinstance(driver, str) and driver != "auto" and driver not in DRIVERS:
        near = difflib.get_close_matches(driver, DRIVERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"got driver {driver!r}; expected 'auto', {', '.join(map(repr, DRIVERS))} or a driver itself{hint}")
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


def _checked(states: Iterator[State], x: Tensor, solver: str) -> Iterator[State]:
    for state in states:
        if not bool(torch.isfinite(state.x).all()):
            raise NonFiniteError(solver, state.step, state.point.t, x)
        x = state.x
        yield state


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
    **conditions: Any,
) -> Samples:
    r"""Draw samples.

    Args:
        model: a score model; or, for an SDE without marginals, its reverse process ``sde.reverse(score)``.
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
        device, dtype: of the start, where it is drawn; by default those of the model, and float32.
        **conditions: passed on to the network.

    Returns:
        :class:`Samples`.

    Raises:
        ValueError: for a wrong shape, an unknown solver, path or driver, ``steps=0``, a path that does not start at the
            prior, a callback or a projection that the driver cannot honour.
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
    if isinstance(model, ReverseSDE):
        return _sample_general(
            model,
            shape_or_start,
            method,
            steps,
            path,
            seed,
            t_min,
            t_max,
            progress,
            callback,
            project,
            driver,
            device,
            dtype,
        )
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"got model of type {type(model).__name__}; expected a ScoreModel: ScoreModel(net, sde) makes one of a network"
        )
    where = make_path(model.sde, path, steps, t_max=t_max, t_min=t_min, end=end)
    if not isinstance(shape_or_start, Tensor) and where.times[0] < model.sde.span[1] * (1 - 1e-6):
        raise ValueError(
            f"got a path that starts at t={where.times[0]:.6g}, while the prior is at t={model.sde.span[1]:.6g}; expected "
            "a start tensor noised to that time (sde.perturb), or a path from the prior on"
        )
    loop = _loop(method, driver, callback, project)
    grads = getattr(loop, "func", loop) is differentiable
    if noise is not None:
        seed = noise.seeds
    x, fresh = start(shape_or_start, model, seed, math.exp(value(where.points[0].log_sigma)), device, dtype, grads)
    noise = fresh if noise is None else noise
    door = Door(model, x.shape[0], conditions, transform, grads)
    with torch.set_grad_enabled(grads), evaluation_mode(model), _bar(progress, method, where) as on_step:
        begin = time.perf_counter()
        last = _run(method, loop, where, door, x, noise, project, callback, on_step)
        finite = bool(torch.isfinite(last.x).all())  # the one synchronisation with the device
        seconds, evaluations = time.perf_counter() - begin, door.evaluations
        if not finite:
            again = noise if isinstance(noise, BrownianNoise) else FreshNoise(noise.seeds, x.device)
            if not isinstance(shape_or_start, Tensor):
                again.normal(torch.empty_like(x))  # the start came first
            last = _blame(method, where, door, x, again, project)
    times = tuple(value(t) for t in where.times[: last.reached])
    return Samples(last.x, evaluations, seconds, noise.seeds, method.name, times, dict(last.info or {}))


class _Last(NamedTuple):
    """The last state of a run, what was reported with it, and how many points of the path were reached (None: all)."""

    x: Tensor
    info: Mapping[str, Any] | None = None
    reached: int | None = None


def _run(
    method: Solver,
    loop: Driver | None,
    path: Path,
    door: Door,
    x: Tensor,
    noise: FreshNoise,
    project: Project | None,
    callback: Callable[[State], object] | None,
    on_step: Callable[[int], None],
) -> _Last:
    if isinstance(method, RowSolver) and loop in (fast, cuda_graph):
        return _Last(loop(method.rows(path), door, x, noise, on_step, project=project))
    last = _Last(x)
    states = _states(method, loop, path, door, x, noise, project)
    for state in states if callback is None else _checked(states, x, method.name):
        last = _Last(state.x, state.info)
        on_step(state.step)
        if callback is not None and callback(state):
            return last._replace(reached=state.step + 1)
    return last


def _blame(method: Solver, path: Path, door: Door, x: Tensor, noise: FreshNoise, project: Project | None) -> _Last:
    """Run again with every state checked, to say where it became non-finite: only a failure costs that."""
    last = _Last(x)
    for state in _checked(_states(method, readable, path, door, x, noise, project), x, method.name):
        last = _Last(state.x, state.info)
    return last


def _states(
    method: Solver, loop: Driver | None, path: Path, door: Door, x: Tensor, noise: FreshNoise, project: Project | None
) -> Iterator[State]:
    if loop is None or not isinstance(method, RowSolver):
        return method.states(path, door, x, noise)
    return cast(Iterator[State], loop(method.rows(path), door, x, noise, project=project))


@contextlib.contextmanager
def _bar(progress: bool, method: Solver, path: Path | None, total: int | None = None) -> Iterator[Callable[[int], None]]:
    if not progress:
        yield lambda step: None
        return
    from tqdm.auto import tqdm

    if isinstance(method, RowSolver) and path is not None:
        total = sum(isinstance(row, Row) and row.ends_step for row in method.rows(path))
    with tqdm(total=total, desc=method.name, unit="step", leave=False) as bar:
        yield lambda step: cast(None, bar.update(step - bar.n))


def _sample_general(
    reverse: ReverseSDE,
    shape_or_start: Tensor | Sequence[int],
    method: Solver,
    steps: int,
    path: PathLike,
    seed: int | Sequence[int] | None,
    t_min: float | None,
    t_max: float | None,
    progress: bool,
    callback: Callable[[State], object] | None,
    project: Project | None,
    driver: str | Driver,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Samples:
    """The same for an SDE without marginals: times, a drift and a diffusion are all there is."""
    if driver not in ("auto", "readable") or project is not None:
        raise ValueError(
            "got a driver or a projection for an SDE without marginals, whose steps are not rows; expected driver='auto' "
            "and no projection"
        )
    times = _general_times(reverse.forward.span, path, steps, t_max, t_min)
    x, noise = start(shape_or_start, None, seed, reverse.forward.prior_std, device, dtype)
    counted = _Counted(reverse)
    begin = time.perf_counter()
    with torch.no_grad(), _bar(progress, method, None, len(times) - 1) as on_step:
        for state in _checked(method.integrate(counted.dynamics(), x, times, noise), x, method.name):
            x = state.x
            on_step(state.step)
            if callback is not None and callback(state):
                times = times[: state.step + 1]
                break
    return Samples(x, counted.calls, time.perf_counter() - begin, noise.seeds, method.name, tuple(times))


def _general_times(
    span: tuple[float, float], path: PathLike, steps: int, t_max: float | None, t_min: float | None
) -> list[float]:
    low, high = span
    if isinstance(path, Tensor | list | tuple):
        times = torch.as_tensor(path, dtype=torch.float64).tolist()
    elif path in ("t", "lam"):  # "lam" is the default of sample(), and there is no lam here
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"got steps={steps!r}; expected a whole number of at least 1")
        first, last = high if t_max is None else t_max, low if t_min is None else t_min
        times = torch.linspace(first, last, steps + 1, dtype=torch.float64).tolist()
    else:
        raise ValueError(f"got path {path!r} for an SDE without marginals; expected 't' or a list of times")
    if len(times) < 2 or any(u <= v for u, v in itertools.pairwise(times)) or not low <= times[-1]:
        raise ValueError(f"got times from {times[0]} to {times[-1]}; expected falling times between {high} and {low}")
    return cast(list[float], times)


class _Counted:
    """The dynamics of a reverse process, whose drifts are counted."""

    def __init__(self, reverse: ReverseSDE) -> None:
        self.reverse, self.calls = reverse, 0

    def _drift(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.reverse.drift(x, t)

    def _conversion(self, x: Tensor, t: Tensor) -> Tensor | float:
        # Time runs backwards: the correction -c c' / 2 of the drift changes its sign.
        return 0.25 * self.reverse.eta * self.reverse.forward.diffusion_divergence(x, t)

    def dynamics(self) -> Dynamics:
        return Dynamics(self._drift, self.reverse.diffusion, self._conversion, self.reverse.eta)
