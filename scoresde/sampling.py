"""The front door: :func:`sample` turns noise into data with any model, solver and path."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde._shape import check_batch
from scoresde.score import ScoreModel
from scoresde.sde import ReverseSDE
from scoresde.solvers.drivers import State
from scoresde.solvers.noise import FreshNoise, sample_seeds
from scoresde.solvers.path import Path, PathLike, make_path
from scoresde.solvers.rows import Row
from scoresde.solvers.solver import Dynamics, RowSolver, Solver
from scoresde.solvers.table import get

__all__ = ["NonFiniteError", "Samples", "sample"]


@dataclass(frozen=True)
class Samples:
    """What :func:`sample` returns.

    Attributes:
        x: the samples, shape ``(batch, *event)``.
        evaluations: how often the network was called, as counted.
        seconds: wall time of the solver.
        seeds: the seed of each sample; ``sample(..., seed=seeds[i:i+1])`` draws the i-th one again.
        solver: the name of the solver.
        times: the times of the path.
    """

    x: Tensor
    evaluations: int
    seconds: float
    seeds: list[int]
    solver: str
    times: tuple[float, ...]

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


class _Door:
    """The one signature to which every model is reduced: data prediction at a time, conditions bound, calls counted."""

    def __init__(
        self, model: ScoreModel, conditions: dict[str, Any], transform: Callable[[Tensor, float], Tensor] | None
    ) -> None:
        self.model, self.conditions, self.transform = model, conditions, transform
        self.evaluations = 0

    def _finish(self, m: Tensor, t: float) -> Tensor:
        self.evaluations += 1
        return m if self.transform is None else self.transform(m, t)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._finish(self.model.x0(x, t, **self.conditions), float(t))

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> Sequence[Callable[[Tensor], Tensor]]:
        bound = self.model.at(times, device=device, dtype=dtype, **self.conditions)

        def counted(function: Callable[[Tensor], Tensor], t: float) -> Callable[[Tensor], Tensor]:
            return lambda x: self._finish(function(x), t)

        return [counted(f, t) for f, t in zip(bound, times.tolist(), strict=True)]


@contextlib.contextmanager
def _evaluation_mode(model: object) -> Iterator[None]:
    """Networks are sampled in evaluation mode, and left in the mode they were in."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _home(model: object, device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[Any, torch.dtype]:
    """Where and in which precision to start: as asked, else as the model's first parameter, else CPU and the default."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if device is None:
        device = first.device if first is not None else "cpu"
    return torch.device(device), dtype or torch.get_default_dtype()


def _start(
    shape_or_start: Tensor | Sequence[int],
    model: object,
    seed: int | Sequence[int] | None,
    prior_std: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, FreshNoise]:
    if isinstance(shape_or_start, Tensor):
        x = check_batch(shape_or_start.detach())
        x = x.to(device=x.device if device is None else device, dtype=dtype or x.dtype)
        return x, FreshNoise(sample_seeds(seed, x.shape[0]), x.device)
    shape = tuple(shape_or_start)
    if len(shape) < 2 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(
            f"got shape {shape}; expected (batch, *event) of positive whole numbers with at least one event dimension: "
            "write scalars as (batch, 1)"
        )
    home, precision = _home(model, device, dtype)
    noise = FreshNoise(sample_seeds(seed, shape[0]), home)
    return noise.normal(torch.empty(shape, device=home, dtype=precision)).mul_(prior_std), noise


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
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "denoise",
    progress: bool = True,
    callback: Callable[[State], object] | None = None,
    transform: Callable[[Tensor, float], Tensor] | None = None,
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
        t_min: the smallest time but zero, by default the SDE's. What it costs: the last move takes away, or with
            ``end="stop"`` leaves, noise of variance ``sigma(t_min)^2``. A 1000-step "ddpm" chain on data of variance 1,
            which it reproduces exactly otherwise, loses 1.1e-4 of it at VP's default of 1e-3 and 1.0e-6 at 1e-5. A
            smaller one costs steps: they go to where there is little noise, away from where few matter more.
        t_max: where to start, by default the end of the SDE's span.
        end: how the last step ends. ``"denoise"``: at sigma = 0, by returning the data prediction D (Tweedie's formula);
            ``"flow"``: at sigma = 0, by following the flow there, (x / alpha + D) / 2, closer for smooth densities and worse
            for data on a manifold, such as images; ``"stop"``: at ``t_min``, with its noise.
        progress: a progress bar.
        callback: called with every :class:`~scoresde.solvers.State` (step, point, x).
        transform: applied to each data prediction, ``transform(m, t)``: clipping, thresholding.
        device, dtype: of the start, where it is drawn; by default those of the model, and float32.
        **conditions: passed on to the network.

    Returns:
        :class:`Samples`.

    Raises:
        ValueError: for a wrong shape, an unknown solver or path, ``steps=0``, a path that does not start at the prior.
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
            model, shape_or_start, method, steps, path, seed, t_min, t_max, progress, callback, device, dtype
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
    x, noise = _start(shape_or_start, model, seed, math.exp(where.points[0].log_sigma), device, dtype)
    door = _Door(model, conditions, transform)

    with torch.no_grad(), _evaluation_mode(model), _bar(progress, method, where) as on_step:
        begin = time.perf_counter()
        if callback is None:
            last = method.final(where, door, x, noise, on_step)
        else:
            last = x
            for state in _checked(method.states(where, door, x, noise), x, method.name):
                callback(state)
                last = state.x
                on_step(state.step)
        finite = bool(torch.isfinite(last).all())  # the one synchronisation with the device
        seconds = time.perf_counter() - begin
        evaluations = door.evaluations
        if not finite:
            # Run again with every state checked, to say where it happened: only a failure costs that.
            for state in _checked(method.states(where, door, x, FreshNoise(noise.seeds, x.device)), x, method.name):
                last = state.x
    return Samples(last, evaluations, seconds, noise.seeds, method.name, where.times)


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
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Samples:
    """The same for an SDE without marginals: times, a drift and a diffusion are all there is."""
    low, high = reverse.forward.span
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
    x, noise = _start(shape_or_start, None, seed, reverse.forward.prior_std, device, dtype)
    calls = 0

    def drift(y: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return reverse.drift(y, t)

    def conversion(y: Tensor, t: Tensor) -> Tensor | float:
        # Time runs backwards: the correction -c c' / 2 of the drift changes its sign.
        return 0.25 * reverse.eta * reverse.forward.diffusion_divergence(y, t)

    dynamics = Dynamics(drift, reverse.diffusion, conversion, reverse.eta)
    begin = time.perf_counter()
    with torch.no_grad(), _bar(progress, method, None, len(times) - 1) as on_step:
        for state in _checked(method.integrate(dynamics, x, times, noise), x, method.name):
            x = state.x
            on_step(state.step)
            if callback is not None:
                callback(state)
    return Samples(x, calls, time.perf_counter() - begin, noise.seeds, method.name, tuple(times))
