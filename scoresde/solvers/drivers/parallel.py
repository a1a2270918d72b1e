r"""The driver that runs many steps at once, by fixed-point iteration over a sliding window of evaluations.

The rows are a linear recursion driven by the data predictions :math:`m_r` at their inputs :math:`y_r`. Given the
predictions, the recursion gives every state. Given the states, one stacked call of the network gives every prediction. A
sweep does both in turn, with each prediction linearised about the input at which it was made,

.. math:: m_r(y) \approx m_r(y_r) + \frac{\alpha_r}{\alpha_r^2 + \sigma_r^2} (y - y_r),

which is exact where the data are standard normal (a sweep holds :math:`\alpha \epsilon - \sigma x_0` fixed). The first input
of the window is always exact, so that every sweep settles one evaluation at least. The fixed point is the sequential result,
whatever the linearisation.
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
    r"""A driver that stacks the evaluations of a window of steps into one call and yields each state as it settles.

    A sweep costs one call of the network on ``window`` times the batch. The ``info`` of the last state holds the number of
    sweeps, which is at most the number of evaluations and usually far smaller. The driver does more work than the sequential
    loop in fewer calls: use it on a device that a batch does not fill. The window slides past every input that moved by
    less than ``tolerance`` in the last sweep. So the result is the sequential one to about that tolerance, and to rounding
    with ``tolerance=0``. Noise is drawn in the order of the rows.

    Args:
        window: the number of evaluations that are stacked.
        tolerance: the root mean square move of an input between sweeps, for each sample, in units of the standard deviation
            :math:`\sqrt{\alpha^2 + \sigma^2}` of standard normal data there.
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
        >>> bool(torch.allclose(one.x, other.x, atol=1e-4)), one.info["sweeps"] < other.evaluations
        (True, True)
    """

    window: int = 32
    tolerance: float = 1e-3
    anderson: int = 0
    name: ClassVar[str] = "parallel"
    takes_matrices: ClassVar[bool] = False
    needs_linear_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window < 1 or not self.tolerance >= 0 or self.anderson < 0:
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
        return self._settle(rows, model, _Sweep(rows, x, noise, project))

    def _settle(self, rows: Sequence[Update], model: Denoiser, before: _Sweep) -> Iterator[State]:
        known: Known = {}
        mixer = _Anderson(self.anderson)
        settled, sweeps = 0, 0
        while settled < len(rows):
            # The first evaluation is made alone, since no prediction is known yet by which to extend the recursion.
            inside, end = _window(rows, settled, self.window if known else 1)
            if inside:
                inputs = mixer.next_inputs(before.over(settled, end, known)[0])
                predictions = _evaluate(model, [rows[r].at for r in inside], [inputs[r] for r in inside])
                known = {r: (inputs[r], m) for r, m in zip(inside, predictions, strict=True)}
                sweeps += 1
            outputs, after = before.over(settled, end, known)
            until = _first_moving(rows, outputs, known, self.tolerance) or end
            for r in range(settled, until):
                before = after[r]
                before.drawn.pop(r, None)
                if rows[r].ends_step:
                    yield State(before.step, rows[r].to, before.x, {"sweeps": sweeps})
            settled = until
            mixer.remember(known, outputs)


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


def _evaluate(model: Denoiser, points: Sequence[Point | None], inputs: list[Tensor]) -> Sequence[Tensor]:
    """Compute the predictions at several points, in one call with a time per sample."""
    times = torch.tensor([p.t for p in points if p is not None], dtype=torch.float64, device=inputs[0].device)
    return model(torch.cat(inputs), times.repeat_interleave(len(inputs[0]))).chunk(len(inputs))


def _first_moving(rows: Sequence[Update], outputs: dict[int, Tensor], known: Known, tolerance: float) -> int | None:
    """Return the first row whose input moved by more than the tolerance, after the first of the window, which is exact."""
    others = list(outputs)[1:]
    if not others:
        return None
    moves = [((outputs[r] - known[r][0]).flatten(1).square().mean(1).max().sqrt() / _deviation(rows[r])) for r in others]
    # The one wait for the device in a sweep. A move that is not a number counts as unsettled.
    return next((r for r, move in zip(others, torch.stack(moves).tolist(), strict=True) if not move <= tolerance), None)


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
