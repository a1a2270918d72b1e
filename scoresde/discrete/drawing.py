"""Samples of denoising models: the path of times, the loop over its steps, and the draws."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoresde.base.devices import as_device
from scoresde.base.numbers import whole
from scoresde.base.shape import check_shape
from scoresde.discrete.prediction import Predictor, TokenPrediction
from scoresde.discrete.processes.draws import draw_tokens
from scoresde.discrete.processes.process import Absorbing, TokenProcess, check_tokens
from scoresde.discrete.solvers import FirstHitting, TokenSolver, token_solver
from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.run import bar
from scoresde.sampling.samples import Samples
from scoresde.score import Conditions
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds

__all__ = ["TokenState", "draw", "token_times"]


@dataclass(frozen=True)
class TokenState:
    """The tokens ``x`` after step number ``step``, at time ``t``, as a callback sees them.

    Example:
        >>> import scoresde
        >>> from scoresde.discrete import MarkovChain
        >>> model, seen = MarkovChain([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], length=2).model(Absorbing(2)), []
        >>> found = scoresde.sample(model, (1, 2), "ancestral", 2, callback=seen.append, progress=False)
        >>> [(state.step, state.t) for state in seen], seen[-1].x.shape
        ([(1, 0.5), (2, 0.0)], torch.Size([1, 2]))
    """

    step: int
    t: float
    x: Tensor


def token_times(
    path: Any, steps: int, *, t_max: float | None = None, t_min: float | None = None, end: str = "denoise"
) -> list[float]:
    """Return the times of a path on tokens, falling.

    Args:
        path: "t" for evenly spaced times, or the times themselves.
        steps: the number of steps, the last of which ends at 0 where ``end`` is "denoise".
        t_max: the first time, by default 1.
        t_min: the last time above 0; by default the times are even down to 0, or to 1e-4 where ``end`` is "stop".
        end: "denoise" for a last step to t = 0 by ancestral sampling, "stop" for none.

    Raises:
        ValueError: for another spacing or end, and times that do not fall from at most 1 to at least 0.

    Example:
        >>> token_times("t", 4)
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if end not in ("denoise", "stop"):
        raise ValueError(f"got end={end!r} for a model on tokens; expected 'denoise' or 'stop': tokens follow no flow")
    last = [0.0] if end == "denoise" else []
    if isinstance(path, Tensor | list | tuple):
        times = cast(list[float], torch.as_tensor(path, dtype=torch.float64).tolist())
        times = times + last if end == "denoise" and times and times[-1] > 0 else times
    elif path == "t":
        steps, first = whole("steps", steps, 1), 1.0 if t_max is None else float(t_max)
        if end == "stop":
            times = torch.linspace(first, 1e-4 if t_min is None else t_min, steps + 1, dtype=torch.float64).tolist()
        elif t_min is None:
            times = torch.linspace(first, 0.0, steps + 1, dtype=torch.float64).tolist()
        else:
            times = torch.linspace(first, t_min, steps, dtype=torch.float64).tolist() + last
    else:
        raise ValueError(f"got path {path!r} for a model on tokens; expected 't' or a list of times from 1 to 0")
    if len(times) < 2 or not 0 <= times[-1] <= times[0] <= 1 or any(not u > v for u, v in itertools.pairwise(times)):
        raise ValueError(f"got times {times[:3]}..{times[-2:]}; expected falling times between 1 and 0")
    return times


class _Run:
    """One run: the model with its conditions, counted evaluations, and the source of uniform numbers."""

    def __init__(self, model: Predictor, conditions: Mapping[str, Any], noise: FreshNoise) -> None:
        self.model, self.conditions, self.noise = model, conditions, noise
        self.forward = self.backward = 0

    def predict(self, x: Tensor, t: Tensor) -> TokenPrediction:
        self.forward += self.model.calls.forward
        self.backward += self.model.calls.backward
        return self.model.predict(x, t, **self.conditions)

    def uniform(self, x: Tensor) -> Tensor:
        return self.noise.uniform(tuple(x.shape)).to(x.device)

    def states(self, solver: TokenSolver, x: Tensor, times: Sequence[float]) -> Iterator[TokenState]:
        """Yield the tokens at the end of every step."""
        if isinstance(solver, FirstHitting):
            yield from self._first_hitting(solver, x, times)
            return
        for step, (t, s) in enumerate(itertools.pairwise(torch.tensor(times, dtype=torch.float64)), start=1):
            seen: list[TokenPrediction] = []
            if s == 0:  # what is left of the noise is removed by the law of the data themselves
                x = draw_tokens(self.predict(x, t).earlier(s), self.uniform(x))
            else:
                for node in solver.nodes(t, s):
                    seen.append(self.predict(x, node))
                    x = draw_tokens(solver.law(seen, t, s), self.uniform(x))
            yield TokenState(step, float(s), x)

    def _first_hitting(self, solver: FirstHitting, x: Tensor, times: Sequence[float]) -> Iterator[TokenState]:
        process = self.model.process
        if not isinstance(process, Absorbing):
            raise ValueError(
                f"got solver 'first-hitting' on {type(process).__name__}, in which a token may change many times; expected "
                "a model on Absorbing, or another solver: 'ancestral'"
            )
        end = process.amount(times[-1])
        t = torch.full((len(x),), times[0], dtype=torch.float64)
        going = torch.ones(len(x), dtype=torch.bool)
        for step in range(1, int((x == process.mask).flatten(1).sum(1).max()) + 1):
            masked = (x == process.mask).flatten(1)  # (batch, tokens)
            left = masked.sum(1)
            u = self.noise.uniform((len(x), 3)).to(x.device)
            hidden = -torch.expm1(-process.amount(t)).to(u) * u[:, 0] ** (1 / left.clamp(min=1))  # 1 - alpha
            amount = -torch.log1p(-hidden.clamp(max=1 - 2.0**-50)).cpu()
            going &= (left > 0).cpu() & (amount >= end)
            t, lifted = torch.where(going, process.schedule.time(amount), t), going.to(x.device)
            law = solver.law([self.predict(x, t)], t, t).flatten(1, -2)  # (batch, tokens, states)
            place = draw_tokens(torch.where(lifted[:, None], masked, True).double(), u[:, 1])
            rows = torch.arange(len(x), device=x.device)
            token = draw_tokens(law[rows, place], u[:, 2])
            flat = x.flatten(1).clone()
            flat[rows, place] = torch.where(lifted, token, flat[rows, place])
            x = flat.reshape(x.shape)
            yield TokenState(step, float(t.min()), x)


