"""The function :func:`sample`, which turns noise into data with any model, solver and path."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.sampling.counted import Counted, evaluation_mode
from scoresde.sampling.early import early
from scoresde.sampling.kept import Keeper, Times, kept_points, with_kept
from scoresde.sampling.matrix import kept_on_path, matrix_plan, matrix_solver, matrix_start
from scoresde.sampling.plan import plan
from scoresde.sampling.run import NonFiniteError, Run, bar, checked, finite
from scoresde.sampling.start import start
from scoresde.sampling.without_marginals import CountedDynamics, falling_times
from scoresde.score import Conditions, ScoreModel, Transformed
from scoresde.sde import SDE, GaussianSDE, MatrixSDE, ReverseSDE
from scoresde.solvers.drivers import Driver, Project, State, fast, readable
from scoresde.solvers.drivers import driver as driver_of
from scoresde.solvers.matrix.rows import MatrixSolver
from scoresde.solvers.noise.brownian import BrownianNoise
from scoresde.solvers.noise.fresh import FreshNoise
from scoresde.solvers.path import Path, PathLike
from scoresde.solvers.scalar import value
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.table import SOLVERS, get
from scoresde.solvers.updates import Update

__all__ = ["NonFiniteError", "OwnProcess", "Samples", "sample"]

Transform = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Samples:
    """The result of :func:`sample`.

    Attributes:
        x: the samples, shape ``(batch, *event)``.
        evaluations: the number of network calls for the batch; a guided model makes two for each prediction.
        seconds: wall time of the solver.
        seeds: the seed of each sample; ``sample(..., seed=seeds[i:i+1])`` draws the i-th sample again.
        solver: the name of the solver that ran.
        times: the times of the path up to the last one reached.
        info: reports of the driver or the solver: ``sweeps`` of the parallel driver, ``accepted`` and ``rejected`` steps of
            an adaptive solver for each sample.
        backward: the number of backward calls of the network, by a model that needs gradients.
        states: the states at the times ``keep``, by these times, each of the shape of a state.
        latent: the end of the run of a :class:`scoresde.score.LatentModel`, of which ``x`` is the decoding.

    Example:
        >>> from scoresde import VP, problems
        >>> found = sample(problems.ring().model(VP()), (3, 2), "ddim", 10, progress=False)
        >>> found.x.shape, found.evaluations, found.solver, len(found.seeds)
        (torch.Size([3, 2]), 10, 'ddim', 3)
    """

    x: Tensor
    evaluations: int
    seconds: float
    seeds: list[int]
    solver: str
    times: tuple[float, ...]
    info: dict[str, Any] = field(default_factory=dict)
    backward: int = 0
    states: dict[float, Tensor] = field(default_factory=dict)
    latent: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"Samples(x={tuple(self.x.shape)}, solver={self.solver!r}, evaluations={self.evaluations}, "
            f"seconds={self.seconds:.3g})"
        )


class OwnProcess(ABC):
    """Interface of the models whose states are not real numbers, with a process and solvers of their own.

    :func:`sample` hands its arguments on to :meth:`draw`.
    """

    @abstractmethod
    def draw(self, shape_or_start: Tensor | Sequence[int], solver: Any, steps: int, **options: Any) -> Samples:
        """Draw samples.

        Args:
            shape_or_start: the shape ``(batch, *event)`` of a start to draw, or the start itself.
            solver: a name or a solver of this kind of states; ``None`` for its default.
            steps: the number of steps.
            options: ``path``, ``seed``, ``t_min``, ``t_max``, ``end``, ``progress``, ``callback``, ``keep``, ``device`` and
                ``conditions``, as for :func:`sample`.
        """


def sample(
    model: ScoreModel | ReverseSDE | OwnProcess,
    shape_or_start: Tensor | Sequence[int],
    solver: Any = "auto",
    steps: int = 20,
    path: PathLike | None = None,
    *,
    seed: int | Sequence[int] | None = 0,
    noise: FreshNoise | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str | None = None,
    progress: bool = True,
    callback: Callable[[State], object] | None = None,
    keep: Times | None = None,
    transform: Transform | None = None,
    project: Project | None = None,
    driver: str | Driver = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    r"""Draw samples.

    Args:
        model: a score model; on an SDE with matrix coefficients, :class:`scoresde.score.MatrixModel` with a solver of
            :data:`scoresde.solvers.MATRIX_SOLVERS`; on an SDE without marginals, ``ScoreModel(score, sde)``, or its reverse
            process ``sde.reverse(score)``; or a model on tokens, :class:`scoresde.discrete.DenoisingModel`.
        shape_or_start: the shape ``(batch, *event)`` of a start drawn from the prior, or a tensor to start from, which is
            not changed. With matrix coefficients this is the shape of the data, or states with all variables.
        solver: a name of ``scoresde.solvers.SOLVERS``, a solver object, the JSON file of a tuned solver, or ``"tuned"`` for
            the solver that was tuned for the model and saved with it. ``"auto"`` takes the solver, the path and the end that
            were the most accurate at this number of steps; ``"auto-sde"`` does so for solvers that draw noise. On an SDE
            with matrix coefficients ``"auto"`` is "gddim-2", on tokens "ancestral" of
            :data:`scoresde.discrete.TOKEN_SOLVERS`.
        steps: number of steps; each costs the solver's evaluations per step. A step of ``"auto"`` costs one evaluation.
        path: "t", "quadratic", "lam", "karras"; a spacing function; times from noise to data; or a ``Path``. By default the
            solver's own: even in lam, or what ``"auto"`` takes.
        seed: one integer, from which the seed of every sample is derived; a seed for each sample; or ``None`` for a random
            one. A sample depends on its own seed and not on the batch it is drawn in.
        noise: a source of the solver's noise, used with the seeds of its samples in place of ``seed``, such as a
            :class:`~scoresde.solvers.BrownianNoise` that several calls share. By default the noise is fresh.
        t_min: the smallest time above zero, by default the SDE's, or a larger one for few steps of ``"auto"``. The last step
            removes noise of variance ``sigma(t_min)^2``, or leaves it in the samples with ``end="stop"``. A small value
            moves steps to times with little noise.
        t_max: the time at which sampling starts, by default the end of the SDE's span.
        end: how the last step ends. ``"denoise"`` returns the data prediction D, Tweedie's formula, at sigma = 0, and is the
            default of named solvers. ``"flow"`` follows the flow to sigma = 0, (x / alpha + D) / 2, which is closer for
            smooth densities and worse for data on a manifold, such as images. ``"extrapolate"`` goes on to sigma = 0 by the
            solver's own rule, which is the closest for both; it needs a multistep solver in the velocity or in rho, and is
            the default of ``"auto"``. ``"stop"`` ends at ``t_min``, with the noise at that time. With matrix coefficients
            ``"stop"`` returns states with all variables, and there is neither ``"flow"`` nor ``"extrapolate"``.
        progress: whether to show a progress bar.
        callback: a function called with every :class:`~scoresde.solvers.State` (step, point, x); sampling stops if it
            returns something true.
        keep: times whose states are returned in :attr:`Samples.states`; the samples are the same with and without. A
            deterministic solver has a state at any time of the path, interpolated by a cubic between two points, for whose
            slopes the model is evaluated once more at each point. A stochastic one has states at the points of the path.
        transform: a function ``transform(m, t)`` applied to each data prediction, for clipping or thresholding. ``t`` is a
            number, or a tensor of shape ``(batch,)`` where samples have different times (adaptive solvers, the parallel
            driver).
        project: a function ``project(x, t)`` applied to the state at the end of each step, for constraints.
        driver: the loop that runs the solver's rows: ``"fast"``, ``"readable"``, ``"compiled"``, ``"cuda-graph"``,
            ``"parallel"`` or ``"differentiable"``, see :mod:`scoresde.solvers.drivers`; or a driver with its options set,
            ``scoresde.solvers.Parallel(window=8)``. ``"auto"`` is ``"fast"``, or ``"readable"`` if there is a callback.
            Gradients flow through ``"differentiable"`` only.
        device, dtype: device and dtype of a start that is drawn; by default those of the model's parameters.
        conditions: the values on which the model is conditioned, by name, ``{"label": labels}``: a tensor, an array or a
            list with an entry for each sample; a number for all samples; or :class:`scoresde.Shared`, passed on unchanged.

    Returns:
        The samples and how they were computed, see :class:`Samples`.

    Raises:
        TypeError: if ``model`` is not a score model or a reverse process, or ``solver`` is not a name or a solver.
        ValueError: for a wrong shape, an unknown solver, path or driver, ``steps=0``, a path that does not start at the
            prior, a callback or a projection that the driver cannot run, conditions of another length than the batch, and a
            network that writes into its input or whose output has another shape or dtype.
        NonFiniteError: if a state becomes infinite or NaN; it carries the last finite state.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> samples = sample(model, (4, 2), steps=10, progress=False)
        >>> samples.x.shape, samples.evaluations, samples.solver
        (torch.Size([4, 2]), 10, 'abm-3')
    """
    if isinstance(model, OwnProcess):
        refused = {"driver": driver != "auto", "project": project, "noise": noise, "transform": transform, "dtype": dtype}
        _refuse_on_other_states(refused)
        how: dict[str, Any] = {"path": path, "seed": seed, "t_min": t_min, "t_max": t_max, "end": end, "keep": keep}
        how |= {"progress": progress, "callback": callback, "device": device, "conditions": conditions}
        given = {name: value for name, value in how.items() if value is not None or name == "seed"}
        return model.draw(shape_or_start, None if solver == "auto" else solver, steps, **given)
    sde: Any = model.sde if isinstance(model, ScoreModel) else None
    matrix = sde if isinstance(sde, MatrixSDE) else None
    method = _method(solver, model, matrix)
    if isinstance(model, ReverseSDE) or (sde is not None and matrix is None and not isinstance(sde, GaussianSDE)):
        given = {"driver": driver not in ("auto", "readable"), "project": project, "noise": noise, "transform": transform}
        _refuse_without_marginals({**given, "end": end in ("flow", "extrapolate"), "keep": keep})
        noising, scored = (model.forward, None) if isinstance(model, ReverseSDE) else (model.sde, model)
        general = falling_times(noising.span, path, steps, t_max, t_min)
        x, fresh = start(shape_or_start, scored, seed, noising.prior_std, device, dtype)
        method = method.chosen(None)
        return _integrate(model, method, general, x, fresh, progress, callback, conditions)
    if not isinstance(model, ScoreModel):
        raise TypeError(
            f"got model of type {type(model).__name__}; expected a ScoreModel: ScoreModel(net, sde) makes one of a network"
        )
    model = model if transform is None else Transformed(model, transform)
    method.check_model(model)
    where: Any  # a path of scalar points or, with matrix coefficients, of times alone
    rows: Sequence[Update] | None
    own = path is None and project is None
    begun = early(model, method, steps, t_max=t_max, t_min=t_min, end=end) if own else None
    if begun is not None:
        model, method = begun.model, begun.method
        where, rows = plan(method, method, model.sde, begun.path, steps, None, None, None)
    elif matrix is not None:
        _refuse_with_matrices(noise)
        where, rows = matrix_plan(cast(MatrixSolver, method), matrix, path, steps, t_max, t_min, end)
    else:
        where, rows = plan(solver, method, model.sde, path, steps, t_max, t_min, end)
        method = method.chosen(where)
    drawn = not isinstance(shape_or_start, Tensor)
    whole_path = where if begun is None else begun.whole
    if drawn:
        _check_prior(whole_path, model.sde)
    kept: Any = {} if keep is None else kept_points(keep, whole_path) if matrix is None else kept_on_path(keep, where)
    if kept and matrix is None:
        determined = not method.stochastic and all(v.lam > u.lam for u, v in where.moves)
        where = with_kept(where, kept, method.name, dense=method.dense, determined=determined)
    watched = "a callback" if callback is not None else None if keep is None else "times to keep"
    loop = _loop(method, driver, watched, project)
    grads = loop is not None and loop.differentiates
    seed = seed if noise is None else noise.seeds
    if isinstance(noise, BrownianNoise):
        noise.adopt(where)
    if matrix is not None:
        x, fresh = matrix_start(shape_or_start, model, matrix, where.points[0], seed, device, dtype, grads)
    else:
        prior_std, copy = math.exp(value(whole_path.points[0].log_sigma)), loop is None or not loop.copies_start
        x, fresh = start(shape_or_start, model, seed, prior_std, device, dtype, grads, copy)
    model.check_convertible(value(where.points[0].t))
    told = Conditions.of(conditions, x.shape[0], device=x.device, dtype=x.dtype)
    x = model.project(x, **told.values)
    before: dict[float, Tensor] = {}
    if begun is not None:
        with torch.set_grad_enabled(grads):
            before = {t: begun.carry(x, t) for t, p in kept.items() if p.lam < where.points[0].lam}
            x = begun.carry(x)
    counted = Counted(model, told, grads=grads)
    run = Run(method, loop, where, rows, counted, x, fresh if noise is None else noise, project)
    keeper = Keeper(kept, where, x, counted, before) if kept else None
    watch = _watching(keeper, callback)
    with torch.set_grad_enabled(grads), evaluation_mode(model), bar(progress, method.name, run.steps) as on_step:
        model.check_start(x, **told.values)
        begin = time.perf_counter()
        last = run.last(watch, on_step)
        whole = finite(last.x)  # the one synchronisation with the device
        seconds, forward, backward = time.perf_counter() - begin, counted.forward, counted.backward
        if not whole:
            last = run.again(drawn and noise is None).last_checked()
        clean = matrix is not None and where.ends_clean and last.reached is None
        ended = matrix.data(last.x) if matrix is not None and clean else last.x  # without velocities, which are zero there
        ended = model.project(ended, **told.values)
        data = model.to_data(ended)
    times = tuple(value(t) for t in where.times[: last.reached])
    times = times if begun is None else (begun.begin, *times)
    states = {} if keeper is None else keeper.found(method.name, whole=last.reached is None)
    states = {t: model.project(state, **told.values) for t, state in states.items()}
    info, latent = dict(last.info or {}), None if data is ended else last.x
    info |= {} if begun is None else {"gaussian until": begun.model.until}
    return Samples(data, forward, seconds, run.noise.seeds, method.name, times, info, backward, states, latent)


def _watching(keeper: Keeper | None, callback: Callable[[State], object] | None) -> Callable[[State], object] | None:
    """Return the function to call with every state, if there is one."""
    if keeper is None:
        return callback

    def watch(state: State) -> object:
        keeper(state)
        return callback(state) if callback is not None else None

    return watch


def _method(solver: str | Solver, model: ScoreModel | ReverseSDE, matrix: MatrixSDE | None) -> Solver:
    """Return the solver of a name, or the solver itself; the name "tuned" is the solver that the model carries."""
    if solver == "tuned" and "tuned" not in SOLVERS:
        carried: Solver | None = getattr(model, "tuned", None)
        if carried is None:
            raise ValueError(
                "got solver='tuned' for a model that carries no tuned solver; expected one from a checkpoint that scoresde "
                "tune completed, or model.tuned = scoresde.tuning.tune(model, 8)"
            )
        solver = carried
    method = matrix_solver(solver, matrix) if matrix is not None else get(solver) if isinstance(solver, str) else solver
    if not isinstance(method, Solver):
        raise TypeError(f"got solver {solver!r}; expected a name or a solver object")
    if matrix is None and isinstance(method, MatrixSolver):
        raise ValueError(
            f"got solver {solver!r}, whose coefficients are matrices, on an SDE with scalar ones; expected a solver of "
            "scoresde.solvers.SOLVERS, or a model on an SDE such as CLD()"
        )
    return method


# Refusals ------------------------------------------------------------------------------------------------------------


def _loop(method: Solver, driver: str | Driver, watched: str | None, project: Project | None) -> Driver | None:
    """Return the driver that runs the rows of ``method``, or ``None`` for a solver that has its own loop.

    Args:
        watched: what the states are shown to, in words, if they are.
    """
    loop = None if driver == "auto" else driver_of(driver)
    if not isinstance(method, RowSolver):
        if loop not in (None, readable):
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
    if loop is None:
        return readable if watched is not None else fast
    if watched is not None and not loop.shows_states:
        raise ValueError(
            f"got {watched} for driver {loop.name!r}, which overwrites its states and has none to show; take "
            "driver='readable', which computes the same, or 'auto'"
        )
    return loop


def _refuse_without_marginals(given: Mapping[str, Any]) -> None:
    """Refuse arguments that need a score model with Gaussian marginals and a solver that makes rows."""
    if names := [name for name, value in given.items() if value is not None and value is not False]:
        raise ValueError(
            f"got {', '.join(names)} for an SDE without marginals, whose solvers use a drift and a diffusion, and make no "
            "rows and no data predictions; expected none of these arguments"
        )


def _refuse_on_other_states(given: Mapping[str, Any]) -> None:
    """Refuse arguments that belong to real states."""
    if names := [name for name, value in given.items() if value is not None and value is not False]:
        raise ValueError(
            f"got {', '.join(names)} for a model whose states are not real numbers, and whose solvers make no rows; "
            "expected none of these arguments"
        )


def _refuse_with_matrices(noise: FreshNoise | None) -> None:
    if isinstance(noise, BrownianNoise):
        raise ValueError(
            "got a Brownian path for an SDE with matrix coefficients, whose noise is no integral over lam; expected fresh "
            "noise: leave noise out"
        )


def _check_prior(path: Path, sde: GaussianSDE) -> None:
    if path.times[0] < sde.span[1] * (1 - 1e-6):
        raise ValueError(
            f"got a path that starts at t={path.times[0]:.6g}, while the prior is at t={sde.span[1]:.6g}; expected "
            "a start tensor noised to that time (sde.perturb), or a path that starts at the prior"
        )


# An SDE without marginals --------------------------------------------------------------------------------------------


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
    """Draw samples of an SDE without marginals, which has only a drift and a diffusion."""
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
    with torch.no_grad(), mode, bar(progress, method.name, lambda: len(times) - 1) as on_step:
        for state in checked(method.integrate(counted.dynamics(), x, times, noise), x, method.name):
            x = state.x
            on_step(state.step)
            if callback is not None and callback(state):
                times = times[: state.step + 1]
                break
    return Samples(x, counted.calls * calls, time.perf_counter() - begin, noise.seeds, method.name, tuple(times))
