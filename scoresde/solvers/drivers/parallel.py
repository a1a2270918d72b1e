r"""The driver that runs many steps at once, by fixed-point iteration over a sliding window of evaluations.

The rows are a linear recursion driven by the data predictions :math:`m_r` at their inputs :math:`y_r`. Given the
predictions, the recursion gives every state. Given the states, one stacked call of the network gives every prediction. A
sweep does both in turn, with each prediction linearised about the input at which it was made,

.. math:: m_r(y) \approx m_r(y_r) + \frac{\alpha_r}{\alpha_r^2 + \sigma_r^2} (y - y_r),

which is exact where the data are standard normal (a sweep holds :math:`\alpha \epsilon - \sigma x_0` fixed). The first input
of the window is always exact, so that every sweep settles one evaluation at least. The fixed point is the sequential result,
whatever the linearisation.

A window settles its inputs one after the other, and no later sweep corrects them. So at the end whole sweeps follow, over
all evaluations. Let :math:`d_k` be the move of a sample in the k-th of them, the largest over its states. If from there on
the moves fall by a factor of q or less, the distance from the fixed point is

.. math:: \sum_{j > k} d_j \le \frac{q}{1 - q}\, d_k, \qquad q = d_k / d_{k-1},

Ratios do fall in the long run: an input depends on earlier ones alone, so that the moves are bounded by the terms of an
exponential series, C^k / k!, for a model with a Lipschitz constant, and end with zero. The driver returns when this estimate
is below the tolerance for every sample, with q at most 1/2, or when nothing moves any more, which is the sequential result.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from scoresde.solvers.drivers.base import Driver
from scoresde.solvers.drivers.model import Denoiser, Project, jumping
from scoresde.solvers.drivers.states import Allocating
from scoresde.solvers.noise.fresh import NoiseSource
from scoresde.solvers.path import Point
from scoresde.solvers.updates import State, Update

__all__ = ["Parallel"]


@dataclass(frozen=True)
class Parallel(Driver):
    r"""A driver that stacks the evaluations of a window of steps into one call, and yields all states at the end.

    It does more work than the sequential loop in fewer calls: use it on a device that a batch does not fill. On a CPU it is
    slower.

    **What is guaranteed.** The root mean square distance of each state of each sample from the sequential one, in units of
    the standard deviation :math:`\sqrt{\alpha^2 + \sigma^2}` of standard normal data there, is *estimated* from how much the
    last two sweeps moved (see the module), and no result is returned until the estimate is at most ``tolerance``. The
    estimate is a bound where the moves go on falling at the rate at which they fell. No bound without an assumption on the
    model is possible, except for a result at which nothing moves: this is the sequential one, up to the rounding of a model
    whose rows depend on the size of the batch. The driver goes on until then where the estimate does not become small, and
    always with ``tolerance=0``. Rounding is not in the estimate: a stacked call may round differently, in float32 by 1e-6 of
    the largest state on the way.

    The ``info`` of the states holds ``"sweeps"``, the number of sweeps, at most twice the number of evaluations and usually
    far smaller; ``"distance"``, the estimate, 0 for the sequential result; and ``"window"``. Noise is drawn in the order of
    the rows.

    Args:
        window: the number of evaluations that are stacked. By default all, where the stack has at most 2^24 numbers, or else
            as many as have; and half as many each time the device runs out of memory.
        tolerance: the largest distance from the sequential result. By default half of the digits of the state's data type:
            1.5e-8 in float64, 3.5e-4 in float32.
        anderson: the number of earlier sweeps that Anderson acceleration combines, sample by sample; 0 is plain iteration.
            On mixtures with the whole path in the window, 1 saves up to a sixth of the sweeps; more than 2 may cost some.

    Raises:
        ValueError: for a window below 1, a negative tolerance or a negative ``anderson``. A call raises it for Langevin
            corrections, whose step depends on the state, for learned noise, and for coefficients that carry gradients.

    Sources: Shih et al., "Parallel Sampling of Diffusion Models", 2023, https://arxiv.org/abs/2305.16317; Tang et al.,
    "Accelerating Parallel Sampling of Diffusion Models", 2024, https://arxiv.org/abs/2402.09970, for the acceleration.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> drivers = Parallel(tolerance=1e-6), "fast"
        >>> one, other = (scoresde.sample(model, (8, 2), steps=40, driver=d, progress=False) for d in drivers)
        >>> bool(torch.allclose(one.x, other.x, rtol=0, atol=1e-5)), one.info["sweeps"] < other.evaluations
        (True, True)
        >>> one.info["distance"] <= 1e-6
        True
    """

    window: int | None = None
    tolerance: float | None = None
    anderson: int = 0
    name: ClassVar[str] = "parallel"
    takes_matrices: ClassVar[bool] = False
    needs_linear_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        window, tolerance = 1 if self.window is None else self.window, 0 if self.tolerance is None else self.tolerance
        if window < 1 or not tolerance >= 0 or self.anderson < 0:
            raise ValueError(
                f"got window={self.window}, tolerance={self.tolerance}, anderson={self.anderson}; expected window >= 1, "
                "tolerance >= 0, anderson >= 0"
            )

    def __call__(
        self, rows: Sequence[Update], model: Denoiser, x: Tensor, noise: NoiseSource, *, project: Project | None = None
    ) -> Iterator[State]:
        self.check(rows)
        if jumping(rows, model):
            raise ValueError(
                "got jumps by a model of jumps for driver 'parallel', which evaluates many steps at once and tells "
                "the model no ends; take driver='fast'"
            )
        return self._states(rows, model, _Sweep(rows, x, noise, project))

    def _states(self, rows: Sequence[Update], model: Denoiser, start: _Sweep) -> Iterator[State]:
        x = start.x
        tolerance = math.sqrt(torch.finfo(x.dtype).eps) if self.tolerance is None else self.tolerance
        stack = _Stack(model, max(2, MOST // x.numel()) if self.window is None else self.window)
        found = self._settled(rows, stack, start, LOOSE * tolerance)
        if not found.exact:
            found = _verified(rows, stack, start, found, tolerance)
        window = min(stack.size, sum(row.at is not None for row in rows))
        info = {"sweeps": found.sweeps, "distance": found.distance, "window": window}
        for r, row in enumerate(rows):
            if row.ends_step:
                yield State(found.after[r].step, row.to, found.after[r].x, info)

    def _settled(self, rows: Sequence[Update], stack: _Stack, start: _Sweep, tolerance: float) -> _Found:
        """Slide a window over the rows, past every input that moved by less than the tolerance in the last sweep."""
        known: Known = {}
        found = _Found({}, {})
        mixer = _Anderson(self.anderson)
        before, settled = start, 0
        while settled < len(rows):
            # The first evaluation is made alone, since no prediction is known yet by which to extend the recursion.
            inside, end = _window(rows, settled, stack.size if known else 1)
            if inside:
                inputs = mixer.next_inputs(before.over(settled, end, known)[0])
                known = stack.evaluate(rows, {r: inputs[r] for r in inside})
                found.sweeps += 1
            outputs, after = before.over(settled, end, known)
            until, moved = _first_moving(rows, outputs, known, tolerance)
            until = until or end
            found.exact &= not moved
            for r in range(settled, until):
                found.after[r] = before = after[r]
                if r in known:
                    found.known[r] = known[r]
            settled = until
            mixer.remember(known, outputs)
        return found


MOST = 2**24
"""The most numbers that a window chosen by the driver stacks."""

LOOSE = 100
"""How many tolerances an input may move as the window slides past it; two whole sweeps usually gain more than that."""

SAFE = 0.1
"""The smallest factor between two moves that an estimate counts on."""


@dataclass
class _Found:
    """The states after every row, the evaluations they were made with, and what is known of their distance.

    ``exact``: the states are those of the sequential loop.
    """

    known: Known
    after: dict[int, _Sweep]
    sweeps: int = 0
    distance: float = 0.0
    exact: bool = True


def _verified(rows: Sequence[Update], stack: _Stack, start: _Sweep, found: _Found, tolerance: float) -> _Found:
    """Make whole sweeps until the estimated distance from the sequential result is at most the tolerance."""
    known, sweeps = dict(found.known), found.sweeps
    inputs, after = start.over(0, len(rows), known)
    states, previous = _states_of(rows, inputs, after), None
    for _ in known:  # each sweep makes one more input exact
        moved = _moved(inputs, known)
        if not moved:
            break
        known |= stack.evaluate(rows, {r: inputs[r] for r in moved})
        sweeps += 1
        inputs, after = start.over(0, len(rows), known)
        now = _states_of(rows, inputs, after)
        moves = torch.stack([_size(b - a) / d for (a, d), (b, _) in zip(states, now, strict=True)]).amax(0).double()
        distance = _distance(moves, previous)
        if distance <= tolerance:
            return _Found(known, after, sweeps, distance, exact=False)
        states, previous = now, moves
    return _Found(known, after, sweeps)


def _states_of(rows: Sequence[Update], inputs: dict[int, Tensor], after: dict[int, _Sweep]) -> list[tuple[Tensor, float]]:
    """Return the inputs of all evaluations and the end, each with the deviation of standard normal data there."""
    last = len(rows) - 1
    to = rows[last].to
    return [*((y, _deviation(rows[r])) for r, y in inputs.items()), (after[last].x, math.hypot(to.alpha, to.sigma))]


def _size(x: Tensor) -> Tensor:
    """Return the root mean square of each sample."""
    return x.flatten(1).square().mean(1).sqrt()


def _moved(inputs: dict[int, Tensor], known: Known) -> list[int]:
    """Return the rows whose inputs are not the ones at which they were evaluated."""
    same = torch.stack([(y == known[r][0]).all() for r, y in inputs.items()]).tolist()
    return [r for r, still in zip(inputs, same, strict=True) if not still]


def _distance(moves: Tensor, previous: Tensor | None) -> float:
    """Estimate the distance of the last sweep from the fixed point, the largest of all samples, from two sweeps' moves."""
    if previous is None:
        return math.inf if bool((moves != 0).any()) else 0.0
    q = (moves / previous).clamp(min=SAFE)
    estimate = torch.where(q <= 0.5, moves * q / (1 - q), math.inf)
    return float(torch.where(moves == 0, 0.0, estimate).max())