def draw(
    model: Any,
    shape_or_start: Tensor | Sequence[int],
    solver: str | TokenSolver | None,
    steps: int,
    *,
    path: Any = "t",
    seed: int | Sequence[int] | None = 0,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "denoise",
    progress: bool = False,
    callback: Callable[[TokenState], object] | None = None,
    keep: Any = None,
    device: torch.device | str | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    """Draw tokens from a denoising model; :func:`scoresde.sample` explains the arguments.

    Args:
        model: the denoising model.
        shape_or_start: the shape ``(batch, *event)``, or tokens to start from at the first time of the path.
        solver: a name in :data:`~scoresde.discrete.TOKEN_SOLVERS` or a solver; by default ancestral sampling.
        steps: number of steps.
        path, t_min, t_max, end: the times, as for :func:`token_times`.
        seed: one integer, one for each sample, or ``None``.
        progress: whether to show a progress bar.
        callback: a function called with every :class:`TokenState`; sampling stops if it returns something true.
        keep: times of the path at which states are returned.
        device: the device of tokens that are drawn; by default the device of the model.
        conditions: the values on which the model is conditioned.
    """
    method = token_solver(solver)
    process: TokenProcess = model.process
    times = token_times(path, steps, t_max=t_max, t_min=t_min, end=end)
    kept = _kept_times(keep, times, method)
    x, noise = _start(shape_or_start, model, seed, device)
    if not isinstance(shape_or_start, Tensor) and times[0] < 1:
        raise ValueError(
            f"got a path that starts at t={times[0]:.6g}, while the prior is at t=1; expected tokens to start from, noised "
            "to that time by process.noised, or a path from 1"
        )
    told = Conditions.of(conditions, len(x), device=x.device)
    run = _Run(model, told.values, noise)
    states: dict[float, Tensor] = {}
    reached = 0
    network = model if isinstance(model, nn.Module) else nn.Module()
    with torch.no_grad(), evaluation_mode(network), bar(progress, method.name, lambda: len(times) - 1) as on_step:
        model.check_start(x, **told.values)
        if times[0] in kept:
            states[kept[times[0]]] = x
        begin = time.perf_counter()
        for state in run.states(method, x, times):
            x, reached = state.x, state.step
            on_step(reached)
            if state.t in kept:
                states[kept[state.t]] = x
            if callback is not None and callback(state):
                break
        seconds = time.perf_counter() - begin
    done = tuple(times[: reached + 1]) if method.description.evaluations is not None else (times[0], times[-1])
    check_tokens(x, process.states)
    return Samples(x, run.forward, seconds, noise.seeds, method.name, done, backward=run.backward, states=states)


def _start(
    shape_or_start: Tensor | Sequence[int], model: Any, seed: int | Sequence[int] | None, device: torch.device | str | None
) -> tuple[Tensor, FreshNoise]:
    """Return the tokens to start from, given or drawn from the prior, and the source of uniform numbers."""
    process: TokenProcess = model.process
    device = None if device is None else as_device(device)
    if isinstance(shape_or_start, Tensor):
        x = check_tokens(shape_or_start, process.states, "tokens to start from")
        x = x.to(x.device if device is None else device)
        return x, FreshNoise(sample_seeds(seed, len(x)), x.device)
    shape = check_shape(shape_or_start, "(64, 8) for 64 words of 8 letters")
    noise = FreshNoise(sample_seeds(seed, shape[0]), model.device if device is None else device)
    u = noise.uniform(shape)
    return draw_tokens(process.prior.expand(*shape, process.states), u).to(noise.device), noise


def _kept_times(keep: Any, times: Sequence[float], method: TokenSolver) -> dict[float, float]:
    """Return the times to keep by the points of the path at which they are."""
    if keep is None:
        return {}
    asked = [float(t) for t in (torch.as_tensor(keep, dtype=torch.float64).flatten().tolist())]
    if method.description.evaluations is None:
        raise ValueError(f"got times to keep for solver {method.name!r}, whose samples have times of their own")
    near = {t: min(times, key=lambda point: abs(point - t)) for t in asked}
    if missed := [t for t, point in near.items() if abs(point - t) > 1e-9]:
        raise ValueError(f"got times to keep {missed}, at which the path has no point; expected some of {times}")
    return {point: t for t, point in near.items()}
