r"""Updates: the steps into which a solver turns a path, and the only form in which a driver sees a solver.

A :class:`Row` evaluates the model at the current state y, if ``at`` is a point, which appends
:math:`N = p\,y + q\,m(y)` to the history, and then sets

.. math:: y = a\,x + \sum_j w_j N_j + \sum_k s_k\,\xi_k

with x the state at the start of the step. ``w[0]`` belongs to the newest N and ``s[0]`` to the newest draw of noise. The row
that ends a step makes y the new x.
Two updates are not linear: the step size of a :class:`Langevin` correction depends on the state, and the noise of a
:class:`LearnedNoise` step on the model.

An update applies itself, :meth:`Update.apply`, to :class:`States`: the state, the history and the draws of a loop, with a
few operations on them. A state may be a tensor overwritten in place, an affine form or a sensitivity; updates need not know.
So there is one loop, :func:`run`, and every driver and every analysis runs that loop on its own kind of states.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.sde.modes import ModalMap
from scoresde.solvers.path import Point
from scoresde.solvers.scalar import plain

__all__ = [
    "Jump",
    "Langevin",
    "LearnedNoise",
    "Row",
    "State",
    "States",
    "Update",
    "evaluations",
    "from_json",
    "plus",
    "run",
    "scaled",
    "to_json",
]


class State(NamedTuple):
    """The state ``x`` at a point of the path, after ``step`` steps; ``info`` holds what a driver or a solver reports.

    Example:
        >>> from scoresde import EDM, problems, solvers
        >>> path, model = solvers.make_path(EDM(), [4.0, 2.0, 1.0], end="stop"), problems.ring().model(EDM())
        >>> states = solvers.ddim().states(path, model, torch.ones(1, 2), solvers.FreshNoise([0], "cpu"))
        >>> [(state.step, round(state.point.sigma, 6)) for state in states]
        [(1, 2.0), (2, 1.0)]
    """

    step: int
    point: Point
    x: Tensor
    info: Mapping[str, Any] | None = None


class States(ABC):
    """Interface of the states of a loop: the values kept between updates, and the operations of an update on them.

    Attributes:
        x: the state at the start of the step.
        y: the current state.
        step: the number of steps that have ended.
    """

    x: Any
    y: Any
    step: int = 0

    @abstractmethod
    def predict(self) -> Any:
        """Evaluate the model, at the time of the update, at the current state."""

    @abstractmethod
    def draw(self, start: Point, to: Point, kernel: float) -> None:
        """Draw noise over an interval and remember it as the newest draw."""

    @abstractmethod
    def draw_apart(self, start: Point, to: Point, kernel: float) -> Any:
        """Draw noise over an interval without remembering it, since no later update uses it."""

    @abstractmethod
    def combine(self, row: Row, m: Any | None) -> None:
        """Remember N = p y + q m, unless ``m`` is ``None``, and set y to the sum of the row."""

    @abstractmethod
    def replace(self, y: Any, to: Point, ends_step: bool) -> None:
        """Make ``y`` the state, at the point ``to``."""

    @abstractmethod
    def ratio(self, xi: Any, score: Any, norm: str) -> Any:
        """Return the norm of ``xi`` over the norm of ``score``, in a form that multiplies a state: see :class:`Langevin`."""


class Update(ABC):
    """Interface of the updates of a loop: each may evaluate the model, draw noise and change the states.

    Attributes:
        at: the point at which the model is evaluated, or ``None``.
        to: the point of the state after the update.
        ends_step: whether a step ends with this update.
    """

    at: Point | None
    to: Point
    ends_step: bool

    linear: ClassVar[bool] = False
    """Whether the update is linear in the state, the history and the draws, with coefficients known beforehand."""

    learned: ClassVar[bool] = False
    """Whether the update needs both outputs of a model with a learned variance."""

    in_place: ClassVar[bool] = True
    """Whether the update may overwrite the memory of the states; one with linear maps for coefficients makes new states."""

    jumps: ClassVar[bool] = False
    """Whether a model that predicts whole jumps is told where the update ends: see :class:`Jump`."""

    @abstractmethod
    def apply(self, on: States) -> None:
        """Make this update on the states of a loop."""

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The coefficients of the update, any of which may be a tensor that carries gradients."""
        return ()

    @property
    def lookback(self) -> tuple[int, int]:
        """The numbers of evaluations and of draws that the update uses, the newest included."""
        return 0, 0

    @property
    def draws(self) -> bool:
        """Whether the update draws noise."""
        return True

    @property
    def shown(self) -> bool:
        """Whether a driver shows the state after the update, which is then no inner stage of a step."""
        return True

    @property
    def goes_back(self) -> bool:
        """Whether the update is a move towards the noise."""
        return False

    @property
    def follows_path(self) -> bool:
        """Whether all noise of the update comes from the Brownian path in lam that solvers can share."""
        return self.linear and not self.goes_back

    @abstractmethod
    def __str__(self) -> str:
        """Return one line of a table of updates: "*" where a step ends, the times, the coefficients."""