Known = dict[int, tuple[Tensor, Tensor]]
"""The inputs and the predictions of evaluations, by the number of their row."""


class _Sweep(Allocating):
    """The states before a row, which are extended over the next rows by the known predictions.

    A copy shares what was drawn for the rows so far, and no update changes the tensors of another.
    """

    def __init__(self, rows: Sequence[Update], x: Tensor, noise: NoiseSource, project: Project | None) -> None:
        super().__init__(rows, iter(()), x, noise, project)
        self.copies = False  # predictions are extended linearly into memory of their own
        self.rows, self.row = rows, 0
        self.known: Known = {}
        self.inputs: dict[int, Tensor] = {}
        self.drawn: dict[int, Tensor] = {}

    def over(self, start: int, end: int, known: Known) -> tuple[dict[int, Tensor], dict[int, _Sweep]]:
        """Return the inputs of all evaluations of the rows from ``start`` to ``end``, and the states after every row."""
        on, after = copy.copy(self), {}
        on.known, on.inputs = known, {}
        for r in range(start, end):
            on.row = r
            self.rows[r].apply(on)
            after[r] = copy.copy(on)
        return on.inputs, after

    def predict(self) -> Tensor:
        self.inputs[self.row] = self.y
        if self.row not in self.known:
            return next(reversed(self.known.values()))[1] if self.known else self.y
        at = cast(Point, self.rows[self.row].at)
        there, prediction = self.known[self.row]
        return torch.add(prediction, self.y - there, alpha=at.alpha / (at.alpha**2 + at.sigma**2))

    def draw_apart(self, start: Point, to: Point, kernel: float) -> Tensor:
        if self.row not in self.drawn:
            self.drawn[self.row] = super().draw_apart(start, to, kernel)
        return self.drawn[self.row]