@dataclass(frozen=True)
class Row(Update):
    """A linear update: see the module.

    Attributes:
        to: the point of y after the update.
        at: the point at which the model is evaluated first, or ``None``.
        a, w, s: the factors of the state, of the history and of the draws of noise, both newest first.
        p, q: the factors in N = p y + q m.
        draw: the interval over which noise is drawn first, or ``None``.
        kernel: the rate k of the integral of e^{k s} dW_s over the interval, for which the draw stands.
        ends_step: whether y becomes the state from which the next rows start.

    Example:
        >>> from scoresde import EDM, solvers
        >>> (row,) = solvers.ddim().rows(solvers.make_path(EDM(), [4.0, 1.0], end="stop"))
        >>> row.at.t, row.to.t, round(row.a, 6), round(row.w[0], 6)  # y = x / 4 + 3 m / 4
        (4.0, 1.0, 0.25, 0.75)
    """

    to: Point
    at: Point | None
    a: float
    w: tuple[float, ...] = ()
    s: tuple[float, ...] = ()
    p: float = 0.0
    q: float = 1.0
    draw: tuple[Point, Point] | None = None
    kernel: float = 0.0
    ends_step: bool = True
    linear: ClassVar[bool] = True

    def apply(self, on: States) -> None:
        m = on.predict() if self.at is not None else None
        if self.draw is not None:
            on.draw(*self.draw, self.kernel)
        on.combine(self, m)

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (self.a, self.p, self.q, *self.w, *self.s)

    @property
    def lookback(self) -> tuple[int, int]:
        return len(self.w), len(self.s)

    @property
    def draws(self) -> bool:
        return self.draw is not None

    @property
    def shown(self) -> bool:
        return self.ends_step

    @property
    def goes_back(self) -> bool:
        return self.draw is not None and self.draw[1].lam < self.draw[0].lam

    @property
    def follows_path(self) -> bool:
        return self.draw is None or self.draw[1].lam > self.draw[0].lam

    def __str__(self) -> str:
        at = f"{self.at.t:9.5f}" if self.at is not None else " " * 9
        w, s = (" ".join(f"{x:.6g}" for x in values) for values in (self.w, self.s))
        mix = f"{self.p:11.6g} {self.q:11.6g}" if self.at is not None else f"{'':11} {'':11}"
        return f"{'*' if self.ends_step else ' '} {at} {self.to.t:9.5f} {self.a:11.6g} {mix}  {w}" + (f" | {s}" if s else "")


@dataclass(frozen=True)
class Jump(Row):
    r"""The step of DDIM by a model that is told where it ends, and so may predict the whole jump from u to v,

    .. math:: x_v = \frac{\sigma_v}{\sigma_u} x_u + \Big( \alpha_v - \alpha_u \frac{\sigma_v}{\sigma_u} \Big)\, m(x_u, u, v),

    with the m that makes this equation exact. A model that predicts the data at u alone makes the step of DDIM.
    """

    jumps: ClassVar[bool] = True


@dataclass(frozen=True)
class Langevin(Update):
    r"""A Langevin correction at one point: :math:`x \leftarrow x + \epsilon\, s(x) + \sqrt{2 \epsilon}\, \xi` with the step

    .. math:: \epsilon = 2\, \mathrm{scale}\, (\mathrm{snr}\, \|\xi\| / \|s(x)\|)^2.

    ``norm="sample"`` takes the norms of each sample, ``norm="batch"`` their averages over the batch, as published.
    Source: Song et al., 2021, algorithms 4 and 5.

    Example:
        >>> from scoresde import VP, solvers
        >>> rows = solvers.predictor_corrector(snr=0.1).rows(solvers.make_path(VP(), "t", 3))
        >>> rows[1].snr, rows[1].at is rows[1].to
        (0.1, True)
    """

    at: Point
    snr: float
    scale: float = 1.0
    norm: str = "sample"
    ends_step: ClassVar[bool] = False  # type: ignore[misc]  # a constant here, a field of a row

    @property
    def to(self) -> Point:  # type: ignore[override]  # no field, since the point does not change
        """The point of the state after the correction, which is ``at``."""
        return self.at

    def apply(self, on: States) -> None:
        m = on.predict()
        xi = on.draw_apart(self.at, self.at, 0.0)
        score = (scaled(m, self.at.alpha) - on.x) / plain(self.at.sigma) ** 2
        step = 2 * plain(self.scale) * (self.snr * on.ratio(xi, score, self.norm)) ** 2
        on.replace(on.x + step * score + (2 * step) ** 0.5 * xi, self.at, self.ends_step)

    @property
    def coefficients(self) -> tuple[float, ...]:
        return self.snr, self.scale

    def __str__(self) -> str:
        return f"  {self.at.t:9.5f} {self.at.t:9.5f} Langevin: snr {self.snr:g}, scale {self.scale:.6g}, norm {self.norm}"


@dataclass(frozen=True)
class LearnedNoise(Update):
    r"""A step with noise of a standard deviation that the model gives for each number,
    :math:`x \leftarrow a\, x + w\, m + s_{lower}^{1 - f} s_{upper}^f\, \xi`.

    Here m is the data prediction, and f is the fraction given by the second output of the model: see
    :class:`~scoresde.ScoreModel`. Source: Nichol and Dhariwal, 2021, equation (15).

    Example:
        >>> from scoresde import EDM, solvers
        >>> (row,) = solvers.ancestral("learned").rows(solvers.make_path(EDM(), [4.0, 2.0], end="stop"))
        >>> round(row.lower**2, 6), round(row.upper**2, 6)
        (3.0, 12.0)
    """

    at: Point
    to: Point
    a: float
    w: float
    lower: float
    upper: float
    ends_step: ClassVar[bool] = True  # type: ignore[misc]
    learned: ClassVar[bool] = True
    kernel: ClassVar[float] = 1.0

    def apply(self, on: States) -> None:
        m, fraction = on.predict()
        xi = on.draw_apart(self.at, self.to, self.kernel)
        std = torch.exp(math.log(self.upper / self.lower) * fraction + math.log(self.lower))
        on.replace(torch.add(self.w * m, on.x, alpha=self.a) + std * xi, self.to, self.ends_step)

    @property
    def coefficients(self) -> tuple[float, ...]:
        return self.a, self.w, self.lower, self.upper

    def __str__(self) -> str:
        return f"* {self.at.t:9.5f} {self.to.t:9.5f} {self.a:11.6g} {self.w:.6g} | {self.lower:.6g} .. {self.upper:.6g}"


def run(rows: Sequence[Update], on: States) -> Iterator[State]:
    """Make the updates ``rows`` on the states ``on``, and yield each state that a driver shows."""
    for row in rows:
        row.apply(on)
        if row.shown:
            yield State(on.step, row.to, on.x)


def evaluations(rows: Sequence[Update]) -> int:
    """Count the evaluations of the model that ``rows`` make.

    Example:
        >>> from scoresde import VP, solvers
        >>> evaluations(solvers.heun().rows(solvers.make_path(VP(), "lam", 10)))
        19
    """
    return sum(row.at is not None for row in rows)


def scaled(x: Tensor, a: float) -> Tensor:
    """Return a x, for a number, a coefficient that carries gradients or a linear map."""
    return cast(Tensor, plain(a) * x)


def plus(y: Tensor, n: Tensor, w: float) -> Tensor:
    """Return y + w n, for a number, a coefficient that carries gradients or a linear map."""
    return y + plain(w) * n if isinstance(w, Tensor | ModalMap) else torch.add(y, n, alpha=w)


_KINDS: dict[str, type[Row | Langevin | LearnedNoise]] = {k.__name__: k for k in (Row, Jump, Langevin, LearnedNoise)}


def to_json(rows: Sequence[Update]) -> list[dict[str, Any]]:
    """Return the updates as plain values for ``json.dumps``.

    Example:
        >>> from scoresde import EDM, solvers
        >>> (row,) = to_json(solvers.ddim().rows(solvers.make_path(EDM(), [4.0, 1.0], end="stop")))
        >>> row["op"], row["ends_step"]
        ('Row', True)
    """
    return [{"op": type(row).__name__, **asdict(cast(Any, row))} for row in rows]


def from_json(values: Sequence[dict[str, Any]]) -> list[Update]:
    """Return the updates from the plain values made by :func:`to_json`.

    Example:
        >>> import json
        >>> from scoresde import VP, solvers
        >>> rows = solvers.ddim().rows(solvers.make_path(VP(), "t", 3))
        >>> from_json(json.loads(json.dumps(to_json(rows)))) == rows
        True
    """
    return [_KINDS[value["op"]](**{k: _restored(k, v) for k, v in value.items() if k != "op"}) for value in values]


def _restored(name: str, value: Any) -> Any:
    """Restore a field that JSON turned from a tuple or a point into a list."""
    if not isinstance(value, list | tuple):
        return value
    if name in ("to", "at"):
        return Point(*value)
    return tuple(Point(*point) for point in value) if name == "draw" else tuple(value)