def _window(rows: Sequence[Update], start: int, size: int) -> tuple[list[int], int]:
    """Return the first ``size`` rows from ``start`` on that evaluate, and the end of the rows that need no more of them."""
    evaluating = [r for r in range(start, len(rows)) if rows[r].at is not None][: size + 1]
    return (evaluating[:size], evaluating[size]) if len(evaluating) > size else (evaluating, len(rows))


class _Stack:
    """A model that is evaluated at several states of the batch in one call, of at most ``size`` of them."""

    def __init__(self, model: Denoiser, size: int) -> None:
        self.model, self.size = model, size

    def evaluate(self, rows: Sequence[Update], inputs: dict[int, Tensor]) -> Known:
        """Return the inputs and the predictions of these rows, halving the stack where the memory of the device is full."""
        found: Known = {}
        left = list(inputs)
        while left:
            part = left[: self.size]
            try:
                found |= self._evaluate(rows, {r: inputs[r] for r in part})
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.size = len(part) // 2
                continue
            left = left[len(part) :]
        return found

    def _evaluate(self, rows: Sequence[Update], inputs: dict[int, Tensor]) -> Known:
        """Compute the predictions in one call with a time per sample."""
        stacked = list(inputs.values())
        at = [cast(Point, rows[r].at).t for r in inputs]
        times = torch.tensor(at, dtype=torch.float64, device=stacked[0].device)
        predictions = self.model(torch.cat(stacked), times.repeat_interleave(len(stacked[0]))).chunk(len(stacked))
        return {r: (y, m) for (r, y), m in zip(inputs.items(), predictions, strict=True)}


def _first_moving(
    rows: Sequence[Update], outputs: dict[int, Tensor], known: Known, tolerance: float
) -> tuple[int | None, bool]:
    """Return the first row whose input moved by more than the tolerance, and whether any before it moved at all.

    The first of the window is exact.
    """
    others = list(outputs)[1:]
    if not others:
        return None, False
    moves = [_size(outputs[r] - known[r][0]).max() / _deviation(rows[r]) for r in others]
    # The one wait for the device in a sweep. A move that is not a number counts as unsettled.
    sizes = torch.stack(moves).tolist()
    still = next((i for i, move in enumerate(sizes) if not move <= tolerance), len(sizes))
    return others[still] if still < len(others) else None, any(move != 0 for move in sizes[:still])


def _deviation(row: Update) -> float:
    assert row.at is not None
    return math.hypot(row.at.alpha, row.at.sigma)


class _Anderson:
    """Anderson acceleration of the inputs u = G(u), sample by sample, over the evaluations that two sweeps share.

    With f = G(u) - u, the next inputs are G(u) - sum_j gamma_j (dG)_j, where gamma minimises ``|f - sum_j gamma_j (df)_j|``
    and d is the difference of successive sweeps (Walker and Ni, "Anderson Acceleration for Fixed-Point Iterations", 2011).
    """

    def __init__(self, memory: int) -> None:
        self.past = deque[dict[int, tuple[Tensor, Tensor]]](maxlen=memory + 1)  # for each row: G(u) and f

    def remember(self, known: Known, outputs: dict[int, Tensor]) -> None:
        self.past.append({r: (g, g - known[r][0]) for r, g in outputs.items()})

    def next_inputs(self, plain: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the inputs of the next sweep; plain iteration would take ``plain``."""
        shared = [r for r in list(plain)[1:] if all(r in sweep for sweep in self.past)]
        if len(self.past) < 2 or not shared:
            return plain
        # All sweeps kept: (sweep, row, batch, features).
        g, f = (torch.stack([torch.stack([s[r][i].flatten(1) for r in shared]) for s in self.past]) for i in (0, 1))
        df, now = f.diff(dim=0).double(), f[-1].double()
        # An input depends on earlier inputs alone, and so may its mixture: hence the cumulative sums over rows.
        gram = torch.einsum("irbn,jrbn->rbij", df, df).cumsum(0)
        target = torch.einsum("irbn,rbn->rbi", df, now).cumsum(0)
        # A small diagonal is added, since successive sweeps become parallel, and differences zero.
        ridge = 1e-8 * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.finfo(torch.float64).tiny
        gamma = torch.linalg.solve(gram + ridge[..., None, None] * torch.eye(len(df)).to(gram), target)
        change = torch.einsum("rbi,irbn->rbn", gamma.to(g.dtype), g.diff(dim=0))
        return {**plain, **{r: plain[r] - c.reshape(plain[r].shape) for r, c in zip(shared, change, strict=True)}}
